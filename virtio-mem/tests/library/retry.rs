//! When a driver that was answered BUSY is told to try again.

use super::*;

fn plug(device: &mut Device, host: &mut Host, block: u64) -> ResponseType {
    ask(device, host, RequestKind::Plug, block, 1)
}

#[test]
fn pauses_double_while_the_host_stays_unable() {
    let (mut device, mut host) = (device(), Host::new());
    assert_eq!((device.retry_after_ms(), device.retry()), (None, false), "no BUSY");
    host.unable = true;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        // A driver may try more than once, and each BUSY is of the same round.
        assert_eq!(
            [plug(&mut device, &mut host, 0), plug(&mut device, &mut host, 1)],
            [ResponseType::Busy; 2]
        );
        pauses.extend(device.retry_after_ms());
        assert!(device.retry());
        assert_eq!((device.retry_after_ms(), device.retry()), (None, false), "it is told once");
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
}

#[test]
fn the_first_success_starts_over() {
    for kind in [RequestKind::Plug, RequestKind::Unplug, RequestKind::UnplugAll] {
        let (mut device, mut host) = (device(), Host::new());
        plug(&mut device, &mut host, 0);
        host.unable = true;
        for _ in 0..3 {
            plug(&mut device, &mut host, 1);
            device.retry();
        }
        assert_eq!(ask(&mut device, &mut host, RequestKind::State, 0, 1), ResponseType::Ack);
        plug(&mut device, &mut host, 1);
        assert_eq!(device.retry_after_ms(), Some(800), "a question gains nothing");
        host.unable = false;
        let block = if kind == RequestKind::Plug { 5 } else { 0 };
        assert_eq!(ask(&mut device, &mut host, kind, block, 1), ResponseType::Ack);
        assert_eq!(device.retry_after_ms(), Some(100), "after {kind:?}, the driver waits all the same");
    }
}

#[test]
fn a_driver_is_told_at_once_when_the_cause_is_gone() {
    let (mut device, mut host) = (device(), Host::new());
    assert!(!device.cause_gone(), "nobody waits");
    host.unable = true;
    for _ in 0..3 {
        plug(&mut device, &mut host, 0);
        device.retry();
    }
    plug(&mut device, &mut host, 0);
    assert!(device.cause_gone());
    assert_eq!((device.cause_gone(), device.retry_after_ms()), (false, None), "it is told once");
    plug(&mut device, &mut host, 0);
    assert_eq!(device.retry_after_ms(), Some(100));
}

/// A new target is told to the driver anyway. A driver that is gone is told nothing.
#[test]
fn a_new_target_and_the_end_of_the_driver_end_the_wait() {
    let ends: [fn(&mut Device); 3] =
        [|device| assert_eq!(device.resize(64 * MIB), Ok(true)), Device::driver_gone, Device::reset];
    for end in ends {
        let (mut device, mut host) = (device(), Host::new());
        host.unable = true;
        for _ in 0..3 {
            plug(&mut device, &mut host, 0);
            device.retry();
        }
        plug(&mut device, &mut host, 0);
        end(&mut device);
        assert_eq!((device.retry_after_ms(), device.retry()), (None, false));
        plug(&mut device, &mut host, 0);
        assert_eq!(device.retry_after_ms(), Some(100));
    }
    let (mut device, mut host) = (device(), Host::new());
    host.unable = true;
    plug(&mut device, &mut host, 0);
    assert_eq!(device.resize(REGION), Ok(false));
    assert_eq!(device.retry_after_ms(), Some(100), "nothing is told of the same target");
}
