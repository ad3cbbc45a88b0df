//! The work of one turn of the event loop, counted.

use tidevm_abi::Size;

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::memory::WINDOWS_MADE;
use crate::memory::mapping::SYSTEM_CALLS;

/// Plugs every second device block of the region.
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
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(0));
    rig.memory.remove_empty_slots();
    assert_eq!((rig.memory.view().num_regions(), rig.slots.hotplug(64 * MIB)), (1, vec![]));
    assert_eq!(rig.memory.held().unwrap()[0], Size(0));
    assert_eq!(rig.ask(RequestKind::Plug, 0, 512), (ACK, 0));
}

#[test]
fn a_change_of_one_run_leaves_the_windows_of_all_others() {
    let mut rig = rig(1 << 30);
    fragment(&mut rig, 512);
    // Two runs and the device block between them become one run, and two again.
    let plug = work(|| assert_eq!(rig.ask(RequestKind::Plug, 255, 1), (ACK, 0)));
    assert_eq!((plug, rig.memory.view().num_regions()), ((1, 1), 1 + 255));
    let unplug = work(|| assert_eq!(rig.ask(RequestKind::Unplug, 255, 1), (ACK, 0)));
    assert_eq!((unplug, rig.memory.view().num_regions()), ((2, 2), 1 + 256));
}

/// Offers `count` requests that plug one device block each, from device block `first` on.
pub(super) fn offer_plugs(rig: &mut Rig, first: u64, count: u16) {
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
    assert_eq!(rig.mem.serve(), Served { more: true, ..IDLE });
    assert_eq!(rig.ring.used(), offered);
    assert!((0..offered).all(|n| rig.ring.head(n) == 2 * u32::from(n)), "each chain goes back as itself");
}

/// The host takes longer for one request than a turn may take.
#[test]
fn a_slow_request_ends_the_turn() {
    let mut rig = rig(1 << 30);
    rig.slots.delay_adds(TURN);
    rig.mem.turn = TURN;
    // The first request needs a slot.
    offer_plugs(&mut rig, 0, 3);
    assert_eq!(rig.mem.serve(), Served { more: true, ..IDLE });
    assert_eq!(rig.ring.used(), 1, "the other requests come in the next turn");
    rig.mem.turn = Duration::MAX;
    rig.mem.serve();
    assert_eq!(rig.ring.used(), 3);
}

/// A host so slow that the time of a turn is over before its first request.
#[test]
fn each_turn_serves_a_request() {
    let mut rig = rig(64 * MIB);
    rig.mem.turn = Duration::ZERO;
    offer_plugs(&mut rig, 0, 2);
    for used in [1, 2] {
        assert_eq!(rig.mem.serve(), Served { more: true, ..IDLE });
        assert_eq!(rig.ring.used(), used);
    }
    assert_eq!(rig.mem.serve(), IDLE);
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
