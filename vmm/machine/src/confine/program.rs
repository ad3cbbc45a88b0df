//! From rules to the program of a filter, in classic BPF (Linux `Documentation/userspace-api/seccomp_filter.rst`).
//!
//! The kernel checks, translates and compiles each program when a thread installs it, in proportion to its length, and
//! the guest waits for that. So the program is as short as the rules allow: one instruction for a call that is allowed
//! whatever its arguments are, and one place where each verdict is given. `seccompiler`, which installs it, would give
//! each call a chain of its own, three times as long.
//!
//! ```text
//! another architecture: end the process
//! one comparison for each call without a check, which jumps to "allow"
//! for each call with checks: its comparison, then its checks, each of which jumps to "allow" or goes on
//! the action
//! allow
//! ```
//!
//! Invariants: a call that no rule allows gets the action. All jumps go forward, by less than 256 instructions.

use seccompiler::sock_filter;

use super::rules::{Check, Rule};

/// The call is not made; it raises SIGSYS.
pub const TRAP: u32 = libc::SECCOMP_RET_TRAP;
/// The call is made and logged.
pub const LOG: u32 = libc::SECCOMP_RET_LOG;

/// `AUDIT_ARCH_X86_64`. Another one means that the thread made a call of 32-bit programs.
const ARCHITECTURE: u32 = 0xc000_003e;

// Offsets in `struct seccomp_data`. The low half of an argument comes first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A place that is known when the program is complete, in place of a distance.
const ALLOW: u8 = 255;
/// The same, for the action.
const DENY: u8 = 254;

/// The program that allows what `rules` say in the process `pid`, and gives every other call `action`.
///
/// # Panics
/// When the rules, which are constants, are too many for a program of 253 instructions.
#[must_use]
pub fn compile<'r>(rules: impl Iterator<Item = &'r Rule>, action: u32, pid: u32) -> Vec<sock_filter> {
    let mut calls: Vec<(u32, Vec<Check>)> = Vec::new();
    for rule in rules {
        let number = rule.call.id() as u32;
        match calls.iter_mut().find(|(call, _)| *call == number) {
            Some((_, checks)) => checks.push(rule.check),
            None => calls.push((number, vec![rule.check])),
        }
    }
    // One rule without a condition allows the call whatever the others say.
    let (any, checked): (Vec<_>, Vec<_>) =
        calls.into_iter().partition(|(_, checks)| checks.iter().any(|check| matches!(check, Check::Any)));
    let mut program = vec![
        statement(LOAD, ARCH),
        jump(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER),
    ];
    program.extend(any.iter().map(|(number, _)| jump(JUMP_IF_EQUAL, *number, ALLOW, 0)));
    for (number, checks) in checked {
        let mut body = Vec::new();
        for check in checks {
            alternative(check, pid, &mut body);
        }
        // The last alternative has none to go on to.
        if let Some(last) = body.last_mut().filter(|last| last.jf == 0) {
            last.jf = DENY;
        }
        program.push(jump(JUMP_IF_EQUAL, number, 0, body.len() as u8));
        program.extend(body);
    }
    program.push(statement(RETURN, action));
    program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    assert!(program.len() < usize::from(DENY), "{} instructions", program.len());
    let (deny, allow) = (program.len() - 2, program.len() - 1);
    for (at, instruction) in program.iter_mut().enumerate() {
        if instruction.code == JUMP_IF_EQUAL || instruction.code == JUMP_IF_SET {
            for distance in [&mut instruction.jt, &mut instruction.jf] {
                *distance = match *distance {
                    ALLOW => (allow - at - 1) as u8,
                    DENY => (deny - at - 1) as u8,
                    near => near,
                };
            }
        }
    }
    program
}

/// The instructions for one alternative of a call: they jump to "allow", or go on behind their end. No alternative
/// allows memory to be made executable, so that is denied at once.
fn alternative(check: Check, pid: u32, body: &mut Vec<sock_filter>) {
    let argument = |index: u8| statement(LOAD, ARGUMENTS + 8 * u32::from(index));
    let is_executable = |wanted| jump(JUMP_IF_SET, libc::PROT_EXEC as u32, DENY, wanted);
    match check {
        Check::Any => {}
        Check::OneOf(index, values) => {
            body.push(argument(index));
            body.extend(values.iter().map(|(value, _)| jump(JUMP_IF_EQUAL, *value, ALLOW, 0)));
        }
        Check::OwnProcess => body.extend([argument(0), jump(JUMP_IF_EQUAL, pid, ALLOW, 0)]),
        Check::NoExec => body.extend([argument(2), is_executable(ALLOW)]),
        Check::NoExecMap(flag, _) => {
            body.extend([argument(2), is_executable(0), argument(3), jump(JUMP_IF_SET, flag, ALLOW, 0)]);
        }
    }
}

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests;
