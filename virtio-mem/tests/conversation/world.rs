//! The world of a conversation: driver, device, guest, host and the transport between them, one step at a time.
//! Identifiers such as D9 are rows of the tables in `tests/conformance`.

use std::collections::{BTreeSet, VecDeque};

use virtio_mem::blocks::BlockBitmap;
use virtio_mem::device::{Begun, StateError};
use virtio_mem::{
    Action, BlockState, Config, Device, DeviceConfig, DeviceState, Driver, DriverConfig, Idle, IdleReason,
    Outcome, Request, RequestKind, Response, ResponseType,
};

use super::MIB;
use super::guest::Guest;
use super::host::Host;
use super::random::Random;

pub const REGION: u64 = 4 << 30;

/// Number of lines that a failure prints.
const TRACE: usize = 60;

/// The smallest part of a memory block that the guest can take in.
const MIN_BLOCK: u64 = 2 * MIB;

/// The sizes and the fault rate of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Address of the region.
    pub addr: u64,
    pub block_size: u64,
    pub memory_block: u64,
    pub region_size: u64,
    pub memmap_inside: bool,
    /// Percentage of each kind of fault.
    faults: u64,
}

impl Shape {
    /// No faults, and a region of 1 GiB or four memory blocks, whichever is more.
    pub fn plain(block_size: u64, memory_block: u64, memmap_inside: bool) -> Shape {
        let region_size = (1024 * MIB).max(4 * memory_block);
        Shape { addr: REGION, block_size, memory_block, region_size, memmap_inside, faults: 0 }
    }

    pub fn random(random: &mut Random) -> Shape {
        // Half of the regions have the device blocks of x86. Some regions end within a memory block.
        let block_size = random.pick(&[1, 2, 2, 2, 2, 2, 2, 4, 8, 16, 32, 64, 128, 256]) * MIB;
        let memory_block = (random.pick(&[128, 128, 128, 128, 256, 512, 1024]) * MIB).max(block_size);
        // Some do not begin with a memory block.
        let before = if random.chance(20) { random.below(memory_block / block_size) } else { 0 };
        let missing = if random.chance(30) { random.below(memory_block / block_size) } else { 0 };
        Shape {
            addr: REGION + before * block_size,
            block_size,
            memory_block,
            // Two of the largest memory blocks have as many device blocks as eight of the smallest.
            region_size: (1 + random.below((1024 * MIB / memory_block).max(2))) * memory_block
                - missing * block_size,
            memmap_inside: random.chance(75),
            faults: random.pick(&[0, 1, 5, 20, 50]),
        }
    }

    /// The configuration of the driver. The memmap lies elsewhere when it would fill the last memory block.
    fn fitted(&self) -> DriverConfig {
        let memmap_size = self.memory_block / 64;
        let last = self.region_size % self.memory_block;
        let is_aligned = self.addr.is_multiple_of(self.memory_block);
        let inside = self.memmap_inside && (last == 0 || last > memmap_size || !is_aligned);
        DriverConfig::new(self.memory_block, MIN_BLOCK).with_memmap_size(if inside { memmap_size } else { 0 })
    }

    /// The unit in which the guest plugs.
    pub fn unit(&self) -> u64 {
        self.block_size.max(MIN_BLOCK)
    }

    /// Where the guest's first memory block begins.
    pub fn start(&self) -> u64 {
        self.addr.next_multiple_of(self.memory_block)
    }

    fn driver(&self, config: Config) -> Driver {
        Driver::new(self.fitted(), config, 0).expect("the device's configuration is good")
    }

    fn guest(&self, driver: &Driver) -> Guest {
        let fitted = self.fitted();
        let memmap_blocks = fitted.memmap_size.div_ceil(self.unit()) * (self.unit() / self.block_size);
        let end = self.start() + self.region_size - driver.unusable_size();
        Guest::new(self.addr..end, self.block_size, fitted.memory_block_size, memmap_blocks)
    }
}

/// The fate of a request.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The device serves and answers it.
    Through,
    /// The host cannot do it.
    HostFails,
    /// The guest could not send it.
    NotSent,
    /// It is not served, and answered with this response type.
    Answered(u16),
    /// It is served, and answered with ERROR.
    ServedAndError,
    /// It is neither served nor answered.
    Lost,
    /// It is served, but the answer is lost.
    AnswerLost,
    /// It is served before the next request, and not answered.
    Late,
}

pub struct World {
    pub shape: Shape,
    random: Random,
    pub device: Device,
    pub driver: Driver,
    pub host: Host,
    pub guest: Guest,
    /// Percentage of each kind of fault.
    faults: u64,
    /// A request that the device has not served yet.
    late: Option<Request>,
    /// Whether the driver's view may be wrong: the device has changed something without an answer.
    pub in_doubt: bool,
    /// Another kernel has plugged what is plugged, and not begun with the memmaps.
    pub is_foreign: bool,
    /// A config notification is on its way.
    pub interrupt: bool,
    /// The usable region of the last step.
    pub usable: u64,
    trace: VecDeque<String>,
    /// Number of requests so far.
    pub requests: u32,
    /// How often the driver was idle before it reached its target.
    pub pauses: u32,
}

impl World {
    pub fn new(shape: Shape, random: Random) -> World {
        let Shape { addr, block_size, region_size, .. } = shape;
        let device =
            Device::new(DeviceConfig::new(addr, region_size, block_size)).expect("a good configuration");
        let driver = shape.driver(device.config());
        World {
            shape,
            random,
            guest: shape.guest(&driver),
            driver,
            device,
            host: Host::new(region_size / block_size),
            faults: shape.faults,
            late: None,
            in_doubt: false,
            is_foreign: false,
            interrupt: false,
            usable: 0,
            trace: VecDeque::new(),
            requests: 0,
            pauses: 0,
        }
    }

    /// Takes `steps` steps with faults.
    pub fn converse(&mut self, steps: u32) {
        self.guest.fails = self.faults;
        for _ in 0..steps {
            if self.random.chance(5) {
                self.move_target();
            }
            if self.random.chance(5) {
                self.pin_or_unpin();
            }
            if self.random.chance(1) && self.random.chance(20) {
                self.restart();
            }
            if self.random.chance(5) {
                self.save_and_restore();
            }
            if self.random.chance(1) {
                if self.random.chance(50) { self.driver.detach() } else { self.driver.attach() }
            }
            let idle = self.step();
            if idle.is_some() && self.random.chance(80) {
                self.driver.retry();
            }
            if self.random.chance(3) {
                // Memory is freed, or the device notifies although nothing has changed, as it may.
                if self.random.chance(50) { self.driver.retry() } else { self.interrupt = true }
            }
        }
    }

    /// Stops the faults and runs until the target is reached, for at most `budget` steps.
    pub fn settle(&mut self, budget: u32) {
        self.faults = 0;
        self.guest.fails = 0;
        self.guest.pinned.clear();
        self.driver.attach();
        self.pauses = 0;
        for _ in 0..budget {
            match self.step() {
                Some(Idle::Reached) if !self.interrupt => {
                    assert_eq!(self.device.plugged_size(), self.device.requested_size());
                    return self.check_use();
                }
                Some(Idle::Blocked(_)) if !self.interrupt && self.device.plugged_size() == self.goal() => {
                    assert_ne!(self.goal(), self.device.requested_size());
                    return self.check_use();
                }
                Some(Idle::Reached) | None => {}
                Some(Idle::Retry { .. } | Idle::Blocked(_)) => self.driver.retry(),
                Some(Idle::Detached) => self.driver.attach(),
            }
        }
        panic!("the target is not reached after {budget} steps");
    }

    /// How much of the target the guest can use.
    fn goal(&self) -> u64 {
        let (config, unit, start) = (self.device.config(), self.shape.unit(), self.shape.start());
        let end = start + config.region_size - self.driver.unusable_size();
        let usable = (config.addr + config.usable_region_size).min(end).saturating_sub(start);
        let whole = |bytes: u64| bytes - bytes % unit;
        whole(config.requested_size).min(whole(usable))
    }

    /// Checks that every plugged device block is in use, except a part of a memmap. Without faults at most one
    /// memory device block has such a part.
    fn check_use(&self) {
        let used: BTreeSet<_> = self.guest.added().values().flatten().copied().collect();
        let plugged = self.device.plugged().runs().flat_map(|run| run.first()..run.end());
        let mut parts = BTreeSet::new();
        for unused in plugged.filter(|block| !used.contains(block)) {
            let memory_block = self.guest.memory_block(self.shape.addr + unused * self.shape.block_size);
            assert!(self.guest.memmap(memory_block).contains(&unused), "block {unused} is not used");
            parts.insert(memory_block);
        }
        assert!(parts.len() <= 1 || self.shape.faults > 0, "parts of memmaps at {parts:x?}");
    }

    /// Runs until nothing is plugged and no memory block is added.
    pub fn empty(&mut self, budget: u32) {
        self.resize(0);
        self.settle(budget);
        assert!(self.guest.added().is_empty() && self.host.backed.is_empty());
    }

    /// Runs until the driver has paused often without a gain.
    pub fn until_it_pauses_often(&mut self, budget: u32) {
        let mut pauses = 0;
        let mut plugged = 0;
        for _ in 0..budget {
            if self.step().is_some() {
                pauses = if plugged == self.device.plugged_size() { pauses + 1 } else { 0 };
                plugged = self.device.plugged_size();
                self.driver.retry();
            }
            if pauses > 20 {
                return;
            }
        }
        panic!("gains, or works, after {budget} steps");
    }

    /// Prints the last steps.
    pub fn tell(&self) {
        for line in &self.trace {
            eprintln!("  {line}");
        }
        eprintln!("  {:?}, then it failed", self.device.config());
    }

    /// The host changes the requested size. D9: a notification is due exactly if the configuration changes.
    pub fn resize(&mut self, requested: u64) {
        let before = self.device.config();
        let due = self.device.resize(requested).expect("a size that there is");
        let after = self.device.config();
        let target = |config: &Config| (config.requested_size, config.usable_region_size);
        assert_eq!(due, target(&before) != target(&after), "D9");
        self.interrupt |= due;
        self.remember(format!("the host wants {} MiB", requested / MIB));
    }

    fn move_target(&mut self) {
        let blocks = self.shape.region_size / self.shape.block_size;
        let requested = match self.random.below(4) {
            0 => 0,
            1 => blocks,
            _ => self.random.below(blocks + 1),
        };
        self.resize(requested * self.shape.block_size);
    }

    fn pin_or_unpin(&mut self) {
        let block = self.random.below(self.shape.region_size / self.shape.block_size);
        if self.random.chance(50) {
            self.guest.pinned.insert(block);
        } else {
            self.guest.pinned.retain(|pinned| *pinned < block);
        }
    }

    /// Starts a new guest kernel: after a system reset, or directly from the old one.
    fn restart(&mut self) {
        let reset = self.random.chance(50);
        if reset {
            self.device.reset();
            self.host.backed = BlockBitmap::new(self.shape.region_size / self.shape.block_size);
        }
        (self.late, self.interrupt) = (None, false);
        if self.random.chance(50) {
            self.plug_as_another_kernel();
        }
        self.usable = self.device.usable_region_size();
        self.in_doubt = !self.device.plugged().is_empty();
        self.driver = self.shape.driver(self.device.config());
        self.guest = self.shape.guest(&self.driver);
        self.guest.fails = self.faults;
        self.remember(format!("a new kernel, reset {reset}"));
    }

    /// Plugs and unplugs device blocks here and there, as a kernel that divides the region in another way.
    pub fn plug_as_another_kernel(&mut self) {
        let blocks = self.device.usable_region_size() / self.shape.block_size;
        for _ in 0..self.random.below(20) {
            let first = self.random.below(blocks.max(1));
            let kind = self.random.pick(&[RequestKind::Plug, RequestKind::Plug, RequestKind::Unplug]);
            let nb_blocks = 1 + self.random.below(8) as u16;
            let addr = self.shape.addr + first * self.shape.block_size;
            self.device.handle(&Request { kind, addr, nb_blocks }.to_bytes(), &mut self.host);
        }
        self.is_foreign = true;
    }

    /// The device goes on in another process. Driver and guest notice nothing.
    fn save_and_restore(&mut self) {
        let bytes = self.device.state().expect("no request is under way").to_bytes();
        let state = DeviceState::from_bytes(&bytes).expect("the bytes are whole");
        let restored = Device::from_state(&state).expect("the state is that of a device");
        assert_eq!(restored.config(), self.device.config());
        assert_eq!(restored.config_generation(), self.device.config_generation());
        assert_eq!(restored.features(), self.device.features());
        assert!(restored.plugged().runs().eq(self.device.plugged().runs()));
        assert_eq!(restored.retry_after_ms().is_some(), self.device.retry_after_ms().is_some());
        self.device = restored;
        self.remember("the device is saved and restored".to_owned());
    }

    /// Carries out one action of the driver. Returns the state of an idle driver.
    pub fn step(&mut self) -> Option<Idle> {
        // Interrupts are late only while there are faults.
        if self.interrupt && (self.faults == 0 || self.random.chance(50)) {
            self.interrupt = false;
            self.driver.config_changed();
        }
        let action = self.driver.next();
        self.remember(format!("{action:x?}"));
        self.check_beliefs(action);
        let idle = match action {
            Action::Idle(idle) => Some(idle),
            Action::ReadConfig => {
                let outcome = self.read_config();
                self.complete(outcome);
                None
            }
            Action::Send(request) => {
                self.send(request);
                None
            }
            action => {
                let outcome = self.guest.step(action, self.device.plugged(), &mut self.random);
                self.complete(outcome);
                None
            }
        };
        self.pauses += u32::from(idle.is_some_and(|idle| idle != Idle::Reached));
        self.check();
        idle
    }

    /// Sends a request, and those that may be sent beside it. They are served in any order.
    fn send(&mut self, request: Request) {
        let mut under_way = vec![request];
        let most = if self.random.chance(50) { 1 } else { 64 };
        while under_way.len() < most {
            let Some(other) = self.driver.next_request() else { break };
            self.remember(format!("    beside it {other:x?}"));
            let names = |one: &Request| {
                let first = one.addr / self.shape.block_size;
                first..first + u64::from(one.nb_blocks)
            };
            let (new, kind) = (names(&other), other.kind);
            let is_beside = |one: &Request| names(one).end <= new.start || new.end <= names(one).start;
            assert!(under_way.iter().all(|one| one.kind == kind && is_beside(one)), "{under_way:x?}");
            under_way.push(other);
        }
        while !under_way.is_empty() {
            let request = under_way.swap_remove(self.random.below(under_way.len() as u64) as usize);
            let outcome = self.deliver(request);
            self.remember(format!("    {outcome:x?}"));
            self.disturb();
            self.driver.complete_request(request, outcome);
        }
    }

    fn complete(&mut self, outcome: Outcome) {
        self.remember(format!("    {outcome:x?}"));
        self.disturb();
        self.driver.complete(outcome);
    }

    /// Events during an action must not disturb the action.
    fn disturb(&mut self) {
        if self.random.chance(self.faults) {
            self.move_target();
            self.driver.config_changed();
        }
        if self.random.chance(self.faults) {
            self.driver.retry();
        }
    }

    fn read_config(&mut self) -> Outcome {
        let config = self.device.config();
        if self.random.chance(self.faults / 5) {
            return Outcome::Failed(IdleReason::DeviceError);
        }
        if self.random.chance(self.faults / 5) {
            let other = Config { plugged_size: config.plugged_size + 1, ..config };
            return Outcome::Config(other, self.device.config_generation());
        }
        Outcome::Config(Config::from_bytes(&config.to_bytes()), self.device.config_generation())
    }

    fn way(&mut self) -> Way {
        if !self.random.chance(self.faults) {
            return Way::Through;
        }
        let answers = [ResponseType::Nack as u16, ResponseType::Busy as u16, ResponseType::Error as u16, 7];
        match self.random.below(8) {
            0 => Way::NotSent,
            1..4 => Way::Answered(self.random.pick(&answers)),
            4 => Way::ServedAndError,
            5 => Way::Lost,
            6 => Way::AnswerLost,
            _ => Way::Late,
        }
    }

    fn deliver(&mut self, request: Request) -> Outcome {
        self.requests += 1;
        let mut way = self.way();
        if self.random.chance(self.faults) && matches!(way, Way::Through) {
            way = Way::HostFails;
        }
        if !matches!(way, Way::Through) {
            self.remember(format!("    {way:?}"));
        }
        if let Some(late) = self.late.take() {
            self.serve(late);
        }
        match way {
            Way::NotSent => Outcome::Failed(IdleReason::NoMemory),
            Way::Through => Outcome::Response(self.serve(request)),
            Way::HostFails => {
                self.host.fails_now = true;
                let response = self.serve(request);
                self.host.fails_now = false;
                Outcome::Response(response)
            }
            Way::Answered(code) => {
                let mut bytes = Response::with_state(BlockState::Mixed).to_bytes();
                bytes[..2].copy_from_slice(&code.to_le_bytes());
                Outcome::Response(Response::from_bytes(&bytes))
            }
            Way::ServedAndError => {
                self.in_doubt = true;
                self.serve(request);
                Outcome::Response(Response::new(ResponseType::Error))
            }
            Way::Lost => Outcome::NoResponse,
            Way::AnswerLost => {
                self.in_doubt = true;
                self.serve(request);
                Outcome::NoResponse
            }
            Way::Late => {
                self.in_doubt = true;
                self.late = Some(request);
                Outcome::NoResponse
            }
        }
    }

    /// The device serves a request. D8, D9: only UNPLUG_ALL may change the usable region.
    fn serve(&mut self, request: Request) -> Response {
        let before = self.device.config();
        let response = if self.random.chance(50) {
            self.serve_in_halves(request)
        } else {
            self.device.handle(&request.to_bytes(), &mut self.host)
        };
        let after = self.device.config();
        self.guest.forget_unplugged(self.device.plugged());
        self.remember(format!("    the device to {request:x?}: {:?}", response.kind));
        assert_eq!(before.requested_size, after.requested_size);
        if request.kind == RequestKind::UnplugAll {
            self.usable = after.usable_region_size;
        } else {
            assert_eq!(before.usable_region_size, after.usable_region_size, "D9");
        }
        match response.kind {
            ResponseType::Ack => {}
            _ => assert_eq!(before, after, "what is refused changes nothing"),
        }
        Response::from_bytes(&response.to_bytes())
    }

    /// The same, with a look at the device between the halves: nothing is seen of the request there, and the device has no
    /// state that could be saved, whether the host has done its part or not.
    fn serve_in_halves(&mut self, request: Request) -> Response {
        let before = (self.device.config(), self.device.config_generation());
        let change = match self.device.begin(&request.to_bytes()) {
            Begun::Answer(response) => return response,
            Begun::Change(change) => change,
        };
        assert_eq!(self.device.state(), Err(StateError::Changing));
        let outcome = change.apply(&mut self.host);
        assert_eq!(self.device.state(), Err(StateError::Changing));
        assert_eq!((self.device.config(), self.device.config_generation()), before);
        let response = self.device.commit(change, outcome).expect("no reset comes between");
        if self.random.chance(10) {
            self.save_and_restore();
        }
        response
    }

    fn remember(&mut self, line: String) {
        // An idle driver repeats itself.
        if self.trace.back() == Some(&line) {
            return;
        }
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }
}
