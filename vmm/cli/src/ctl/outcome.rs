//! How a command for a running machine ended, and the exit status for it.

use serde_json::Value;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it asked.
    Done,
    /// The API or the device refused it.
    Refused,
    /// The guest stopped on its way.
    Blocked,
    /// The deadline passed.
    Late,
    /// Another target replaced this one.
    Superseded,
    /// The machine ended first.
    Ended,
    /// The guest died.
    Died,
}

impl Outcome {
    /// Its word in JSON and in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Blocked => "blocked",
            Self::Late => "too late",
            Self::Superseded => "superseded",
            Self::Ended => "ended",
            Self::Died => "died",
        }
    }

    /// The exit status, as that of `tidevm run`.
    pub fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused | Self::Blocked | Self::Late | Self::Superseded | Self::Ended => 1,
            Self::Died => 4,
        }
    }
}

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it is done.
    pub reason: Option<String>,
}

impl End {
    /// As it asked.
    pub fn done() -> Self {
        Self { outcome: Outcome::Done, reason: None }
    }

    /// Refused, for this reason.
    pub fn refused(reason: String) -> Self {
        Self { outcome: Outcome::Refused, reason: Some(reason) }
    }

    /// The guest died, as the event `death` says.
    pub fn died(event: &Value) -> Self {
        let reason = event["reason"].as_str().unwrap_or("the machine does not say why");
        Self { outcome: Outcome::Died, reason: Some(reason.to_owned()) }
    }
}
