//! Locking a VM in: what its threads may still do once the guest runs.
//!
//! A guest that takes over a thread of the VMM should gain nothing by it. So the process opens its
//! files first, gives up privileges and files, and then makes its threads, each of which gives up system calls:
//!
//! | file | gives away |
//! | --- | --- |
//! | [`rules`], `program`, [`seccomp`], [`trap`] | system calls, per kind of thread; the report of a forbidden one |
//! | [`thread`] | starts a thread that is locked in before it serves |
//! | `allocator` | nothing: it keeps the C library from needing a file later |
//! | [`privileges`] | new privileges, capabilities, core dumps |
//! | [`reach`] | files, by Landlock |
//! | [`jail`] | for root: other processes, mounts, and being root |
//!
//! The library's user decides, by [`crate::Config::confinement`]. The default gives nothing away, because the thread
//! that calls [`crate::Vm::start`] is locked in too, and this library does not know what else the embedder does there. `tidevm` gives
//! away everything. `docs/confinement.md` is the list for people.

use std::io;
use std::path::Path;

mod allocator;
pub mod jail;
pub mod privileges;
mod program;
pub mod reach;
pub mod rules;
pub mod seccomp;
pub mod thread;
pub mod trap;

use crate::budget;
use rules::Kind;
pub use seccomp::Seccomp;
pub use trap::FORBIDDEN;

/// What a VM gives away when it starts. Nothing of it can be taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// System calls. The thread that starts the VM can afterwards use the VM, write to open files, and end. It can
    /// neither open a file nor start a thread, and so no second VM.
    pub seccomp: Seccomp,
    /// Privileges, capabilities and core dumps. The process as a whole can no longer be dumped; the rest concerns
    /// the thread that starts the VM, and the threads of the VM.
    pub drop_privileges: bool,
    /// Files, of the same threads, where the kernel has Landlock.
    pub landlock: bool,
}

/// What could not be given away.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// Privileges.
    #[error("cannot {step}: {error}")]
    Privileges {
        /// The step.
        step: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// Files.
    #[error("cannot restrict files by Landlock: {0}")]
    Landlock(#[from] reach::ReachError),
    /// System calls.
    #[error(
        "cannot install the system-call filter of a thread ({kind}): {error}; --seccomp off does without"
    )]
    Seccomp {
        /// The kind of thread.
        kind: Kind,
        /// The error.
        error: String,
    },
}

impl Confinement {
    /// Everything is given away.
    pub const STRICT: Self = Self { seccomp: Seccomp::On, drop_privileges: true, landlock: true };

    /// Locks in this thread, and those that it starts, except for system calls. All files are open.
    pub(crate) fn before_threads(&self) -> Result<(), ConfinementError> {
        self.prepare_heap();
        self.forbid_privileges()?;
        if self.drop_privileges {
            privileges::drop_capabilities().map_err(step("drop capabilities"))?;
        }
        if self.landlock {
            reach::restrict_files(&[], &[])?;
        }
        Ok(())
    }

    /// Prepares the heap of the threads that start from now on for their filters.
    pub(crate) fn prepare_heap(&self) {
        if self.seccomp != Seccomp::Off {
            allocator::use_one_heap();
        }
    }

    /// Takes away the system calls that a thread of `kind` does not need from this thread.
    pub(crate) fn filter(&self, kind: Kind) -> Result<(), ConfinementError> {
        let failed = |error: seccompiler::Error| ConfinementError::Seccomp { kind, error: error.to_string() };
        seccomp::install(kind, self.seccomp).map_err(failed)
    }

    /// Locks in a thread that starts VMs one after another, each in a thread of its own. It keeps its capabilities,
    /// which open /dev/kvm for some users, and can write below `writable`; each VM gives away the rest.
    ///
    /// # Errors
    /// [`ConfinementError`]; a part of it may be done.
    pub fn of_starter(&self, writable: &[&Path]) -> Result<(), ConfinementError> {
        self.prepare_heap();
        budget::keep();
        self.forbid_privileges()?;
        if self.landlock {
            let devices = [Path::new("/dev/kvm")];
            let devices = devices.into_iter().filter(|device| device.exists());
            let writable: Vec<_> = devices.chain(writable.iter().copied()).collect();
            reach::restrict_files(&[Path::new("/proc")], &writable)?;
        }
        self.filter(Kind::Starter)
    }

    fn forbid_privileges(&self) -> Result<(), ConfinementError> {
        if self.drop_privileges {
            privileges::forbid_new().map_err(step("forbid new privileges"))?;
            privileges::forbid_dumps().map_err(step("forbid core dumps"))?;
        }
        Ok(())
    }
}

/// For `map_err`: the step `step` failed.
fn step(step: &'static str) -> impl FnOnce(io::Error) -> ConfinementError {
    move |error| ConfinementError::Privileges { step, error }
}

#[cfg(test)]
mod tests;
