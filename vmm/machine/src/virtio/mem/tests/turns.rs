//! The work of one turn of the event loop, counted, and targets that do not wait for it.

use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::memory::WINDOWS_MADE;
use crate::memory::mapping::SYSTEM_CALLS;

/// Plugs every second block of the region.
fn fragment(rig: &mut Rig, blocks: u64) {
    for first in (0..blocks).step_by(32 << 10) {
        assert_eq!(rig.ask(RequestKind::Plug, first, (blocks - first).min(32 << 10) as u16), (ACK, 0));
    }
    for block in (1..blocks).step_by(2) {
        assert_eq!(rig.ask(RequestKind::Unplug, block, 1), (ACK, 0));
    }
}

/// The work that `act` does on this thread: windows made, system calls on guest memory.
fn work(act: impl FnOnce()) -> (u64, u64) {
    let before = (WINDOWS_MADE.get(), SYSTEM_CALLS.get());
    act();
    (WINDOWS_MADE.get() - before.0, SYSTEM_CALLS.get() - before.1)
}

/// One close and one discard, however many runs the guest made.
#[test]
fn unplug_all_of_every_second_block_is_one_operation() {
    let mut rig = rig(1 << 30);
    fragment(&mut rig, 512);
    for block in (0..512).step_by(2) {
        rig.memory.view().write_obj(7_u8, GuestAddress(HOLE_END + block * BLOCK)).unwrap();
    }
    assert_eq!(rig.memory.view().num_regions(), 1 + 256);
    let work = work(|| assert_eq!(rig.ask(RequestKind::UnplugAll, 0, 0), (ACK, 0)));
    assert_eq!(work, (0, 2));
    assert_eq!(rig.shared.snapshot().mem[0].plugged, 0);
    assert_eq!((rig.memory.view().num_regions(), rig.slots.hotplug(64 * MIB)), (1, vec![]));
    assert_eq!(rig.memory.held().unwrap()[0], 0);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 512), (ACK, 0));
}

#[test]
fn a_change_of_one_run_leaves_the_windows_of_all_others() {
    let mut rig = rig(1 << 30);
    fragment(&mut rig, 512);
    // Two runs and the block between them become one run, and two again.
    let plug = work(|| assert_eq!(rig.ask(RequestKind::Plug, 255, 1), (ACK, 0)));
    assert_eq!((plug, rig.memory.view().num_regions()), ((1, 1), 1 + 255));
    let unplug = work(|| assert_eq!(rig.ask(RequestKind::Unplug, 255, 1), (ACK, 0)));
    assert_eq!((unplug, rig.memory.view().num_regions()), ((2, 2), 1 + 256));
}

/// Offers `count` requests that plug one block each, from block `first` on.
fn offer_plugs(rig: &mut Rig, first: u64, count: u16) {
    for n in 0..count {
        let (from, to) = (rig.ring.place(u64::from(n)), rig.ring.place(u64::from(n)) + 1024);
        let addr = HOLE_END + (first + u64::from(n)) * BLOCK;
        rig.ring.fill(from, &Request { kind: RequestKind::Plug, addr, nb_blocks: 1 }.to_bytes());
        let request = Buffer { address: from, size: 24, writable: false };
        rig.ring.offer(2 * n, &[request, Buffer { address: to, size: 10, writable: true }]);
    }
}

#[test]
fn a_turn_serves_a_few_requests_and_leaves_the_rest() {
    let mut rig = rig(64 * MIB);
    // Two buffers per request: the queue holds this many.
    let offered = Ring::SIZE / 2;
    assert_eq!(offered, REQUESTS_PER_TURN);
    offer_plugs(&mut rig, 0, offered);
    assert_eq!(rig.mem.serve(), Served { busy: false, more: true });
    assert_eq!(rig.ring.used(), offered);
}

/// The host takes longer for one request than a turn may take.
#[test]
fn a_slow_request_ends_the_turn() {
    let mut rig = rig(1 << 30);
    rig.slots.delay_adds(TURN);
    rig.mem.turn = TURN;
    // The first request needs a slot.
    offer_plugs(&mut rig, 0, 3);
    assert_eq!(rig.mem.serve(), Served { busy: false, more: true });
    assert_eq!(rig.ring.used(), 1, "the other requests come in the next turn");
    rig.mem.turn = Duration::MAX;
    rig.mem.serve();
    assert_eq!(rig.ring.used(), 3);
}

/// The device is taken by another thread, as while it serves requests.
#[test]
fn a_target_does_not_wait_for_the_requests_that_are_served() {
    let rig = rig(4 * MIB);
    let (target, kick, shared) = (rig.mem.target(), rig.kick, rig.shared);
    let device = Arc::new(Mutex::new(rig.mem));
    let taken = device.lock().unwrap();
    let (done, is_done) = mpsc::channel();
    let of_embedder = Arc::clone(&device);
    let embedder = thread::spawn(move || {
        assert!(target.set(&of_embedder, Size(MIB)).is_err(), "half a block");
        done.send(target.set(&of_embedder, Size(8 * MIB))).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(Ok(())));
    embedder.join().unwrap();
    let status = shared.snapshot().mem[0].clone();
    assert_eq!(
        (status.requested, status.target_pending),
        (8 * MIB, true),
        "the state shows the newest target"
    );
    assert_eq!(kick.read().unwrap(), 1, "the event loop has to apply it");
    drop(taken);
    let mut device = device.lock().unwrap();
    interrupts(&mut *device);
    device.publish(None);
    let status = shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (8 * MIB, true));
    device.serve();
    let status = shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (8 * MIB, false));
    assert_eq!(interrupts(&mut *device), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(device.device.requested_size(), 8 * MIB);
}

/// What the driver read and reported before the device took the target does not count for it, even if both
/// targets have the same size. The driver reads once more between the two.
#[test]
fn a_target_that_the_device_has_not_taken_is_not_reached() {
    let mut rig = rig(4 * MIB);
    let status = |rig: &Rig| rig.shared.snapshot().mem[0].clone();
    let accepted = |mem: MemStatus| (mem.stopped(4 * MIB).is_some(), mem.arrived(4 * MIB));
    let report = |rig: &mut Rig| {
        rig.config();
        let (region, state) = (status(rig).region, tidevm_abi::ResizeState::Reached);
        let (size, generation) = (4 * MIB, read(&mut rig.mem, VIRTIO_MMIO_CONFIG_GENERATION));
        let resize = tidevm_abi::Resize { region, plugged: size, requested: size, generation, state };
        rig.shared.report(tidevm_abi::Report::Resize(resize));
    };
    rig.ask(RequestKind::Plug, 0, 2);
    report(&mut rig);
    assert_eq!(accepted(status(&rig)), (true, true));
    for _ in 0..3 {
        rig.mem.target.leave(Size(4 * MIB)).unwrap();
        assert_eq!(accepted(status(&rig)), (false, false));
        report(&mut rig);
        rig.mem.publish(None);
        assert_eq!(accepted(status(&rig)), (false, false), "the driver reads the target before");
        interrupts(&mut rig.mem);
        rig.mem.serve();
        assert_eq!(interrupts(&mut rig.mem), VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(accepted(status(&rig)), (false, false), "the device has taken it");
        report(&mut rig);
        assert_eq!(accepted(status(&rig)), (true, true));
    }
}

/// A system reset keeps the target that was set last, also one that the device has not taken.
#[test]
fn a_system_reset_takes_the_newest_target() {
    let mut rig = rig(4 * MIB);
    rig.mem.target.leave(Size(8 * MIB)).unwrap();
    let before = rig.shared.snapshot().mem[0].generation;
    let (mem, shared) = (&mut rig.mem, &rig.shared);
    shared.restart(|| vec![mem.reset()]);
    assert_eq!((rig.config().requested_size, interrupts(&mut rig.mem)), (8 * MIB, 0));
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (8 * MIB, false));
    assert!(status.generation > before, "a target of its own");
}

/// Figures for people: `cargo test -p tidevm-machine --release -- --ignored --nocapture every_second`.
#[test]
#[ignore = "a measurement"]
fn time_of_unplug_all_on_every_second_block() {
    for gib in [16, 32, 64, 120] {
        let mut rig = rig_of(Size::gib(gib), gib << 30);
        let start = Instant::now();
        fragment(&mut rig, gib * 512);
        let fragmented = start.elapsed();
        let start = Instant::now();
        assert_eq!(rig.ask(RequestKind::UnplugAll, 0, 0), (ACK, 0));
        println!("{gib} GiB: every second block {fragmented:?}, UNPLUG_ALL {:?}", start.elapsed());
    }
}
