//! The conversation of a judge and its guest, on the serial line (`tidevm judge`, and the guest's [`crate::cmdline::JUDGE`]).
//!
//! Mirrors the form of KVM-Unit-Tests: the guest judges and prints, the host reads. Differs on purpose: the host names each
//! row, and the guest can ask the host to set a target, because half of virtio-mem's rules are about what the host does.
//! `docs/conformance.md` lists the rows.
//!
//! ```text
//! guest: judge: ready mmio
//! host:  row D9
//! guest: judge: resize 268435456
//! host:  host ok
//! guest: judge: result D9 sent="a target of 256 MiB" came="a notification" verdict=PASS
//! ```
//!
//! Invariants: a line is at most [`MAX_LINE`] bytes long. A text is one line without quotation marks: [`Text`] makes it so.
//! Neither side trusts the other's lines: a line that is none of these is no message.

use core::fmt::{self, Display, Write};

use crate::words::{Table, value_of, word_for};

/// Longest line in bytes, without its end. A longer one is no message.
pub const MAX_LINE: usize = 1024;

/// Begins the guest's lines. Other lines are for people.
const GUEST: &str = "judge: ";
/// Begins the host's answers.
const HOST: &str = "host ";
const ROW: &str = "row ";
/// Ends the host's line for a row that goes on after a reset of the machine.
const AGAIN: &str = " again";

/// What came of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The device does what the rule says.
    Pass,
    /// No rule says what the device has to do. It refused, and works on.
    Reject,
    /// The row cannot be judged here.
    Skip,
    /// The device breaks the rule.
    Fail,
    /// There was no answer in time.
    Wedged,
}

/// Words of the verdicts.
pub const VERDICTS: Table<Verdict> = &[
    ("PASS", Verdict::Pass),
    ("REJECT", Verdict::Reject),
    ("SKIP", Verdict::Skip),
    ("FAIL", Verdict::Fail),
    ("WEDGED", Verdict::Wedged),
];

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(word_for(VERDICTS, self))
    }
}

/// A line of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromGuest<'a> {
    /// The guest takes rows. The device is reached by this transport: `mmio` or `pci`.
    Ready(&'a str),
    /// The guest cannot judge, for this reason.
    Unable(&'a str),
    /// The host shall set this target, in bytes, and answer.
    Resize(u64),
    /// The guest resets its machine now. The row with this id goes on after that.
    Resets(&'a str),
    /// The row with this id is judged.
    Result {
        /// The row.
        id: &'a str,
        /// What the guest did.
        sent: &'a str,
        /// What the device did.
        came: &'a str,
        /// What that means.
        verdict: Verdict,
    },
}

impl<'a> FromGuest<'a> {
    /// The message of `line`, if it is one.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        let line = line.strip_prefix(GUEST).filter(|_| line.len() <= MAX_LINE)?;
        let (word, rest) = line.split_once(' ')?;
        Some(match word {
            "ready" => Self::Ready(rest),
            "unable" => Self::Unable(rest),
            "resize" => Self::Resize(rest.parse().ok()?),
            "resets" => Self::Resets(rest),
            "result" => {
                let (id, rest) = rest.split_once(" sent=\"")?;
                let (sent, rest) = rest.split_once("\" came=\"")?;
                let (came, verdict) = rest.split_once("\" verdict=")?;
                Self::Result { id, sent, came, verdict: value_of(VERDICTS, verdict)? }
            }
            _ => return None,
        })
    }
}

impl Display for FromGuest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(GUEST)?;
        match *self {
            Self::Ready(transport) => write!(f, "ready {transport}"),
            Self::Unable(reason) => write!(f, "unable {}", Text(reason)),
            Self::Resize(bytes) => write!(f, "resize {bytes}"),
            Self::Resets(id) => write!(f, "resets {id}"),
            Self::Result { id, sent, came, verdict } => {
                write!(f, "result {id} sent=\"{}\" came=\"{}\" verdict={verdict}", Text(sent), Text(came))
            }
        }
    }
}

/// A line of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToGuest<'a> {
    /// Judge the row with this id.
    Row {
        /// The row.
        id: &'a str,
        /// The machine was reset since the guest began with it.
        again: bool,
    },
    /// The target is set.
    Done,
    /// The VMM refuses the target, for this reason.
    Refused(&'a str),
}

impl<'a> ToGuest<'a> {
    /// The message of `line`, if it is one.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        if let Some(row) = line.strip_prefix(ROW) {
            let again = row.strip_suffix(AGAIN);
            return Some(Self::Row { id: again.unwrap_or(row), again: again.is_some() });
        }
        match line.strip_prefix(HOST)? {
            "ok" => Some(Self::Done),
            answer => answer.strip_prefix("refused ").map(Self::Refused),
        }
    }
}

impl Display for ToGuest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Row { id, again } => write!(f, "{ROW}{id}{}", if again { AGAIN } else { "" }),
            Self::Done => write!(f, "{HOST}ok"),
            Self::Refused(reason) => write!(f, "{HOST}refused {}", Text(reason)),
        }
    }
}

/// Most characters of a text.
const MAX_TEXT: usize = 400;

/// A text as a part of a line: one line, without quotation marks, and not too long.
#[derive(Clone, Copy, Debug)]
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars().take(MAX_TEXT) {
            f.write_char(match character {
                '"' => '\'',
                ' '..='~' => character,
                _ => '?',
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{FromGuest, MAX_LINE, ToGuest, VERDICTS, Verdict};

    #[test]
    fn every_line_is_read_as_it_was_written() {
        for (_, verdict) in VERDICTS {
            let result = FromGuest::Result { id: "D7", sent: "a b", came: "", verdict: *verdict };
            assert_eq!(FromGuest::parse(&result.to_string()), Some(result));
        }
        let messages = [
            FromGuest::Ready("mmio"),
            FromGuest::Unable("no device"),
            FromGuest::Resize(u64::MAX),
            FromGuest::Resets("D22"),
        ];
        for message in messages {
            assert_eq!(FromGuest::parse(&message.to_string()), Some(message));
        }
        let lines = [
            ToGuest::Row { id: "D22", again: false },
            ToGuest::Row { id: "D22", again: true },
            ToGuest::Done,
            ToGuest::Refused("too much"),
        ];
        for line in lines {
            assert_eq!(ToGuest::parse(&line.to_string()), Some(line));
        }
    }

    #[test]
    fn a_text_cannot_end_its_line_or_its_quotation() {
        let text = "a\" verdict=PASS\nhost ok \u{1b}";
        let result = FromGuest::Result { id: "D1", sent: text, came: text, verdict: Verdict::Fail };
        let line = result.to_string();
        assert!(!line.contains(['\n', '\u{1b}']));
        let Some(FromGuest::Result { sent, verdict, .. }) = FromGuest::parse(&line) else {
            panic!("{line}");
        };
        assert_eq!((sent, verdict), ("a' verdict=PASS?host ok ?", Verdict::Fail));
        let long = "x".repeat(5000);
        let result = FromGuest::Result { id: "D1", sent: &long, came: &long, verdict: Verdict::Fail };
        assert!(result.to_string().len() <= MAX_LINE && FromGuest::parse(&result.to_string()).is_some());
    }

    #[test]
    fn what_is_no_message_is_none() {
        let long = format!("judge: ready {}", "x".repeat(MAX_LINE));
        for line in [
            "",
            "ready mmio",
            "judge: ",
            "judge: ready",
            "judge: resize -1",
            "judge: resize 18446744073709551616",
            "judge: result D1",
            "judge: result D1 sent=\"\" came=\"\" verdict=GOOD",
            &long,
        ] {
            assert_eq!(FromGuest::parse(line), None, "{line}");
        }
        for line in ["", "row", "host", "host maybe", "ok"] {
            assert_eq!(ToGuest::parse(line), None, "{line}");
        }
    }
}
