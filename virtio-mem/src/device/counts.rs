//! What a device counts.

use crate::wire::{BadRequest, RequestKind, ResponseType};

/// Requests to one device, and the memory that they moved, since the device was made. Numbers wrap around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests, by their type (PLUG, UNPLUG, UNPLUG_ALL, STATE, and those that are no request) and there by their answer
    /// (ACK, NACK, BUSY, ERROR).
    pub requests: [[u64; 4]; 5],
    /// Bytes that were plugged.
    pub plugged: u64,
    /// Bytes that requests unplugged. What a system reset unplugs is not among them.
    pub unplugged: u64,
}

impl Counts {
    /// Counts a request of `kind`, which is answered with `answer`.
    pub(super) const fn count(&mut self, kind: Result<RequestKind, BadRequest>, answer: ResponseType) {
        let row = match kind {
            Ok(RequestKind::Plug) => 0,
            Ok(RequestKind::Unplug) => 1,
            Ok(RequestKind::UnplugAll) => 2,
            Ok(RequestKind::State) => 3,
            Err(_) => 4,
        };
        let column = match answer {
            ResponseType::Ack => 0,
            ResponseType::Nack => 1,
            ResponseType::Busy => 2,
            ResponseType::Error => 3,
        };
        let count = &mut self.requests[row][column];
        *count = count.wrapping_add(1);
    }
}
