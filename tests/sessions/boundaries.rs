//! Boundaries: plug and unplug to sizes at the ends of device blocks (2 MiB), of memory blocks (128 MiB) and of the
//! region. The counters of every size are exact: all pages of a memory block are present, and its plugged pages
//! without the memmap are managed.

use tidevm_abi::{MEMORY_BLOCK_SIZE, ZoneName};
use tidevm_machine::{HotplugConfig, Size};
use tidevm_tests::{Account, BOOT_BLOCKS, Session, Test, account, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("one_device_block_is_a_memory_block_with_nothing_but_its_memmap", || from_zero(2, 512)),
    ("a_memory_block_but_for_one_device_block", || from_zero(126, 512)),
    ("a_whole_memory_block", || from_zero(128, 512)),
    ("a_memory_block_and_one_device_block", || from_zero(130, 512)),
    ("a_gib_and_one_device_block", || from_zero(1026, 2048)),
    ("the_whole_region", || from_zero(512, 512)),
    ("from_boundary_to_boundary", from_boundary_to_boundary),
    ("two_devices_do_not_mix", two_devices_do_not_mix),
    ("a_target_beyond_the_region_is_refused", a_target_beyond_the_region_is_refused),
    ("memory_asked_for_at_boot_is_plugged", memory_asked_for_at_boot_is_plugged),
];

const PAGES_PER_MIB: u64 = 256;
const MEMMAP_PAGES: u64 = 512;

/// Asserts the counters of a guest with `mib` MiB plugged.
#[track_caller]
fn assert_counters(account: &Account, mib: u64) {
    let blocks = (mib << 20).div_ceil(MEMORY_BLOCK_SIZE);
    assert_eq!(account.plugged.iter().sum::<u64>(), mib << 20);
    assert_eq!(account.blocks_online, BOOT_BLOCKS + blocks, "{account:?}");
    assert_eq!(account.present(ZoneName::Movable), blocks * (MEMORY_BLOCK_SIZE >> 12), "{account:?}");
    assert_eq!(
        account.managed(ZoneName::Movable),
        mib * PAGES_PER_MIB - blocks * MEMMAP_PAGES,
        "{account:?}"
    );
    assert_eq!(account.memmap, (0, blocks * MEMMAP_PAGES), "{account:?}");
}

/// Grows to `mib` MiB and shrinks to 0, twice, with the same counters.
fn from_zero(mib: u64, region_mib: u64) {
    let script = format!("repeat 2 {{\nresize {mib}M\nresize 0\n}}");
    let session = run_checked(machine(region_mib << 20), &script);
    session.assert_done();
    for step in session.steps.chunks(2) {
        assert_counters(&account(&step[0].sample), mib);
        assert_counters(&account(&step[1].sample), 0);
    }
    assert_gave_back(&session);
}

/// Asserts that nothing is left in the guest's zone and on the host.
#[track_caller]
fn assert_gave_back(session: &Session) {
    let (start, end) = (account(&session.boot.sample), session.at_the_end());
    let movable = |account: &Account| account.zones.iter().find(|zone| zone.0 == ZoneName::Movable).copied();
    assert_eq!(movable(&end), movable(&start));
    assert_eq!(end.held, start.held);
}

fn from_boundary_to_boundary() {
    let sizes = [2, 128, 130, 126, 256, 254, 258, 4, 384, 382, 128, 2, 0];
    let script: String = sizes.iter().map(|mib| format!("resize {mib}M\n")).collect();
    let session = run_checked(machine(512 << 20), &script);
    session.assert_done();
    for (step, mib) in session.steps.iter().zip(sizes) {
        assert_counters(&account(&step.sample), mib);
    }
    assert_gave_back(&session);
}

fn two_devices_do_not_mix() {
    let mut config = machine(256 << 20);
    config.hotplug.push(HotplugConfig { device_block: Size::mib(4), ..HotplugConfig::new(Size::mib(128)) });
    let session = run_checked(
        config,
        "resize 130M
         resize 8M device 1
         expect plugged == 138M
         expect plugged == 130M device 0
         expect plugged == 8M device 1
         resize 0
         expect plugged == 8M device 1
         resize 0 device 1",
    );
    session.assert_done();
    assert_gave_back(&session);
}

fn a_target_beyond_the_region_is_refused() {
    let session = run_checked(machine(256 << 20), "plug 128M\nplug 256M\nexpect requested == 128M\nresize 0");
    let failures = session.failures();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].1.contains("refused: 384M does not fit into the region of 256M"), "{failures:?}");
    assert_eq!(session.summary.ended.status(), 1);
    assert_gave_back(&session);
}

fn memory_asked_for_at_boot_is_plugged() {
    let mut config = machine(256 << 20);
    config.hotplug[0].requested = Size::mib(130);
    let session = run_checked(config, "expect plugged == 130M within 20s\nresize 130M\nresize 0");
    session.assert_done();
    assert_counters(&session.after("resize 130M"), 130);
}
