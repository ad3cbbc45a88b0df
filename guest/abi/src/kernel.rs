//! The kernels that carry out scripts: tidevm's own guest, and Linux with an agent. What each of them can do and tell.
//!
//! One program checks it before a script runs, so that nothing is refused in the middle of a session that could have been
//! refused at its start. The records are the same for all of them.
//!
//! Invariant: a counter that a kernel does not tell is shown nowhere, and never as 0.

use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::command::{Command, Corrupt, Expect, Hog};
use crate::metric::{GuestMetric, Metric};
use crate::words::Table;
use crate::{CorruptPart, HogKind};

/// Version of the records in this crate. A record that changes raises it. The agent of a Linux guest says which version it
/// speaks, because it may be that of another tidevm: in an initrd of the user, or in a snapshot.
pub const RECORDS_VERSION: u32 = 1;

/// Folder of the agent in the first file system of a Linux guest. The name is no path that an initrd uses.
pub const AGENT_FOLDER: &str = ".tidevm";

/// Path of the agent there.
pub const AGENT_PATH: &str = "/.tidevm/agent";

/// The key of Linux's command line that names its first program in an initramfs.
pub const RDINIT: &str = "rdinit";

/// A kernel that a script runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kernel {
    /// tidevm's own guest.
    #[default]
    Tidevm,
    /// Linux, with the agent that tidevm puts into its initramfs.
    Linux,
}

/// Words of the kernels, for options.
pub const KERNELS: Table<Kernel> = &[("tidevm", Kernel::Tidevm), ("linux", Kernel::Linux)];

impl Kernel {
    /// Why this kernel cannot carry out `command`; `None` if it can.
    #[must_use]
    pub fn refuses(self, command: &Command) -> Option<String> {
        if self == Self::Tidevm {
            return None;
        }
        match command.carried_out() {
            Command::Hog(Hog { kind: HogKind::Contiguous, .. }) => {
                Some("Linux gives a program no contiguous pages".into())
            }
            Command::Hog(Hog { scattered: true, .. }) => {
                Some("Linux chooses the pages of a program: leave out `scattered`".into())
            }
            Command::Corrupt(Corrupt { part: CorruptPart::Memmap, .. }) => {
                Some("Linux lets no program change its memmap".into())
            }
            Command::Expect(Expect { metric: Metric::Guest(metric), .. }) if !metric.told_by(self) => {
                Some(format!("Linux tells no {metric}"))
            }
            command @ (Command::Readd { .. }
            | Command::Pmem(_)
            | Command::Rebind { .. }
            | Command::Race(_)
            | Command::Probe(_)
            | Command::Inject { .. }) => {
                let text = format!("{command}");
                let verb = text.split(' ').next().unwrap_or_default();
                Some(format!(
                    "`{verb}` is for tidevm's own guest: Linux has no such thing for a program to use"
                ))
            }
            _ => None,
        }
    }
}

impl GuestMetric {
    /// Whether `kernel` tells this number.
    #[must_use]
    pub fn told_by(self, kernel: Kernel) -> bool {
        match self {
            Self::Whole(counter) => counter.told_by(kernel),
            Self::Zone(_, counter) | Self::NodeZone(_, _, counter) => counter.told_by(kernel),
            Self::Node(_, counter) => counter.told_by(kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kernel;
    use crate::command::VERBS;
    use crate::{Command, Metric};

    fn refuses(line: &str) -> Option<String> {
        let command: Command = line.parse().unwrap_or_else(|error| panic!("{line}: {error:?}"));
        assert_eq!(Kernel::Tidevm.refuses(&command), None, "{line}");
        Kernel::Linux.refuses(&command)
    }

    #[test]
    fn linux_does_what_a_program_can_do() {
        for line in [
            "resize 1G within 10s",
            "hog up to 64M movable full as a",
            "hog 64M unmovable as a",
            "hog 64M pinned as a",
            "churn 2 threads for 5s as a",
            "verify a",
            "release a",
            "corrupt a page 3",
            "stats",
            "check",
            "blocks",
            "meminfo",
            "reset",
            "expect plugged == 1G",
            "expect zone.Movable.present == 0",
            "expect node.1.zone.Normal.free > 0",
            "expect blocks.online == 4",
            "expect migrated > 0",
        ] {
            assert_eq!(refuses(line), None, "{line}");
        }
    }

    #[test]
    fn what_linux_cannot_do_is_refused_with_the_reason() {
        for (line, reason) in [
            ("hog 64M contiguous as a", "no contiguous pages"),
            ("hog 64M movable scattered as a", "leave out `scattered`"),
            ("corrupt a memmap", "change its memmap"),
            ("readd 1G at 4G", "`readd` is for tidevm's own guest"),
            ("rebind 0", "`rebind` is for"),
            ("race 3 cycles", "`race` is for"),
            ("probe tlb-flush", "`probe` is for"),
            ("inject online", "`inject` is for"),
            ("pmem", "`pmem` is for"),
            ("expect pcp.drains > 0", "Linux tells no pcp.drains"),
            ("expect node.0.init.local > 0", "Linux tells no node.0.init.local"),
            ("fails readd 1G at 4G because \"not\"", "`readd` is for"),
        ] {
            let refused = refuses(line).unwrap_or_else(|| panic!("{line} is not refused"));
            assert!(refused.contains(reason), "{line}: {refused}");
        }
    }

    /// A new command of the guest is to be thought of here: either the agent has it, or it is refused.
    #[test]
    fn every_command_was_decided() {
        let refused: Vec<&str> =
            VERBS.iter().filter(|verb| refuses(verb.example).is_some()).map(|verb| verb.word).collect();
        // `hog` for the words of its example.
        assert_eq!(refused, ["hog", "readd", "rebind", "race", "probe", "inject", "pmem"]);
        assert!(
            matches!(Metric::new("migrated"), Some(Metric::Guest(metric)) if metric.told_by(Kernel::Linux))
        );
    }
}
