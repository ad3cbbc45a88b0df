//! Memory blocks of several sections in a booted guest: sizes at every boundary, single device blocks, regions that
//! the memory blocks do not fit, and ranges under both removal policies.

use tidevm_abi::ZoneName;
use tidevm_machine::{Config, HotplugConfig, InitPolicy, Size};
use tidevm_tests::{Account, BOOT_BLOCKS, Session, Test, account, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("large_blocks_from_boundary_to_boundary", large_blocks_from_boundary_to_boundary),
    ("large_blocks_without_memmap_on_memory", large_blocks_without_memmap_on_memory),
    ("large_blocks_shrink_under_use", large_blocks_shrink_under_use),
    ("large_blocks_roll_back", large_blocks_roll_back),
    ("blocks_that_do_not_fit_a_region_are_smaller_there", blocks_that_do_not_fit_a_region_are_smaller_there),
    ("a_range_of_blocks_goes_block_by_block", || same_granularity("per-block")),
    ("a_range_of_blocks_is_refused", || same_granularity("range")),
];

const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = 256;

fn large(block: u64, region: u64) -> Config {
    Config { memory_block: Size(block), ..machine(region) }
}

/// Asserts the counters of a guest with `mib` MiB plugged in memory blocks of `block` MiB.
#[track_caller]
fn assert_counters(account: &Account, block: u64, mib: u64) {
    let memmap = block / 64;
    // While its memmap is plugged in part only, a memory block is not added.
    let blocks = mib / block + u64::from(mib % block >= memmap);
    let usable = mib - mib.min(blocks * memmap + if mib % block < memmap { mib % block } else { 0 });
    assert_eq!(account.plugged.iter().sum::<u64>(), mib * MIB);
    assert_eq!(account.blocks_online, BOOT_BLOCKS + blocks, "{account:?}");
    assert_eq!(account.present(ZoneName::Movable), blocks * block * PAGES_PER_MIB, "{account:?}");
    assert_eq!(account.managed(ZoneName::Movable), usable * PAGES_PER_MIB, "{account:?}");
    assert_eq!(account.memmap, (0, blocks * memmap * PAGES_PER_MIB), "{account:?}");
}

#[track_caller]
fn assert_sizes(block: u64, region: u64, sizes: &[u64]) {
    let script: String = sizes.iter().map(|mib| format!("resize {mib}M\n")).collect();
    let session = run_checked(large(block * MIB, region * MIB), &script);
    session.assert_done();
    for (step, &mib) in session.steps.iter().zip(sizes) {
        assert_counters(&account(&step.sample), block, mib);
    }
    assert_eq!(session.at_the_end().held, account(&session.boot.sample).held);
}

fn large_blocks_from_boundary_to_boundary() {
    assert_sizes(256, 512, &[2, 4, 6, 256, 258, 260, 264, 512, 254, 2, 0]);
    assert_sizes(1024, 2048, &[14, 16, 1024, 1030, 1040, 1042, 1036, 1024, 2048, 1000, 0]);
    assert_sizes(2048, 4096, &[2048, 4096, 30, 34, 0]);
}

fn large_blocks_without_memmap_on_memory() {
    let mut config = large(1 << 30, 2 << 30);
    config.memmap_on_memory = false;
    let session = run_checked(config, "resize 2M\nresize 1026M\nresize 2G\nresize 0");
    session.assert_done();
    let [little, more, all, none] = [0, 1, 2, 3].map(|step| account(&session.steps[step].sample));
    assert_eq!(little.memmap, (4096, 0));
    assert_eq!((more.memmap, more.managed(ZoneName::Movable)), ((8192, 0), 1026 * PAGES_PER_MIB));
    // As in Linux's documentation: two memory blocks of 1 GiB.
    assert_eq!((all.present(ZoneName::Movable), all.managed(ZoneName::Movable)), (524_288, 524_288));
    assert_eq!(none.memmap, (0, 0));
}

fn large_blocks_shrink_under_use() {
    let mut config = large(512 << 20, 1 << 30);
    config.cpus = 2;
    let script = "
        plug 1G
        expect zone.Movable.managed == 258048
        hog 24M movable scattered as data
        churn 2 threads for 2s as storm
        resize 520M within 60s
        verify data
        resize 0 within 60s
        verify data
        wait storm
        release data";
    let session = run_checked(config, script);
    session.assert_done();
    assert_eq!(session.at_the_end().managed(ZoneName::Movable), 0);
}

fn large_blocks_roll_back() {
    let script = "
        resize 256M
        inject alloc-memmap after 2
        resize 768M within 60s
        expect faults.injected == 1
        inject map-memmap after 3
        resize 0
        resize 1G within 60s
        expect faults.injected == 2
        inject isolate after 200
        resize 300M within 60s
        expect faults.injected == 3
        inject online
        resize 600M within 60s
        expect faults.injected == 4
        resize 0";
    // Eagerly each memory block takes all steps.
    let config = Config { init: InitPolicy::Eager, ..large(512 << 20, 1 << 30) };
    let session = run_checked(config, script);
    session.assert_done();
    assert_eq!(session.at_the_end().memmap, (0, 0));
    assert_eq!(session.at_the_end().held, account(&session.boot.sample).held);
}

/// S4.20: the second region is not a multiple of 2 GiB.
fn blocks_that_do_not_fit_a_region_are_smaller_there() {
    let mut config = large(2 << 30, 2 << 30);
    config.hotplug.push(HotplugConfig::new(Size::gib(1)));
    let session = run_checked(config, "resize 1G\nresize 1G device 1\nblocks\nresize 0 device 1\nresize 0");
    session.assert_done();
    let blocks = note(&session, 2);
    assert!(
        blocks.contains("1 of 2048 MiB, online Movable, 1024 MiB plugged, 8192 memmap pages on"),
        "{blocks}"
    );
    assert!(
        blocks.contains("1 of 1024 MiB, deferred Movable, 1024 MiB plugged, 4096 memmap pages on"),
        "{blocks}"
    );
}

fn note(session: &Session, step: usize) -> &str {
    match &session.steps[step].result {
        Ok(Some(note)) => note,
        other => panic!("{other:?}"),
    }
}

/// S4.16: two memory blocks of 256 MiB were added one by one. The removal policy decides whether they can be removed
/// together.
fn same_granularity(policy: &str) {
    let mut config = large(256 << 20, 512 << 20);
    config.cmdline = Some(format!("tidevm.memmap_removal={policy}"));
    let script = "
        resize 500M
        hog 8M movable scattered as data
        readd 512M at 4G
        readd 256M at 4G
        readd 256M at 4352M
        readd 128M at 4G
        verify data
        blocks
        release data
        resize 0";
    let session = run_checked(config, script);
    session.assert_alive();
    let failures = session.failures();
    let refused = |index: usize, command: &str, reason: &str| {
        let (failed, why) = &failures[index];
        assert!(failed == command && why.contains(reason), "{failures:?}");
    };
    if policy == "range" {
        refused(
            0,
            "readd 512M at 4G",
            "refused: memory blocks that hold their own memmap are removed one at a",
        );
    }
    refused(failures.len() - 1, "readd 128M at 4G", "is not made of whole memory blocks");
    assert_eq!(failures.len(), if policy == "range" { 2 } else { 1 }, "{failures:?}");
    let (before, after) = (account(&session.steps[1].sample), account(&session.steps[5].sample));
    assert_eq!(after.memmap, before.memmap);
    assert_eq!(after.managed(ZoneName::Movable), before.managed(ZoneName::Movable));
    assert!(
        note(&session, 7).contains("0x110000000-0x11fffffff: 1 of 256 MiB, online Movable, 244 MiB plugged")
    );
    assert_eq!(session.at_the_end().managed(ZoneName::Movable), 0);
}
