//! System-call filters: a thread makes the calls of its [`Kind`], and any other call ends the process.
//!
//! A filter acts on the thread that installs it and on threads that this thread starts afterwards; a thread cannot
//! take it off. Each thread of a VM installs its own when all files are open, before the thread serves anything, and before the
//! guest runs. `SECCOMP_FILTER_FLAG_TSYNC` is not used: it gives all threads one filter.
//!
//! Under [`Seccomp::On`] a forbidden call is not made. It raises SIGSYS in its thread, and [`super::trap`] ends the
//! process with a report that names the call: see `docs/decisions/0015-a-forbidden-call-names-itself.md`.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::rules::{Check, Kind};
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
        Seccomp::Log => SeccompAction::Log,
        Seccomp::On => {
            trap::prepare(kind);
            SeccompAction::Trap
        }
    };
    apply_filter(&compile(kind, action)?)
}

/// The filter of `kind`, with `action` for calls that no rule allows.
fn compile(kind: Kind, action: SeccompAction) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for rule in kind.rules() {
        let checks = rules.entry(i64::from(rule.call.id())).or_insert_with(|| Some(Vec::new()));
        match conditions(rule.check)? {
            // One rule without a condition allows the call whatever the others say.
            None => *checks = None,
            Some(more) => {
                if let Some(checks) = checks {
                    checks.extend(more);
                }
            }
        }
    }
    let rules = rules.into_iter().map(|(call, checks)| (call, checks.unwrap_or_default())).collect();
    SeccompFilter::new(rules, action, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// The alternatives of a check, or [`None`] if it has no condition.
fn conditions(check: Check) -> Result<Option<Vec<SeccompRule>>, BackendError> {
    let equal = |index, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value))
    };
    let bits = |index, mask, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
    };
    let no_exec = || bits(2, libc::PROT_EXEC as u64, 0);
    let alternatives = match check {
        Check::Any => return Ok(None),
        Check::OneOf(index, values) => {
            let rule = |&(value, _): &(u32, &str)| SeccompRule::new(vec![equal(index, value)?]);
            values.iter().map(rule).collect::<Result<_, _>>()?
        }
        Check::OwnProcess => vec![SeccompRule::new(vec![equal(0, std::process::id())?])?],
        Check::NoExec => vec![SeccompRule::new(vec![no_exec()?])?],
        Check::NoExecMap(flag, _) => {
            let flag = u64::from(flag);
            vec![SeccompRule::new(vec![no_exec()?, bits(3, flag, flag)?])?]
        }
    };
    Ok(Some(alternatives))
}
