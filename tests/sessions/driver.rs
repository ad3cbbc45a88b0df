//! The virtio-mem driver in a booted guest: devices of every shape, a device that is taken over with its memory plugged, and a
//! device that lies, is deaf or has forgotten its driver.

use tidevm_abi::ZoneName;
use tidevm_machine::{Config, HotplugConfig, InitPolicy, Size};
use tidevm_session::StepRun;
use tidevm_tests::{Session, Test, account, machine, run, run_checked};

pub const TESTS: &[Test] = &[
    ("device_blocks_below_the_pageblock_come_in_pairs", device_blocks_below_the_pageblock_come_in_pairs),
    ("a_device_block_of_a_gib_is_a_memory_block", a_device_block_of_a_gib_is_a_memory_block),
    ("a_region_is_used_from_its_first_memory_block_on", a_region_is_used_from_its_first_memory_block_on),
    ("a_node_that_is_not_there_is_ignored", a_node_that_is_not_there_is_ignored),
    ("a_driver_takes_over_what_is_plugged", a_driver_takes_over_what_is_plugged),
    ("a_driver_takes_over_a_checkerboard", a_driver_takes_over_a_checkerboard),
    ("a_driver_keeps_memory_that_cannot_go", a_driver_keeps_memory_that_cannot_go),
    ("an_answer_that_was_not_heard_is_found_out", an_answer_that_was_not_heard_is_found_out),
    ("a_device_that_does_not_answer_is_reported_and_helped_on", a_device_that_does_not_answer_is_reported),
    ("a_device_that_needs_a_reset_gets_one", a_device_that_needs_a_reset_gets_one),
    ("growing_needs_no_page_that_others_can_take_eager", || growing_without_free_pages(InitPolicy::Eager)),
    ("growing_needs_no_page_that_others_can_take_deferred", || {
        growing_without_free_pages(InitPolicy::Deferred);
    }),
    ("growing_needs_no_page_that_others_can_take_lazy", || growing_without_free_pages(InitPolicy::Lazy)),
    ("growing_needs_no_free_page_while_there_are_tables", growing_needs_no_free_page),
];

const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = 256;

/// A machine with a region of another shape.
fn shaped(shape: HotplugConfig) -> Config {
    Config { hotplug: vec![shape], ..machine(0) }
}

/// The pages of the Movable zone that the allocator manages after each step, and what is plugged, in MiB.
fn sizes(session: &Session) -> Vec<(u64, u64)> {
    let of_step = |step: &StepRun| {
        let account = account(&step.sample);
        (account.plugged[0] / MIB, account.managed(ZoneName::Movable) / PAGES_PER_MIB)
    };
    session.steps.iter().map(of_step).collect()
}

/// Requests to the device since the VM was started: PLUG, UNPLUG, UNPLUG_ALL and STATE that were carried out.
fn requests(step: &StepRun) -> [u64; 4] {
    let by = step.sample.devices[0].requests.by;
    [0, 1, 2, 3].map(|kind| by[kind][0])
}

/// The guest plugs 2 MiB at least: its pageblock.
fn device_blocks_below_the_pageblock_come_in_pairs() {
    let shape = HotplugConfig { device_block: Size::mib(1), ..HotplugConfig::new(Size::mib(512)) };
    let session = run_checked(
        shaped(shape),
        "resize 130M
         hog 20M movable as data
         fails resize 131M because \"what is left is less than the 2M\"
         resize 128M within 60s
         verify data
         release data
         resize 0",
    );
    session.assert_done();
    assert_eq!(sizes(&session)[0], (130, 126));
    assert_eq!(sizes(&session)[2], (130, 126));
    assert_eq!(sizes(&session)[3], (128, 126));
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// Without an option of the guest: its memory blocks are 128 MiB.
fn a_device_block_of_a_gib_is_a_memory_block() {
    let shape = HotplugConfig { device_block: Size::gib(1), ..HotplugConfig::new(Size::gib(3)) };
    let session = run_checked(
        shaped(shape),
        "resize 1G
         hog 8M movable as data
         resize 3G
         resize 1G within 60s
         verify data
         release data
         resize 0",
    );
    session.assert_done();
    assert_eq!((sizes(&session)[0], sizes(&session)[2]), ((1024, 1008), (3072, 3024)));
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// The region begins 2 MiB behind the first memory block and ends 2 MiB behind the last.
fn a_region_is_used_from_its_first_memory_block_on() {
    let shape = HotplugConfig { offset: Size::mib(2), ..HotplugConfig::new(Size::mib(512)) };
    let session = run_checked(
        shaped(shape),
        "resize 256M
         hog 20M movable as data
         fails resize 386M because \"no room\"
         verify data
         resize 384M
         resize 128M within 60s
         verify data
         release data
         resize 0",
    );
    session.assert_done();
    assert_eq!(sizes(&session)[0], (256, 252));
    // 126 MiB before the first memory block, and 2 MiB behind the last.
    assert_eq!((sizes(&session)[2], sizes(&session)[4]), ((384, 378), (384, 378)));
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

fn a_node_that_is_not_there_is_ignored() {
    // The tables of this guest name no node.
    let mut config = shaped(HotplugConfig { node: Some(7), ..HotplugConfig::new(Size::mib(256)) });
    config.cmdline = Some("tidevm.numa=128M:1".to_owned());
    let session = run_checked(config, "resize 256M\nexpect node.0.zone.Movable.present == 65536\nresize 0");
    session.assert_done();
}

/// What a kernel finds that was started without a reset of the machine. More was plugged than is wanted now.
fn a_driver_takes_over_what_is_plugged() {
    let session = run_checked(
        machine(1 << 30),
        "resize 386M
         rebind 0
         expect plugged == 386M within 60s
         expect zone.Movable.present == 131072 within 60s
         hog 20M movable scattered as data
         verify data
         release data
         resize 130M
         rebind 0
         resize 258M
         resize 0",
    );
    session.assert_done();
    let before = &session.steps[0];
    let after = &session.steps[4];
    // Nothing was plugged or unplugged for it.
    let [plug, unplug, all, _] = requests(before);
    let [plugged, unplugged, every, asked] = requests(after);
    assert_eq!([plug, unplug, all], [plugged, unplugged, every]);
    assert!((1..64).contains(&asked), "{asked} questions for one border");
    assert_eq!(sizes(&session)[4], (386, 386 - 8));
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// Memory that is in use here and there is unplugged around. The next driver finds each device block.
fn a_driver_takes_over_a_checkerboard() {
    let session = run_checked(
        machine(512 << 20),
        "resize 256M
         hog 64K pinned scattered as pins
         fails resize 0 because \"cannot move\"
         release pins
         rebind 0
         resize 256M
         hog 20M movable scattered as data
         verify data
         release data
         resize 0",
    );
    session.assert_done();
    assert_eq!(sizes(&session)[5], (256, 252));
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

fn a_driver_keeps_memory_that_cannot_go() {
    let session = run_checked(
        machine(512 << 20),
        "resize 256M
         hog 16K pinned scattered as pins
         fails rebind 0 because \"cannot move\"
         expect plugged == 256M
         expect zone.Movable.present == 65536 within 60s
         verify pins
         release pins
         rebind 0
         resize 0",
    );
    session.assert_done();
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// The device has plugged what the driver believes that it did not ask for. The next look at the configuration shows it.
fn an_answer_that_was_not_heard_is_found_out() {
    let session = run_checked(
        machine(1 << 30),
        "inject answer
         resize 300M within 60s
         expect driver.mismatches == 1
         hog 20M movable scattered as data
         verify data
         release data
         inject answer
         resize 200M within 60s
         expect driver.mismatches == 2
         resize 0
         expect faults.injected == 2",
    );
    session.assert_done();
    let [plug, ..] = requests(&session.steps[2]);
    assert_eq!(plug, 1, "what was found is used");
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// The notification of a request is lost: the driver reports that after its deadline, and notifies again. The other device has
/// its memory at once.
fn a_device_that_does_not_answer_is_reported() {
    let mut config = machine(256 << 20);
    config.hotplug.push(HotplugConfig::new(Size::mib(256)));
    let session = run_checked(
        config,
        "inject notify
         fails resize 128M within 2s because \"still at it\"
         expect driver.overdue == 0
         resize 128M device 1
         expect driver.overdue == 1 within 60s
         expect plugged == 128M device 0 within 60s
         expect driver.resets == 0
         resize 0
         resize 0 device 1",
    );
    session.assert_done();
}

/// The device is reset behind the driver's back, so it answers nothing. What was plugged stays.
fn a_device_that_needs_a_reset_gets_one() {
    let session = run_checked(
        machine(512 << 20),
        "resize 128M
         hog 20M movable as data
         inject device
         resize 256M within 60s
         expect driver.resets == 1
         expect driver.overdue == 1
         verify data
         release data
         resize 0",
    );
    session.assert_done();
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// Workloads have all that they can have, unmovable and movable. Page tables have what is below the min watermark.
fn growing_without_free_pages(init: InitPolicy) {
    let config = Config { memory: Size::mib(32), init, ..machine(3 << 30) };
    let session = run_checked(
        config,
        "hog up to 128M unmovable as kernel
         hog up to 128M movable as data
         resize 1G within 60s
         resize 2G within 60s
         verify kernel
         resize 512M within 60s
         resize 1G within 60s
         release data
         release kernel
         resize 0 within 60s",
    );
    session.assert_done();
    let free = |step: usize| -> u64 { account(&session.steps[step].sample).zones[0].4 };
    // No more than the tables of 2 GiB and of their memmap.
    assert!(free(1) - free(3) <= 4, "{} pages were free, and {} are left", free(1), free(3));
    assert_eq!(session.at_the_end().held, [Some(0)]);
}

/// Each GiB needs a page for its table, so more than the guest has pages for does not fit. What the tables that there are map
/// comes and goes while not one page of the kernel's zones is on the free lists.
fn growing_needs_no_free_page() {
    let config = || Config { memory: Size::mib(32), ..machine(512 << 30) };
    let until_full = "hog up to 128M unmovable as kernel
         fails resize 512G within 8s because \"no memory for page tables\"
         expect zone.DMA32.free == 0";
    let session = run(config(), until_full);
    session.assert_done();
    let most = account(&session.steps[1].sample).plugged[0] / MIB;
    let script = format!(
        "{until_full}
         resize {}M within 60s
         expect zone.DMA32.free == 0
         resize {}M within 60s
         verify kernel
         release kernel
         resize 0 within 60s
         check",
        most - 1280,
        most - 1024
    );
    run(config(), &script).assert_done();
}
