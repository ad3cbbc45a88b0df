//! The driver: brings the guest's memory to the size that the host wants, one action at a time.
//!
//! Mirrors virtio 1.3, section 5.15.6 (driver requirements) and the policy, not the code, of Linux's
//! `drivers/virtio/virtio_mem.c`. It takes devices of every shape that Linux takes (`geometry`). It is a state
//! machine. [`Driver::next`] returns an action, the guest carries it out, and the guest passes the outcome to
//! [`Driver::complete`]. The driver knows no zones, pages, queues and timers.
//!
//! Differs from Linux on purpose:
//! - The memmap of a memory block may lie in the memory block. The device blocks that hold it are plugged first
//!   and unplugged last.
//! - After NACK the driver reads the configuration again before it repeats anything.
//! - After ERROR the driver asks the device which device blocks are plugged, and goes on.
//! - The driver also asks when the plugged size is not what it believes.
//! - Memory that was plugged before the driver existed is found by asking, and put to use as far as it is requested.
//! - Several requests are under way where they are independent of each other.
//! - No failure stops the driver for good.
//!
//! The files: `action` has what the driver asks for and hears, `geometry` divides the region, `runs` is a set of device blocks, `region` is the driver's view of them as
//! four sets, `plan` picks the next action, `flight` sends requests together, `outcome` applies the outcome of an action to
//! the view, `uncertain` finds out what is plugged, `idle` says when to try again.
//!
//! Invariants: one action at a time, or several requests that do not overlap; the view of what is plugged agrees with
//! the device whenever no request is under way and none went wrong; a device block is unplugged only when the guest does not
//! use it.

mod action;
mod flight;
mod geometry;
mod idle;
mod outcome;
mod plan;
mod region;
mod runs;
mod uncertain;

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

pub use self::action::{Action, Outcome};
use self::flight::MOST_IN_FLIGHT;
use self::geometry::Geometry;
pub use self::geometry::{ConfigError, DriverConfig};
use self::idle::BackOff;
pub use self::idle::{Idle, IdleReason};
use self::region::{ROOM, Region};
use self::runs::Runs;
use self::uncertain::Uncertain;
use crate::blocks::BlockRange;
use crate::wire::{Config, Request, RequestKind};

/// The driver of one virtio-mem device.
///
/// ```
/// use virtio_mem::{Action, Config, Driver, DriverConfig, Idle, Outcome, Request, RequestKind, Response, ResponseType};
///
/// // What the configuration space says: 128 MiB are wanted of a region of 1 GiB at 4 GiB.
/// let mut config = Config {
///     block_size: 2 << 20,
///     node_id: 0,
///     addr: 4 << 30,
///     region_size: 1 << 30,
///     usable_region_size: 384 << 20,
///     plugged_size: 0,
///     requested_size: 128 << 20,
/// };
/// // Memory blocks of 128 MiB, and any part of one that is a multiple of 2 MiB.
/// let mut driver = Driver::new(DriverConfig::new(128 << 20, 2 << 20), config, 1)?;
/// // The guest sends the request through the virtqueue, and passes on the answer.
/// let request = Request { kind: RequestKind::Plug, addr: 4 << 30, nb_blocks: 64 };
/// assert_eq!(driver.next(), Action::Send(request));
/// driver.complete(Outcome::Response(Response::new(ResponseType::Ack)));
/// // It adds the memory that it was given, and brings it online.
/// assert_eq!(driver.next(), Action::AddMemoryBlocks { addr: 4 << 30, size: 128 << 20, fresh: false });
/// driver.complete(Outcome::Done);
/// assert_eq!((driver.next(), driver.plugged_size()), (Action::Idle(Idle::Reached), 128 << 20));
/// // A config notification comes: nothing is wanted any more. The memory has to go before the device gets it back.
/// driver.config_changed();
/// assert_eq!(driver.next(), Action::ReadConfig);
/// (config.plugged_size, config.requested_size) = (128 << 20, 0);
/// driver.complete(Outcome::Config(config, 2));
/// assert_eq!(driver.next(), Action::RemoveMemoryBlocks { addr: 4 << 30, size: 128 << 20 });
/// # Ok::<(), virtio_mem::driver::ConfigError>(())
/// ```
#[derive(Debug)]
pub struct Driver {
    config: Config,
    /// The configuration generation of `config`.
    generation: u32,
    region: Region,
    /// The action that waits for [`Driver::complete`], unless it is a request.
    under_way: Option<Action>,
    /// The requests that wait for their responses, the oldest first.
    in_flight: Vec<Request>,
    /// The driver is idle, and [`Driver::next`] returns this.
    idle: Option<Idle>,
    /// The configuration must be read before any other action.
    read_config: bool,
    /// Memory was plugged before this driver existed, and all of it has to go.
    unplug_all: bool,
    /// Memory was plugged before this driver existed, and not all of it has been found.
    inherited: bool,
    /// The guest gives up all memory blocks, which stay plugged: see [`Driver::detach`].
    detaching: bool,
    /// The device blocks for which the driver does not know whether they are plugged.
    uncertain: Uncertain,
    /// The device blocks that are plugged and that the guest cannot use.
    scraps: Runs,
    /// The plugged size that the device gives, less the driver's view of it. It stays as it is.
    difference: u64,
    /// How often it has changed.
    mismatches: u64,
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
    most_to_plug: u64,
    back_off: BackOff,
    device_errors: u64,
    /// Every set has memory for so many runs.
    room: usize,
}

impl Driver {
    /// A driver for the device whose configuration space reads `config` under `generation`. If memory is plugged
    /// already, it belonged to a guest kernel that is gone, or a VMM has plugged it. The driver asks the device where it is,
    /// puts to use what is requested, and unplugs the rest. If nothing is requested, or the device does not tell, the driver
    /// unplugs all of it first.
    ///
    /// # Errors
    /// [`ConfigError`] when `config` contradicts itself or does not fit `driver`.
    pub fn new(driver: DriverConfig, config: Config, generation: u32) -> Result<Driver, ConfigError> {
        let region = Region::new(Geometry::new(driver, &config)?);
        let most_to_plug = region.geometry.most_of_a_request();
        let mut driver = Driver {
            config,
            generation,
            region,
            under_way: None,
            in_flight: Vec::with_capacity(MOST_IN_FLIGHT),
            idle: None,
            read_config: false,
            unplug_all: config.plugged_size > 0 && config.requested_size == 0,
            inherited: config.plugged_size > 0 && config.requested_size > 0,
            detaching: false,
            uncertain: Uncertain::default(),
            scraps: Runs::default(),
            difference: 0,
            mismatches: 0,
            paused: None,
            stop_growing: false,
            failed: None,
            nacks: 0,
            most_to_plug,
            back_off: BackOff::default(),
            device_errors: 0,
            room: 0,
        };
        if driver.inherited {
            driver.doubt_all();
        }
        Ok(driver)
    }

    /// The next action. Returns the same action until it is completed or, for [`Action::Idle`], until
    /// [`Driver::config_changed`] or [`Driver::retry`].
    #[expect(clippy::should_implement_trait, reason = "each action must be completed before the next")]
    pub fn next(&mut self) -> Action {
        if let Some(idle) = self.idle {
            return Action::Idle(idle);
        }
        let oldest = self.in_flight.first().map(|&request| Action::Send(request));
        if let Some(action) = oldest.or(self.under_way) {
            return action;
        }
        let action = self.decide();
        match action {
            Action::Idle(idle) => self.idle = Some(idle),
            Action::Send(request) => self.in_flight.push(request),
            action => self.under_way = Some(action),
        }
        action
    }

    fn decide(&mut self) -> Action {
        // Before a pause too: the action after it then finds the memory there.
        let is_reserved = self.reserve().is_ok();
        let action = if self.read_config {
            self.read_config = false;
            Action::ReadConfig
        } else if let Some(reason) = self.paused {
            Action::Idle(self.back_off.idle(reason))
        } else if self.unplug_all {
            Action::Send(Request { kind: RequestKind::UnplugAll, addr: 0, nb_blocks: 0 })
        } else {
            self.question().map_or_else(|| self.plan(), Action::Send)
        };
        if !matches!(action, Action::Idle(_)) && !is_reserved {
            // The outcome could not be recorded.
            return Action::Idle(self.back_off.idle(IdleReason::NoMemory));
        }
        action
    }

    /// Reserves memory for what the outcome of the next action may change.
    fn reserve(&mut self) -> Result<(), TryReserveError> {
        // A set needs memory for its own runs, for those that may come from another set, and for `ROOM` more. So one sum tells,
        // mostly.
        if self.sets().map(Runs::len).iter().sum::<usize>() + ROOM > self.room {
            self.region.try_reserve()?;
            self.reserve_doubts()?;
            self.room = self.sets().map(Runs::room).into_iter().fold(usize::MAX, usize::min);
        }
        Ok(())
    }

    /// All sets that an outcome may change.
    const fn sets(&self) -> [&Runs; 6] {
        let [online, strays, parked, holes] = self.region.sets();
        [online, strays, parked, holes, &self.uncertain.blocks, &self.scraps]
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
            Some(Idle::Reached | Idle::Detached) => {}
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
        if let Some(&request) = self.in_flight.first() {
            return self.complete_request(request, outcome);
        }
        let action = self.under_way.take().expect("an action is under way");
        self.apply(action, outcome);
    }

    /// Takes the outcome of a request that [`Driver::next`] or [`Driver::next_request`] returned. Requests may be
    /// completed in any order.
    ///
    /// # Panics
    /// When the request is not under way, or `outcome` is not a possible outcome of it.
    pub fn complete_request(&mut self, request: Request, outcome: Outcome) {
        let place = self.in_flight.iter().position(|&one| one == request);
        self.in_flight
            .remove(place.unwrap_or_else(|| panic!("{request:?} is not among {:?}", self.in_flight)));
        self.apply(Action::Send(request), outcome);
    }

    /// From now on the guest gives up all memory blocks, but nothing is unplugged, as before another driver is to take the
    /// device over. When that is done the driver is [`Idle::Detached`]. When it is idle for another reason, some memory block
    /// cannot go. [`Driver::attach`] ends this.
    pub fn detach(&mut self) {
        self.detaching = true;
        self.config_changed();
    }

    /// Ends [`Driver::detach`]: memory blocks that the guest has given up come back.
    pub fn attach(&mut self) {
        self.detaching = false;
        self.config_changed();
    }

    /// Number of plugged bytes, in the driver's view.
    #[must_use]
    pub const fn plugged_size(&self) -> u64 {
        if self.unplug_all || self.inherited {
            self.config.plugged_size
        } else {
            let geometry = &self.region.geometry;
            geometry.bytes(self.region.plugged()) + geometry.device_bytes(self.scraps.count())
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

    /// How often the plugged size that the device gives was not what the driver believed. Each time the driver asked the
    /// device which device blocks are plugged.
    #[must_use]
    pub const fn mismatches(&self) -> u64 {
        self.mismatches
    }

    /// Bytes of the region that the guest can never use: before its first memory block, or less than it can take in.
    #[must_use]
    pub const fn unusable_size(&self) -> u64 {
        self.region.geometry.unusable()
    }

    /// Runs of plugged device blocks in the driver's view, ascending. Two of them may touch.
    pub fn plugged(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let units = self.region.plugged_runs().map(|units| self.region.geometry.device_blocks(units));
        let (mut units, mut scraps) = (units.peekable(), self.scraps.all().peekable());
        core::iter::from_fn(move || match (units.peek(), scraps.peek()) {
            (Some(run), Some(scrap)) if run.first() > scrap.first() => scraps.next(),
            (None, _) => scraps.next(),
            _ => units.next(),
        })
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
        self.region.geometry.usable_units(self.config.usable_region_size)
    }

    fn send(&self, kind: RequestKind, range: BlockRange) -> Action {
        Action::Send(self.request(kind, range))
    }

    fn request(&self, kind: RequestKind, range: BlockRange) -> Request {
        self.device_request(kind, self.region.geometry.device_blocks(range))
    }

    /// A request that names device blocks of the device.
    fn device_request(&self, kind: RequestKind, range: BlockRange) -> Request {
        let nb_blocks = u16::try_from(range.count()).expect("the range fits into a request");
        Request { kind, addr: self.region.geometry.device_addr(range.first()), nb_blocks }
    }

    /// What a request of this driver names, as device blocks of the device.
    const fn range(&self, request: Request) -> BlockRange {
        BlockRange::new(self.region.geometry.device_block(request.addr), request.nb_blocks as u64)
    }

    /// What a request of this driver names, unless it is about device blocks that the guest cannot use.
    fn units(&self, request: Request) -> Option<BlockRange> {
        let (geometry, range) = (&self.region.geometry, self.range(request));
        let units = geometry.units_in(range);
        (geometry.device_blocks(units) == range && self.scraps.count_in(range) == 0).then_some(units)
    }

    /// The device blocks of an action on `size` bytes at `addr`.
    fn blocks(&self, addr: u64, size: u64) -> BlockRange {
        let geometry = &self.region.geometry;
        BlockRange::new(geometry.block(addr), geometry.blocks(size))
    }
}

#[cfg(test)]
mod tests;
