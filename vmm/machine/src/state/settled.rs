//! Whether a guest has settled for a target, and what is in its way if it is not there.
//!
//! One judgement for every embedder: a session, which waits for it in a script, and a control plane, which tells it to its
//! clients.

use std::fmt;

use tidevm_abi::{ResizeState, Size};

use super::{MemStatus, Refusal};

/// How the way to a target ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As much is plugged as is requested.
    AtTarget,
    /// The guest has said why it goes no further. It goes on by itself when the reason goes away.
    Blocked,
}

/// What is between a device and its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The guest has no driver for the device.
    NoDriver,
    /// The guest is still at work, and has not said why it is not at the target.
    AtWork,
    /// The guest's driver has said why.
    Guest {
        /// Its reason.
        state: ResizeState,
        /// Of [`ResizeState::HostBusy`], the request that the device refused and the reason.
        refused: Option<Refusal>,
    },
}

impl MemStatus {
    /// Whether the guest has settled for `target`; `None` while it is on its way. In [`ResizeState::HostBusy`] and
    /// [`ResizeState::DeviceError`] it has not: it goes on by itself. With `patient`, obstacles are waited out. What the guest
    /// said about earlier targets does not count, even if they were of the same size. `reports`: see
    /// [`crate::VmHandle::reports`]; a guest that does not report has settled when it is at the target.
    #[must_use]
    pub fn settled(&self, target: Size, reports: bool, patient: bool) -> Option<Settled> {
        if !reports {
            return self.arrived(target).then_some(Settled::AtTarget);
        }
        match self.stopped(target)? {
            ResizeState::Reached => Some(Settled::AtTarget),
            ResizeState::Unmovable { .. }
            | ResizeState::NoRoom
            | ResizeState::NoMemory
            | ResizeState::Granularity { .. }
                if !patient =>
            {
                Some(Settled::Blocked)
            }
            _ => None,
        }
    }

    /// What is in the way to `target`, for a device that is not there.
    #[must_use]
    pub fn obstacle(&self, target: Size) -> Obstacle {
        if !self.driver {
            return Obstacle::NoDriver;
        }
        // A driver that claims to be at the target, and is not, has not said why.
        match self.answer(target).map(|report| report.state) {
            None | Some(ResizeState::Reached) => Obstacle::AtWork,
            Some(state) => {
                let refused = self.refused.clone().filter(|_| state == ResizeState::HostBusy);
                Obstacle::Guest { state, refused }
            }
        }
    }
}

impl Obstacle {
    /// The driver's reason, if it has told one.
    #[must_use]
    pub fn state(&self) -> Option<ResizeState> {
        match self {
            Self::Guest { state, .. } => Some(*state),
            Self::NoDriver | Self::AtWork => None,
        }
    }

    /// One word for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoDriver => "no_driver",
            Self::AtWork => "driver_busy",
            Self::Guest { state, .. } => match state {
                ResizeState::Reached => "reached",
                ResizeState::Unmovable { .. } => "unmovable",
                ResizeState::NoRoom => "no_room",
                ResizeState::NoMemory => "out_of_memory",
                ResizeState::HostBusy => "host_busy",
                ResizeState::DeviceError => "device_error",
                ResizeState::Granularity { .. } => "granularity",
            },
        }
    }

    /// The obstacle in words, with the driver's reason as `text` has it: an embedder may know names that the guest does not.
    #[must_use]
    pub fn told(&self, text: impl FnOnce(&ResizeState) -> String) -> String {
        match self {
            Self::NoDriver => "driver absent: the guest drives no such device".to_owned(),
            Self::AtWork => "the guest is still at it, and has not said why".to_owned(),
            Self::Guest { state, refused: None } => text(state),
            Self::Guest { state, refused: Some(refused) } => format!("{} ({refused})", text(state)),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told(ToString::to_string))
    }
}
