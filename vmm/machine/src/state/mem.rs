//! What is known of a virtio-mem device, and how far its driver is.
//!
//! Mirrors `virtio_mem_config` of Linux's `include/uapi/linux/virtio_mem.h`, and adds the driver's own reports.
//!
//! Invariant: what the driver said about an earlier target is never taken for an answer to the current one.

use tidevm_abi::{Resize, ResizeState, Size};

use super::Refusal;

/// A virtio-mem device and its driver's last report.
///
/// Everything but `report` and `refused` is derived from the device itself, whenever it changes: see
/// `virtio/mem.rs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemStatus {
    /// Guest-physical address of the region.
    pub region: u64,
    /// Size of the region.
    pub region_size: Size,
    /// Size of a device block.
    pub block_size: Size,
    /// How much the device asks the guest to plug.
    pub requested: Size,
    /// How many targets were set since the start. A target of the same size is one more.
    pub targets: u64,
    /// The device has not taken `requested` yet, because it is at work. No driver has read it then, and
    /// `generation` is still that of an earlier target.
    pub target_pending: bool,
    /// The device's configuration generation when it took its target. Each target has its own, whether or not its
    /// size is that of the target before.
    pub generation: u32,
    /// The configuration generation when the driver last read the target.
    pub seen: Option<u32>,
    /// How much of the region, from its start, the device lets the guest use.
    pub usable: Size,
    /// How much is plugged.
    pub plugged: Size,
    /// A driver runs the device (`DRIVER_OK`).
    pub driver: bool,
    /// The driver's last report.
    pub report: Option<Resize>,
    /// The last request that was not answered with ACK.
    pub refused: Option<Refusal>,
}

impl MemStatus {
    /// Why the driver stopped on its way to `target`; `None` while it is on its way. Unless the state is
    /// [`ResizeState::Reached`], the driver goes on by itself when the reason goes away.
    ///
    /// A report about another target, or about another plugged size than the current one, is outdated and
    /// does not count. An earlier target of the same size is another target.
    #[must_use]
    pub fn stopped(&self, target: Size) -> Option<ResizeState> {
        let report = self.answer(target).filter(|report| report.plugged == self.plugged)?;
        let there = self.plugged == target && self.requested == target;
        (there || report.state != ResizeState::Reached).then_some(report.state)
    }

    /// The driver's last report, if the driver had read the current target and that is `target`. It may be about
    /// an earlier plugged size.
    #[must_use]
    pub fn answer(&self, target: Size) -> Option<Resize> {
        self.report.filter(|report| report.requested == target && self.is_current(report.generation))
    }

    /// Whether the driver has read the current target, `target`, and as much is plugged. Drivers that do not
    /// report can be asked nothing else. A driver that reads the target is not at work for an earlier one.
    #[must_use]
    pub fn arrived(&self, target: Size) -> bool {
        let seen = self.seen.is_some_and(|seen| self.is_current(seen));
        seen && self.plugged == target && self.requested == target
    }

    /// Whether a driver that read the configuration in `generation` has read the current target. Generations wrap
    /// around.
    const fn is_current(&self, generation: u32) -> bool {
        !self.target_pending && generation.wrapping_sub(self.generation) <= u32::MAX / 2
    }
}
