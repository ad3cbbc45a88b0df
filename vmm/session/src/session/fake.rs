//! [`FakeVm`]: a VM without KVM, whose guest lives in simulated time.
//!
//! It is stricter than a real VM. It panics on use that a real VM would accept or only refuse: a target that
//! is no multiple of the device block size, a handle used twice or unknown, a call before the guest is ready, a call
//! to the VM from inside a wait (a deadlock on a real VM), and a stop while answers are not taken.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tidevm_abi::{
    Answer, BLOCK_RUNS, BadWord, BlockRun, BlockState, CorruptPart, Failure, Handle, HogKind, Meminfo,
    Memmap, NR_ZONES, Op, Owner, Pmem, PmemFailure, PmemMapped, PmemOp, Resize, ResizeState, Stats,
    UnmovablePage, ZoneName, ZoneStats,
};
use tidevm_machine::{
    Alarms, CallsUnread, Death, DeathKind, End, ExitCounts, Heard, LookResult, MemStatus, Ready,
    RequestCounts, ResetRefused, ResizeError, SaveError, Saved, Size, State, VcpuReport, WaitError,
};

use super::VmControl;

pub(super) const REGION: u64 = 8 << 30;
pub(super) const BLOCK: u64 = 2 << 20;
/// Not a whole number of GiB.
pub(super) const BOOT_MEMORY: u64 = (1 << 30) + (512 << 20);
pub(super) const DEVICE_MEMORY: u64 = 2 << 30;
const REGION_START: u64 = 4 << 30;

/// What a guest does not do again after a reset.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    Driver,
    Report,
}

/// How the guest behaves; fixed before a session.
pub(super) struct Nature {
    /// It never reports that it is ready.
    pub(super) mute: bool,
    /// It is a kernel without an agent: it reports nothing and answers no call.
    pub(super) foreign: bool,
    /// It is Linux with an agent, which answers calls. Its driver reports nothing.
    pub(super) linux: bool,
    /// It drives no device.
    pub(super) driverless: bool,
    /// Its machine was not made to be reset.
    pub(super) unresettable: bool,
    /// What does not come back after a reset: the driver, or the first report.
    pub(super) loses: Option<Lost>,
    /// It never finishes a resize, and reports nothing.
    pub(super) stuck: bool,
    /// Its device answers BUSY to everything.
    pub(super) busy: bool,
    /// Its answer to a call for counters takes a moment.
    pub(super) slow: bool,
    /// Its answer to a call for memory blocks takes 40 s.
    pub(super) plodding: bool,
    /// Pages that are free for hogs.
    pub(super) room: u64,
    /// Pages that a verify finds corrupt.
    pub(super) corrupt: u64,
    /// Pages that a race strands.
    pub(super) stranded: u64,
    /// Pages that a release does not give back.
    pub(super) lose: u64,
    /// Its machine is to be saved: whether there is room for it.
    pub(super) saves: Option<bool>,
    /// It panics when it is asked to check.
    pub(super) panics: bool,
    /// It ignores a request to power off.
    pub(super) deaf: bool,
    /// It panics when it is asked to power off, and this death is told in place of an earlier one.
    pub(super) dies_at_the_end: bool,
    /// It reports that all its zones are Movable and of the largest size.
    pub(super) boasts: bool,
    /// Calls that it never answers.
    pub(super) ignores: fn(&Op) -> bool,
    /// What it answers to a call, in place of the true answer.
    pub(super) lies: fn(&Op) -> Option<Answer>,
}

impl Default for Nature {
    fn default() -> Nature {
        Nature {
            mute: false,
            foreign: false,
            linux: false,
            driverless: false,
            unresettable: false,
            loses: None,
            stuck: false,
            busy: false,
            slow: false,
            plodding: false,
            room: u64::MAX,
            corrupt: 0,
            stranded: 0,
            lose: 0,
            saves: None,
            panics: false,
            deaf: false,
            dies_at_the_end: false,
            boasts: false,
            ignores: |_| false,
            lies: |_| None,
        }
    }
}

/// An event in simulated time.
pub(super) enum Event {
    Ready,
    /// The agent speaks records of this version, which is another one.
    Speaks(u32),
    Answer(u32, Box<Answer>),
    /// A driver binds the device.
    Bind,
    /// The driver unbinds the device, and no later event happens.
    Unbind,
    /// The driver looks at its target.
    Drive,
    /// Pinned pages are released.
    Unpin,
    Signal(i32),
    /// A person cancels what is under way.
    Interrupt,
    PowerOff,
    /// The guest resets the VM, and is up again half a second later.
    Reset,
    /// A request to reset the VM is carried out.
    RequestedReset(u64),
    /// The guest accesses an address without a device or memory.
    Stray,
    /// The guest writes to its console.
    Say(&'static str),
    /// The guest's kernel is in trouble, and says so.
    Alarm(&'static str),
    /// So many bytes at the start of the console are not kept any more.
    Forget(usize),
}

pub(super) struct FakeVm {
    state: RefCell<State>,
    console: RefCell<Vec<u8>>,
    /// Bytes of it that are not kept, and its length at the last reset.
    forgotten: Cell<usize>,
    at_reset: Cell<usize>,
    alarms: RefCell<Alarms>,
    /// When the time of all waits is over.
    timeout: Cell<Option<Duration>>,
    /// By call: no answer yet, the answer, or an error after a reset.
    answers: RefCell<BTreeMap<u32, Option<Result<Answer, WaitError>>>>,
    nature: Nature,
    started: Instant,
    now: Cell<Instant>,
    events: RefCell<Vec<(Instant, Event)>>,
    looking: Cell<bool>,
    /// Until when the driver is at work for a target that it has read.
    busy_until: Cell<Instant>,
    next_call: Cell<u32>,
    /// Resets that were asked for.
    requests: Cell<u64>,
    untaken: RefCell<BTreeSet<u32>>,
    hogs: RefCell<BTreeMap<Handle, (u64, HogKind)>>,
    used: RefCell<BTreeSet<Handle>>,
    stops: Rc<RefCell<Vec<Duration>>>,
    /// Work amid a wait, so far.
    amid_waits: Rc<Cell<u32>>,
    /// What the session that saved it has left.
    remembered: Vec<u8>,
    /// What this session leaves.
    snapshot: Rc<RefCell<Vec<u8>>>,
}

impl FakeVm {
    pub(super) fn new(nature: Nature) -> FakeVm {
        let mem = MemStatus {
            region: REGION_START,
            region_size: Size(REGION),
            block_size: Size(BLOCK),
            driver: !nature.driverless && !nature.foreign && !nature.linux,
            ..MemStatus::default()
        };
        let start = Instant::now();
        let fake = FakeVm {
            state: RefCell::new(State { mem: vec![mem], ..State::default() }),
            console: RefCell::default(),
            forgotten: Cell::default(),
            at_reset: Cell::default(),
            alarms: RefCell::default(),
            timeout: Cell::default(),
            answers: RefCell::default(),
            nature,
            started: start,
            now: Cell::new(start),
            events: RefCell::new(Vec::new()),
            looking: Cell::new(false),
            busy_until: Cell::new(start),
            next_call: Cell::new(7),
            requests: Cell::new(0),
            untaken: RefCell::default(),
            hogs: RefCell::default(),
            used: RefCell::default(),
            stops: Rc::default(),
            amid_waits: Rc::default(),
            remembered: Vec::new(),
            snapshot: Rc::default(),
        };
        if (fake.nature.foreign || fake.nature.linux) && !fake.nature.driverless {
            fake.after(Duration::from_secs(3), Event::Bind);
        }
        if !fake.nature.foreign && !fake.nature.mute {
            fake.after(Duration::from_millis(400), Event::Ready);
        }
        fake
    }

    /// Adds a device without a driver, of which so much is plugged.
    pub(super) fn add_device(&self, plugged: Size) {
        let mem = MemStatus { plugged, requested: plugged, region_size: plugged, ..MemStatus::default() };
        self.state.borrow_mut().mem.push(mem);
    }

    /// Lets all waits together take so long.
    pub(super) fn limit(&self, timeout: Duration) {
        self.timeout.set(Some(timeout));
    }

    /// Lets so much time pass before the session.
    pub(super) fn age(&self, time: Duration) {
        assert!(self.pass(time, "the session", || None::<()>).is_err());
    }

    /// Lets `event` happen after `time`.
    pub(super) fn after(&self, time: Duration, event: Event) {
        let mut events = self.events.borrow_mut();
        events.push((self.now.get() + time, event));
        events.sort_by_key(|(at, _)| *at);
    }

    /// The limits of the stops, which outlive the VM.
    pub(super) fn stops(&self) -> Rc<RefCell<Vec<Duration>>> {
        Rc::clone(&self.stops)
    }

    /// How often there was work amid a wait, which outlives the VM.
    pub(super) fn amid_waits(&self) -> Rc<Cell<u32>> {
        Rc::clone(&self.amid_waits)
    }

    /// What a session leaves with its snapshot, which outlives the VM.
    pub(super) fn snapshot(&self) -> Rc<RefCell<Vec<u8>>> {
        Rc::clone(&self.snapshot)
    }

    /// The VM that comes from a snapshot: its guest is up, and holds so many pages by the handle 0.
    pub(super) fn restored(nature: Nature, remembered: Vec<u8>, pages: u64) -> FakeVm {
        let mut fake = Self::new(nature);
        fake.remembered = remembered;
        fake.state.borrow_mut().ready =
            Some(Ready { cpus: 2, mem_devices: 1, after: Duration::from_millis(400) });
        fake.events.borrow_mut().retain(|(_, event)| !matches!(event, Event::Ready));
        fake.hogs.borrow_mut().insert(0, (pages, HogKind::Movable));
        fake.used.borrow_mut().insert(0);
        fake
    }

    fn look(&self) {
        assert!(!self.looking.get(), "a call to the VM from inside a wait");
    }

    fn happen(&self, event: Event) {
        match event {
            Event::Ready => {
                let ready = Ready { cpus: 2, mem_devices: 1, after: Duration::from_millis(400) };
                self.state.borrow_mut().ready = Some(ready);
            }
            Event::Speaks(version) => self.state.borrow_mut().foreign_records = Some(version),
            Event::Answer(id, answer) => match self.answers.borrow_mut().get_mut(&id) {
                Some(open @ None) => *open = Some(Ok(*answer)),
                _ => self.state.borrow_mut().bad_records += 1,
            },
            Event::Bind => self.state.borrow_mut().mem[0].driver = true,
            Event::Unbind => {
                self.state.borrow_mut().mem[0].driver = false;
                self.events.borrow_mut().clear();
            }
            Event::Drive => self.drive(),
            Event::Unpin => {
                self.hogs.borrow_mut().retain(|_, (_, kind)| *kind == HogKind::Movable);
                self.drive();
            }
            Event::Signal(signal) => self.state.borrow_mut().signal = Some(signal),
            Event::Interrupt => self.state.borrow_mut().interrupts += 1,
            Event::PowerOff => self.state.borrow_mut().powered_off = true,
            Event::RequestedReset(request) => {
                self.happen(Event::Reset);
                self.state.borrow_mut().reset_request = request;
            }
            Event::Reset => {
                let mut state = self.state.borrow_mut();
                let mem = &mut state.mem[0];
                (mem.plugged, mem.driver, mem.report, mem.seen) = (Size(0), false, None, None);
                state.ready = None;
                state.resets += 1;
                self.at_reset.set(self.console.borrow().len());
                for answer in self.answers.borrow_mut().values_mut() {
                    answer.get_or_insert(Err(WaitError::Reset));
                }
                // What the guest would have done. Signals and later resets come from elsewhere.
                self.events.borrow_mut().retain(|(_, event)| {
                    matches!(
                        event,
                        Event::Signal(_) | Event::Reset | Event::RequestedReset(_) | Event::Say(_)
                    )
                });
                self.hogs.borrow_mut().clear();
                if !self.nature.driverless && self.nature.loses != Some(Lost::Driver) {
                    self.after(Duration::from_millis(400), Event::Bind);
                }
                if !self.nature.foreign && self.nature.loses != Some(Lost::Report) {
                    self.after(Duration::from_millis(500), Event::Ready);
                }
                self.after(Duration::from_millis(600), Event::Drive);
            }
            Event::Stray => self.state.borrow_mut().stray_accesses += 1,
            Event::Say(text) => {
                self.console.borrow_mut().extend(text.as_bytes());
                self.state.borrow_mut().console_lines += text.matches('\n').count() as u64;
            }
            Event::Alarm(line) => self.alarms.borrow_mut().lines.push(line.to_owned()),
            Event::Forget(bytes) => self.forgotten.set(bytes),
        }
    }

    /// The driver settles: at its target, or at one device block per page that cannot move.
    fn drive(&self) {
        let pinned: Vec<_> =
            self.hogs.borrow().iter().filter(|(_, hog)| hog.1 != HogKind::Movable).map(pin).collect();
        let pages: u64 = pinned.iter().map(|(_, pages)| pages).sum();
        let mut state = self.state.borrow_mut();
        let mem = &mut state.mem[0];
        let target = mem.requested;
        let unmovable = |(index, (handle, _)): (usize, &(Handle, u64))| UnmovablePage {
            pfn: (REGION_START >> 12) + 512 * index as u64,
            owner: Owner::Workload(*handle),
        };
        let mut first = [None; 4];
        for (slot, page) in first.iter_mut().zip(pinned.iter().enumerate().map(unmovable)) {
            *slot = Some(page);
        }
        let outcome = match () {
            () if self.nature.busy => ResizeState::HostBusy,
            () if target < mem.plugged && target < Size(pages * BLOCK) => {
                ResizeState::Unmovable { pages, first }
            }
            () => ResizeState::Reached,
        };
        mem.plugged = match outcome {
            ResizeState::Unmovable { .. } => mem.plugged.min(Size(pages * BLOCK)),
            ResizeState::Reached => target,
            _ => mem.plugged,
        };
        let (region, plugged, generation) = (mem.region, mem.plugged, mem.generation);
        mem.seen = Some(generation);
        if !self.nature.foreign && !self.nature.linux {
            mem.report = Some(Resize { region, plugged, requested: target, generation, state: outcome });
        }
    }

    /// Lets events happen until `find` finds something, at most `limit`.
    fn pass<T>(
        &self,
        limit: Duration,
        what: &str,
        mut find: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        let deadline = self.now.get() + limit;
        loop {
            if let Some(found) = find() {
                return Ok(found);
            }
            let state = self.state.borrow().clone();
            if let Some(death) = state.death {
                return Err(WaitError::Died(death));
            }
            if let Some(signal) = state.signal {
                return Err(WaitError::Signal(signal));
            }
            if state.powered_off {
                return Err(WaitError::PoweredOff);
            }
            if self.is_over() {
                let limit = self.timeout.get().unwrap_or_default();
                return Err(WaitError::TimedOut { what: what.to_owned(), limit });
            }
            let over = self.timeout.get().map(|timeout| self.started + timeout);
            let first = self.events.borrow().first().map(|(at, _)| *at);
            if let Some(over) =
                over.filter(|over| *over <= deadline && first.is_none_or(|first| first > *over))
            {
                self.now.set(over);
                continue;
            }
            let due = first.filter(|at| *at <= deadline);
            let Some(at) = due else {
                self.now.set(deadline);
                return Err(WaitError::Deadline { what: what.to_owned(), after: limit });
            };
            self.now.set(self.now.get().max(at));
            let (_, event) = self.events.borrow_mut().remove(0);
            self.happen(event);
        }
    }

    fn is_over(&self) -> bool {
        self.timeout.get().is_some_and(|timeout| self.now.get() >= self.started + timeout)
    }

    fn hog(&self, handle: Handle, wanted: u64, partial: bool, kind: HogKind) -> Answer {
        let held: u64 = self.hogs.borrow().values().map(|(pages, _)| pages).sum();
        let pages = wanted.min(self.nature.room - held);
        if self.nature.room == 0 {
            return Answer::Failed(Failure::NoMemory);
        }
        if pages < wanted && !partial {
            return Answer::Failed(Failure::DoesNotFit { pages });
        }
        self.hogs.borrow_mut().insert(handle, (pages, kind));
        Answer::Hogged { pages }
    }

    /// Two memory blocks, one per answer.
    pub(super) fn blocks(from: u64) -> Answer {
        let first = BlockRun {
            addr: 0,
            count: 1,
            size: Size(128 << 20),
            boot: true,
            state: BlockState::Online,
            zone: Some(ZoneName::Dma32),
            node: 0,
            plugged: Some(Size(0)),
            memmap: Some(Memmap { pages: 0, on_memory: false }),
        };
        let second = BlockRun {
            addr: REGION,
            boot: false,
            state: BlockState::Offline,
            zone: None,
            plugged: Some(Size(2 << 20)),
            memmap: Some(Memmap { pages: 512, on_memory: false }),
            ..first
        };
        let mut runs = [None; BLOCK_RUNS];
        runs[0] = Some(if from == 0 { first } else { second });
        Answer::Blocks { runs, next: (from == 0).then_some(REGION) }
    }

    /// The guest has one range of device memory of 1 GiB. It is in use while any hog lives.
    fn pmem(&self, op: PmemOp) -> Answer {
        const PAGES: u64 = 1 << 18;
        let refuse = |why| Answer::Failed(Failure::Pmem(why));
        let user = self.hogs.borrow().first_key_value().map(pin);
        match op {
            PmemOp::Look { device: 0 } => {
                Answer::Pmem(Pmem { start: 5 << 30, size: Size(1 << 30), mapped: None })
            }
            PmemOp::Map { devices: 1, altmap: true, cpus, .. } => Answer::PmemMapped(PmemMapped {
                pages: PAGES - 4096,
                locked_pages: 4096,
                locked_ns: 1_500_000,
                total_ns: 70_000_000,
                cpus: cpus.min(2),
            }),
            PmemOp::Map { .. } => refuse(PmemFailure::NoMemory),
            PmemOp::Unmap { device: 0 } => match user {
                Some((handle, refs)) => refuse(PmemFailure::InUse { refs, first: Some((0x14_0000, handle)) }),
                None => Answer::PmemUnmapped { pages: PAGES },
            },
            _ => refuse(PmemFailure::NoDevice),
        }
    }

    fn stats(&self) -> Stats {
        let state = self.state.borrow().clone();
        let plugged = state.mem[0].plugged.pages();
        let zone = |name, pages| ZoneStats {
            name,
            spanned: pages,
            present: pages,
            managed: pages,
            free: pages,
            pcp: 0,
        };
        let mut zones: [ZoneStats; NR_ZONES] =
            [zone(ZoneName::Dma32, 60_000), zone(ZoneName::Normal, 0), zone(ZoneName::Movable, plugged)];
        if self.nature.boasts {
            zones = [zone(ZoneName::Movable, u64::MAX); NR_ZONES];
        }
        let mut stats = Stats {
            zones,
            nr_nodes: 1,
            memmap_altmap_pages: plugged.div_ceil(32_768) * 512,
            blocks_online: plugged.div_ceil(32_768),
            ..Stats::default()
        };
        stats.nodes[0].zones = zones;
        stats
    }
}

/// The word of a page that is corrupt.
fn bad_word(page: u64) -> BadWord {
    BadWord { page, pfn: 9, word: 511, expected: 0x10, found: 0x11 }
}

fn pin((handle, (pages, _)): (&Handle, &(u64, HogKind))) -> (Handle, u64) {
    (*handle, *pages)
}

impl VmControl for FakeVm {
    fn now(&self) -> Instant {
        self.now.get()
    }

    fn started(&self) -> Instant {
        self.started
    }

    fn boot_memory(&self) -> u64 {
        BOOT_MEMORY
    }

    fn device_memory(&self) -> u64 {
        DEVICE_MEMORY
    }

    fn has_agent(&self) -> bool {
        !self.nature.foreign
    }

    fn reports(&self) -> bool {
        !self.nature.foreign && !self.nature.linux
    }

    fn state(&self) -> State {
        self.look();
        self.state.borrow().clone()
    }

    fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        mut find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, WaitError> {
        self.look();
        self.pass(limit, what, || {
            let state = self.state.borrow();
            self.looking.set(true);
            let found = find(&state);
            self.looking.set(false);
            found
        })
    }

    fn call(&self, op: Op) -> Result<u32, CallsUnread> {
        self.look();
        let state = self.state.borrow().clone();
        assert!(state.ready.is_some() || state.resets > 0, "a call before the guest is ready: {op:?}");
        let id = self.next_call.replace(self.next_call.get() + 1);
        self.answers.borrow_mut().insert(id, None);
        self.untaken.borrow_mut().insert(id);
        let hog = |handle| *self.hogs.borrow().get(&handle).expect("a handle that the guest knows");
        let fresh =
            |handle| assert!(self.used.borrow_mut().insert(handle), "handle {handle} was used before");
        let (millis, answer) = match op {
            Op::Stats => (if self.nature.slow { 10 } else { 0 }, Answer::Stats(self.stats())),
            Op::Check if self.nature.panics => {
                let death = Death { kind: DeathKind::GuestPanic, text: "rip 0xdead".to_owned() };
                self.state.borrow_mut().death = Some(death);
                return Ok(id);
            }
            Op::Check => (10, Answer::Checked { pages: 60_000, deferred: 0 }),
            Op::Hog { handle, pages, partial, kind, .. } => {
                fresh(handle);
                (pages / 100, self.hog(handle, pages, partial, kind))
            }
            Op::Verify { handle } => {
                let (pages, _) = hog(handle);
                let corrupt = self.nature.corrupt;
                (
                    pages / 100,
                    Answer::Verified { pages, corrupt, first: (corrupt > 0).then_some(bad_word(2)) },
                )
            }
            Op::Release { handle } => {
                let (pages, kind) = hog(handle);
                self.hogs.borrow_mut().remove(&handle);
                if kind != HogKind::Movable {
                    self.after(Duration::from_millis(50), Event::Drive);
                }
                (pages / 100, Answer::Released { pages: pages - self.nature.lose })
            }
            Op::Churn { handle, millis, .. } => {
                fresh(handle);
                (millis, Answer::Churned { allocations: millis, failures: 0 })
            }
            Op::Race { cycles, .. } => {
                (1, Answer::Raced { cycles, failures: 0, stranded: self.nature.stranded })
            }
            Op::Corrupt { handle, page, part } => (
                1,
                match part {
                    _ if u64::from(page) >= hog(handle).0 => Answer::Failed(Failure::NoSuchPage),
                    CorruptPart::Content => Answer::Corrupted(bad_word(page.into())),
                    CorruptPart::Memmap => Answer::Done,
                },
            ),
            Op::Rebind { device: 0 } | Op::Inject { .. } | Op::Probe(_) => (0, Answer::Done),
            Op::Rebind { .. } => (0, Answer::Failed(Failure::NoDriver)),
            Op::Blocks { from } => (if self.nature.plodding { 40_000 } else { 0 }, Self::blocks(from)),
            Op::Readd { addr: 0, .. } => (0, Answer::Failed(Failure::NotBlocks)),
            Op::Readd { .. } => (0, Answer::Failed(Failure::Granularity)),
            Op::Pmem(PmemOp::Hold { handle, pages, partial, .. }) => {
                fresh(handle);
                (pages / 100, self.hog(handle, pages, partial, HogKind::Pinned))
            }
            Op::Pmem(op) => (0, self.pmem(op)),
            Op::PowerOff => panic!("a session stops its machine instead"),
            Op::Meminfo => {
                let size = Size(BOOT_MEMORY);
                (10, Answer::Meminfo(Meminfo { total: size, free: size, available: size }))
            }
            Op::Watch(_) => panic!("a session does not size its machine"),
        };
        let answer = (self.nature.lies)(&op).unwrap_or(answer);
        if !(self.nature.ignores)(&op) {
            self.after(Duration::from_millis(millis), Event::Answer(id, Box::new(answer)));
        }
        Ok(id)
    }

    fn answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError> {
        assert!(self.untaken.borrow_mut().remove(&id), "call {id} was not made, or its answer is taken");
        self.look();
        let answer = self.pass(limit, what, || self.answers.borrow().get(&id)?.clone())??;
        self.answers.borrow_mut().remove(&id);
        Ok(answer)
    }

    fn await_answer(&self, id: u32, limit: Duration) -> Option<Result<Answer, WaitError>> {
        assert!(self.untaken.borrow().contains(&id), "call {id} was not made, or its answer is taken");
        self.look();
        let answer = self.pass(limit, "an answer", || self.answers.borrow().get(&id)?.clone());
        if matches!(answer, Err(WaitError::Deadline { .. })) {
            return None;
        }
        self.untaken.borrow_mut().remove(&id);
        self.answers.borrow_mut().remove(&id);
        Some(answer.and_then(|answer| answer))
    }

    fn answer_unless(
        &self,
        id: u32,
        limit: Duration,
        what: &str,
        mut stop: impl FnMut(&State) -> bool,
    ) -> Result<Option<Answer>, WaitError> {
        assert!(self.untaken.borrow().contains(&id), "call {id} was not made, or its answer is taken");
        self.look();
        let answer = self.pass(limit, what, || match self.answers.borrow().get(&id)?.clone() {
            Some(answer) => Some(Some(answer)),
            None => stop(&self.state.borrow()).then_some(None),
        });
        if matches!(answer, Ok(None)) {
            return Ok(None);
        }
        self.untaken.borrow_mut().remove(&id);
        let answer = answer?.transpose()?;
        self.answers.borrow_mut().remove(&id);
        Ok(answer)
    }

    fn resize(&self, device: usize, requested: Size) -> Result<(), ResizeError> {
        self.look();
        assert_eq!(device, 0, "the session looks before it resizes");
        assert!(requested.0.is_multiple_of(BLOCK), "scripts are fitted to the devices before they run");
        if requested > Size(REGION) {
            return Err(ResizeError::TooLarge { requested, region_size: Size(REGION) });
        }
        let from = {
            let mem = &mut self.state.borrow_mut().mem[0];
            mem.requested = requested;
            mem.generation += 1;
            mem.plugged
        };
        if !self.nature.stuck {
            // One second per GiB. The driver does not look at the target before it is through with the last one.
            let time = Duration::from_millis((from.0.abs_diff(requested.0) * 1000) >> 30);
            let now = self.now.get();
            let due = self.busy_until.get().max(now + time);
            self.busy_until.set(due);
            self.after(due - now, Event::Drive);
        }
        Ok(())
    }

    fn reset(&self) -> Result<u64, ResetRefused> {
        self.look();
        if self.nature.unresettable {
            return Err(ResetRefused);
        }
        let request = self.requests.get() + 1;
        self.requests.set(request);
        self.after(Duration::from_millis(5), Event::RequestedReset(request));
        Ok(request)
    }

    fn amid_wait<T>(&self, work: impl FnOnce() -> T) -> T {
        self.amid_waits.set(self.amid_waits.get() + 1);
        work()
    }

    fn held(&self) -> io::Result<Vec<Size>> {
        self.look();
        Ok(self.state.borrow().mem.iter().map(|mem| Size(mem.plugged.0 / 8)).collect())
    }

    fn exits(&self) -> Vec<ExitCounts> {
        vec![ExitCounts { io: 1, mmio: 2, ..ExitCounts::default() }; 2]
    }

    fn mem_requests(&self) -> Vec<RequestCounts> {
        vec![RequestCounts { refused_chains: 5, ..RequestCounts::default() }; self.state.borrow().mem.len()]
    }

    fn heard(&self, from: u64) -> Heard {
        self.look();
        let console = self.console.borrow();
        let start = (from as usize).max(self.forgotten.get()).min(console.len());
        Heard {
            start: start as u64,
            text: console[start..].to_vec(),
            since_reset: self.at_reset.get() as u64,
        }
    }

    fn take_alarms(&self) -> Alarms {
        self.look();
        self.alarms.take()
    }

    fn vcpus(&self) -> Vec<VcpuReport> {
        self.look();
        vec![VcpuReport { vcpu: 0, seen: LookResult::Silent }]
    }

    fn saves(&self) -> bool {
        self.nature.saves.is_some()
    }

    fn remembered(&self) -> &[u8] {
        &self.remembered
    }

    fn end_saved(self, remember: &[u8]) -> Result<Saved, Box<(Self, SaveError)>> {
        assert!(self.state.borrow().ready.is_some() || self.nature.foreign, "a guest that is not up");
        if self.nature.saves != Some(true) {
            return Err(Box::new((self, SaveError::StillRunning(Duration::from_secs(5)))));
        }
        *self.snapshot.borrow_mut() = remember.to_vec();
        Ok(Saved { path: "/snapshots/one".into(), content: Size::mib(12) })
    }

    fn stop(self, limit: Duration) -> End {
        self.stops.borrow_mut().push(limit);
        let state = self.state.borrow().clone();
        if self.nature.dies_at_the_end {
            return End::Died(Death { kind: DeathKind::GuestPanic, text: "rip 0xe4d".to_owned() });
        }
        if let Some(death) = state.death {
            return End::Died(death);
        }
        if self.nature.deaf || state.ready.is_none() {
            let asked = state.ready.is_some();
            return End::Forced { asked, vcpus: if asked { self.vcpus() } else { Vec::new() } };
        }
        let early = state.signal.is_some() || state.powered_off || self.is_over();
        let untaken = self.untaken.borrow();
        assert!(early || untaken.is_empty(), "calls whose answers were not taken: {untaken:?}");
        End::PoweredOff
    }
}
