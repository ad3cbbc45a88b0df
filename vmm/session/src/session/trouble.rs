//! Why steps fail, and how far that goes.

use std::io;

use tidevm_abi::{Answer, Failure};
use tidevm_machine::{CallsUnread, WaitError};

/// Why a step is not done.
pub(super) enum Trouble {
    /// The step failed; the session goes on.
    Failed(String),
    /// The step failed and nothing after it makes sense.
    Fatal(String),
    /// The machine ended, or the guest that was asked, or the user wants an end.
    Ended(WaitError),
    /// The observer cannot write any more.
    Output(io::Error),
}

impl From<WaitError> for Trouble {
    fn from(error: WaitError) -> Trouble {
        match error {
            WaitError::Deadline { .. } => Trouble::Fatal(error.to_string()),
            _ => Trouble::Ended(error),
        }
    }
}

impl From<CallsUnread> for Trouble {
    fn from(error: CallsUnread) -> Trouble {
        Trouble::Fatal(error.to_string())
    }
}

/// A step that is done may have something to say.
pub(super) type Done = Result<Option<String>, Trouble>;

impl Trouble {
    /// For people.
    pub(super) fn reason(&self) -> String {
        match self {
            Trouble::Failed(reason) | Trouble::Fatal(reason) => reason.clone(),
            Trouble::Ended(WaitError::Died(death)) => death.kind.to_string(),
            Trouble::Ended(error) => error.to_string(),
            Trouble::Output(error) => error.to_string(),
        }
    }
}

/// An answer that does not belong to the question, or a refusal.
pub(super) fn unfit(answer: &Answer) -> Trouble {
    Trouble::Fatal(match answer {
        Answer::Failed(
            failure @ (Failure::UnknownHandle
            | Failure::HandleInUse
            | Failure::NoMemory
            | Failure::Unfit
            | Failure::BadRecord),
        ) => failure.to_string(),
        other => format!("the guest gave an answer to another question: {other:?}"),
    })
}
