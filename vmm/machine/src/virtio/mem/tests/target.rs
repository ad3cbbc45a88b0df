//! Targets on their way to the device: each has a generation of its own, and none waits for requests.

use tidevm_abi::Size;

use std::sync::{Mutex, mpsc};
use std::thread;

use super::turns::offer_plugs;
use super::*;
use crate::memory::host_calls::{MemoryCall, watch};

/// The same size again is a target of its own: the driver is told, and what it read before is outdated.
#[test]
fn every_target_has_a_generation_of_its_own() {
    let mut rig = rig(4 * MIB);
    let status = |rig: &Rig| rig.shared.snapshot().mem[0].clone();
    assert_eq!((status(&rig).generation, status(&rig).seen), (0, None));
    rig.ask(RequestKind::Plug, 0, 2);
    for _ in 0..3 {
        let before = status(&rig);
        interrupts(&mut rig.mem);
        rig.resize(4 * MIB).unwrap();
        assert_eq!(interrupts(&mut rig.mem), VIRTIO_MMIO_INT_CONFIG);
        let told = status(&rig);
        assert!(told.generation > before.generation && !told.arrived(Size(4 * MIB)), "{told:?}");
        // Another field, and the second half of the target.
        read(&mut rig.mem, VIRTIO_MMIO_CONFIG + 40);
        read(&mut rig.mem, VIRTIO_MMIO_CONFIG + 52);
        assert_eq!(status(&rig).seen, before.seen);
        read(&mut rig.mem, VIRTIO_MMIO_CONFIG + 48);
        assert_eq!(status(&rig).seen, Some(read(&mut rig.mem, VIRTIO_MMIO_CONFIG_GENERATION)));
        assert!(status(&rig).arrived(Size(4 * MIB)));
    }
    // The next driver has read nothing.
    write(&mut rig.mem, VIRTIO_MMIO_STATUS, 0);
    assert_eq!(status(&rig).seen, None);
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
        assert!(target.set(&of_embedder, Size(MIB), None).is_err(), "half a block");
        done.send(target.set(&of_embedder, Size(8 * MIB), None)).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(Ok(Some(1))));
    embedder.join().unwrap();
    let status = shared.snapshot().mem[0].clone();
    assert_eq!(
        (status.requested, status.target_pending),
        (Size(8 * MIB), true),
        "the state shows the newest target"
    );
    assert_eq!(kick.read().unwrap(), 1, "the event loop has to apply it");
    drop(taken);
    let mut device = device.lock().unwrap();
    interrupts(&mut *device);
    device.publish(None);
    let status = shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (Size(8 * MIB), true));
    device.serve();
    let status = shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (Size(8 * MIB), false));
    assert_eq!(interrupts(&mut *device), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(device.device.requested_size(), 8 * MIB);
}

#[test]
fn a_device_at_rest_takes_its_target_at_once() {
    let mut rig = rig(4 * MIB);
    interrupts(&mut rig.mem);
    let (target, kick, shared) = (rig.mem.target(), rig.kick, rig.shared);
    let device = Mutex::new(rig.mem);
    target.set(&device, Size(8 * MIB), None).unwrap();
    let status = shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (Size(8 * MIB), false));
    assert!(kick.read().is_err(), "nothing is left for the event loop");
    assert_eq!(interrupts(&mut *device.lock().unwrap()), VIRTIO_MMIO_INT_CONFIG);
}

/// A program that resizes by itself steps back when somebody else has set a target since it looked.
#[test]
fn a_target_after_another_one_than_expected_changes_nothing() {
    let rig = rig(4 * MIB);
    let (target, shared) = (rig.mem.target(), rig.shared);
    let device = Mutex::new(rig.mem);
    let known = shared.snapshot().mem[0].targets;
    assert_eq!(target.set(&device, Size(8 * MIB), Some(known)), Ok(Some(known + 1)));
    // The same size is another target.
    assert_eq!(target.set(&device, Size(8 * MIB), None), Ok(Some(known + 2)));
    assert_eq!(target.set(&device, Size(2 * MIB), Some(known + 1)), Ok(None));
    let status = shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.targets), (Size(8 * MIB), known + 2));
    assert!(target.set(&device, Size(MIB), Some(known)).is_err(), "half a block is the first reason");
    assert_eq!(device.lock().unwrap().device.requested_size(), 8 * MIB);
}

/// The embedder sets a target while the first request of a batch is served.
#[test]
fn a_target_is_applied_before_the_next_request() {
    let mut rig = rig(64 * MIB);
    let target = rig.mem.target();
    offer_plugs(&mut rig, 0, 2);
    watch(move |call| {
        if matches!(call, MemoryCall::AddSlot(..)) {
            target.leave(Size(BLOCK), None).unwrap();
        }
        false
    });
    rig.mem.serve();
    watch(|_| false);
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!((rig.ring.used(), status.plugged, status.requested), (2, Size(BLOCK), Size(BLOCK)));
    assert!(
        status.refused.is_some_and(|why| why.text.starts_with("Nack")),
        "the second request is over the target"
    );
}

/// What the driver read and reported before the device took the target does not count for it, even if both
/// targets have the same size. The driver reads once more between the two.
#[test]
fn a_target_that_the_device_has_not_taken_is_not_reached() {
    let mut rig = rig(4 * MIB);
    let status = |rig: &Rig| rig.shared.snapshot().mem[0].clone();
    let accepted = |mem: MemStatus| (mem.stopped(Size(4 * MIB)).is_some(), mem.arrived(Size(4 * MIB)));
    let report = |rig: &mut Rig| {
        rig.config();
        let (region, state) = (status(rig).region, tidevm_abi::ResizeState::Reached);
        let (size, generation) = (4 * MIB, read(&mut rig.mem, VIRTIO_MMIO_CONFIG_GENERATION));
        let resize =
            tidevm_abi::Resize { region, plugged: Size(size), requested: Size(size), generation, state };
        rig.shared.report(tidevm_abi::Report::Resize(resize));
    };
    rig.ask(RequestKind::Plug, 0, 2);
    report(&mut rig);
    assert_eq!(accepted(status(&rig)), (true, true));
    for _ in 0..3 {
        rig.mem.target.leave(Size(4 * MIB), None).unwrap();
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

/// It is about an earlier plugged size then, and whether it counts is for its reader to say.
#[test]
fn a_report_stays_when_the_device_changes() {
    let mut rig = rig(4 * MIB);
    let region = rig.shared.snapshot().mem[0].region;
    let (size, state) = (Size(4 * MIB), tidevm_abi::ResizeState::HostBusy);
    let report = tidevm_abi::Resize { region, plugged: Size(0), requested: size, generation: 0, state };
    rig.shared.report(tidevm_abi::Report::Resize(report));
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1), (ACK, 0));
    assert_eq!(rig.shared.snapshot().mem[0].report, Some(report));
}

/// A system reset keeps the target that was set last, also one that the device has not taken.
#[test]
fn a_system_reset_takes_the_newest_target() {
    let mut rig = rig(4 * MIB);
    rig.config();
    assert!(rig.shared.snapshot().mem[0].seen.is_some());
    rig.mem.target.leave(Size(8 * MIB), None).unwrap();
    let before = rig.shared.snapshot().mem[0].generation;
    let (mem, shared) = (&mut rig.mem, &rig.shared);
    shared.restart(|| vec![mem.reset()]);
    assert_eq!(shared.snapshot().mem[0].seen, None, "the driver that read the target is gone");
    assert_eq!((rig.config().requested_size, interrupts(&mut rig.mem)), (8 * MIB, 0));
    let status = rig.shared.snapshot().mem[0].clone();
    assert_eq!((status.requested, status.target_pending), (Size(8 * MIB), false));
    assert!(status.generation > before, "a target of its own");
}

/// A guest with memory blocks of 2 GiB adds whole ones.
#[test]
fn the_configuration_says_how_far_the_usable_region_reaches_beyond_the_target() {
    for (extent, usable) in [(Size::mib(256), Size::mib(1280)), (Size::gib(4), Size::gib(5))] {
        let config = HotplugConfig { requested: Size::gib(1), extent, ..HotplugConfig::new(Size::gib(8)) };
        let rig = rig_with(&config);
        assert_eq!(rig.shared.snapshot().mem[0].usable, usable);
    }
}
