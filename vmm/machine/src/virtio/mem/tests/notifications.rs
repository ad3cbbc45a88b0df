//! When the driver is interrupted, and when it is not.

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW,
};

use super::turns::offer_plugs;
use super::*;
use crate::memory::host_calls::{MemoryCall, watch};
use crate::memory::range::GuestRange;

/// The retry is due whatever was served between the BUSY and the timer.
#[test]
fn a_driver_that_was_answered_busy_is_told_to_retry_whatever_came_after() {
    let mut rig = rig(64 * MIB);
    rig.slots.fail_add_after(0);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, BUSY);
    assert_eq!(rig.ask(RequestKind::State, 0, 1).0, ACK);
    assert_eq!(rig.mem.serve(), IDLE);
    rig.raised();
    rig.mem.retry();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    // The host fails for two batches, and for both requests of the second one.
    watch(|call| matches!(call, MemoryCall::Open(_)));
    offer_plugs(&mut rig, 0, 2);
    assert_eq!(rig.mem.serve(), told_after(200));
    offer_plugs(&mut rig, 0, 2);
    assert_eq!(rig.mem.serve(), IDLE, "the pause runs already");
    watch(|_| false);
    rig.raised();
    rig.mem.retry();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    // Of two requests in one batch, the first is answered BUSY.
    rig.slots.fail_add_after(0);
    offer_plugs(&mut rig, 0, 2);
    assert_eq!(rig.mem.serve(), told_after(100));
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(BLOCK));
    rig.raised();
    rig.mem.retry();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
}

#[test]
fn a_driver_is_not_interrupted_when_nothing_changed() {
    let mut rig = rig(64 * MIB);
    rig.raised();
    assert_eq!(rig.mem.serve(), IDLE);
    assert_eq!(rig.raised(), (false, 0), "no request");
    rig.mem.retry();
    assert_eq!(rig.raised(), (false, 0), "no BUSY");
    rig.mem.apply_target();
    assert_eq!(rig.raised(), (false, 0), "no new target");
    rig.resize(4 << 30).unwrap_err();
    assert_eq!(rig.raised(), (false, 0), "the target was refused");
    rig.ask(RequestKind::Plug, 0, 64);
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_VRING), "a refusal is no change of configuration");
}

/// The available index runs ahead by more than the queue holds. virtio 1.3, section 2.1.2: a device that needs a
/// reset tells its driver by a change of configuration.
#[test]
fn a_queue_that_cannot_be_read_is_told_to_the_driver() {
    let mut rig = rig(64 * MIB);
    rig.raised();
    rig.ring.fill(MIB + 16 * u64::from(Ring::SIZE) + 2, &200_u16.to_le_bytes());
    assert_eq!(rig.mem.serve(), IDLE);
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert_eq!(rig.mem.serve(), IDLE);
    assert_eq!(rig.raised(), (false, 0), "it is told once");
}

/// A driver may be ready before its queue is.
#[test]
fn a_queue_that_is_not_ready_has_no_requests() {
    let mut rig = rig(64 * MIB);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 0);
    rig.raised();
    offer(&mut rig, 0, RequestKind::Plug, 0);
    assert_eq!(rig.mem.serve(), IDLE);
    assert_eq!((rig.raised(), rig.ring.used()), ((false, 0), 0));
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 1);
    rig.mem.serve();
    assert_eq!((rig.ring.used(), rig.shared.snapshot().mem[0].plugged), (1, Size(BLOCK)));
}

/// virtio 1.3, section 4.2.2.2: the device would write its answers somewhere else.
#[test]
fn a_ring_outside_memory_is_not_ready() {
    let mut rig = rig(64 * MIB);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_SEL, 0);
    for (high, ready) in [(0x100, 0), (0, 1)] {
        write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 0);
        write(&mut rig.mem, VIRTIO_MMIO_QUEUE_USED_HIGH, high);
        write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(read(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY), ready);
    }
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
}

/// Moves a ring of the queue, whose address has `low` and `high`, to `address` in the first two device blocks.
fn move_ring(rig: &mut Rig, low: u32, high: u32, address: u64) {
    assert_eq!(rig.ask(RequestKind::Plug, 0, 2).0, ACK);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 0);
    write(&mut rig.mem, low, address as u32);
    write(&mut rig.mem, high, (address >> 32) as u32);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(read(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY), 1);
    rig.raised();
}

/// The ring leaves memory later, by a request of its own driver. The request was carried out. The driver does not learn
/// it, and has to ask after its reset.
#[test]
fn a_used_ring_that_is_unplugged_is_told_to_the_driver() {
    let mut rig = rig(64 * MIB);
    move_ring(&mut rig, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, HOLE_END);
    offer(&mut rig, 0, RequestKind::Unplug, 0);
    offer(&mut rig, 2, RequestKind::Plug, 0);
    rig.mem.serve();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG), "no buffer was used");
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!((status.plugged, status.driver), (Size(BLOCK), false), "no request after the first");
    assert!(status.refused.is_some_and(|why| why.text.contains("reset the device")));
}

/// Offers a request for one device block, in the places and descriptors from `n` on.
fn offer(rig: &mut Rig, n: u64, kind: RequestKind, block: u64) {
    let (from, to) = (rig.ring.place(n), rig.ring.place(n + 1));
    let request = Request { kind, addr: HOLE_END + block * BLOCK, nb_blocks: 1 };
    rig.ring.fill(from, &request.to_bytes());
    let request = Buffer { address: from, size: REQUEST_SIZE as u32, writable: false };
    rig.ring.offer(n as u16, &[request, Buffer { address: to, size: 10, writable: true }]);
}

/// A driver's ring that cannot be read is not an empty one: neither when all of it is gone, nor when the entries are and
/// the index is not.
#[test]
fn an_available_ring_that_is_unplugged_is_told_to_the_driver() {
    for (address, gone) in [(HOLE_END, 0), (HOLE_END + BLOCK - 4, 1)] {
        let mut rig = rig(64 * MIB);
        move_ring(&mut rig, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, address);
        // One request more than was served.
        rig.memory.view().write_obj(2_u16, GuestAddress(address + 2)).unwrap();
        // The device's memory goes, as if by the driver of another device.
        let start = HOLE_END + gone * BLOCK;
        rig.memory.unplug(0, GuestRange::new(start..start + BLOCK).unwrap()).unwrap();
        rig.mem.serve();
        assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
        assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }
}

/// The second of two requests has its answer, which is an ERROR, written over the flags of the driver's ring. When the
/// first one went back, the driver wanted to be told.
#[test]
fn a_wish_for_no_interrupts_is_that_of_the_moment_when_a_buffer_goes_back() {
    let mut rig = rig(64 * MIB);
    let flags = MIB + 16 * u64::from(Ring::SIZE);
    rig.raised();
    offer(&mut rig, 0, RequestKind::Plug, 0);
    let (from, to) = (rig.ring.place(2), rig.ring.place(3));
    rig.ring.fill(from, &Request { kind: RequestKind::Plug, addr: 1, nb_blocks: 1 }.to_bytes());
    let buffer = |address, size, writable| Buffer { address, size, writable };
    rig.ring.offer(2, &[buffer(from, 24, false), buffer(flags, 2, true), buffer(to, 8, true)]);
    rig.mem.serve();
    assert_eq!((rig.ring.used(), rig.ring.bytes(flags, 2)), (2, ERROR.to_le_bytes().to_vec()));
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_VRING));
}

/// virtio 1.3, section 2.7.7.
#[test]
fn a_driver_that_wants_no_interrupts_for_buffers_gets_none() {
    let mut rig = rig(64 * MIB);
    let flags = MIB + 16 * u64::from(Ring::SIZE);
    rig.raised();
    rig.ring.fill(flags, &[1, 0]);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
    assert_eq!(rig.raised(), (false, 0));
    rig.resize(4 * MIB).unwrap();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG), "the configuration has no ring");
    rig.ring.fill(flags, &[0xfe, 0xff]);
    assert_eq!(rig.ask(RequestKind::Plug, 1, 1).0, ACK);
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_VRING), "other flags mean nothing");
    rig.mem.serve();
    assert_eq!(rig.raised(), (false, 0), "it is told once");
}

/// virtio 1.3, section 2.4.1: the driver that was answered BUSY is gone, and the next one has asked for nothing.
#[test]
fn a_device_reset_ends_the_retry() {
    for next_driver in [false, true] {
        let mut rig = rig(64 * MIB);
        rig.slots.fail_add_after(0);
        assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, BUSY);
        write(&mut rig.mem, VIRTIO_MMIO_STATUS, 0);
        if next_driver {
            rig.ring = Ring::new(&rig.memory, 2 * MIB);
            initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
        }
        rig.raised();
        rig.mem.retry();
        assert_eq!(rig.raised(), (false, 0), "with a next driver: {next_driver}");
    }
}

/// virtio 1.3, section 2.1.2: the driver of a device that needs a reset is told of that alone.
#[test]
fn a_queue_that_breaks_ends_the_retry() {
    let mut rig = rig(64 * MIB);
    rig.slots.fail_add_after(0);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, BUSY);
    rig.ring.offer_head(Ring::SIZE);
    rig.mem.serve();
    assert_eq!(rig.raised().1 & VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_CONFIG);
    rig.mem.retry();
    assert_eq!(rig.raised(), (false, 0));
}

/// A driver that is starting has read the target, perhaps before it changed.
#[test]
fn a_target_that_is_set_while_a_driver_starts_is_told_when_it_is_ready() {
    let mut rig = rig(64 * MIB);
    write(&mut rig.mem, VIRTIO_MMIO_STATUS, 0);
    rig.raised();
    rig.resize(32 * MIB).unwrap();
    assert_eq!(rig.raised(), (false, 0), "there is no driver");
    initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
    assert_eq!(rig.raised(), (false, 0), "the driver reads it itself");
    write(&mut rig.mem, VIRTIO_MMIO_STATUS, 0);
    write(&mut rig.mem, VIRTIO_MMIO_STATUS, 3);
    rig.resize(16 * MIB).unwrap();
    assert_eq!(rig.raised(), (false, 0), "the driver is not ready");
    for (word, value) in [(0, 1 << F_UNPLUGGED_INACCESSIBLE), (1, 1)] {
        write(&mut rig.mem, VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
        write(&mut rig.mem, VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    write(&mut rig.mem, VIRTIO_MMIO_STATUS, 15);
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
}

/// A host that stays unable costs ever fewer requests.
#[test]
fn a_driver_is_told_to_retry_after_pauses_that_double() {
    let mut rig = rig(64 * MIB);
    watch(|call| matches!(call, MemoryCall::Open(_)));
    let told = |rig: &mut Rig| {
        offer_plugs(rig, 0, 1);
        let after = rig.mem.serve().retry_after;
        rig.mem.retry();
        after.map(|after| after.as_millis())
    };
    let pauses: Vec<_> = (0..8).filter_map(|_| told(&mut rig)).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    // The same target again is how an embedder says that the host is able again.
    offer_plugs(&mut rig, 0, 1);
    assert_eq!(rig.mem.serve(), told_after(5000));
    rig.raised();
    rig.resize(64 * MIB).unwrap();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    rig.mem.retry();
    assert_eq!(rig.raised(), (false, 0), "it was told at once");
    assert_eq!(told(&mut rig), Some(100));
    for end in [|rig: &mut Rig| rig.mem.cause_gone(), |rig: &mut Rig| drop(rig.mem.reset())] {
        offer_plugs(&mut rig, 0, 1);
        rig.mem.serve();
        end(&mut rig);
        rig.ring = Ring::new(&rig.memory, 2 * MIB);
        rig.ring.fill(2 * MIB, &[0; 4096]);
        initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
        offer_plugs(&mut rig, 0, 1);
        assert_eq!(rig.mem.serve(), told_after(100));
        rig.mem.retry();
    }
}

#[test]
fn a_driver_that_waits_is_told_at_once_when_another_one_may_have_freed_something() {
    let mut rig = rig(64 * MIB);
    rig.raised();
    rig.mem.cause_gone();
    assert_eq!(rig.raised(), (false, 0), "nobody waits");
    rig.slots.fail_add_after(0);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, BUSY);
    rig.raised();
    rig.mem.cause_gone();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    rig.mem.cause_gone();
    rig.mem.retry();
    assert_eq!(rig.raised(), (false, 0), "it is told once");
    // Which requests may have freed something.
    offer(&mut rig, 0, RequestKind::Plug, 0);
    assert!(!rig.mem.serve().freed);
    offer(&mut rig, 0, RequestKind::Unplug, 0);
    assert!(rig.mem.serve().freed);
    offer(&mut rig, 0, RequestKind::UnplugAll, 0);
    assert!(!rig.mem.serve().freed, "nothing was plugged");
}

#[test]
fn what_is_refused_and_moved_is_counted() {
    let mut rig = rig(4 * MIB);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 2).0, ACK);
    assert_eq!(rig.ask(RequestKind::Plug, 2, 1).0, NACK);
    assert_eq!(rig.ask(RequestKind::Unplug, 0, 1).0, ACK);
    let counts = rig.mem.counters.read();
    assert_eq!((counts.by[0], counts.by[1]), ([1, 1, 0, 0], [1, 0, 0, 0]));
    assert_eq!((counts.plugged, counts.unplugged, counts.refused_chains), (Size(4 * MIB), Size(BLOCK), 0));
    // A chain without room for its answer, and then a queue that cannot be used.
    let from = rig.ring.place(0);
    rig.ring.offer(0, &[Buffer { address: from, size: 24, writable: false }]);
    rig.mem.serve();
    assert_eq!(rig.mem.counters.read().refused_chains, 1);
    rig.ring.offer_head(Ring::SIZE);
    rig.mem.serve();
    assert_eq!(rig.mem.counters.read().refused_chains, 2);
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}
