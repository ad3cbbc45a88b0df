//! Uncertain device blocks: after ERROR or no answer, STATE requests find out which of them are plugged.
//!
//! Linux's driver has no counterpart: it gives up for good after ERROR. The search asks for the whole range
//! first. When the answer is "mixed", it asks for the first half, until the answer is definite.
//!
//! Invariant: the guest uses no uncertain device block, because only unused device blocks are plugged and
//! unplugged.

use super::Driver;
use super::idle::IdleReason;
use crate::blocks::BlockRange;
use crate::wire::{BlockState, Request, RequestKind, Response, ResponseType};

/// A range of device blocks for which the driver does not know whether they are plugged.
#[derive(Clone, Copy, Debug)]
pub(super) struct UncertainRange {
    /// At most as many device blocks as one request can name, and at least one.
    range: BlockRange,
    /// The next question covers this many device blocks from the start of the range.
    ask: u64,
}

impl Driver {
    /// Makes `range` the uncertain range, in place of any range before it.
    pub(super) fn set_uncertain(&mut self, range: BlockRange) {
        self.uncertain = Some(UncertainRange { range, ask: range.count() });
    }

    /// Settles the device blocks beyond the usable region: they cannot be plugged, and the driver must not ask for
    /// them.
    pub(super) fn settle_unusable(&mut self) {
        let usable = self.usable_blocks();
        let Some(UncertainRange { range, .. }) = self.uncertain else { return };
        if range.end() > usable {
            let first = usable.max(range.first());
            self.region.unplug(BlockRange::new(first, range.end() - first));
            self.leave_uncertain(BlockRange::new(range.first(), first - range.first()));
        }
    }

    /// The next STATE request, if device blocks are uncertain.
    pub(super) fn question(&self) -> Option<Request> {
        let UncertainRange { range, ask } = self.uncertain?;
        Some(self.request(RequestKind::State, BlockRange::new(range.first(), ask)))
    }

    /// Takes the answer to the last STATE request.
    pub(super) fn learn(&mut self, response: Response) {
        let Some(UncertainRange { range, ask }) = self.uncertain else { return };
        match (response.kind, response.state) {
            (ResponseType::Ack, BlockState::Mixed) if ask > 1 => {
                self.uncertain = Some(UncertainRange { range, ask: ask.div_ceil(2) });
                return;
            }
            (ResponseType::Ack, BlockState::Plugged) => {
                self.region.plug(BlockRange::new(range.first(), ask), false);
            }
            (ResponseType::Ack, BlockState::Unplugged) => {
                self.region.unplug(BlockRange::new(range.first(), ask));
            }
            (ResponseType::Busy | ResponseType::Nack, _) => return self.pause(IdleReason::HostBusy),
            (ResponseType::Error, _) | (ResponseType::Ack, BlockState::Mixed) => return self.device_error(),
        }
        self.leave_uncertain(BlockRange::new(range.first() + ask, range.count() - ask));
    }

    /// Leaves only `range` uncertain. When `range` is empty, the driver pauses before it goes on, because the
    /// device may answer ERROR to the same request again.
    fn leave_uncertain(&mut self, range: BlockRange) {
        if range.count() == 0 {
            self.uncertain = None;
            self.pause(IdleReason::DeviceError);
        } else {
            self.set_uncertain(range);
        }
    }
}
