//! The first process: it starts the agent, and then becomes the user's init.
//!
//! Mirrors Linux's choice of the first program (`init/main.c`, `kernel_init`): the program that `rdinit=` names, `/init`, and
//! then `/sbin/init`, `/etc/init`, `/bin/init` and `/bin/sh`. It differs on purpose: all of them are looked for in the
//! initramfs. A kernel mounts the root file system that `root=` names when there is no `/init`; here there is one, the agent.
//! Without any of them the guest is up all the same, with the agent alone.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{WaitOptions, wait};
use tidevm_abi::kernel::{AGENT_PATH, RDINIT};

use crate::{NAME, SERVE, files};

/// What Linux looks for, in this order.
const USUAL: [&str; 5] = ["/init", "/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];

/// Starts the agent, and becomes the user's init. Returns only when there is nothing left to do but to end, which is the end
/// of the guest.
pub fn run() -> ExitCode {
    if let Err(error) = Command::new(AGENT_PATH).arg0(NAME).arg(SERVE).spawn() {
        // The user's init goes on without it, and the VMM says that the agent was waited for.
        files::log(&format!("cannot start the agent {AGENT_PATH}: {error}"));
    }
    let line = command_line().unwrap_or_else(|error| {
        files::log(&format!("the kernel's command line is unknown: {error}"));
        String::new()
    });
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let named = users_init(&line);
    for program in named.into_iter().chain(USUAL) {
        let Err(error) = become_program(program, &arguments);
        if error.kind() != io::ErrorKind::NotFound || Some(program) == named {
            files::log(&format!("cannot start {program}: {error}"));
        }
    }
    // The agent is alone. The processes of others come to the first one when their parents end.
    while wait(WaitOptions::empty()).is_ok() {}
    files::log("the agent has ended, and there is no other program");
    ExitCode::FAILURE
}

/// Replaces this process by `program`.
fn become_program(program: &str, arguments: &[OsString]) -> Result<Infallible, io::Error> {
    Err(Command::new(program).args(arguments).exec())
}

/// The kernel's command line. The current folder stays, because it is that of the user's init.
fn command_line() -> io::Result<String> {
    let proc = files::mount("proc")?;
    let file = openat(&proc, "cmdline", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut line = Vec::new();
    File::from(file).read_to_end(&mut line)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// The user's `rdinit=`: the last one that does not name the agent. What follows `--` is for the program.
fn users_init(line: &str) -> Option<&str> {
    let words = line.split_ascii_whitespace().take_while(|word| *word != "--");
    let named = words.filter_map(|word| word.strip_prefix(RDINIT)?.strip_prefix('='));
    named.filter(|path| *path != AGENT_PATH).last()
}

#[cfg(test)]
mod tests {
    use super::users_init;

    #[test]
    fn the_users_own_first_program_is_found() {
        for (line, program) in [
            ("console=ttyS0 rdinit=/.tidevm/agent\n", None),
            ("rdinit=/a quiet rdinit=/b rdinit=/.tidevm/agent", Some("/b")),
            ("xrdinit=/a rdinit", None),
            ("quiet rdinit=/.tidevm/agent -- rdinit=/c", None),
        ] {
            assert_eq!(users_init(line), program, "{line}");
        }
    }
}
