//! The driver: brings the guest's memory to the size that the host wants, one action at a time.
//!
//! Mirrors virtio 1.3, section 5.15.6 (driver requirements) and the policy, not the code, of the mode of
//! Linux's `drivers/virtio/virtio_mem.c` in which a device block is smaller than a memory block. It is a state
//! machine. [`Driver::next`] returns an action, the guest carries it out, and the guest passes the outcome to
//! [`Driver::complete`]. The driver knows no zones, pages, queues and timers.
//!
//! Differs from Linux on purpose:
//! - The memmap of a memory block may lie in the memory block. The device blocks that hold it are plugged first
//!   and unplugged last.
//! - After NACK the driver reads the configuration again before it repeats anything.
//! - After ERROR the driver asks the device which device blocks are plugged, and goes on.
//! - No failure stops the driver for good.
//!
//! The files: `geometry` divides the region, `runs` is a set of device blocks, `region` is the driver's view of them as
//! four sets, `plan` picks the next action, `outcome` applies the outcome of an action to the view, `uncertain` restores the view after an
//! error, `idle` says when to try again.
//!
//! Invariants: one action at a time; the view of what is plugged agrees with the device whenever no request is
//! under way and none went wrong; a device block is unplugged only when the guest does not use it.

mod geometry;
mod idle;
mod outcome;
mod plan;
mod region;
mod runs;
mod uncertain;

pub use self::geometry::ConfigError;
use self::geometry::Geometry;
use self::idle::BackOff;
pub use self::idle::{Idle, IdleReason};
use self::region::Region;
use self::uncertain::UncertainRange;
use crate::blocks::BlockRange;
use crate::wire::{Config, Request, RequestKind, Response};

/// The properties of the guest that the driver needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// Size and alignment in bytes of a memory block, the unit in which the guest adds and removes memory. A
    /// memory block has at most as many device blocks as one request can name.
    pub memory_block_size: u64,
    /// Number of bytes at the start of every memory block that hold its memmap; 0 when the memmap lies elsewhere.
    pub memmap_size: u64,
    /// Size in bytes of the smallest part of a memory block that the guest can take in or give up.
    pub min_block_size: u64,
}

/// An action that the driver asks the guest to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the configuration space, or at least the fields at [`RUN_TIME_OFFSETS`](crate::wire::RUN_TIME_OFFSETS), under
    /// one configuration generation. In place of the others, those of the first read and [`Driver::plugged_size`] will do.
    /// Completed by [`Outcome::Config`] or [`Outcome::Failed`].
    ReadConfig,
    /// Send the request and wait for the response. Completed by [`Outcome::Response`],
    /// [`Outcome::NoResponse`] or, only when it was not sent, [`Outcome::Failed`].
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

/// The driver of one virtio-mem device.
#[derive(Debug)]
pub struct Driver {
    config: Config,
    /// The configuration generation of `config`.
    generation: u32,
    region: Region,
    /// The action that waits for [`Driver::complete`].
    under_way: Option<Action>,
    /// The driver is idle, and [`Driver::next`] returns this.
    idle: Option<Idle>,
    /// The configuration must be read before any other action.
    read_config: bool,
    /// Memory was plugged before this driver existed.
    unplug_all: bool,
    /// The device blocks for which the driver does not know whether they are plugged.
    uncertain: Option<UncertainRange>,
    /// The driver must pause before the next action.
    paused: Option<IdleReason>,
    /// The guest could not take in memory in this pass: unused device blocks are unplugged again.
    stop_growing: bool,
    /// The last failure of this pass.
    failed: Option<IdleReason>,
    /// Number of consecutive NACKs.
    nacks: u32,
    /// Most device blocks in one PLUG. It falls after BUSY, because the host may have fewer device blocks than
    /// were asked for. It also falls when the guest could not take in what was plugged, so that fewer device
    /// blocks are plugged in vain.
    most_to_plug: u16,
    back_off: BackOff,
    device_errors: u64,
}

impl Driver {
    /// A driver for the device whose configuration space reads `config` under `generation`. If memory is plugged
    /// already, it belongs to a guest kernel that is gone, and the driver unplugs it first.
    ///
    /// # Errors
    /// [`ConfigError`] when `config` contradicts itself or does not fit `driver`.
    pub fn new(driver: DriverConfig, config: Config, generation: u32) -> Result<Driver, ConfigError> {
        Ok(Driver {
            config,
            generation,
            region: Region::new(Geometry::new(driver, &config)?),
            under_way: None,
            idle: None,
            read_config: false,
            unplug_all: config.plugged_size > 0,
            uncertain: None,
            paused: None,
            stop_growing: false,
            failed: None,
            nacks: 0,
            most_to_plug: u16::MAX,
            back_off: BackOff::default(),
            device_errors: 0,
        })
    }

    /// The next action. Returns the same action until it is completed or, for [`Action::Idle`], until
    /// [`Driver::config_changed`] or [`Driver::retry`].
    #[expect(clippy::should_implement_trait, reason = "each action must be completed before the next")]
    pub fn next(&mut self) -> Action {
        if let Some(idle) = self.idle {
            return Action::Idle(idle);
        }
        if let Some(action) = self.under_way {
            return action;
        }
        let action = self.decide();
        if let Action::Idle(idle) = action {
            self.idle = Some(idle);
        } else {
            self.under_way = Some(action);
        }
        action
    }

    fn decide(&mut self) -> Action {
        if self.read_config {
            self.read_config = false;
            Action::ReadConfig
        } else if let Some(reason) = self.paused {
            Action::Idle(self.back_off.idle(reason))
        } else if self.unplug_all {
            Action::Send(Request { kind: RequestKind::UnplugAll, addr: 0, nb_blocks: 0 })
        } else {
            let question = self.question();
            let action = question.map_or_else(|| self.plan(), Action::Send);
            // Before a pause too: the action after it then finds the memory there.
            let is_reserved = self.region.try_reserve().is_ok();
            if !matches!(action, Action::Idle(_)) && !is_reserved {
                // The outcome could not be recorded.
                return Action::Idle(self.back_off.idle(IdleReason::NoMemory));
            }
            action
        }
    }

    /// The device gave a config notification. The action under way should be completed, if necessary as failed.
    /// The driver then reads the configuration and tries every failed action again.
    pub fn config_changed(&mut self) {
        self.idle = None;
        self.read_config = true;
        self.new_pass();
    }

    /// The requested pause is over, or memory was freed.
    pub fn retry(&mut self) {
        match self.idle {
            Some(Idle::Reached) => {}
            Some(Idle::Retry { .. } | Idle::Blocked(_)) => {
                self.idle = None;
                self.read_config = true;
                self.new_pass();
                self.back_off.retry();
            }
            None => self.back_off.stale = true,
        }
    }

    /// Takes the outcome of the action that [`Driver::next`] returned last.
    ///
    /// # Panics
    /// When no action is under way, or `outcome` is not a possible outcome of it.
    pub fn complete(&mut self, outcome: Outcome) {
        let action = self.under_way.take().expect("an action is under way");
        self.apply(action, outcome);
    }

    /// Number of plugged bytes, in the driver's view.
    #[must_use]
    pub const fn plugged_size(&self) -> u64 {
        if self.unplug_all {
            self.config.plugged_size
        } else {
            self.region.geometry.bytes(self.region.plugged())
        }
    }

    /// Number of bytes that the host wanted plugged when the configuration was last read.
    #[must_use]
    pub const fn requested_size(&self) -> u64 {
        self.config.requested_size
    }

    /// The configuration generation under which [`Driver::requested_size`] was read. The size alone does not tell
    /// a target from an earlier one of the same size.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// How often the device has violated the specification or has not answered.
    #[must_use]
    pub const fn device_errors(&self) -> u64 {
        self.device_errors
    }

    /// The runs of plugged device blocks in the driver's view, ascending.
    pub fn plugged(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.region.plugged_runs()
    }

    /// Begins a new pass: every failed action may be tried again.
    fn new_pass(&mut self) {
        self.paused = None;
        self.stop_growing = false;
        self.failed = None;
        self.nacks = 0;
        self.back_off.stale = false;
        self.region.forget_failures();
    }

    const fn requested_blocks(&self) -> u64 {
        self.region.geometry.blocks(self.config.requested_size)
    }

    const fn usable_blocks(&self) -> u64 {
        self.region.geometry.blocks(self.config.usable_region_size)
    }

    fn send(&self, kind: RequestKind, range: BlockRange) -> Action {
        Action::Send(self.request(kind, range))
    }

    fn request(&self, kind: RequestKind, range: BlockRange) -> Request {
        let nb_blocks = u16::try_from(range.count()).expect("the range fits into a request");
        Request { kind, addr: self.region.geometry.addr(range.first()), nb_blocks }
    }

    /// The device blocks of a request of this driver.
    const fn range(&self, request: Request) -> BlockRange {
        BlockRange::new(self.region.geometry.block(request.addr), request.nb_blocks as u64)
    }

    /// The device blocks of an action on `size` bytes at `addr`.
    fn blocks(&self, addr: u64, size: u64) -> BlockRange {
        let geometry = &self.region.geometry;
        BlockRange::new(geometry.block(addr), geometry.blocks(size))
    }
}

#[cfg(test)]
mod tests;
