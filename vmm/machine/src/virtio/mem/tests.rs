//! The virtio-mem device on real queues: requests, refusals and resets.

mod chains;
mod notifications;
mod serving;
mod target;
mod turns;

use std::cell::Cell;
use std::sync::{Arc, Once};
use std::time::Instant;

use tidevm_abi::Size;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS,
};
use virtio_mem::device::ResizeError;
use virtio_mem::wire::{Config, REQUEST_SIZE, RESPONSE_SIZE, Request, RequestKind};
use vm_memory::{Bytes, GuestAddress};

use super::backing::MAX_WARNINGS;
use super::*;
use crate::memory::fake::{FakeSlots, memory};
use crate::memory::layout::HOLE_END;
use crate::sync::lock;
use crate::virtio::fake::{Buffer, Ring, initialise, interrupts, read, write};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// There is nothing more to do.
const IDLE: Served = Served { retry_after: None, freed: false, more: false };

/// A driver was answered BUSY, and is told to retry after so many milliseconds.
fn told_after(ms: u64) -> Served {
    Served { retry_after: Some(Duration::from_millis(ms)), ..IDLE }
}

struct Rig {
    mem: Mem,
    ring: Ring,
    memory: Arc<Memory>,
    shared: Arc<SharedState>,
    slots: FakeSlots,
    kick: EventFd,
    /// The interrupt line of the device.
    line: EventFd,
}

/// A device with a region of 1 GiB and a target of `requested` bytes. Its driver is initialised.
fn rig(requested: u64) -> Rig {
    rig_of(Size::gib(1), requested)
}

/// The same with a region of `size`.
fn rig_of(size: Size, requested: u64) -> Rig {
    rig_with(&HotplugConfig { requested: Size(requested), ..HotplugConfig::new(size) })
}

/// The same with a region as `config` says.
fn rig_with(config: &HotplugConfig) -> Rig {
    let (memory, slots) = memory(64 * MIB, &[config.size.0]);
    let memory = Arc::new(memory);
    let status = vec![MemStatus::default()];
    let shared = Arc::new(SharedState::new(Instant::now(), status));
    let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (kick, line) = (event(), event());
    let (on_memory, on_shared) = (Arc::clone(&memory), Arc::clone(&shared));
    let [raised, kicked] = [&line, &kick].map(|event| event.try_clone().unwrap());
    let mut mem = Mem::new(0, config, on_memory, on_shared, raised, kicked).unwrap();
    // A test's turn does not depend on the load of the host.
    mem.turn = Duration::MAX;
    let ring = Ring::new(&memory, MIB);
    initialise(&mut mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&ring]);
    Rig { mem, ring, memory, shared, slots, kick, line }
}

impl Rig {
    fn config(&mut self) -> Config {
        let mut bytes = [0; 56];
        self.mem.read(VIRTIO_MMIO_CONFIG.into(), &mut bytes);
        Config::from_bytes(&bytes)
    }

    fn resize(&mut self, requested: u64) -> Result<(), ResizeError> {
        self.mem.target.leave(Size(requested), None)?;
        self.mem.apply_target();
        Ok(())
    }

    /// Takes the interrupts that the device has raised: whether the line was raised, and the status.
    fn raised(&mut self) -> (bool, u32) {
        (self.line.read().is_ok(), interrupts(&mut self.mem))
    }

    /// Sends a request in one buffer each way and returns the answer's type and state.
    fn ask(&mut self, kind: RequestKind, block: u64, nb_blocks: u16) -> (u16, u16) {
        let addr = HOLE_END + block * BLOCK;
        self.ask_bytes(&Request { kind, addr, nb_blocks }.to_bytes())
    }

    fn ask_bytes(&mut self, request: &[u8]) -> (u16, u16) {
        let (from, to) = (self.ring.place(0), self.ring.place(1));
        self.ring.fill(from, request);
        let request = Buffer { address: from, size: request.len() as u32, writable: false };
        let n = self.ring.offer(0, &[request, Buffer { address: to, size: 10, writable: true }]);
        self.mem.serve();
        // As the event loop does it.
        self.memory.remove_empty_slots();
        assert_eq!((self.ring.used(), self.ring.written(n)), (n + 1, 10));
        let answer = self.ring.bytes(to, 10);
        (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
    }
}

#[test]
fn requests_move_memory_and_show_in_the_state() {
    let mut rig = rig(64 * MIB);
    assert!(rig.shared.snapshot().mem[0].driver);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 16), (ACK, 0));
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(32 * MIB));
    assert_eq!(rig.config().plugged_size, 32 * MIB);
    assert_eq!(interrupts(&mut rig.mem), VIRTIO_MMIO_INT_VRING);
    rig.memory.view().write_obj(1_u8, GuestAddress(HOLE_END + 32 * MIB - 1)).unwrap();
    assert_eq!(rig.ask(RequestKind::State, 8, 16), (ACK, 2));
    assert_eq!(rig.ask(RequestKind::Unplug, 0, 16), (ACK, 0));
    assert!(rig.memory.view().write_obj(1_u8, GuestAddress(HOLE_END)).is_err());
    assert_eq!(rig.memory.held().unwrap()[0], Size(0));
    assert_eq!(rig.shared.snapshot().mem[0].refused, None);
}

#[test]
fn refusals_are_answered_and_kept_with_their_reason() {
    let mut rig = rig(4 * MIB);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 3).0, NACK);
    let refused = rig.shared.snapshot().mem[0].refused.clone().unwrap();
    assert!(refused.text.starts_with("Nack: Plug of 3 blocks at 0x100000000"), "{refused}");
    assert_eq!(refused.host, None, "the host was not asked");
    assert_eq!(rig.ask(RequestKind::State, 0, 1).0, ACK);
    assert_eq!(rig.shared.snapshot().mem[0].refused.as_ref(), Some(&refused), "an ACK refuses nothing");
    assert_eq!(rig.ask(RequestKind::Unplug, 0, 1).0, ERROR);
    assert_eq!(rig.ask(RequestKind::Plug, 511, 1).0, ERROR, "not usable");
    assert_eq!(rig.ask_bytes(&[9; 24]).0, ERROR, "unknown type");
    assert_eq!(rig.ask_bytes(&[0; 7]).0, ERROR, "too short");
}

#[test]
fn a_host_that_cannot_is_busy_and_then_can() {
    let mut rig = rig(4 * MIB);
    rig.slots.fail_add_after(0);
    let (from, to) = (rig.ring.place(0), rig.ring.place(1));
    let request = Request { kind: RequestKind::Plug, addr: HOLE_END, nb_blocks: 2 };
    rig.ring.fill(from, &request.to_bytes());
    let buffers = [
        Buffer { address: from, size: 24, writable: false },
        Buffer { address: to, size: 10, writable: true },
    ];
    rig.ring.offer(0, &buffers);
    assert_eq!(rig.mem.serve(), told_after(100));
    assert_eq!(rig.ring.bytes(to, 2), BUSY.to_le_bytes());
    interrupts(&mut rig.mem);
    rig.mem.retry();
    assert_eq!(interrupts(&mut rig.mem), VIRTIO_MMIO_INT_CONFIG);
    rig.mem.retry();
    assert_eq!(interrupts(&mut rig.mem), 0, "it was told once");
    assert_eq!(rig.ask(RequestKind::Plug, 0, 2).0, ACK);
}

/// Counts the warnings of a test. Each test has its own thread.
struct Warnings;

thread_local! {
    static WARNINGS: Cell<u32> = const { Cell::new(0) };
}

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            WARNINGS.set(WARNINGS.get() + 1);
        }
    }

    fn flush(&self) {}
}

fn count_warnings() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Warnings).expect("no other test has a logger");
        log::set_max_level(log::LevelFilter::Warn);
    });
}

#[test]
fn a_guest_that_asks_on_and_on_fills_no_log() {
    count_warnings();
    let mut rig = rig(256 * MIB);
    let fail = |rig: &mut Rig, block| {
        rig.slots.fail_add_after(0);
        assert_eq!(rig.ask(RequestKind::Plug, block, 1).0, BUSY);
    };
    (0..5).for_each(|_| fail(&mut rig, 0));
    assert_eq!(WARNINGS.get(), 1);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
    // A device block in another memory block, which needs its own slot.
    (0..5).for_each(|_| fail(&mut rig, 64));
    assert_eq!(WARNINGS.get(), 2);
    let refused = rig.shared.snapshot().mem[0].refused.clone().expect("the reason is kept all the same");
    let host = HostFault { call: "KVM_SET_USER_MEMORY_REGION", errno: libc::ENOMEM };
    assert_eq!(refused.host, Some(host));
    let text = refused.to_string();
    assert!(text.starts_with("Busy: Plug of "), "{text}");
    assert_eq!(text.matches(host.call).count(), 1, "{text}");
    assert!(text.ends_with(": KVM_SET_USER_MEMORY_REGION: Cannot allocate memory (os error 12)"), "{text}");
}

/// virtio 1.3, section 2.5.1: a driver that reads the configuration in parts can detect a change between
/// them.
#[test]
fn every_runtime_change_moves_the_generation() {
    let mut rig = rig(0);
    let mut generations = vec![read(&mut rig.mem, VIRTIO_MMIO_CONFIG_GENERATION)];
    rig.resize(4 << 30).unwrap_err();
    assert_eq!(interrupts(&mut rig.mem), 0);
    rig.resize(4 * MIB).unwrap();
    assert_eq!(interrupts(&mut rig.mem), VIRTIO_MMIO_INT_CONFIG);
    generations.push(read(&mut rig.mem, VIRTIO_MMIO_CONFIG_GENERATION));
    rig.ask(RequestKind::Plug, 0, 1);
    generations.push(read(&mut rig.mem, VIRTIO_MMIO_CONFIG_GENERATION));
    rig.ask(RequestKind::UnplugAll, 0, 0);
    generations.push(read(&mut rig.mem, VIRTIO_MMIO_CONFIG_GENERATION));
    assert!(generations.windows(2).all(|pair| pair[0] != pair[1]), "{generations:?}");
}

/// virtio 1.3, section 2.6.4: the driver chooses the framing.
#[test]
fn a_request_may_be_split_into_any_buffers() {
    let mut rig = rig(4 * MIB);
    let (from, to) = (rig.ring.place(0), rig.ring.place(1));
    let request = Request { kind: RequestKind::Plug, addr: HOLE_END, nb_blocks: 1 };
    rig.ring.fill(from, &request.to_bytes());
    let parts =
        [(from, 1, false), (from + 1, 9, false), (from + 10, 100, false), (to, 3, true), (to + 3, 64, true)];
    let buffers = parts.map(|(address, size, writable)| Buffer { address, size, writable });
    let n = rig.ring.offer(0, &buffers);
    rig.mem.serve();
    assert_eq!(rig.ring.written(n), 10);
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(BLOCK));
    // The answer is split too: its state is in the second buffer.
    let request = Request { kind: RequestKind::State, addr: HOLE_END + BLOCK, nb_blocks: 1 };
    rig.ring.fill(from, &request.to_bytes());
    let n = rig.ring.offer(0, &buffers);
    rig.mem.serve();
    assert_eq!((rig.ring.written(n), rig.ring.bytes(to, 10)), (10, [0, 0, 0, 0, 0, 0, 0, 0, 1, 0].to_vec()));
}

#[test]
fn chains_without_room_for_an_answer_go_back_empty() {
    let mut rig = rig(4 * MIB);
    let (from, to) = (rig.ring.place(0), rig.ring.place(1));
    let request = Request { kind: RequestKind::Plug, addr: HOLE_END, nb_blocks: 1 };
    rig.ring.fill(from, &request.to_bytes());
    let readable = Buffer { address: from, size: 24, writable: false };
    let writable = |address, size| Buffer { address, size, writable: true };
    rig.ring.offer(0, &[readable]);
    rig.ring.offer(2, &[readable, writable(to, 9)]);
    rig.ring.offer(4, &[writable(to, 9)]);
    rig.mem.serve();
    assert_eq!(rig.ring.used(), 3);
    assert_eq!([0, 1, 2].map(|n| rig.ring.written(n)), [0; 3]);
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!(status.plugged, Size(0), "a request that cannot be answered is not served");
    assert_eq!(status.refused, Some("no room for an answer: 9 bytes".to_owned().into()));
    // An answer into memory that is not plugged is lost, and the device goes on.
    rig.ring.offer(6, &[readable, writable(HOLE_END + 512 * MIB, 10)]);
    rig.mem.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(3)), (4, 0));
    assert_eq!(rig.ask(RequestKind::Plug, 1, 1).0, ACK);
}

/// The buffer for the answer lies in the device block that the request unplugs.
#[test]
fn a_request_may_unplug_its_own_buffers() {
    let mut rig = rig(4 * MIB);
    rig.ask(RequestKind::Plug, 0, 2);
    let request = Request { kind: RequestKind::Unplug, addr: HOLE_END, nb_blocks: 2 };
    rig.memory.view().write_slice(&request.to_bytes(), GuestAddress(HOLE_END)).unwrap();
    let buffers = [
        Buffer { address: HOLE_END, size: 24, writable: false },
        Buffer { address: HOLE_END + BLOCK, size: 10, writable: true },
    ];
    let n = rig.ring.offer(0, &buffers);
    rig.mem.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(n)), (n + 1, 0));
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(0));
}

#[test]
fn a_queue_outside_memory_breaks_the_device_until_its_reset() {
    let mut rig = rig(4 * MIB);
    // The available index runs ahead by more than the queue holds.
    rig.ring.fill(MIB + 16 * u64::from(Ring::SIZE) + 2, &200_u16.to_le_bytes());
    let served = rig.mem.serve();
    assert_eq!(served, IDLE);
    let status = rig.shared.snapshot().mem[0].clone();
    assert!(!status.driver && status.refused.is_some_and(|why| why.text.contains("reset")));
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    rig.ring = Ring::new(&rig.memory, 4 * MIB);
    initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
}

/// virtio 1.3, section 5.15.6.2: a device reset changes no device block.
#[test]
fn a_device_reset_keeps_what_is_plugged() {
    let mut rig = rig(4 * MIB);
    rig.ask(RequestKind::Plug, 0, 2);
    write(&mut rig.mem, VIRTIO_MMIO_STATUS, 0);
    assert!(!rig.shared.snapshot().mem[0].driver);
    assert_eq!(rig.config().plugged_size, 4 * MIB);
    // A kick of a device without a driver does nothing.
    assert!(!rig.mem.serve().more);
    assert_eq!(rig.shared.snapshot().mem[0].refused, None);
}

#[test]
fn a_driver_must_promise_not_to_touch_unplugged_memory() {
    let mut rig = rig(4 * MIB);
    initialise(&mut rig.mem, 0, &[&rig.ring]);
    assert!(!rig.shared.snapshot().mem[0].driver);
}

#[test]
fn a_notification_that_kvm_does_not_take_reaches_the_event_loop() {
    let mut rig = rig(4 * MIB);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(rig.kick.read().unwrap(), 1);
}

#[test]
fn a_system_reset_unplugs_and_keeps_the_target() {
    let mut rig = rig(64 * MIB);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 8), (ACK, 0));
    assert_eq!(rig.ask(RequestKind::Plug, 100, 2), (ACK, 0));
    assert_eq!(rig.ask(RequestKind::Unplug, 511, 1).0, ERROR);
    rig.slots.fail_add_after(0);
    assert_eq!(rig.ask(RequestKind::Plug, 130, 1).0, BUSY);
    rig.memory.view().write_obj(1_u8, GuestAddress(HOLE_END)).unwrap();
    let region = rig.shared.snapshot().mem[0].region;
    let reached = tidevm_abi::ResizeState::Reached;
    let report =
        tidevm_abi::Resize { region, plugged: Size(0), requested: Size(0), generation: 0, state: reached };
    rig.shared.report(tidevm_abi::Report::Resize(report));
    let before = rig.shared.snapshot();
    let status = rig.mem.reset();
    assert_eq!(rig.shared.snapshot().mem, before.mem, "no part of a reset is seen before the rest");
    rig.shared.restart(|| vec![status]);
    rig.slots = FakeSlots::default();
    rig.memory.reset(Box::new(rig.slots.clone())).unwrap();
    // The driver that was to retry is gone.
    rig.mem.retry();
    assert_eq!(interrupts(&mut rig.mem), 0);
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!((status.plugged, status.requested, status.driver), (Size(0), Size(64 * MIB), false));
    assert_eq!((status.report, status.refused), (None, None));
    assert_eq!(rig.config().requested_size, 64 * MIB);
    assert_eq!(rig.slots.hotplug(64 * MIB), []);
    assert_eq!(rig.memory.held().unwrap()[0], Size(0));
    assert_eq!(read(&mut rig.mem, VIRTIO_MMIO_STATUS), 0);
    // The next driver finds the device as the first one did.
    rig.ring = Ring::new(&rig.memory, 2 * MIB);
    initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 32), (ACK, 0));
}

/// A driver resets its device when it is unbound. The guest goes on using the memory without a driver (virtio
/// 1.3, section 5.15.6.2).
#[test]
fn a_device_reset_half_way_keeps_what_is_plugged() {
    let mut rig = rig(64 * MIB);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 8), (ACK, 0));
    rig.memory.view().write_obj(7_u8, GuestAddress(HOLE_END)).unwrap();
    // One more request is offered, and not served before the reset.
    let (from, to) = (rig.ring.place(0), rig.ring.place(1));
    rig.ring.fill(from, &Request { kind: RequestKind::Plug, addr: HOLE_END, nb_blocks: 1 }.to_bytes());
    let request = Buffer { address: from, size: REQUEST_SIZE as u32, writable: false };
    rig.ring.offer(0, &[request, Buffer { address: to, size: 10, writable: true }]);
    write(&mut rig.mem, VIRTIO_MMIO_STATUS, 0);
    assert!(!rig.shared.snapshot().mem[0].driver);
    assert_eq!(rig.mem.serve(), IDLE);
    let used = rig.ring.used();
    rig.resize(32 * MIB).unwrap();
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!((status.plugged, status.requested, status.driver), (Size(16 * MIB), Size(32 * MIB), false));
    assert_eq!(
        (rig.ring.used(), rig.memory.view().read_obj(GuestAddress(HOLE_END)).ok()),
        (used, Some(7_u8))
    );
    // The next driver finds the plugged memory and goes on from there.
    rig.ring = Ring::new(&rig.memory, 2 * MIB);
    initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
    assert!(rig.shared.snapshot().mem[0].driver);
    assert_eq!(rig.config().plugged_size, 16 * MIB);
    assert_eq!(rig.ask(RequestKind::State, 0, 8), (ACK, 0));
    assert_eq!(rig.ask(RequestKind::Plug, 8, 8), (ACK, 0));
}

#[test]
fn a_guest_that_lets_the_host_fail_and_succeed_in_turn_fills_no_log() {
    count_warnings();
    let mut rig = rig(64 * MIB);
    for _ in 0..3 * MAX_WARNINGS {
        rig.slots.fail_add_after(0);
        assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, BUSY);
        assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
        assert_eq!(rig.ask(RequestKind::UnplugAll, 0, 0).0, ACK);
    }
    assert_eq!(WARNINGS.get(), MAX_WARNINGS);
}
