//! Where RAM, regions and the registers of devices lie in guest-physical memory.

use tidevm_abi::{MAX_MEM_DEVICES, Size};

use super::{
    FIRST_GSI, HOLE_END, HOLE_START, KVM_TSS, MMIO_BASE, MMIO_SIZE, Place, boot_parts, end, gsi, mmio, parts,
    ram, regions,
};
use crate::memory::fake::{at, offsets};

const GIB: u64 = 1 << 30;

#[test]
fn boot_memory_leaves_the_hole_alone() {
    assert!(ram(Size(GIB)).eq(std::iter::once(at(0..GIB))));
    assert!(ram(Size(3 * GIB)).eq(std::iter::once(at(0..3 * GIB))));
    assert!(ram(Size(5 * GIB)).eq([at(0..3 * GIB), at(4 * GIB..6 * GIB)]));
}

#[test]
fn each_part_of_boot_memory_has_its_own_bytes() {
    let low = (at(0..3 * GIB), offsets(0..3 * GIB));
    assert!(boot_parts(offsets(0..5 * GIB)).eq([low, (at(4 * GIB..6 * GIB), offsets(3 * GIB..5 * GIB))]));
}

#[test]
fn parts_of_boot_memory_go_around_the_hole() {
    assert_eq!(parts(Size(GIB), [Size(GIB)]), [(0, at(0..GIB))]);
    assert_eq!(
        parts(Size(5 * GIB), [GIB, 0, 3 * GIB, GIB].map(Size)),
        [(0, at(0..GIB)), (2, at(GIB..3 * GIB)), (2, at(4 * GIB..5 * GIB)), (3, at(5 * GIB..6 * GIB))]
    );
    assert_eq!(
        parts(Size(4 * GIB), [3 * GIB, GIB].map(Size)),
        [(0, at(0..3 * GIB)), (1, at(4 * GIB..5 * GIB))]
    );
}

#[test]
fn regions_follow_at_whole_gibibytes() {
    let small = 128 << 20;
    assert_eq!(
        regions(Size(GIB), [small, GIB].map(Size)).unwrap(),
        [at(4 * GIB..4 * GIB + small), at(5 * GIB..6 * GIB)]
    );
    // One page of boot memory above 4 GiB moves the region up.
    assert_eq!(regions(Size(HOLE_START + 4096), [small].map(Size)).unwrap()[0].start().0, 5 * GIB);
    assert_eq!(end(Size(GIB), [Size(0); 0]), Some(HOLE_END));
    assert_eq!(end(Size(GIB), [small].map(Size)), Some(4 * GIB + small));
}

#[test]
fn a_region_begins_behind_a_whole_gibibyte_if_it_shall() {
    let odd = Place { size: Size(GIB), offset: 2 << 20 };
    let even = Place::from(Size(GIB));
    assert_eq!(
        regions(Size(GIB), [odd, even]).unwrap(),
        [at(4 * GIB + (2 << 20)..5 * GIB + (2 << 20)), at(6 * GIB..7 * GIB)]
    );
}

#[test]
fn addresses_that_overflow_are_no_layout() {
    assert_eq!(regions(Size(GIB), [u64::MAX].map(Size)), None);
    assert_eq!(regions(Size(u64::MAX), [GIB].map(Size)), None);
    assert_eq!(end(Size(GIB), [u64::MAX - 5 * GIB, GIB].map(Size)), None);
}

#[test]
fn every_device_has_registers_in_the_hole_and_a_pin() {
    let last = MAX_MEM_DEVICES + 1;
    assert_eq!([0, 1, 5].map(|index| mmio(index).0 - MMIO_BASE), [0, MMIO_SIZE, 5 * MMIO_SIZE]);
    assert!(mmio(0).0 >= HOLE_START && mmio(last).0 + MMIO_SIZE <= KVM_TSS);
    assert_eq!((gsi(0), gsi(last)), (FIRST_GSI, FIRST_GSI + 17));
}
