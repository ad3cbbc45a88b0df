//! The programs, run by an interpreter, allow what the rules say and nothing else.

use std::collections::BTreeSet;

use super::*;
use crate::confine::rules::Kind;

const PID: u32 = 4711;

/// A call as the kernel shows it to a filter.
#[derive(Clone, Copy, Debug)]
struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

impl Call {
    fn word(self, offset: u32) -> u32 {
        match offset {
            NUMBER => self.number,
            ARCH => self.architecture,
            _ => {
                let at = offset - ARGUMENTS;
                (self.arguments[at as usize / 8] >> (at % 8 * 8)) as u32
            }
        }
    }
}

/// The verdict of `program`.
fn verdict(program: &[sock_filter], call: Call) -> u32 {
    let (mut at, mut loaded) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jumps = match code {
            LOAD => {
                loaded = call.word(k);
                continue;
            }
            RETURN => return k,
            JUMP_IF_EQUAL => loaded == k,
            JUMP_IF_SET => loaded & k != 0,
            _ => panic!("{code:#x}"),
        };
        at += usize::from(if jumps { jt } else { jf });
    }
}

/// Whether a check holds.
fn holds(check: Check, arguments: [u64; 6]) -> bool {
    let word = |index: usize| arguments[index] as u32;
    let no_exec = word(2) & libc::PROT_EXEC as u32 == 0;
    match check {
        Check::Any => true,
        Check::OneOf(index, values) => values.iter().any(|(value, _)| word(index.into()) == *value),
        Check::OwnProcess => word(0) == PID,
        Check::NoExec => no_exec,
        Check::NoExecMap(flag, _) => no_exec && word(3) & flag != 0,
    }
}

/// Values of arguments that rules ask for, and their neighbours.
fn values() -> Vec<u64> {
    let mut values = BTreeSet::from([0, 1, 2, 3, 4, 7, u64::from(PID), 1 << 32, u64::MAX]);
    for rule in Kind::ALL.into_iter().flat_map(Kind::rules) {
        let asked: Vec<u32> = match rule.check {
            Check::OneOf(_, asked) => asked.iter().map(|(value, _)| *value).collect(),
            Check::NoExecMap(flag, _) => vec![flag],
            _ => Vec::new(),
        };
        values.extend(asked.into_iter().flat_map(|value| [value, value ^ 1, value ^ 1 << 31]).map(u64::from));
    }
    values.into_iter().collect()
}

#[test]
fn a_program_allows_what_its_rules_say_and_nothing_else() {
    let values = values();
    for kind in Kind::ALL {
        let program = compile(kind.rules(), TRAP, PID);
        for number in (0..512).chain([1 << 30, 1 << 30 | 1, u32::MAX]) {
            let own: Vec<_> = kind.rules().filter(|rule| rule.call.id() as u32 == number).collect();
            for &value in &values {
                // The same value everywhere, or in one place beside flags that are always the same.
                for arguments in [[value; 6], [0, value, 1, 0x22, 0, 0], [0, 0, value, 0x22, 0, 0]] {
                    let call = Call { architecture: ARCHITECTURE, number, arguments };
                    let allowed = own.iter().any(|rule| holds(rule.check, arguments));
                    let wanted = if allowed { libc::SECCOMP_RET_ALLOW } else { TRAP };
                    assert_eq!(verdict(&program, call), wanted, "{kind}: {call:x?}");
                }
            }
        }
    }
}

#[test]
fn a_call_of_another_architecture_ends_the_process() {
    let program = compile(Kind::Vcpu { saves: false }.rules(), LOG, PID);
    for number in 0..512 {
        let call = Call { architecture: 0x4000_0003, number, arguments: [0; 6] };
        assert_eq!(verdict(&program, call), libc::SECCOMP_RET_KILL_PROCESS);
    }
}

/// The kernel's work is in proportion to it.
#[test]
fn a_program_is_short() {
    for kind in Kind::ALL {
        let rules = kind.rules().count();
        let length = compile(kind.rules(), TRAP, PID).len();
        assert!(length < 3 * rules && length <= 205, "{kind}: {length} instructions for {rules} rules");
    }
}
