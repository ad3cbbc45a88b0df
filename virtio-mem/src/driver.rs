//! The driver: brings the guest's memory to the size that the host wants, one step at a time.
//!
//! Mirrors virtio 1.3, section 5.15.6 (driver requirements) and the sub-block mode of Linux's
//! `drivers/virtio/virtio_mem.c`: the policy, not the code. It is a step machine. [`Driver::next`]
//! says what to do, the guest does it and tells [`Driver::complete`] what came of it. The driver
//! knows nothing of zones and pages, queues and timers, so a failure is but an outcome.
//!
//! Differs from Linux on purpose: the memmap of a memory block may lie in the memory block, whose
//! first sub-blocks then are plugged first and unplugged last; after NACK the configuration is read
//! again before anything is repeated; after ERROR the driver finds out what is true and goes on; no
//! failure is for ever.
//!
//! Where things are: `geometry` divides the region, `region` is what the driver believes, `plan`
//! picks the step, `outcome` turns what came of it into beliefs, `doubt` restores them, `rest` says
//! when to try again.
//!
//! Invariants: one action at a time; what the driver believes is plugged is what the device has
//! plugged, whenever no request is under way and none went wrong; a block is unplugged only when
//! the guest does not use it.

mod doubt;
mod geometry;
mod outcome;
mod plan;
mod region;
mod rest;

use self::doubt::Doubt;
pub use self::geometry::ConfigError;
use self::geometry::Geometry;
use self::region::Region;
use self::rest::BackOff;
pub use self::rest::{Rest, Why};
use crate::blocks::BlockRange;
use crate::wire::{Config, Request, RequestKind, Response};

/// What the driver must know of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// Size and alignment in bytes of a memory block, the unit in which the guest adds and
    /// removes memory; at most as many device blocks as a request can name.
    pub memory_block_size: u64,
    /// Bytes at the start of every memory block that hold its memmap; 0 when the memmap lies
    /// elsewhere.
    pub memmap_size: u64,
    /// The least part of a memory block, in bytes, that the guest can plug or unplug.
    pub min_block_size: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the configuration space as one snapshot. Completed by [`Outcome::Config`] or
    /// [`Outcome::Failed`].
    ReadConfig,
    /// Send the request and wait for the response. Completed by [`Outcome::Response`],
    /// [`Outcome::NoResponse`] or, only when it was not sent, [`Outcome::Failed`].
    Send(Request),
    /// Add a memory block and bring it online. Completed, as are those below, by
    /// [`Outcome::Done`] or, with nothing changed, [`Outcome::Failed`].
    AddBlock {
        /// Its guest-physical address.
        addr: u64,
        /// Where the part of it begins that the guest may use, with the memmap if that lies in it. The
        /// rest must not be touched.
        start: u64,
        /// Size of that part in bytes.
        size: u64,
        /// Nobody has used what holds the memmap since the device plugged it, so it still
        /// holds what the device left there: zeros, if the device's maker promises them.
        fresh: bool,
    },
    /// Give newly plugged memory of an online memory block to the allocator.
    OnlineSubBlocks {
        /// Its guest-physical address.
        addr: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// Take memory of an online memory block out of the allocator, and never touch it again.
    OfflineSubBlocks {
        /// Its guest-physical address.
        addr: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// Take a memory block offline and remove it.
    RemoveBlock {
        /// Its guest-physical address.
        addr: u64,
    },
    /// Nothing, until [`Driver::config_changed`] or [`Driver::retry`].
    Rest(Rest),
}

/// What came of an [`Action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The configuration space.
    Config(Config),
    /// The device's answer.
    Response(Response),
    /// The request was sent, and there is no telling whether it was served: no answer in time, or
    /// one that is none. Its buffers still belong to the device if it was not answered; a device
    /// that wakes up late must serve it before the requests that follow.
    NoResponse,
    /// Done.
    Done,
    /// Not done, and nothing changed.
    Failed(Why),
}

/// The driver of one virtio-mem device.
#[derive(Debug)]
pub struct Driver {
    config: Config,
    region: Region,
    /// The action that [`Driver::complete`] has yet to hear of.
    under_way: Option<Action>,
    /// The answer of [`Driver::next`] while nothing happens.
    resting: Option<Rest>,
    /// The configuration must be read before anything else.
    read_config: bool,
    /// Memory was plugged before there was a driver.
    unplug_all: bool,
    /// Blocks of which the driver does not know whether they are plugged.
    doubt: Option<Doubt>,
    /// Nothing goes on until the pause is over.
    paused: Option<Why>,
    /// Memory could not be put to use in this pass: what is plugged and unused goes back.
    stop_growing: bool,
    /// What went wrong last in this pass.
    failed: Option<Why>,
    /// NACKs in a row.
    nacks: u32,
    /// Blocks in one PLUG: fewer after BUSY, since the host may have some though not all, and
    /// after the guest had no use for what came, so that little goes to and fro.
    most_to_plug: u16,
    back_off: BackOff,
    device_errors: u64,
}

impl Driver {
    /// A driver for the device whose configuration space reads `config`. If memory is plugged
    /// already, nobody knows what it is used for: the driver unplugs it first.
    ///
    /// # Errors
    /// [`ConfigError`] when `config` contradicts itself or does not go with `driver`.
    pub fn new(driver: DriverConfig, config: Config) -> Result<Driver, ConfigError> {
        Ok(Driver {
            config,
            region: Region::new(Geometry::new(driver, &config)?),
            under_way: None,
            resting: None,
            read_config: false,
            unplug_all: config.plugged_size > 0,
            doubt: None,
            paused: None,
            stop_growing: false,
            failed: None,
            nacks: 0,
            most_to_plug: u16::MAX,
            back_off: BackOff::default(),
            device_errors: 0,
        })
    }

    /// What to do next. The same again until it is completed or, for [`Action::Rest`], until
    /// [`Driver::config_changed`] or [`Driver::retry`].
    #[expect(clippy::should_implement_trait, reason = "each step must be completed before the next")]
    pub fn next(&mut self) -> Action {
        if let Some(rest) = self.resting {
            return Action::Rest(rest);
        }
        if let Some(action) = self.under_way {
            return action;
        }
        let action = self.decide();
        if let Action::Rest(rest) = action {
            self.resting = Some(rest);
        } else {
            self.under_way = Some(action);
        }
        action
    }

    fn decide(&mut self) -> Action {
        if self.read_config {
            self.read_config = false;
            Action::ReadConfig
        } else if let Some(why) = self.paused {
            Action::Rest(self.back_off.rest(why))
        } else if self.unplug_all {
            Action::Send(Request { kind: RequestKind::UnplugAll, addr: 0, nb_blocks: 0 })
        } else if let Some(question) = self.question() {
            Action::Send(question)
        } else {
            self.plan()
        }
    }

    /// The device gave a config notification, for whatever reason. What is under way should be
    /// completed, if need be as failed; then the driver looks at the configuration and tries again
    /// whatever failed.
    pub fn config_changed(&mut self) {
        self.resting = None;
        self.read_config = true;
        self.new_pass();
    }

    /// The pause that was asked for is over, or memory was freed.
    pub fn retry(&mut self) {
        match self.resting {
            Some(Rest::Reached) => {}
            Some(Rest::Retry { .. } | Rest::Blocked(_)) => {
                self.resting = None;
                self.read_config = true;
                self.new_pass();
                self.back_off.retry();
            }
            None => self.back_off.stale = true,
        }
    }

    /// Tells what came of the action that [`Driver::next`] returned last.
    ///
    /// # Panics
    /// When no action is under way, or `outcome` is none of its outcomes.
    pub fn complete(&mut self, outcome: Outcome) {
        let action = self.under_way.take().expect("an action is under way");
        self.believe(action, outcome);
    }

    /// Bytes that are plugged, to the driver's knowledge.
    #[must_use]
    pub const fn plugged_size(&self) -> u64 {
        if self.unplug_all {
            self.config.plugged_size
        } else {
            self.region.geometry.bytes(self.region.plugged())
        }
    }

    /// Bytes that the host wanted to be plugged when the configuration was read last.
    #[must_use]
    pub const fn requested_size(&self) -> u64 {
        self.config.requested_size
    }

    /// How often the device has broken the rules or has not answered.
    #[must_use]
    pub const fn device_errors(&self) -> u64 {
        self.device_errors
    }

    /// The runs of blocks that are plugged, to the driver's knowledge, ascending.
    pub fn plugged(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.region.plugged_runs()
    }

    /// Whatever failed may be tried again.
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
        let nb_blocks = u16::try_from(range.count).expect("the range fits into a request");
        Request { kind, addr: self.region.geometry.addr(range.first), nb_blocks }
    }

    /// The blocks of a request that the driver has sent.
    const fn range(&self, request: Request) -> BlockRange {
        BlockRange { first: self.region.geometry.block(request.addr), count: request.nb_blocks as u64 }
    }

    /// The blocks of an action.
    fn blocks(&self, addr: u64, size: u64) -> BlockRange {
        let geometry = &self.region.geometry;
        BlockRange { first: geometry.block(addr), count: geometry.blocks(size) }
    }

    /// The memory block of an action.
    fn memory_block(&self, addr: u64) -> usize {
        self.region.geometry.place(self.region.geometry.block(addr)).0
    }
}

#[cfg(test)]
mod tests;
