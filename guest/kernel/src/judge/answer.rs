//! What devices answer, and how a row ends.

use alloc::string::String;
use core::fmt;

/// The kinds of requests (virtio 1.3, section 5.15.6).
pub const PLUG: u16 = 0;
/// Unplug device blocks.
pub const UNPLUG: u16 = 1;
/// Unplug everything.
pub const UNPLUG_ALL: u16 = 2;
/// Ask for the state of device blocks.
pub const STATE: u16 = 3;

/// The name of a kind of request.
pub fn name(kind: u16) -> &'static str {
    ["PLUG", "UNPLUG", "UNPLUG_ALL", "STATE"].get(usize::from(kind)).copied().unwrap_or("an unknown type")
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// The host does not want so much.
    Nack,
    /// Not now.
    Busy,
    /// The request is wrong.
    Error,
    /// A type that no answer has.
    Other(u16),
    /// The chain came back with so few bytes that it has no answer.
    Empty,
    /// The chain did not come back in time.
    Nothing,
}

impl Answer {
    /// The answer in a response whose chain came back with `written` bytes.
    pub fn of(response: &[u8], written: u32) -> Self {
        match (written, u16::from_le_bytes([response[0], response[1]])) {
            (0, _) => Self::Empty,
            (_, 0) => Self::Ack,
            (_, 1) => Self::Nack,
            (_, 2) => Self::Busy,
            (_, 3) => Self::Error,
            (_, other) => Self::Other(other),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack => f.write_str("ACK"),
            Self::Nack => f.write_str("NACK"),
            Self::Busy => f.write_str("BUSY"),
            Self::Error => f.write_str("ERROR"),
            Self::Other(kind) => write!(f, "type {kind}"),
            Self::Empty => f.write_str("a chain without an answer"),
            Self::Nothing => f.write_str("no answer"),
        }
    }
}

/// Why a row ends without its text for a pass.
#[derive(Debug)]
pub enum Stop {
    /// The device breaks the rule.
    Fail(String),
    /// The device refused, as it may, and works on.
    Reject(String),
    /// The row cannot be judged here.
    Skip(String),
}

/// What came of a row: a text, when the device does what the rule says.
pub type Came = Result<String, Stop>;

/// A failure, with its text.
macro_rules! fail {
    ($($text:tt)*) => { Err($crate::judge::answer::Stop::Fail(alloc::format!($($text)*))) };
}
pub(crate) use fail;

/// A refusal, with its text.
macro_rules! reject {
    ($($text:tt)*) => { Err($crate::judge::answer::Stop::Reject(alloc::format!($($text)*))) };
}
pub(crate) use reject;

/// A row that cannot be judged, with the reason.
macro_rules! skip {
    ($($text:tt)*) => { Err($crate::judge::answer::Stop::Skip(alloc::format!($($text)*))) };
}
pub(crate) use skip;
