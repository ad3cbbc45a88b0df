//! The workloads of a session that saved its machine, on their way to the session that restores it.
//!
//! The guest knows workloads by handles, and only a session knows their names. So they are part of the snapshot, as JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidevm_abi::{Name, Size};
use tidevm_machine::Snapshot;

/// All workloads of a session, ended ones included. The handle is the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered(pub(crate) Vec<(Name, State)>);

/// The state of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It holds pages, of the bytes that were asked for.
    Hog {
        /// How many it holds.
        pages: u64,
        /// Bytes that were asked for.
        size: u64,
    },
    /// The guest had no memory for it, and does not know the handle.
    Empty,
    /// It runs.
    Churn {
        /// Its call, which is not answered.
        call: u32,
        /// Until it ends by itself.
        left: Duration,
    },
    /// It has ended.
    Ended,
    /// It is gone with a reset of the guest.
    Lost,
}

impl Remembered {
    /// The workloads in a snapshot. What is no list of workloads, because another program saved the machine, is none.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        Self::from_bytes(snapshot.embedder())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let all: Vec<(String, State)> = serde_json::from_slice(bytes).unwrap_or_default();
        let named = all.into_iter().map(|(name, state)| Some((Name::new(&name)?, state)));
        Self(named.collect::<Option<_>>().unwrap_or_default())
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let all: Vec<_> = self.0.iter().map(|(name, state)| (name.as_str(), state)).collect();
        // Names and numbers are always JSON.
        serde_json::to_vec(&all).unwrap_or_default()
    }

    /// The workloads that live, with the pages of those that hold some.
    pub(crate) fn living(&self) -> impl Iterator<Item = (&Name, Option<u64>)> {
        self.0.iter().filter_map(|(name, state)| match state {
            State::Hog { size, .. } => Some((name, Some(Size(*size).pages()))),
            State::Empty => Some((name, Some(0))),
            State::Churn { .. } => Some((name, None)),
            State::Ended | State::Lost => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Name, Remembered, State};

    #[test]
    fn workloads_come_back_as_they_were_and_other_bytes_are_none() {
        let states = [
            State::Hog { pages: 2, size: 8192 },
            State::Empty,
            State::Churn { call: 7, left: Duration::from_millis(1500) },
            State::Ended,
            State::Lost,
        ];
        let names = ["a", "b-1", "load", "a", "gone"].map(|name| Name::new(name).unwrap());
        let all = Remembered(names.into_iter().zip(states).collect());
        assert_eq!(Remembered::from_bytes(&all.to_bytes()), all);
        let living: Vec<_> = all.living().map(|(name, pages)| (name.as_str(), pages)).collect();
        assert_eq!(living, [("a", Some(2)), ("b-1", Some(0)), ("load", None)]);
        for other in [&b""[..], b"mine", b"[[\"no name!\",\"empty\"]]", b"[[\"a\",\"unknown\"]]"] {
            assert_eq!(Remembered::from_bytes(other), Remembered::default(), "{other:?}");
        }
    }
}
