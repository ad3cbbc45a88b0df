//! System-call filters: a thread makes the calls of its [`Kind`], and any other call ends the process.
//!
//! A filter acts on the thread that installs it and on threads that this thread starts afterwards; a thread cannot
//! take it off. Each thread of a VM installs its own when all files are open, before the thread serves anything, and before the
//! guest runs. `SECCOMP_FILTER_FLAG_TSYNC` is not used: it gives all threads one filter.
//!
//! Under [`Seccomp::On`] a forbidden call is not made. It raises SIGSYS in its thread, and [`super::trap`] ends the
//! process with a report that names the call: see `docs/decisions/0015-a-forbidden-call-names-itself.md`.

use seccompiler::{BpfProgram, apply_filter};

use super::program::{LOG, TRAP, compile};
use super::rules::Kind;
use super::trap;

/// What happens at a system call that a thread's filter does not allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// Nothing: there is no filter.
    #[default]
    Off,
    /// The kernel logs the call (audit, or dmesg) and makes it.
    Log,
    /// The call is not made. The process reports it on stderr and ends with status [`super::FORBIDDEN`].
    On,
}

/// Installs the filter of `kind` on this thread, for good.
///
/// # Errors
/// The kernel has no seccomp filters, or a filter on this thread forbids further ones.
pub fn install(kind: Kind, mode: Seccomp) -> Result<(), seccompiler::Error> {
    let action = match mode {
        Seccomp::Off => return Ok(()),
        Seccomp::Log => LOG,
        Seccomp::On => {
            trap::prepare(kind);
            TRAP
        }
    };
    let program: BpfProgram = compile(kind.rules(), action, std::process::id());
    apply_filter(&program)
}
