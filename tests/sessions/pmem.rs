//! Device memory in a booted guest: mapped with its memmap in either place, used, refused, unmapped.

use tidevm_abi::{Answer, Failure, HogKind, MEMORY_BLOCK_SIZE, Op, PmemOp};
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size};
use tidevm_tests::{Account, BOOT_BLOCKS, Session, Test, account, ask, ready, run_checked};

pub const TESTS: &[Test] = &[
    ("pmem_with_and_without_altmap", with_and_without_altmap),
    ("pmem_of_several_ranges_on_two_cpus", several_ranges_on_two_cpus),
    ("pmem_in_use_stays_mapped", in_use_stays_mapped),
    ("pmem_initialised_twice_ends_the_same", initialised_twice_ends_the_same),
    ("pmem_that_cannot_be_mapped_changes_nothing", what_cannot_be_mapped_changes_nothing),
    ("pmem_failures_roll_back", failures_roll_back),
    ("pmem_loses_nothing_at_any_page_table", loses_nothing_at_any_page_table),
    ("pmem_beside_hotplug", beside_hotplug),
    ("pmem_shares_its_handles_with_workloads", shares_its_handles_with_workloads),
];

/// A VM with two vCPUs and a range of device memory per number of memory blocks.
fn machine(blocks: &[u64]) -> Config {
    Config {
        cpus: 2,
        memory: Size(BOOT_BLOCKS * MEMORY_BLOCK_SIZE),
        pmem: blocks.iter().map(|blocks| Size(blocks * MEMORY_BLOCK_SIZE)).collect(),
        console: ConsoleMode::Off,
        ..Config::default()
    }
}

fn guest(session: &Session, step: usize) -> tidevm_abi::Stats {
    session.steps[step].sample.guest.expect("a guest to ask")
}

/// The account after step `step`.
fn after(session: &Session, step: usize) -> Account {
    account(&session.steps[step].sample)
}

/// The counters that must be the same before mapping and after unmapping. The kernel keeps its page tables, so they
/// are left out.
#[track_caller]
fn assert_as_before(session: &Session, last: usize) {
    let (before, now) = (account(&session.boot.sample), after(session, last));
    assert_eq!(now.memmap, before.memmap);
    assert_eq!(now.blocks_online, before.blocks_online);
    let managed =
        |account: &Account| account.zones.iter().map(|zone| (zone.1, zone.2, zone.3)).collect::<Vec<_>>();
    assert_eq!(managed(&now), managed(&before));
    assert_eq!(guest(session, last).device_spanned, 0);
    assert_eq!(guest(session, last).device_refs, 0);
}

/// Number of free pages in the kernel's zones.
fn kernel_free(session: &Session, step: usize) -> u64 {
    after(session, step).zones.iter().map(|zone| zone.4).sum()
}

/// Maps and unmaps twice, with the same counters. As in Linux, the Device zone spans the range and has no present
/// pages, and without altmap the memmap is in RAM.
fn with_and_without_altmap() {
    let script = "repeat 2 {
                  pmem map 0
                  expect zone.Device.spanned == 65536
                  expect device.pages == 65536
                  expect device.refs == 65536
                  expect memmap.boot_pages == 1024
                  pmem unmap 0
                  expect device.refs == 0
                  pmem map 0 altmap reserve 2M on 1 cpu
                  expect zone.Device.spanned == 65536
                  expect device.pages == 64000
                  expect memmap.boot_pages == 0
                  expect memmap.altmap_pages == 1024
                  pmem
                  pmem unmap 0
                  expect zone.Device.spanned == 0
                  }";
    let session = run_checked(machine(&[2]), script);
    session.assert_done();
    for round in [0, 15] {
        let (plain, gone, altmap) = (round, round + 5, round + 7);
        let taken = kernel_free(&session, gone) - kernel_free(&session, plain);
        assert!((1024..1032).contains(&taken), "{taken} pages for the memmap and page tables");
        let taken = kernel_free(&session, gone) - kernel_free(&session, altmap);
        assert!(taken < 8, "{taken} pages for page tables alone");
        assert_as_before(&session, round + 14);
    }
}

/// Several ranges at once, each with both CPUs.
fn several_ranges_on_two_cpus() {
    let script = "pmem map 0 1 2 altmap on 2 cpus
                  expect device.pages == 129024
                  expect zone.Device.spanned == 589824
                  pmem unmap 1
                  expect device.pages == 96768
                  pmem map 1 on 2 cpus
                  pmem unmap 0
                  expect zone.Device.spanned == 327680
                  pmem unmap 2
                  pmem unmap 1";
    let session = run_checked(machine(&[1, 1, 2]), script);
    session.assert_done();
    let text = session.steps[0].result.clone();
    assert!(format!("{text:?}").contains("on 2 CPUs; the hotplug lock was held"), "{text:?}");
    assert_as_before(&session, 9);
}

fn in_use_stays_mapped() {
    let script = "pmem map 0 altmap
                  pmem hold 1M of 0 as cache
                  pmem hold 64K of 0 as other
                  expect device.refs == 32528
                  pmem unmap 0
                  release cache
                  pmem unmap 0
                  verify other
                  pmem hold 2M of 0 as cache
                  verify cache
                  verify other
                  release other
                  release cache
                  pmem unmap 0";
    let session = run_checked(machine(&[1]), script);
    let failures = session.failures();
    let expected = [
        "272 references to its pages are held, the first is pfn 0x100200 (cache)",
        "16 references to its pages are held, the first is pfn 0x100300 (other)",
    ];
    let unmap = |reason: &str| ("pmem unmap 0".to_owned(), reason.to_owned());
    assert_eq!(failures, expected.map(unmap), "{failures:?}");
    assert_as_before(&session, 13);
}

/// With two passes, one of them under the lock, the end is the same, and the lock is held while every struct page is
/// written.
fn initialised_twice_ends_the_same() {
    let script = "pmem map 0 altmap on 2 cpus\npmem hold 64K of 0 as a\nverify a\nrelease a\npmem unmap 0";
    let once = run_checked(machine(&[1]), script);
    let cmdline = Some("tidevm.device_init=twice".to_owned());
    let twice = run_checked(Config { cmdline, ..machine(&[1]) }, script);
    for (session, locked) in [(&once, 512), (&twice, 32_768)] {
        session.assert_done();
        let text = format!("{:?}", session.steps[0].result);
        assert!(text.contains(&format!("and {locked} struct pages written under it")), "{text}");
        assert_as_before(session, 4);
    }
    for step in 0..5 {
        assert_eq!(after(&once, step).zones, after(&twice, step).zones, "step {step}");
        assert_eq!(guest(&once, step).device_refs, guest(&twice, step).device_refs);
    }
}

fn what_cannot_be_mapped_changes_nothing() {
    let script = "pmem map 0 altmap reserve 4K
                  pmem map 0 altmap reserve 126M
                  pmem map 0 altmap reserve 1T
                  pmem unmap 0
                  pmem hold 4K of 0 as early
                  pmem map 0
                  pmem map 0 altmap
                  pmem unmap 0";
    let session = run_checked(machine(&[1]), script);
    let failures = session.failures();
    let reasons: Vec<_> = failures.iter().map(|(_, reason)| reason.as_str()).collect();
    let expected = [
        "a reserve whole pageblocks of 2M",
        "make the reserve smaller",
        "make the reserve smaller",
        "it is not mapped",
        "it is not mapped",
        "it is mapped already",
    ];
    assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
    assert!(reasons.iter().zip(expected).all(|(reason, text)| reason.contains(text)), "{reasons:?}");
    assert_as_before(&session, 7);
}

/// Each step fails once for either of two ranges. Neither range is mapped then.
fn failures_roll_back() {
    let mut script = String::new();
    let steps = ["map-direct", "map-memmap", "alloc-memmap", "page-table"];
    for step in steps {
        for after in [0, 1] {
            script.push_str(&format!("inject {step} after {after}\npmem map 0 1\nexpect device.refs == 0\n"));
        }
    }
    script.push_str("pmem map 0 1\nexpect device.pages == 65536\npmem unmap 0\npmem unmap 1");
    let session = run_checked(machine(&[1, 1]), &script);
    let failures = session.failures();
    assert_eq!(failures.len(), 8, "{failures:?}");
    let no_memory = |(_, reason): &&(String, String)| reason.starts_with("the guest has no memory for ");
    assert_eq!(failures.iter().filter(no_memory).count(), 8, "{failures:?}");
    let last = session.steps.len() - 1;
    assert_as_before(&session, last);
}

/// The range lies beyond the first 512 GiB. Its direct map needs a table of each of two levels, and its memmap needs one.
/// So the second table fails within a filling, and the third in the next filling. The table of the upper level stays,
/// as there is one per 512 GiB; nothing else does.
fn loses_nothing_at_any_page_table() {
    for after in 0..3 {
        let hotplug = vec![HotplugConfig::new(Size(512 << 30))];
        let script = format!("stats\ninject page-table after {after}\npmem map 0\npmem map 0\npmem unmap 0");
        let session = run_checked(Config { hotplug, ..machine(&[1]) }, &script);
        let failures = session.failures();
        assert!(!session.steps[2].is_done() && failures.len() == 1, "after {after}: {failures:?}");
        let [before, failed, unmapped] = [0, 2, 4].map(|step| kernel_free(&session, step));
        assert_eq!((before - failed, before - unmapped), (after.min(1), 1), "after {after}");
        assert_as_before(&session, 4);
    }
}

/// Device memory and hotplug share only the lock and the section table.
fn beside_hotplug() {
    let hotplug = vec![HotplugConfig::new(Size::mib(256))];
    let script = "resize 128M
                  pmem map 0 altmap
                  pmem hold 64K of 0 as a
                  resize 256M
                  hog 64M movable as b
                  resize 128M
                  verify a
                  verify b
                  release b
                  resize 0
                  release a
                  pmem unmap 0";
    let session = run_checked(Config { hotplug, ..machine(&[1]) }, script);
    session.assert_done();
    assert_as_before(&session, 11);
}

/// A session uses each handle once, so the calls are made here. A handle in use is refused, whichever memory its pages
/// are in and whichever workload asks; nothing changes, and a handle that was released is free again.
fn shares_its_handles_with_workloads() {
    let vm = ready(machine(&[1]));
    let ask = |op| ask(&vm, op);
    let hog = |handle| Op::Hog {
        handle,
        pages: 4,
        partial: false,
        kind: HogKind::Movable,
        scattered: false,
        full: false,
    };
    let churn = |handle| Op::Churn { handle, threads: 1, millis: 1 };
    let hold = |handle| Op::Pmem(PmemOp::Hold { handle, device: 0, pages: 4, partial: false });
    let in_use = Answer::Failed(Failure::HandleInUse);
    let map = ask(Op::Pmem(PmemOp::Map { devices: 1, altmap: true, reserve: 0, cpus: 1 }));
    assert!(matches!(map, Answer::PmemMapped(_)), "{map:?}");
    assert_eq!(ask(hold(1)), Answer::Hogged { pages: 4 });
    assert_eq!(ask(hog(2)), Answer::Hogged { pages: 4 });
    for taken in [hog(1), churn(1), hold(1), hold(2), hog(2)] {
        assert_eq!(ask(taken), in_use, "{taken:?}");
    }
    for handle in [1, 2] {
        let whole = Answer::Verified { pages: 4, corrupt: 0, first: None };
        assert_eq!(ask(Op::Verify { handle }), whole);
        assert_eq!(ask(Op::Release { handle }), Answer::Released { pages: 4 });
    }
    assert_eq!(ask(hog(1)), Answer::Hogged { pages: 4 });
    assert_eq!(ask(Op::Release { handle: 1 }), Answer::Released { pages: 4 });
}
