//! Devices of other shapes: device blocks that are smaller than the guest can take in or larger than a memory block, and
//! regions that do not begin or end with a memory block.

use super::*;

const GIB: u64 = 1 << 30;

/// A guest for a region of another shape, which has `usable` bytes that can be plugged.
fn shaped(addr: u64, region_size: u64, block_size: u64) -> Guest {
    let mut guest = Guest::new(GIB, BLOCK);
    guest.config = Config { addr, region_size, block_size, ..guest.config };
    let wanted = DriverConfig::new(MEMORY_BLOCK, BLOCK).with_memmap_size(BLOCK);
    guest.driver = Driver::new(wanted.fit(&guest.config, MEMORY_BLOCK), guest.config, 0).unwrap();
    guest
}

/// The first request after a new target, as MiB from [`ADDR`] and number of device blocks.
fn first_request(guest: &mut Guest, mib: u64) -> (u64, u16) {
    guest.resize(mib);
    guest.step(|_| None);
    match guest.driver.next() {
        Action::Send(Request { kind: RequestKind::Plug, addr, nb_blocks }) => {
            ((addr - ADDR) / MIB, nb_blocks)
        }
        action => panic!("{action:?}"),
    }
}

#[test]
fn small_device_blocks_are_plugged_by_as_many_as_the_guest_takes() {
    let mut guest = shaped(ADDR, 8 * GIB, MIB);
    assert_eq!(guest.driver.unusable_size(), 0);
    assert_eq!(first_request(&mut guest, 131), (0, 130));
    let (_, idle) = guest.run(|_| None);
    assert_eq!((idle, guest.plugged()), (Idle::Blocked(IdleReason::Granularity), 130));
    guest.resize(130);
    assert_eq!(guest.run(|_| None), (vec![], Idle::Reached));
    guest.resize(127);
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, [remove(128), unplug(128, 2), offline(126), unplug(126, 2)]);
    assert_eq!((idle, guest.plugged()), (Idle::Blocked(IdleReason::Granularity), 126));
    // No request names half of what the guest takes.
    let mut guest = shaped(ADDR, 256 * GIB, MIB);
    assert_eq!(first_request(&mut guest, 256 << 10), (0, 65_408));
}

#[test]
fn large_device_blocks_make_memory_blocks_as_large() {
    for (block, memory_block, memmap) in [(256, 256, 4), (1024, 1024, 16), (64, 128, 2)] {
        let wanted = DriverConfig::new(MEMORY_BLOCK, BLOCK).with_memmap_size(BLOCK);
        let guest = shaped(ADDR, 8 * GIB, block * MIB);
        let fit = wanted.fit(&guest.config, MEMORY_BLOCK);
        assert_eq!((fit.memory_block_size / MIB, fit.memmap_size / MIB), (memory_block, memmap));
    }
    let mut guest = shaped(ADDR, 8 * GIB, GIB);
    assert_eq!(first_request(&mut guest, 2048), (0, 2));
    guest.run(|_| None);
    assert_eq!(guest.plugged(), 2048);
    guest.resize(1024);
    let gib = |addr| Action::Send(Request { kind: RequestKind::Unplug, addr, nb_blocks: 1 });
    let remove = Action::RemoveMemoryBlocks { addr: ADDR + GIB, size: GIB };
    assert_eq!(guest.run(|_| None), (vec![remove, gib(ADDR + GIB)], Idle::Reached));
}

/// What is lost, for regions that begin and end somewhere.
#[test]
fn a_region_is_used_from_its_first_memory_block_on() {
    let lost = |begin: u64, size: u64, block: u64| {
        let guest = shaped(ADDR + begin * MIB, size * MIB, block * MIB);
        let lost = guest.driver.unusable_size() / MIB;
        (lost, if lost < size { first_request(&mut { guest }, 8).0 } else { 0 })
    };
    assert_eq!(lost(0, 1024, 2), (0, 0));
    assert_eq!(lost(128, 1024, 2), (0, 128), "memory blocks of 128 MiB");
    // 126 MiB before the first memory block, and 2 MiB behind the last, which its memmap would fill.
    assert_eq!(lost(2, 1024, 2), (128, 128));
    assert_eq!(lost(2, 1030, 2), (126, 128), "8 MiB behind the last memory block");
    // Half of a pageblock at the end.
    assert_eq!(lost(0, 1025, 1), (1, 0));
    assert_eq!(lost(1, 1024, 1), (127 + 1, 128));
    assert_eq!(lost(2, 64, 2), (64, 0), "all of it");
}

#[test]
fn a_device_that_offers_nothing_usable_does_no_harm() {
    let mut guest = shaped(ADDR + 2 * MIB, 64 * MIB, BLOCK);
    guest.resize(8);
    assert_eq!(guest.run(|_| None), (vec![], Idle::Blocked(IdleReason::NoRoom)));
}

#[test]
fn a_usable_region_that_ends_within_a_block_is_used_up_to_there() {
    let mut guest = shaped(ADDR, GIB, MIB);
    guest.resize(64);
    guest.config.usable_region_size = 7 * MIB + 4096;
    let (actions, idle) = guest.run(|_| None);
    assert_eq!((actions[0], idle), (plug(0, 6), Idle::Blocked(IdleReason::NoRoom)));
    assert_eq!(guest.plugged(), 6);
}
