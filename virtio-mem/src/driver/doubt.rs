//! Finding out by STATE requests what is true of blocks after the device answered ERROR, or not
//! at all. Linux's driver gives up for good instead.
//!
//! The range is asked for as a whole; when the answer is "mixed", for its first half, until the
//! answer is a definite one. Only blocks that the guest does not use are ever in doubt, since only
//! those are plugged and unplugged.

use super::Driver;
use super::rest::Why;
use crate::blocks::BlockRange;
use crate::wire::{BlockState, Request, RequestKind, Response, ResponseType};

/// Blocks of which the driver does not know whether they are plugged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    /// All of them; at most as many as one request can name, and never none.
    range: BlockRange,
    /// How many of the first to ask for.
    ask: u64,
}

impl Driver {
    /// `range` may be plugged or not, whatever was known before.
    pub(super) fn doubt(&mut self, range: BlockRange) {
        self.doubt = Some(Doubt { range, ask: range.count });
    }

    /// Blocks beyond the usable region cannot be plugged, and must not be asked for.
    pub(super) fn settle_unusable(&mut self) {
        let usable = self.usable_blocks();
        let Some(Doubt { range, .. }) = self.doubt else { return };
        if range.end() > usable {
            let first = usable.max(range.first);
            self.region.unplug(BlockRange { first, count: range.end() - first });
            self.doubt_rest(BlockRange { first: range.first, count: first - range.first });
        }
    }

    /// The next question, if anything is in doubt.
    pub(super) fn question(&self) -> Option<Request> {
        let Doubt { range, ask } = self.doubt?;
        Some(self.request(RequestKind::State, BlockRange { first: range.first, count: ask }))
    }

    /// The device has answered the question.
    pub(super) fn learn(&mut self, response: Response) {
        let Some(Doubt { range, ask }) = self.doubt else { return };
        match (response.kind, response.state) {
            (ResponseType::Ack, BlockState::Mixed) if ask > 1 => {
                self.doubt = Some(Doubt { range, ask: ask.div_ceil(2) });
                return;
            }
            (ResponseType::Ack, BlockState::Plugged) => {
                self.region.plug(BlockRange { first: range.first, count: ask }, false);
            }
            (ResponseType::Ack, BlockState::Unplugged) => {
                self.region.unplug(BlockRange { first: range.first, count: ask });
            }
            (ResponseType::Busy | ResponseType::Nack, _) => return self.pause(Why::HostBusy),
            (ResponseType::Error, _) | (ResponseType::Ack, BlockState::Mixed) => return self.device_error(),
        }
        self.doubt_rest(BlockRange { first: range.first + ask, count: range.count - ask });
    }

    /// Only `range` is still in doubt. When that is nothing, the driver goes on after a pause: the
    /// device may answer ERROR to the same request again.
    fn doubt_rest(&mut self, range: BlockRange) {
        if range.count == 0 {
            self.doubt = None;
            self.pause(Why::DeviceError);
        } else {
            self.doubt(range);
        }
    }
}
