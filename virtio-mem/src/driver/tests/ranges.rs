//! Actions on several memory blocks: how few there are, and what follows when only a part of one was carried out.

use super::*;

const GIB: u64 = 1 << 10;
/// Device blocks of a GiB.
const OF_A_GIB: u64 = GIB * MIB / BLOCK;

/// At most eight requests take 64 GiB away, so the host has 8 GiB back after each.
#[test]
fn a_large_target_takes_few_requests_and_few_actions() {
    let mut guest = Guest::new(64 << 30, BLOCK);
    guest.resize(64 * GIB);
    let all = 64 * OF_A_GIB;
    assert_eq!(guest.run(|_| None), (vec![plug(0, all as u16), add(0, all)], Idle::Reached));
    guest.resize(0);
    let (actions, idle) = guest.run(|_| None);
    let down = (0..8).rev().map(|nr| 8 * nr * GIB);
    let expected: Vec<_> =
        down.flat_map(|mib| [remove_all(mib, 8 * OF_A_GIB), unplug(mib, 8 * OF_A_GIB as u16)]).collect();
    assert_eq!((actions, idle), (expected, Idle::Reached));
}

#[test]
fn what_has_to_go_bounds_how_many_memory_blocks_go() {
    let mut guest = Guest::with(1024);
    guest.resize(1024 - 300);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions[..3], [remove_all(768, 128), unplug(768, 128), offline(766)]);
    assert_eq!((idle, guest.plugged()), (Idle::Reached, 724));
    // A memory block that is plugged in part goes by itself.
    guest.resize(256);
    let (actions, _) = guest.run(|_| None);
    assert_eq!(actions[..4], [remove(640), unplug(640, 42), remove_all(256, 192), unplug(256, 192)]);
}

#[test]
fn memory_blocks_that_were_added_stay_when_the_next_cannot() {
    for done in 0..8 {
        let mut guest = Guest::new(8 << 30, BLOCK);
        guest.resize(GIB);
        let no_memory =
            |action| (action == add(0, 512)).then_some(part(128 * done, Some(IdleReason::NoMemory)));
        let (actions, idle) = guest.run(no_memory);
        let rest = unplug(128 * done, 512 - 64 * done as u16);
        assert_eq!(actions, [plug(0, 512), add(0, 512), rest]);
        assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::NoMemory), 128 * done));
        guest.driver.retry();
        assert_eq!(guest.run(|_| None).1, Idle::Reached);
        assert_eq!(guest.plugged(), GIB);
    }
}

/// A notification stops the guest between two memory blocks. The rest is still fresh, and what a failed attempt has
/// touched is not.
#[test]
fn a_notification_in_the_middle_of_adding_changes_the_rest_only() {
    for done in 1..8 {
        for (mib, failed) in [(128 * done, None), (GIB, None), (GIB, Some(IdleReason::NoMemory))] {
            let mut guest = Guest::new(8 << 30, BLOCK);
            guest.resize(GIB);
            guest.step_until(plug(0, 512));
            assert_eq!(guest.driver.next(), add(0, 512));
            guest.resize(mib);
            guest.driver.complete(part(128 * done, failed));
            let (actions, idle) = guest.run(|_| None);
            let left = 512 - 64 * done;
            let expected = match (mib, failed) {
                (GIB, None) => vec![add(128 * done, left)],
                (GIB, Some(_)) if left == 64 => vec![add_used(128 * done, 64)],
                (GIB, Some(_)) => vec![add_used(128 * done, 64), add(128 * (done + 1), left - 64)],
                _ => vec![unplug(128 * done, left as u16)],
            };
            assert_eq!((actions, idle), (expected, Idle::Reached), "{done} and {failed:?}");
            assert_eq!(guest.plugged(), mib);
        }
    }
}

#[test]
fn memory_blocks_that_were_removed_are_unplugged_and_the_one_that_could_not_is_passed_over() {
    for done in 0..8 {
        let mut guest = Guest::with(GIB);
        guest.resize(0);
        let stuck = 128 * (7 - done);
        let unmovable_there = |action| match action {
            Action::RemoveMemoryBlocks { addr: at, size } if (at..at + size).contains(&addr(stuck)) => {
                Some(part((at + size - addr(stuck)) / MIB - 128, Some(IdleReason::Unmovable)))
            }
            Action::OfflineDeviceBlocks { addr: at, .. } if at == addr(stuck + 10) => unmovable(action),
            _ => None,
        };
        let (actions, idle) = guest.run(unmovable_there);
        let mut expected = vec![remove_all(0, 512)];
        if done > 0 {
            expected.push(unplug(stuck + 128, 64 * done as u16));
        }
        if done < 7 {
            expected.extend([remove_all(0, stuck / 2), unplug(0, (stuck / 2) as u16)]);
        }
        expected.push(offline(stuck + 126));
        assert_eq!(actions[..expected.len()], expected);
        // All but the memmap and the one device block.
        assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::Unmovable), 4));
        guest.driver.retry();
        assert_eq!(guest.run(|_| None).1, Idle::Reached);
    }
}

#[test]
fn a_notification_in_the_middle_of_removing_changes_the_rest_only() {
    for done in 1..8 {
        for (mib, failed) in [(0, None), (0, Some(IdleReason::Unmovable)), (GIB, None), (512, None)] {
            let mut guest = Guest::with(GIB);
            guest.resize(0);
            guest.step(|_| None);
            assert_eq!(guest.driver.next(), remove_all(0, 512));
            guest.resize(mib);
            guest.driver.complete(part(128 * done, failed));
            let (gone, left) = (64 * done, 512 - 64 * done);
            let (actions, idle) = guest.run(|_| None);
            let expected = match mib {
                // The failure may be due to the target before: all that is left is tried again.
                0 => {
                    vec![unplug(1024 - 128 * done, gone as u16), remove_all(0, left), unplug(0, left as u16)]
                }
                GIB => vec![add_used(1024 - 128 * done, gone)],
                _ if done <= 4 => {
                    let top = unplug(1024 - 128 * done, gone as u16);
                    let more = [remove_all(512, 256 - gone), unplug(512, 256 - gone as u16)];
                    [top].into_iter().chain(more.into_iter().filter(|_| done < 4)).collect()
                }
                _ => vec![unplug(512, 256), add_used(1024 - 128 * done, gone - 256)],
            };
            assert_eq!((actions, idle), (expected, Idle::Reached), "{done} to {mib}");
            assert_eq!(guest.plugged(), mib);
        }
    }
}

#[test]
fn a_guest_that_is_stopped_again_and_again_goes_on_where_it_was() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    let stopped = |action| match action {
        Action::AddMemoryBlocks { size, .. } | Action::RemoveMemoryBlocks { size, .. }
            if size > MEMORY_BLOCK =>
        {
            Some(part(128, None))
        }
        _ => None,
    };
    guest.resize(GIB);
    let (actions, idle) = guest.run(stopped);
    let expected: Vec<_> = (0..8).map(|nr| add(128 * nr, 512 - 64 * nr)).collect();
    assert_eq!((&actions[1..], idle), (&expected[..], Idle::Reached));
    guest.resize(0);
    assert_eq!(guest.run(stopped).1, Idle::Reached);
    assert_eq!(guest.plugged(), 0);
}

#[test]
#[should_panic(expected = "does not complete AddMemoryBlocks")]
fn a_part_is_less_than_all() {
    let mut guest = Guest::new(8 << 30, BLOCK);
    guest.resize(256);
    guest.step_until(plug(0, 128));
    guest.step(|_| Some(part(256, None)));
}

/// Memmaps that were in use are written anew. Beside them, those that the device has just plugged are not.
#[test]
fn memory_blocks_are_added_together_as_far_as_their_memmaps_are_alike() {
    let mut guest = Guest::with(256);
    guest.resize(128);
    guest.step_until(remove(128));
    // The target rises before the UNPLUG: the memory block comes back, and then more.
    guest.resize(512);
    assert_eq!(guest.run(|_| None).0, [add_used(128, 64), plug(256, 128), add(256, 128)]);
    // The device served an UNPLUG in part, and the rest is plugged by one request.
    let region = &mut guest.driver.region;
    region.plug(BlockRange::new(256, 64), false);
    region.plug(BlockRange::new(320, 128), true);
    region.plug(BlockRange::new(448, 64), false);
    guest.resize(1024);
    let (actions, _) = guest.run(|_| None);
    assert_eq!(actions, [add_used(512, 64), add(640, 128), add_used(896, 64)]);
}

/// Where memmaps lie elsewhere, a hole may reach from one memory block into the next.
#[test]
fn a_hole_across_memory_blocks_is_plugged_at_once_and_put_to_use_by_each() {
    let mut guest = Guest::new(1 << 30, 0);
    guest.resize(256);
    guest.run(|_| None);
    guest.resize(0);
    let loose = |action| match action {
        Action::OfflineDeviceBlocks { addr: at, .. } if (addr(120)..addr(136)).contains(&at) => None,
        action => unmovable(action),
    };
    let (actions, _) = guest.run(loose);
    let sent: Vec<_> = actions.into_iter().filter(|action| matches!(action, Action::Send(_))).collect();
    assert_eq!(sent, [unplug(128, 4), unplug(120, 4)]);
    guest.resize(252);
    assert_eq!(guest.run(|_| None), (vec![plug(120, 6), online(120, 4), online(128, 2)], Idle::Reached));
}

/// The same after a device that violated the specification plugged the end of one and the start of the next.
#[test]
fn a_part_of_a_memory_block_is_added_before_the_whole_ones_above() {
    let mut guest = Guest::new(1 << 30, 0);
    guest.resize(256);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 128));
    guest.run(telling(|block| block >= 32));
    guest.driver.retry();
    let expected = vec![add_used(64, 32), add_used(128, 64), plug(0, 32), online(0, 32)];
    assert_eq!(guest.run(|_| None), (expected, Idle::Reached));
}
