//! Which commands a kernel can carry out, and which numbers it tells.
//!
//! A session checks it before the guest boots, so that nothing is refused in the middle that could have been refused at the
//! start.

use alloc::format;
use alloc::string::String;

use super::{Command, Corrupt, Expect, Hog};
use crate::kernel::Kernel;
use crate::metric::Metric;
use crate::{CorruptPart, HogKind};

impl Command {
    /// Why `kernel` cannot carry out this command; `None` if it can.
    #[must_use]
    pub fn refused_by(&self, kernel: Kernel) -> Option<String> {
        if kernel == Kernel::Tidevm {
            return None;
        }
        match self.carried_out() {
            Self::Hog(Hog { kind: HogKind::Contiguous, .. }) => {
                Some("Linux gives a program no contiguous pages".into())
            }
            Self::Hog(Hog { scattered: true, .. }) => {
                Some("Linux chooses the pages of a program: leave out `scattered`".into())
            }
            Self::Corrupt(Corrupt { part: CorruptPart::Memmap, .. }) => {
                Some("Linux lets no program change its memmap".into())
            }
            Self::Expect(Expect { metric: Metric::Guest(metric), .. }) if !metric.told_by(kernel) => {
                Some(format!("Linux tells no {metric}"))
            }
            command @ (Self::Readd { .. }
            | Self::Pmem(_)
            | Self::Rebind { .. }
            | Self::Race(_)
            | Self::Probe(_)
            | Self::Inject { .. }) => {
                let text = format!("{command}");
                let verb = text.split(' ').next().unwrap_or_default();
                Some(format!(
                    "`{verb}` is for tidevm's own guest: Linux has no such thing for a program to use"
                ))
            }
            // No `_`: whoever adds a command decides here whether Linux has it.
            Self::Resize(_)
            | Self::Hog(_)
            | Self::Churn(_)
            | Self::Verify(_)
            | Self::Release(_)
            | Self::Wait(_)
            | Self::WaitBoot { .. }
            | Self::Step(_)
            | Self::Expect(_)
            | Self::ExpectConsole(_)
            | Self::Fails(_)
            | Self::Stats
            | Self::Check
            | Self::Blocks
            | Self::Meminfo
            | Self::Reset { .. }
            | Self::Sleep(_)
            | Self::Corrupt(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::command::VERBS;
    use crate::{Command, Kernel, Metric};

    fn refuses(line: &str) -> Option<String> {
        let command: Command = line.parse().unwrap_or_else(|error| panic!("{line}: {error:?}"));
        assert_eq!(command.refused_by(Kernel::Tidevm), None, "{line}");
        command.refused_by(Kernel::Linux)
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
            "expect console contains \"login:\" within 60s",
            "expect no console matches /Oops|BUG:/",
            "wait boot within 60s",
            "wait a",
            "step \"grow\"",
            "sleep 200ms",
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
