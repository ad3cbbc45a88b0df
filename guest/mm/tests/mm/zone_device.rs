//! Device memory: mapped, initialised once and outside the lock, used, unmapped.
//!
//! A test is named after the claim that it proves: `s5_5` is S5.5 of `docs/features.md`, `d20` is row 20 of
//! `docs/pitfalls.md`.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

use tidevm_mm::{
    AddError, DevAltmap, DevPageError, DevPagemap, DevUser, DeviceInit, DeviceStats, FaultStep, Gfp,
    MAX_PGMAPS, MemoryContent, MemremapError, MemunmapError, MigrateType, Mm, NoPgmap, NodeId, OfflineError,
    OnlineError, Order, PageblockSet, Pfn, PfnRange, PgmapInfo, PgmapNr, RemoveError, SectionNr,
    SectionState, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

/// First section of device memory in these tests: 4 GiB.
const FIRST: u32 = 32;
const GIB: u32 = 8;

fn machine() -> SimMachine {
    SimMachine { sections: 72, cpus: 4, ..SimMachine::default() }
}

/// `sections` sections from the `first`-th.
fn range(first: u32, sections: u32) -> PfnRange {
    PfnRange::new(SectionNr::new(first).start(), sections * 32768)
}

fn plain(first: u32, sections: u32) -> DevPagemap {
    DevPagemap::new(range(first, sections), NodeId::FIRST)
}

/// The same with the memmap in the range itself, behind `reserve` pages.
fn with_altmap(first: u32, sections: u32, reserve: u32) -> DevPagemap {
    plain(first, sections).with_altmap(DevAltmap { reserve, free: 512 * sections })
}

fn both() -> [DevPagemap; 2] {
    [plain(FIRST, 2), with_altmap(FIRST, 2, 512)]
}

fn info(mm: &Mm<Sim>, nr: PgmapNr) -> PgmapInfo {
    mm.pgmap(nr).expect("it is mapped")
}

fn pfns(range: PfnRange) -> impl Iterator<Item = Pfn> {
    (range.start().get()..range.end().get()).map(Pfn::new)
}

/// Initialises all pages that are left.
fn finish(mm: &Mm<Sim>, nr: PgmapNr) {
    while mm.memremap_init(nr) == Ok(true) {}
}

/// The counters for 1 GiB are those that Linux 6.12 shows. Without altmap 262144 pages are initialised and the
/// memmap takes 4096 pages of RAM. With reserve and altmap of 18 MiB 257536 pages are initialised, and no RAM
/// is used. The zone spans 262144 pages, and none is present.
#[test]
fn numbers_of_one_gib() {
    let mm = machine().boot();
    let start = mm.stats();
    for (map, pages, in_boot, in_device) in
        [(plain(FIRST, GIB), 262_144, 4096, 0), (with_altmap(FIRST, GIB, 512), 257_536, 0, 4096)]
    {
        let nr = mm.memremap_pages(map).unwrap();
        mm.check();
        let stats = mm.stats();
        let DeviceStats { spanned, pages: all, refs, invalid, .. } = stats.device;
        assert_eq!((spanned, all, refs, invalid), (262_144, pages, pages, 0));
        assert_eq!([stats.memmap_boot_pages, stats.memmap_altmap_pages], [in_boot, in_device]);
        assert_eq!(start.zones[0].free - stats.zones[0].free, in_boot, "RAM");
        assert_eq!(stats.blocks_online, start.blocks_online, "never online");
        for (zone, before) in stats.zones.iter().zip(start.zones) {
            assert_eq!(
                [zone.spanned, zone.present, zone.managed],
                [before.spanned, before.present, before.managed]
            );
        }
        assert_eq!(u64::from(mm.hotplug().memunmap_pages(nr).unwrap()), pages);
        mm.check();
        assert_eq!(mm.stats(), start);
    }
}

/// Two passes write every struct page twice, the first time under the lock; one pass writes it once.
#[test]
fn s5_1_two_passes_write_every_page_twice() {
    for map in both() {
        let locked = |device_init| {
            let mm =
                SimMachine { options: SimMachine::OPTIONS.with_device_init(device_init), ..machine() }.boot();
            let nr = mm.memremap_pages(map).unwrap();
            mm.check();
            let info = info(mm, nr);
            mm.hotplug().memunmap_pages(nr).unwrap();
            (info.locked_pages, u64::from(info.pages.pages()))
        };
        let ((once, pages), (twice, _)) = (locked(DeviceInit::Once), locked(DeviceInit::Twice));
        assert_eq!(twice - once, pages);
    }
}

/// The work under the lock does not grow with the range. While struct pages are initialised, memory is plugged,
/// used and unplugged, which takes the lock at every step.
#[test]
fn s5_2_pages_are_initialised_outside_of_the_hotplug_lock() {
    let mm = machine().boot();
    let block = SectionNr::new(60);
    for sections in [1, 8, 24] {
        let nr = mm.hotplug().memremap_start(plain(FIRST, sections)).unwrap();
        assert_eq!(info(mm, nr).locked_pages, 0, "{sections} sections");
        for _ in 0..3 {
            assert_eq!(mm.memremap_init(nr), Ok(true));
            mm.hotplug().add_memory(NodeId::FIRST, block, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
            mm.hotplug().online(block, ZoneType::Movable).unwrap();
            mm.check();
            mm.hotplug().offline(block).unwrap();
            mm.hotplug().remove_memory(block).unwrap();
        }
        assert!(!info(mm, nr).live);
        finish(mm, nr);
        mm.check();
        mm.hotplug().memunmap_pages(nr).unwrap();
    }
}

/// Several ranges are initialised at once, and several CPUs initialise one range.
#[test]
fn s5_3_ranges_are_initialised_in_parallel() {
    let mm = machine().boot();
    let numbers: Vec<_> =
        [0, 4, 8].map(|at| mm.hotplug().memremap_start(plain(FIRST + at, 4)).unwrap()).into_iter().collect();
    let turn = |nr| mm.memremap_init(nr) == Ok(true);
    // Every CPU takes chunks of every range in turn: no range waits for another one to be finished.
    thread::scope(|scope| {
        for cpu in 0..4 {
            let numbers = &numbers;
            scope.spawn(move || {
                Sim::run_on(cpu, || while numbers.iter().map(|&nr| turn(nr)).fold(false, |a, b| a | b) {})
            });
        }
    });
    mm.check();
    for nr in numbers {
        let info = info(mm, nr);
        assert!(info.live && info.cpus != 0, "{info:?}");
        assert_eq!(info.refs, 4 * 32768);
        assert_eq!(mm.hotplug().memunmap_pages(nr), Ok(4 * 32768));
    }
    // One CPU after another takes a chunk of one range, and each CPU is counted.
    let nr = mm.hotplug().memremap_start(plain(FIRST, 1)).unwrap();
    for cpu in [3, 1] {
        Sim::run_on(cpu, || mm.memremap_init(nr)).unwrap();
    }
    assert_eq!(info(mm, nr).cpus, 0b1010);
    finish(mm, nr);
    mm.check();
}

/// Under the lock only the struct pages of the pages that hold the memmap are written: none without altmap.
#[test]
fn s5_4_under_the_lock_only_memmap_pages_are_written() {
    let mm = machine().boot();
    for (map, locked) in [(plain(FIRST, 2), 0), (with_altmap(FIRST, 2, 512), 1024)] {
        let nr = mm.hotplug().memremap_start(map).unwrap();
        let info = info(mm, nr);
        assert_eq!(info.locked_pages, locked);
        if locked > 0 {
            let held = mm.platform().page_state(map.range.start().add(512));
            assert_eq!(held, 7 | 9 << 4, "head of a pageblock of memmap");
        }
        finish(mm, nr);
        mm.hotplug().memunmap_pages(nr).unwrap();
    }
}

/// The device's pages begin behind reserve and altmap, to the page.
#[test]
fn s5_5_the_device_phase_starts_behind_reserve_and_altmap() {
    let mm = machine().boot();
    for (reserve, free) in [(0, 1024), (512, 1024), (2048, 1024), (512, 4096)] {
        let map = plain(FIRST, 2).with_altmap(DevAltmap { reserve, free });
        let nr = mm.memremap_pages(map).unwrap();
        let first = map.range.start().add(reserve + free);
        assert_eq!(info(mm, nr).pages, map.range.from(first));
        assert_eq!(mm.dev_page(Pfn::new(first.get() - 1)), None);
        assert!(mm.dev_page(first).is_some());
        assert!(mm.dev_page(Pfn::new(map.range.end().get() - 1)).is_some());
        assert_eq!(mm.dev_page(map.range.end()), None);
        assert_eq!(mm.stats().device.refs, 2 * 32768 - u64::from(reserve + free));
        mm.check();
        mm.hotplug().memunmap_pages(nr).unwrap();
    }
}

/// The reserve's struct pages and content do not change, from the moment when its memmap is mapped. The memory is
/// zero there, so a struct page that is not was written.
#[test]
fn s5_6_reserve_pages_are_left_alone() {
    for device_init in [DeviceInit::Once, DeviceInit::Twice] {
        let options = SimMachine::OPTIONS.with_device_init(device_init).with_content(MemoryContent::Zero);
        let mm = SimMachine { options, ..machine() }.boot();
        let sim = mm.platform();
        let reserve = || pfns(PfnRange::new(range(FIRST, 2).start(), 1024));
        let is_untouched = || reserve().all(|pfn| sim.struct_page(pfn) == [0; 8]);
        let nr = mm.hotplug().memremap_start(with_altmap(FIRST, 2, 1024)).unwrap();
        assert!(is_untouched(), "struct pages were written under the lock");
        // The device's content of memory that was never written.
        let content = sim.read(range(FIRST, 2).start());
        assert_ne!(content, 0);
        assert!(reserve().all(|pfn| sim.read(pfn) == content), "content was written under the lock");
        reserve().for_each(|pfn| sim.write(pfn, u64::from(pfn.get())));
        finish(mm, nr);
        mm.check();
        assert!(is_untouched(), "struct pages were written outside of the lock");
        assert!(reserve().all(|pfn| sim.read(pfn) == u64::from(pfn.get())));
        assert!(reserve().all(|pfn| mm.dev_page(pfn).is_none()));
        // All other struct pages were written.
        let others = PfnRange::between(range(FIRST, 2).start().add(1024), range(FIRST, 2).end()).unwrap();
        assert!(pfns(others).all(|pfn| sim.page_state(pfn) != 0));
        mm.hotplug().memunmap_pages(nr).unwrap();
    }
}

/// Every page knows its pgmap and has driver word 0, so no old memmap content is left.
#[test]
fn s5_7_every_page_has_its_pgmap_and_an_empty_driver_word() {
    for map in both() {
        let mm = machine().boot();
        let other = mm.memremap_pages(plain(FIRST + 8, 1)).unwrap();
        let nr = mm.memremap_pages(map).unwrap();
        assert_ne!(nr, other);
        for pfn in pfns(info(mm, nr).pages) {
            let page = mm.dev_page(pfn).unwrap();
            assert_eq!((page.pgmap, page.user), (nr, None), "{pfn:?}");
            assert_eq!(mm.platform().struct_page(pfn)[0], 0, "driver's word of {pfn:?}");
        }
        assert_eq!(mm.dev_page(range(FIRST + 8, 1).start()).unwrap().pgmap, other);
    }
}

/// Every page is a reserved page of the Device zone and cannot be looked up before the pgmap is open.
#[test]
fn s5_8_pages_are_reserved_before_they_are_visible() {
    const DEVICE: u8 = 8;
    for map in both() {
        let mm = machine().boot();
        let nr = mm.hotplug().memremap_start(map).unwrap();
        let all = info(mm, nr).pages;
        while let Some(next) = pfns(all).find(|&pfn| mm.platform().page_state(pfn) != DEVICE) {
            assert!(pfns(all).step_by(512).all(|pfn| mm.dev_page(pfn).is_none()), "before {next:?}");
            assert!(
                all.start().section() != next.section()
                    || mm.section_state(all.start().section()) == SectionState::Present
            );
            assert_eq!(mm.memremap_init(nr), Ok(true));
        }
        assert!(pfns(all).all(|pfn| mm.dev_page(pfn).is_some()));
    }
}

fn device_page() -> (&'static Mm<Sim>, Pfn) {
    let mm = machine().boot();
    let nr = mm.memremap_pages(plain(FIRST, 1)).unwrap();
    (mm, info(mm, nr).pages.start().add(7))
}

#[test]
#[should_panic(expected = "it is device memory")]
fn s5_9_a_device_page_cannot_be_freed() {
    let (mm, pfn) = device_page();
    mm.free_pages(pfn, Order::PAGE);
}

#[test]
#[should_panic(expected = "it is device memory")]
fn s5_9_nor_a_range_of_them() {
    let (mm, pfn) = device_page();
    mm.free_contig_range(PfnRange::new(pfn, 4));
}

#[test]
#[should_panic(expected = "it is device memory")]
fn s5_9_nor_given_to_an_owner() {
    let (mm, pfn) = device_page();
    mm.set_holder(pfn, 1);
}

/// There are as many references as pages after mapping, one more for each use, and none after unmapping. A
/// range in use stays mapped, and the refusal names the user.
#[test]
fn s5_10_references_are_counted_in_bulk_and_come_back() {
    const ALICE: u32 = 0xa11ce;
    const BOB: u32 = 0xb0b;
    for map in both() {
        let mm = machine().boot();
        let nr = mm.memremap_pages(map).unwrap();
        let pages = info(mm, nr).pages;
        let count = u64::from(pages.pages());
        let refs = || info(mm, nr).refs;
        assert_eq!(refs(), count);
        let (low, high) = (pages.start().add(5), pages.start().add(700));

        mm.get_dev_page(high, BOB).unwrap();
        mm.get_dev_page(low, ALICE).unwrap();
        mm.get_dev_page(low, ALICE).unwrap();
        assert_eq!(refs(), count + 3);
        assert_eq!(mm.get_dev_page(low, BOB), Err(DevPageError::UsedBy(ALICE)));
        assert_eq!(mm.put_dev_page(low, BOB), Err(DevPageError::UsedBy(ALICE)));
        assert_eq!(mm.put_dev_page(pages.start(), BOB), Err(DevPageError::Count));
        assert_eq!(refs(), count + 3, "a refused call counts no reference");
        assert_eq!(mm.dev_page(low).unwrap().user, Some(DevUser { tag: ALICE, count: 2 }));

        let in_use = |refs, pfn, tag, count| {
            Err(MemunmapError::InUse { refs, first: Some((pfn, DevUser { tag, count })) })
        };
        assert_eq!(mm.hotplug().memunmap_pages(nr), in_use(3, low, ALICE, 2));
        mm.check();
        for left in [2, 1] {
            mm.put_dev_page(low, ALICE).unwrap();
            let (pfn, tag) = if left == 2 { (low, ALICE) } else { (high, BOB) };
            assert_eq!(mm.hotplug().memunmap_pages(nr), in_use(left, pfn, tag, 1));
        }
        assert_eq!(mm.put_dev_page(low, ALICE), Err(DevPageError::Count), "no underflow");
        mm.put_dev_page(high, BOB).unwrap();
        assert_eq!(refs(), count);
        mm.check();
        mm.hotplug().memunmap_pages(nr).unwrap();
        assert_eq!(mm.stats().device.refs, 0);
        assert_eq!(mm.get_dev_page(low, ALICE), Err(DevPageError::NotDevice));
        assert_eq!(mm.put_dev_page(low, ALICE), Err(DevPageError::NotDevice));
        mm.check();
    }
}

/// All pageblocks of the range are movable, whatever their types were before (Linux set only the type of the
/// first pageblock of a large folio).
#[test]
fn s5_11_d19_all_pageblocks_are_movable() {
    let mm = machine().boot();
    let nr = SectionNr::new(FIRST);
    mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    // The first pageblock of the section is not movable afterwards.
    mm.hotplug().online(nr, ZoneType::Movable).unwrap();
    mm.hotplug().offline(nr).unwrap();
    mm.hotplug().remove_memory(nr).unwrap();
    for map in [plain(FIRST, GIB), with_altmap(FIRST, GIB, 0)] {
        let pgmap = mm.memremap_pages(map).unwrap();
        let blocks = pfns(info(mm, pgmap).pages).step_by(512);
        let mut count = 0;
        for pfn in blocks {
            assert_eq!(mm.dev_page(pfn).unwrap().migrate_type, MigrateType::Movable, "{pfn:?}");
            count += 1;
        }
        assert_eq!(count, if map.altmap.is_none() { 512 } else { 504 });
        mm.hotplug().memunmap_pages(pgmap).unwrap();
    }
}

/// A step is one pageblock, so the initialising CPU can do other work in between.
#[test]
fn s5_11_initialisation_can_be_left_after_every_pageblock() {
    let mm = machine().boot();
    let nr = mm.hotplug().memremap_start(plain(FIRST, 2)).unwrap();
    let mut steps = 0;
    while mm.memremap_init(nr) == Ok(true) {
        steps += 1;
        assert_eq!(info(mm, nr).live, steps == 128);
    }
    assert_eq!(steps, 128);
}

/// Calls for a pgmap that does not exist, and memory-block calls on device memory, are refused and change
/// nothing.
#[test]
fn s5_12_invalid_use_is_refused_and_counted() {
    let mm = machine().boot();
    let nr = mm.memremap_pages(plain(FIRST, 1)).unwrap();
    mm.hotplug().memunmap_pages(nr).unwrap();
    let before = mm.stats();
    assert_eq!(mm.memremap_init(nr), Err(NoPgmap));
    assert_eq!(mm.hotplug().memunmap_pages(nr), Err(MemunmapError::NotMapped));
    assert_eq!(mm.pgmap(nr), None);
    let mut expected = before.device;
    expected.invalid = 2;
    assert_eq!(mm.stats().device, expected);

    let nr = mm.hotplug().memremap_start(plain(FIRST, 1)).unwrap();
    let section = SectionNr::new(FIRST);
    for live in [false, true] {
        assert_eq!(
            mm.hotplug().add_memory(NodeId::FIRST, section, PageblockSet::ALL, MemoryContent::Unknown),
            Err(AddError::Exists)
        );
        assert_eq!(mm.hotplug().online(section, ZoneType::Movable), Err(OnlineError::Device));
        assert_eq!(mm.hotplug().online_pageblocks(section, PageblockSet::FIRST), Err(OnlineError::NotOnline));
        assert_eq!(mm.hotplug().offline(section), Err(OfflineError::NotOnline));
        assert_eq!(mm.hotplug().remove_memory(section), Err(RemoveError::Device));
        mm.check();
        let unmapped = if live { Ok(32768) } else { Err(MemunmapError::Initialising) };
        assert_eq!(mm.hotplug().memunmap_pages(nr), unmapped);
        finish(mm, nr);
    }
    mm.check();
}

/// Pages and time are counted per phase.
#[test]
fn s5_13_pages_and_times_are_reported() {
    let mm = machine().boot();
    let nr = mm.hotplug().memremap_start(with_altmap(FIRST, 1, 512)).unwrap();
    assert_eq!(info(mm, nr).init_ns, 0, "initialising is not finished");
    finish(mm, nr);
    let info = info(mm, nr);
    assert_eq!((info.locked_pages, info.pages.pages()), (512, 32768 - 1024));
    assert!(info.locked_ns > 0 && info.init_ns > 0, "{info:?}");
    assert_eq!((info.memmap_pages, info.altmap, info.cpus), (512, true, 1));
}

/// Readers that walk frame numbers while ranges are mapped see all pages of a range or none, and each page
/// whole: `dev_page` panics on a page that is not.
#[test]
fn s5_15_readers_see_all_pages_or_none() {
    const ROUNDS: u32 = 12;
    let mm = machine().boot();
    let stop = AtomicBool::new(false);
    let seen = AtomicU32::new(0);
    // A reader holds this while it is in `mm`. Unmapping waits for it, as `Platform::synchronize` does on
    // hardware.
    let grace = RwLock::new(());
    thread::scope(|scope| {
        for cpu in 2..4 {
            let (stop, seen, grace) = (&stop, &seen, &grace);
            scope.spawn(move || {
                Sim::run_on(cpu, || {
                    while !stop.load(SeqCst) {
                        let _inside = grace.read().unwrap();
                        let walk = range(FIRST, 2);
                        let visible =
                            pfns(walk).skip(1024).step_by(97).find(|&pfn| mm.dev_page(pfn).is_some());
                        // Once one page is visible, all pages behind it are.
                        let Some(first) = visible else { continue };
                        let rest = walk.from(first);
                        assert!(pfns(rest).all(|pfn| mm.dev_page(pfn).is_some()), "some of {walk:?}");
                        seen.fetch_add(1, SeqCst);
                    }
                });
            });
        }
        for round in 0..ROUNDS {
            let map = if round % 2 == 0 { plain(FIRST, 2) } else { with_altmap(FIRST, 2, 0) };
            let nr = mm.hotplug().memremap_start(map).unwrap();
            thread::scope(|workers| {
                workers.spawn(|| Sim::run_on(1, || finish(mm, nr)));
                finish(mm, nr);
            });
            assert!(info(mm, nr).live);
            let before = seen.load(SeqCst);
            while seen.load(SeqCst) == before {
                thread::yield_now();
            }
            let _everybody = grace.write().unwrap();
            mm.hotplug().memunmap_pages(nr).unwrap();
        }
        stop.store(true, SeqCst);
    });
    assert!(seen.load(SeqCst) >= ROUNDS);
    mm.check();
}

/// The span follows the ranges, and no struct page is read for it.
#[test]
fn d7_the_span_follows_the_ranges() {
    let mm = machine().boot();
    let spanned = || mm.stats().device.spanned / 32768;
    let map = |first, sections| mm.memremap_pages(plain(first, sections)).unwrap();
    let (low, high) = (map(FIRST, 2), map(FIRST + 10, 1));
    assert_eq!(spanned(), 11, "a hole in the middle");
    let middle = map(FIRST + 4, 3);
    mm.hotplug().memunmap_pages(low).unwrap();
    assert_eq!(spanned(), 7);
    mm.hotplug().memunmap_pages(high).unwrap();
    assert_eq!(spanned(), 3);
    mm.hotplug().memunmap_pages(middle).unwrap();
    assert_eq!(spanned(), 0);
    mm.check();
}

/// Every node has a Device zone of its own, and a range belongs to the one of the node that it was mapped for.
#[test]
fn ranges_belong_to_nodes() {
    let mm = machine().boot();
    let on = |node, first| DevPagemap::new(range(first, 1), NodeId::new(node));
    let numbers = [on(0, FIRST), on(3, FIRST + 4), on(0, FIRST + 2), on(3, FIRST + 5)]
        .map(|map| mm.memremap_pages(map).unwrap());
    // It compares the node of each section with that of its range.
    mm.check();
    assert_eq!(mm.stats().device.spanned, (3 + 2) * 32768);
    for nr in numbers {
        mm.hotplug().memunmap_pages(nr).unwrap();
    }
    mm.check();
}

/// A range is whole sections that are not other memory, so no section has pages of two kinds.
#[test]
fn d20_wrong_ranges_are_refused() {
    let mm = machine().boot();
    let start = mm.stats();
    let at = |start: u32, end: u32| {
        let range = PfnRange::between(Pfn::new(start), Pfn::new(end));
        DevPagemap::new(range.expect("the range does not end before it starts"), NodeId::FIRST)
    };
    let altmap = |reserve, free| plain(FIRST, 2).with_altmap(DevAltmap { reserve, free });
    let first = FIRST * 32768;
    assert_eq!(PfnRange::between(Pfn::new(first), Pfn::new(first - 32768)), None);
    let mapped = mm.memremap_pages(plain(FIRST + 4, 1)).unwrap();
    let conflict = |nr| MemremapError::Conflict(SectionNr::new(nr));
    for (map, error) in [
        (at(first, first), MemremapError::Empty),
        (at(first, first + 512), MemremapError::Misaligned),
        (at(first + 512, first + 512 + 32768), MemremapError::Misaligned),
        (altmap(1, 1024), MemremapError::Misaligned),
        (altmap(0, 1025), MemremapError::Misaligned),
        (altmap(0, 512), MemremapError::AltmapTooSmall { needed: 1024 }),
        (altmap(512, 65536 - 512), MemremapError::AltmapTooLarge),
        (altmap(u32::MAX - 511, 1024), MemremapError::AltmapTooLarge),
        (plain(72, 1), MemremapError::OutOfRange),
        (plain(71, 2), MemremapError::OutOfRange),
        (plain((1 << 17) - 2, 1), MemremapError::OutOfRange),
        (plain(1, 1), conflict(1)),
        (plain(FIRST + 3, 2), conflict(FIRST + 4)),
        (plain(FIRST + 4, 2), conflict(FIRST + 4)),
    ] {
        assert_eq!(mm.memremap_pages(map), Err(error), "{map:?}");
        mm.check();
    }
    mm.hotplug().memunmap_pages(mapped).unwrap();
    assert_eq!(mm.stats(), start);
    let all: Vec<_> = (0..MAX_PGMAPS as u32).map(|at| mm.memremap_pages(plain(FIRST + at, 1))).collect();
    assert_eq!(mm.memremap_pages(plain(FIRST + 20, 1)), Err(MemremapError::TooMany));
    mm.check();
    for nr in all {
        mm.hotplug().memunmap_pages(nr.unwrap()).unwrap();
    }
    assert_eq!(mm.stats(), start);
}

/// Every attempt of every step fails once. Afterwards everything is as before, including page tables.
#[test]
fn every_step_rolls_back() {
    for map in [plain(FIRST, 3), with_altmap(FIRST, 3, 512)] {
        let mm = SimMachine { page_tables: true, ..machine() }.boot();
        let sim = mm.platform();
        let state = || {
            mm.check();
            let sections: Vec<_> = (FIRST..FIRST + 4)
                .map(SectionNr::new)
                .map(|nr| {
                    (mm.section_state(nr), mm.plugged(nr), sim.memmap_of(nr), sim.is_mapped(nr.start()))
                })
                .collect();
            drop(mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Dma32)));
            (mm.stats(), sections)
        };
        let mut failures = 0;
        // Each section needs a table for its memory, and one for its memmap.
        for (step, attempts) in [
            (FaultStep::MapDirect, 3),
            (FaultStep::AllocMemmap, 3),
            (FaultStep::MapMemmap, 3),
            (FaultStep::PageTable, 6),
        ] {
            for attempt in 0..attempts {
                let before = state();
                sim.inject(step, attempt);
                let error = mm.memremap_pages(map).unwrap_err();
                let expected = match step {
                    FaultStep::AllocMemmap => MemremapError::NoMemory,
                    _ => MemremapError::NoPageTable,
                };
                assert_eq!(error, expected, "{step:?} {attempt}");
                assert_eq!(state().1, before.1, "{step:?} {attempt}");
                assert_eq!(state().0.zones, before.0.zones, "{step:?} {attempt}");
                assert_eq!(state().0.device, before.0.device, "{step:?} {attempt}");
                failures += 1;
            }
        }
        assert_eq!(failures, 15);
        let nr = mm.memremap_pages(map).unwrap();
        mm.check();
        mm.hotplug().memunmap_pages(nr).unwrap();
        state();
    }
}

/// Without altmap, a memmap that is larger than free memory is an error, and no page is lost.
#[test]
fn memmap_from_boot_memory_runs_out() {
    let mm = SimMachine { memory: [(0, 6 * 1024)].into(), ..machine() }.boot();
    let start = mm.stats();
    assert_eq!(mm.memremap_pages(plain(FIRST, 16)), Err(MemremapError::NoMemory));
    mm.check();
    // Single pages that were allocated for the memmap and freed again lie on lists of this CPU.
    drop(mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Dma32)));
    assert_eq!(mm.stats().zones, start.zones);
    let nr = mm.memremap_pages(with_altmap(FIRST, 16, 0)).unwrap();
    assert_eq!(mm.stats().zones, start.zones, "with altmap no RAM is used");
    mm.hotplug().memunmap_pages(nr).unwrap();
    mm.check();
}

/// As for memory blocks: in fragmented older memory the memmap is single pages, whose holder is a memmap, and
/// unmapping frees all of them.
#[test]
fn fragmented_memory_gives_single_pages() {
    let mm = SimMachine { page_tables: true, ..machine() }.boot();
    // Every second page is in use, so no two free pages lie side by side.
    let held: Vec<_> = std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::Kernel).ok()).collect();
    for &pfn in held.iter().filter(|pfn| pfn.get() % 2 == 0) {
        mm.free_pages(pfn, Order::PAGE);
    }
    let state = || {
        drop(mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Dma32)));
        let stats = mm.stats();
        (stats.zones, stats.memmap_boot_pages, stats.memmaps_by_base_pages)
    };
    let before = state();
    let nr = mm.memremap_pages(plain(FIRST, 2)).unwrap();
    mm.check();
    assert_eq!((mm.stats().memmap_boot_pages, mm.stats().memmaps_by_base_pages), (1024, 2));
    assert!((FIRST..FIRST + 2).all(|nr| mm.platform().memmap_of(SectionNr::new(nr)).is_none()));
    assert!(pfns(range(FIRST, 2)).all(|pfn| mm.dev_page(pfn).is_some()));
    mm.hotplug().memunmap_pages(nr).unwrap();
    mm.check();
    assert_eq!(state(), before);

    // Each attempt fails once, the second attempt after the first section has its memmap.
    for step in [FaultStep::AllocMemmap, FaultStep::MapMemmap] {
        for attempt in 0..2 {
            mm.platform().inject(step, attempt);
            mm.memremap_pages(plain(FIRST, 2)).unwrap_err();
            mm.check();
            assert_eq!(state(), before, "{step:?} {attempt}");
        }
    }
    // With altmap it is one large page per section in any memory.
    let nr = mm.memremap_pages(with_altmap(FIRST, 2, 0)).unwrap();
    assert_eq!(mm.stats().memmaps_by_base_pages, 0);
    mm.hotplug().memunmap_pages(nr).unwrap();
    mm.check();
}
