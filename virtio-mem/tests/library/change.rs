//! Requests in two halves, and what is counted of requests.

use virtio_mem::BlockState;
use virtio_mem::device::{Refusal, StateError};

use super::*;

#[test]
fn nothing_changes_between_the_halves_of_a_request() {
    let (mut device, mut host) = (device(), Host::new());
    for (kind, before, after) in [
        (RequestKind::Plug, 0, 8),
        (RequestKind::Unplug, 8, 0),
        (RequestKind::Plug, 0, 8),
        (RequestKind::UnplugAll, 8, 0),
    ] {
        let (config, generation) = (device.config(), device.config_generation());
        let change = begin(&mut device, kind, 4, 8);
        assert_eq!((change.request().kind, device.is_changing()), (kind, true));
        let outcome = change.apply(&mut host);
        assert_eq!((device.config(), device.config_generation()), (config, generation));
        assert_eq!((device.plugged().count(), host.backed.count()), (before, after));
        assert_eq!(device.commit(change, outcome), Some(Response::new(ResponseType::Ack)));
        assert_eq!((device.plugged().count(), device.is_changing()), (after, false));
        assert_ne!(device.config_generation(), generation);
    }
}

/// Another request would be validated against a state that is about to change.
#[test]
fn one_change_at_a_time_and_the_others_are_told_to_come_again() {
    let (mut device, mut host) = (device(), Host::new());
    assert_eq!(ask(&mut device, &mut host, RequestKind::Plug, 0, 8), ResponseType::Ack);
    let change = begin(&mut device, RequestKind::Unplug, 0, 4);
    for (kind, block) in [(RequestKind::Plug, 100), (RequestKind::Unplug, 4), (RequestKind::UnplugAll, 0)] {
        assert_eq!(answer(&mut device, kind, block, 1).kind, ResponseType::Busy);
    }
    let why = device.refused().unwrap().why;
    assert_eq!(why, Refusal::Busy(Busy::because("another request is under way")));
    assert_eq!(answer(&mut device, RequestKind::Plug, 4, 1).kind, ResponseType::Error, "wrong at any time");
    assert_eq!(answer(&mut device, RequestKind::State, 0, 8).state, BlockState::Plugged);
    assert_eq!(device.state(), Err(StateError::Changing));
    let outcome = change.apply(&mut host);
    device.commit(change, outcome).unwrap();
    assert_eq!(answer(&mut device, RequestKind::State, 0, 8).state, BlockState::Mixed);
    assert!(device.state().is_ok());
}

#[test]
fn a_change_that_the_host_could_not_do_changes_nothing() {
    let (mut device, mut host) = (device(), Host::new());
    assert_eq!(ask(&mut device, &mut host, RequestKind::Plug, 0, 8), ResponseType::Ack);
    host.unable = true;
    for (kind, block) in [(RequestKind::Plug, 8), (RequestKind::Unplug, 0), (RequestKind::UnplugAll, 0)] {
        let (config, generation) = (device.config(), device.config_generation());
        let change = begin(&mut device, kind, block, 8);
        let outcome = change.apply(&mut host);
        assert_eq!(device.commit(change, outcome), Some(Response::new(ResponseType::Busy)));
        assert_eq!((device.config(), device.config_generation()), (config, generation));
        assert_eq!(device.refused().unwrap().why, Refusal::Busy(Busy::call("madvise", 11)));
        assert!(!device.is_changing());
    }
}

/// The memory of the whole region was taken back meanwhile, and the driver is gone.
#[test]
fn a_change_that_a_reset_overtook_is_void() {
    let mut device = device();
    let change = begin(&mut device, RequestKind::Plug, 0, 8);
    device.reset();
    assert!(!device.is_changing());
    assert_eq!((device.commit(change, Ok(())), device.plugged_size()), (None, 0));
    // The change of the next driver is another one.
    let old = begin(&mut device, RequestKind::Plug, 0, 8);
    device.reset();
    let new = begin(&mut device, RequestKind::Plug, 8, 8);
    assert_eq!((device.commit(old, Ok(())), device.plugged_size()), (None, 0));
    assert!(device.commit(new, Ok(())).is_some());
    assert_eq!(device.plugged_size(), 8 * BLOCK);
}

/// The target moves while the host is at work.
#[test]
fn a_target_may_change_between_the_halves() {
    let mut device = device();
    let change = begin(&mut device, RequestKind::Plug, 0, 8);
    assert_eq!(device.resize(BLOCK), Ok(true));
    device.commit(change, Ok(())).unwrap();
    assert_eq!((device.plugged_size(), device.requested_size()), (8 * BLOCK, BLOCK));
    let change = begin(&mut device, RequestKind::UnplugAll, 0, 0);
    assert_eq!(device.resize(0), Ok(true));
    device.commit(change, Ok(())).unwrap();
    assert_eq!((device.plugged_size(), device.usable_region_size()), (0, 0));
}

#[test]
fn requests_are_counted_by_type_and_answer_and_memory_by_bytes() {
    let (mut device, mut host) = (device(), Host::new());
    ask(&mut device, &mut host, RequestKind::Plug, 0, 8);
    ask(&mut device, &mut host, RequestKind::Plug, 0, 8);
    ask(&mut device, &mut host, RequestKind::Unplug, 0, 3);
    ask(&mut device, &mut host, RequestKind::State, 0, 3);
    host.unable = true;
    ask(&mut device, &mut host, RequestKind::UnplugAll, 0, 0);
    host.unable = false;
    ask(&mut device, &mut host, RequestKind::UnplugAll, 0, 0);
    ask(&mut device, &mut host, RequestKind::UnplugAll, 0, 0);
    device.handle(&[7; 24], &mut host);
    device.resize(BLOCK).unwrap();
    ask(&mut device, &mut host, RequestKind::Plug, 0, 8);
    let counts = *device.counts();
    let expected = [[1, 1, 0, 1], [1, 0, 0, 0], [2, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]];
    assert_eq!((counts.requests, counts.plugged, counts.unplugged), (expected, 8 * BLOCK, 8 * BLOCK));
}

/// A Linux guest with 64 GiB or more has memory blocks of 2 GiB, and adds whole ones alone.
#[test]
fn the_extent_beyond_the_target_is_the_hosts_choice() {
    let mut fixed = DeviceConfig::new(ADDR, 16 << 30, BLOCK);
    for (extent, usable) in [
        (fixed.extent, (1 << 30) + 256 * MIB),
        (4 << 30, 5 << 30),
        (0, 1 << 30),
        (1, (1 << 30) + BLOCK),
        (u64::MAX, 16 << 30),
    ] {
        fixed.extent = extent;
        let mut device = Device::new(fixed).unwrap();
        device.resize(1 << 30).unwrap();
        assert_eq!(device.usable_region_size(), usable, "extent {extent:#x}");
    }
}
