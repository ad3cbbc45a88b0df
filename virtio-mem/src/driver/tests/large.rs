//! Memory device blocks of several sections: 1 GiB, whose memmap takes the first eight device blocks of 2 MiB.

use super::*;

const MEMMAP: u64 = 16 * MIB;

/// A guest of 8 GiB with `plugged` MiB plugged.
fn with(plugged: u64) -> Guest {
    let mut guest = Guest::new(8 << 30, MEMMAP);
    guest.resize(plugged);
    assert_eq!(guest.run(|_| None).1, Idle::Reached);
    guest
}

#[test]
fn whole_memory_blocks_come_and_go_by_one_request() {
    let mut guest = Guest::new(8 << 30, MEMMAP);
    guest.resize(3072);
    assert_eq!(guest.run(|_| None).0, [plug(0, 1536), add(0, 1536)]);
    guest.resize(1024);
    assert_eq!(guest.run(|_| None).0, [remove_all(1024, 1024), unplug(1024, 1024)]);
    assert_eq!(guest.plugged(), 1024);
}

#[test]
fn the_memmap_is_plugged_first_and_unplugged_last() {
    let mut guest = with(1024);
    // Not enough for a memmap: a part of the reserve is plugged and parked.
    guest.resize(1030);
    assert_eq!(guest.run(|_| None), (vec![plug(1024, 3)], Idle::Reached));
    guest.resize(1038);
    assert_eq!(guest.run(|_| None), (vec![plug(1030, 4)], Idle::Reached));
    // The other part of the reserve, and two device blocks more. Several requests plugged the reserve, so it does
    // not count as fresh.
    guest.resize(1044);
    assert_eq!(guest.run(|_| None), (vec![plug(1038, 3), add_used(1024, 10)], Idle::Reached));
    guest.resize(1050);
    assert_eq!(guest.run(|_| None).0, [plug(1044, 3), online(1044, 3)]);
    // Device blocks go offline one by one. When only a part of the reserve would stay, the memory block goes as a
    // whole.
    guest.resize(1042);
    assert_eq!(
        guest.run(|_| None).0,
        [offline(1048), offline(1046), offline(1044), offline(1042), unplug(1042, 4)]
    );
    guest.resize(1036);
    assert_eq!(guest.run(|_| None), (vec![remove_all(1024, 512), unplug(1036, 3)], Idle::Reached));
    guest.resize(1024);
    assert_eq!(guest.run(|_| None), (vec![unplug(1024, 6)], Idle::Reached));
}

#[test]
fn a_memmap_alone_is_put_to_use() {
    let mut guest = with(1024);
    guest.resize(1040);
    assert_eq!(guest.run(|_| None), (vec![plug(1024, 8), add(1024, 8)], Idle::Reached));
}

/// Of the memmap only a part is the last PLUG's.
#[test]
fn a_memmap_is_fresh_as_a_whole_or_not() {
    let mut guest = Guest::new(8 << 30, MEMMAP);
    guest.driver.region.plug(BlockRange::new(0, 4), true);
    guest.driver.region.plug(BlockRange::new(4, 508), false);
    guest.resize(1024);
    assert_eq!(guest.run(|_| None).0, [add_used(0, 512)]);
}

#[test]
fn what_is_parked_goes_before_anything_in_use() {
    let mut guest = with(1024 + 10);
    guest.resize(1024 - 4);
    assert_eq!(guest.run(|_| None).0, [unplug(1024, 5), offline(1022), offline(1020), unplug(1020, 2)]);
    // Parked device blocks stay parked until their memory block can be added.
    let mut guest = with(1024 + 10);
    guest.resize(1024 + 20);
    assert_eq!(guest.run(|_| None).0, [plug(1034, 5), add_used(1024, 10)]);
}

#[test]
fn a_region_that_ends_in_a_memmap_is_full_there() {
    let mut guest = Guest::new((1 << 30) + 6 * MIB, MEMMAP);
    guest.config.usable_region_size = guest.config.region_size;
    guest.resize(1030);
    assert_eq!(guest.run(|_| None), (vec![plug(0, 515), add(0, 512)], Idle::Reached));
    guest.resize(0);
    assert_eq!(guest.run(|_| None).1, Idle::Reached);
}

#[test]
fn a_host_that_gives_single_blocks_fills_the_memmap_first() {
    let mut guest = Guest::new(8 << 30, MEMMAP);
    guest.resize(40);
    let busy = |action| matches!(action, Action::Send(_)).then_some(BUSY);
    for _ in 0..10 {
        guest.run(busy);
        guest.driver.retry();
    }
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(
        actions,
        [plug(0, 1), plug(2, 2), plug(6, 4), plug(14, 8), add_used(0, 15), plug(30, 5), online(30, 5)]
    );
    assert_eq!(idle, Idle::Reached);
}

#[test]
fn what_could_not_be_added_goes_back_with_its_memmap() {
    let mut guest = with(1024);
    guest.resize(1100);
    let (actions, idle) = guest.run(no_memory);
    assert_eq!(actions, [plug(1024, 38), add(1024, 38), unplug(1024, 38)]);
    assert_eq!((idle, guest.plugged()), (retry(100, IdleReason::NoMemory), 1024));
}

#[test]
fn without_memmap_inside_any_part_can_be_added() {
    let mut guest = Guest::new(8 << 30, 0);
    guest.driver = {
        let driver = DriverConfig::new(1 << 30, BLOCK);
        Driver::new(driver, guest.config, 0).unwrap()
    };
    guest.resize(2);
    assert_eq!(guest.run(|_| None).0, [plug(0, 1), add_used(0, 1)]);
    guest.resize(1026);
    assert_eq!(guest.run(|_| None).0, [plug(2, 511), online(2, 511), plug(1024, 1), add_used(1024, 1)]);
}

/// A device that violated the specification left a memmap in two parts, and device blocks behind it.
#[test]
fn a_memory_block_with_a_part_of_its_memmap_is_not_added() {
    let mut guest = Guest::new(8 << 30, MEMMAP);
    guest.resize(32);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 16));
    guest.run(telling(|block| !(4..8).contains(&block)));
    assert_eq!(guest.plugged(), 24);
    guest.driver.retry();
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, [unplug(16, 8), plug(8, 12), add_used(0, 16)]);
    assert_eq!(idle, Idle::Reached);
}

/// The same left a part of a memmap behind memory blocks that are not plugged.
#[test]
fn a_plug_ends_before_parked_blocks() {
    let mut guest = Guest::new(8 << 30, MEMMAP);
    guest.resize(2048);
    guest.step(|_| None);
    assert_eq!(guest.step(|_| Some(ERROR)), plug(0, 1024));
    guest.run(telling(|block| (512..515).contains(&block)));
    assert_eq!(guest.plugged(), 6);
    guest.driver.retry();
    let (actions, idle) = guest.run(|_| None);
    assert_eq!(actions, [plug(0, 512), add(0, 512), plug(1030, 509), add_used(1024, 512)]);
    assert_eq!(idle, Idle::Reached);
}

#[test]
fn a_memmap_smaller_than_a_device_block_takes_one() {
    let mut guest = Guest::new(8 << 30, BLOCK / 2);
    guest.resize(130);
    assert_eq!(guest.run(|_| None).0, [plug(0, 65), add(0, 64), add(128, 1)]);
    guest.resize(128);
    assert_eq!(guest.run(|_| None).0, [remove(128), unplug(128, 1)]);
}

/// Claim S4.20 of `docs/features.toml`: a region that large memory blocks do not fit gets smaller memory blocks,
/// or memmaps elsewhere.
#[test]
fn geometry_that_does_not_fit_falls_back() {
    let guest = DriverConfig::new(1 << 30, BLOCK).with_memmap_size(MEMMAP);
    let region = |addr, region_size| Config { addr, region_size, ..Guest::new(1 << 30, 0).config };
    let fit = |config: Config| {
        let DriverConfig { memory_block_size, memmap_size, .. } = guest.fit(&config, MEMORY_BLOCK);
        (memory_block_size / MIB, memmap_size / MIB)
    };
    assert_eq!(fit(region(ADDR, 8 << 30)), (1024, 16));
    assert_eq!(fit(region(ADDR + (512 << 20), 8 << 30)), (512, 8), "the region begins within a memory block");
    assert_eq!(fit(region(ADDR, 768 * MIB)), (256, 4), "it ends within one");
    assert_eq!(fit(region(ADDR + MEMORY_BLOCK, 8 << 30)), (128, 2));
    assert_eq!(fit(region(ADDR + BLOCK, 8 << 30)), (128, 2), "no smaller ones: `Driver::new` refuses it");
    assert_eq!(fit(region(ADDR, (8 << 30) + 4 * MIB)), (128, 2), "a block beside the last memmap");
    assert_eq!(fit(region(ADDR, (8 << 30) + 2 * MIB)), (128, 0), "the last memory block would be all memmap");
}
