//! When the driver is interrupted, and when it is not.

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
};

use super::turns::offer_plugs;
use super::*;
use crate::memory::host_calls::{MemoryCall, watch};

/// The retry is due whatever was served between the BUSY and the timer.
#[test]
fn a_driver_that_was_answered_busy_is_told_to_retry_whatever_came_after() {
    let mut rig = rig(64 * MIB);
    rig.slots.fail_add_after(0);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, BUSY);
    assert_eq!(rig.ask(RequestKind::State, 0, 1).0, ACK);
    assert_eq!(rig.mem.serve(), Served { busy: false, more: false });
    rig.raised();
    rig.mem.retry();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    // The host fails for two batches, and for both requests of the second one.
    watch(|call| matches!(call, MemoryCall::Open(_)));
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, BUSY);
    offer_plugs(&mut rig, 0, 2);
    assert_eq!(rig.mem.serve(), Served { busy: true, more: false });
    watch(|_| false);
    rig.raised();
    rig.mem.retry();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    // Of two requests in one batch, the first is answered BUSY.
    rig.slots.fail_add_after(0);
    offer_plugs(&mut rig, 0, 2);
    assert_eq!(rig.mem.serve(), Served { busy: true, more: false });
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(BLOCK));
    rig.raised();
    rig.mem.retry();
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
}

#[test]
fn a_driver_is_not_interrupted_when_nothing_changed() {
    let mut rig = rig(64 * MIB);
    rig.raised();
    assert_eq!(rig.mem.serve(), Served { busy: false, more: false });
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
    assert_eq!(rig.mem.serve(), Served { busy: false, more: false });
    assert_eq!(rig.raised(), (true, VIRTIO_MMIO_INT_CONFIG));
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert_eq!(rig.mem.serve(), Served { busy: false, more: false });
    assert_eq!(rig.raised(), (false, 0), "it is told once");
}

/// A driver may be ready before its queue is.
#[test]
fn a_queue_that_is_not_ready_has_no_requests() {
    let mut rig = rig(64 * MIB);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 0);
    rig.raised();
    assert_eq!(rig.mem.serve(), Served { busy: false, more: false });
    assert_eq!(rig.raised(), (false, 0));
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
}

/// The request was carried out. The driver does not learn it, and has to ask after its reset.
#[test]
fn a_used_ring_outside_memory_is_told_to_the_driver() {
    let mut rig = rig(64 * MIB);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 0);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_USED_HIGH, 0x100);
    write(&mut rig.mem, VIRTIO_MMIO_QUEUE_READY, 1);
    rig.raised();
    offer_plugs(&mut rig, 0, 3);
    rig.mem.serve();
    let (raised, status) = rig.raised();
    assert_eq!((raised, status & VIRTIO_MMIO_INT_CONFIG), (true, VIRTIO_MMIO_INT_CONFIG));
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!((status.plugged, status.driver), (Size(BLOCK), false), "no request after the first");
    assert!(status.refused.is_some_and(|why| why.text.contains("reset the device")));
}
