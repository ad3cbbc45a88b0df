//! Actions and outcomes: what the driver asks the guest to do, and what it hears of it.
//!
//! Takes the place of the calls that Linux's `virtio_mem.c` makes: `virtio_mem_send_request`, `add_memory_driver_managed`,
//! `virtio_mem_fake_online`, `virtio_mem_fake_offline` and `offline_and_remove_memory`.
//!
//! Invariant: addresses and sizes are those of whole units (`geometry`).

#[cfg(doc)]
use super::Driver;
use super::idle::{Idle, IdleReason};
use crate::wire::{Config, Request, Response};

/// An action that the driver asks the guest to carry out.
///
/// A guest has to know all of them: one that it passed over would stop the driver. So this enum is exhaustive, and another
/// action is a breaking change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the configuration space, or at least the fields at [`RUN_TIME_OFFSETS`](crate::wire::RUN_TIME_OFFSETS), under
    /// one configuration generation. In place of the others, those of the first read will do.
    /// Completed by [`Outcome::Config`] or [`Outcome::Failed`].
    ReadConfig,
    /// Send the request and wait for the response. Completed by [`Outcome::Response`],
    /// [`Outcome::NoResponse`] or, only when it was not sent, [`Outcome::Failed`]. Before the response comes,
    /// [`Driver::next_request`] may have more requests to send.
    Send(Request),
    /// Add memory blocks and bring them online, from the first on. Completed by [`Outcome::Done`], [`Outcome::Part`] or,
    /// with nothing changed, [`Outcome::Failed`]. The range is made of whole memory blocks, or it is the plugged part of
    /// one. The part includes the memmap if that lies in the memory block, and the guest must not access the other parts.
    /// The last memory block of a region that ends within it counts as whole.
    AddMemoryBlocks {
        /// Guest-physical address.
        addr: u64,
        /// Size in bytes.
        size: u64,
        /// Whether the memmaps in the range are unused since the device plugged them. Then they still have the content
        /// that the device gave them, which is zeros on devices that promise zeros.
        fresh: bool,
    },
    /// Give newly plugged memory of an online memory block to the allocator. Completed, as is the action below, by
    /// [`Outcome::Done`] or, with nothing changed, [`Outcome::Failed`].
    OnlineDeviceBlocks {
        /// Guest-physical address.
        addr: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Take memory of an online memory block out of the allocator, and do not access it any more.
    OfflineDeviceBlocks {
        /// Guest-physical address.
        addr: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Take memory blocks offline and remove them, from the last on. Completed as [`Action::AddMemoryBlocks`]. The range is
    /// made of whole memory blocks, of which the last may end with the region.
    RemoveMemoryBlocks {
        /// Guest-physical address.
        addr: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Do nothing until [`Driver::config_changed`] or [`Driver::retry`].
    Idle(Idle),
}

/// The outcome of an [`Action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The configuration space was read, all of it under this configuration generation.
    Config(Config, u32),
    /// The device answered.
    Response(Response),
    /// The request was sent, and it is unknown whether the device served it: there was no answer in time, or the
    /// answer was malformed. Without an answer, the buffers of the request still belong to the device. A device
    /// that goes on late must serve the request before the requests after it.
    NoResponse,
    /// The action was carried out.
    Done,
    /// The action was not carried out, and nothing changed.
    Failed(IdleReason),
    /// Only some memory blocks of the range were added or removed: the first ones of a range to add, the last ones of a
    /// range to remove.
    Part {
        /// Bytes of the range that were carried out, in whole memory blocks. Less than all.
        done: u64,
        /// Why the next memory block was not added or removed. `None` when it was not tried, because a config
        /// notification came or the guest had something else to do.
        failed: Option<IdleReason>,
    },
}
