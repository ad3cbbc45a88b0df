//! Bugs that Linux had after such mechanisms were merged, played here; `docs/pitfalls.md` lists them all.
//! Each test has the number that its bug has there.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use tidevm_mm::sim::{Sim, SimMachine};
use tidevm_mm::{
    AddError, FaultStep, Gfp, InitPolicy, MemoryContent, Mm, MovableOwner, NodeId, OfflineError, Options,
    Order, OwnerId, PageblockSet, PcpPolicy, Pfn, RemoveError, SECTION_PAGES, SectionNr, SectionState, Stats,
    ZoneType,
};

use crate::workload::{BLOCK, Tenant};

const NEXT: SectionNr = SectionNr::new(33);
const LIMIT: Duration = Duration::from_secs(60);

fn add(mm: &Mm<Sim>, nr: SectionNr) -> Result<(), AddError> {
    mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown)
}

fn grow(mm: &Mm<Sim>, nr: SectionNr) {
    add(mm, nr).unwrap();
    mm.hotplug().online(nr, ZoneType::Movable).unwrap();
}

fn shrink(mm: &Mm<Sim>, nr: SectionNr) {
    mm.hotplug().offline(nr).unwrap();
    mm.hotplug().remove_memory(nr).unwrap();
}

/// Free pages, those on per-CPU lists included.
fn free(mm: &Mm<Sim>) -> u64 {
    mm.stats().zones.iter().map(|zone| zone.free + zone.pcp).sum()
}

/// What is the same before and after something that was taken back.
fn account(mm: &Mm<Sim>) -> (Vec<[u64; 4]>, [u64; 3]) {
    mm.check();
    let Stats { zones, memmap_boot_pages, memmap_altmap_pages, blocks_online, .. } = mm.stats();
    let zones = zones.map(|zone| [zone.spanned, zone.present, zone.managed, zone.free + zone.pcp]);
    (zones.to_vec(), [memmap_boot_pages, memmap_altmap_pages, blocks_online])
}

/// A zone whose uninitialised rest has not one free page: an allocation that finds too little looks at all of
/// it, and then there is an end.
#[test]
fn pitfall_1_growing_ends() {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let reserved = [(0, 1024), (SECTION_PAGES, 3 * SECTION_PAGES)].into();
        let memory = [(0, 4 * SECTION_PAGES)].into();
        let mm = SimMachine {
            memory,
            reserved,
            options: Options { init: InitPolicy::Deferred, ..SimMachine::OPTIONS },
            ..SimMachine::default()
        }
        .boot();
        // No watermark refuses these, which would know that there is nothing to come.
        while mm.alloc_pages(Order::MAX, Gfp::PageTable).is_ok() {}
        let refused = (0..100).all(|_| mm.alloc_pages(Order::MAX, Gfp::PageTable).is_err());
        mm.check();
        done.send((refused, mm.stats().blocks_online)).unwrap();
    });
    assert_eq!(ended.recv_timeout(LIMIT), Ok((true, 4)), "all of it was looked at");
}

/// What a zone may keep, and what it must have left, follows from all of its memory in the end.
#[test]
fn pitfall_4_limits_follow_the_whole_zone() {
    let held = |init| {
        let memory = [(0, 8 * SECTION_PAGES)].into();
        let mm =
            SimMachine { memory, options: Options { init, ..SimMachine::OPTIONS }, ..SimMachine::default() }
                .boot();
        while mm.init_deferred() {}
        assert!(mm.is_all_initialised());
        // Pages that one CPU keeps at most, and pages that are left when nothing more is to be had.
        let pages: Vec<Pfn> = (0..4000).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Kernel).unwrap()).collect();
        let most = pages.into_iter().map(|page| {
            mm.free_pages(page, Order::PAGE);
            mm.stats().zones[0].pcp
        });
        let most = most.max();
        while mm.alloc_pages(Order::PAGE, Gfp::Kernel).is_ok() {}
        (most, free(mm))
    };
    assert_eq!(held(InitPolicy::Deferred), held(InitPolicy::Eager));
}

/// Whoever asks whether there is enough memory is told of what is not initialised yet.
#[test]
fn pitfall_5_memory_to_come_counts() {
    let boot = |init| {
        let memory = [(0, 8 * SECTION_PAGES)].into();
        SimMachine { memory, options: Options { init, ..SimMachine::OPTIONS }, ..SimMachine::default() }
            .boot()
    };
    let (mm, whole) = (boot(InitPolicy::Deferred), free(boot(InitPolicy::Eager)));
    loop {
        assert_eq!(free(mm) + mm.stats().deferred_pages(), whole);
        if !mm.init_deferred() {
            break;
        }
    }
    assert_eq!(mm.stats().deferred_pages(), 0);
}

/// Going offline ends, with lists disabled and with lists that are drained: well, when pages were only on
/// another CPU's list, and with an error when somebody keeps one.
#[test]
fn pitfall_6_offline_ends() {
    for pcp in [PcpPolicy::Disable, PcpPolicy::DrainAgain] {
        let mm =
            SimMachine { cpus: 2, options: Options { pcp, ..SimMachine::OPTIONS }, ..SimMachine::default() }
                .boot();
        grow(mm, BLOCK);
        let kept = Sim::run_on(1, || {
            let pages: Vec<_> = (0..20).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
            pages[1..].iter().for_each(|&page| mm.free_pages(page, Order::PAGE));
            pages[0]
        });
        assert!(mm.stats().zones[2].pcp > 0);
        assert!(
            matches!(mm.hotplug().offline(BLOCK), Err(OfflineError::Unmovable(stuck)) if stuck.pages == 1)
        );
        assert!(mm.platform().grace_periods() < 64, "rounds");
        Sim::run_on(1, || mm.free_pages(kept, Order::PAGE));
        mm.hotplug().offline(BLOCK).unwrap();
        mm.check();
    }
}

/// Struct pages of a block that is added and not online are garbage here. Whoever walks over all sections
/// passes them by: spans that shrink, migration that looks for room, checks, counters.
#[test]
fn pitfall_7_walks_skip_sections_that_are_not_online() {
    let mm = SimMachine::default().boot();
    grow(mm, BLOCK);
    add(mm, NEXT).unwrap();
    let last = SectionNr::new(34);
    grow(mm, last);
    let tenant = Tenant::new(mm, 0, 40_000);
    assert_eq!(tenant.fill_all(), 40_000);
    (0..30_000).for_each(|slot| assert!(tenant.release(slot)));
    for nr in [last, BLOCK] {
        mm.hotplug().offline(nr).unwrap();
        mm.check();
        tenant.verify_all();
    }
    assert_eq!(mm.stats().zones[2].spanned, 0);
    mm.hotplug().remove_memory(NEXT).unwrap();
    mm.check();
}

/// Two CPUs change blocks of one zone at the same time, and others look on: going online and offline is one
/// step for everybody else.
#[test]
fn pitfall_8_the_lock_is_held_for_all_of_it() {
    let mm = SimMachine { cpus: 3, ..SimMachine::default() }.boot();
    let before = account(mm);
    thread::scope(|scope| {
        for cpu in 0..2 {
            scope.spawn(move || {
                let nr = SectionNr::new(32 + cpu as u32);
                Sim::run_on(cpu, || {
                    for _ in 0..20 {
                        grow(mm, nr);
                        shrink(mm, nr);
                    }
                });
            });
        }
        scope.spawn(|| {
            Sim::run_on(2, || {
                for _ in 0..20 {
                    mm.check();
                    thread::yield_now();
                }
            });
        });
    });
    assert_eq!(account(mm), before);
}

/// A step of adding fails, the first and later ones: of the memmap that was taken from the block itself
/// nothing ends in a free list, and nothing is recorded of it.
#[test]
fn pitfall_9_10_12_a_failed_add_leaves_nothing() {
    let mm = SimMachine::default().boot();
    let before = account(mm);
    // Three runs, so that there is a second and a third one to fail.
    let plugged = [0..3, 9..12, 40..64].map(PageblockSet::range);
    let plugged = plugged.into_iter().fold(PageblockSet::NONE, PageblockSet::union);
    let steps = [(FaultStep::MapDirect, 3), (FaultStep::AllocMemmap, 1), (FaultStep::MapMemmap, 1)];
    for (step, attempts) in steps {
        for attempt in 0..attempts {
            mm.platform().inject(step, attempt);
            mm.hotplug().add_memory(NodeId::FIRST, BLOCK, plugged, MemoryContent::Unknown).unwrap_err();
            assert_eq!(account(mm), before, "{step:?} {attempt}");
            assert_eq!(mm.section_state(BLOCK), SectionState::Absent);
            assert_eq!(mm.platform().memmap_of(BLOCK), None);
        }
    }
    // The record is as new: the block can come in another shape.
    grow(mm, BLOCK);
    shrink(mm, BLOCK);
    assert_eq!(account(mm), before);
}

/// The simulated machine panics when a memmap goes without a grace period after its section was taken out of
/// sight. Removing has exactly one.
#[test]
fn pitfall_13_a_memmap_goes_after_a_grace_period() {
    let mm = SimMachine::default().boot();
    for _ in 0..3 {
        add(mm, BLOCK).unwrap();
        let before = mm.platform().grace_periods();
        mm.hotplug().remove_memory(BLOCK).unwrap();
        assert_eq!(mm.platform().grace_periods(), before + 1);
        assert_eq!(mm.section_state(BLOCK), SectionState::Absent);
    }
}

/// Holds one page, and frees it when it is asked to leave it alone: between migration's look at the struct
/// page and its question the page has gone.
struct Quick {
    mm: OnceLock<&'static Mm<Sim>>,
    page: AtomicU32,
    asked: AtomicUsize,
}

static QUICK: Quick = Quick { mm: OnceLock::new(), page: AtomicU32::new(0), asked: AtomicUsize::new(0) };

impl MovableOwner for Quick {
    fn isolate(&self, pfn: Pfn, _: u64) -> bool {
        self.asked.fetch_add(1, SeqCst);
        assert_eq!(self.page.swap(0, SeqCst), pfn.get(), "asked for a page that it does not hold");
        self.mm.get().expect("set first").free_pages(pfn, Order::PAGE);
        false
    }

    fn hand_over(&self, from: Pfn, _: Pfn, _: u64) -> bool {
        unreachable!("{from:?} was never isolated")
    }

    fn put_back(&self, pfn: Pfn, _: u64) {
        unreachable!("{pfn:?} was never isolated")
    }
}

#[test]
fn pitfall_15_a_page_is_asked_for_before_it_is_looked_at() {
    let mm = SimMachine::default().boot();
    grow(mm, BLOCK);
    QUICK.mm.set(mm).ok().expect("one test");
    mm.register_owner(OwnerId(0), &QUICK);
    let page = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    QUICK.page.store(page.get(), SeqCst);
    mm.set_owner(page, OwnerId(0), 0);
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!((QUICK.asked.load(SeqCst), mm.stats().pages_migrated), (1, 0));
    mm.check();
}

/// Where memmaps lie is counted where they are taken and where they are given back, also when what comes
/// between fails.
#[test]
fn pitfall_21_memmap_pages_are_counted_as_they_are() {
    for memmap_on_memory in [true, false] {
        let mm = SimMachine {
            options: Options { memmap_on_memory, ..SimMachine::OPTIONS },
            ..SimMachine::default()
        }
        .boot();
        let before = account(mm);
        let counts = |pages| if memmap_on_memory { [0, pages] } else { [pages, 0] };
        let found = || [mm.stats().memmap_boot_pages, mm.stats().memmap_altmap_pages];
        for (step, pages) in [(FaultStep::MapMemmap, 0), (FaultStep::Online, 512), (FaultStep::Isolate, 512)]
        {
            mm.platform().inject(step, 0);
            // One of the three fails, those after it do nothing.
            let added = add(mm, BLOCK).is_ok();
            let online = added && mm.hotplug().online(BLOCK, ZoneType::Movable).is_ok();
            assert!(!online || mm.hotplug().offline(BLOCK).is_err(), "{step:?} was to fail");
            assert_eq!(found(), counts(pages), "after {step:?} failed");
            mm.check();
            if online {
                mm.hotplug().offline(BLOCK).unwrap();
            }
            if added {
                mm.hotplug().remove_memory(BLOCK).unwrap();
            }
            assert_eq!((found(), account(mm)), ([0, 0], before.clone()));
        }
    }
}

/// No page is left for page tables: memory is refused, and the refusal costs nothing. With each page more it
/// comes a step further.
#[test]
fn pitfall_23_growing_without_a_page_for_page_tables() {
    let mm = SimMachine { page_tables: true, ..SimMachine::default() }.boot();
    let mut all: Vec<_> = std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::PageTable).ok()).collect();
    let mut refused = 0;
    while let Err(error) = add(mm, BLOCK) {
        assert_eq!((error, free(mm)), (AddError::NoPageTable, refused));
        assert!(!mm.platform().is_mapped(BLOCK.start()));
        mm.check();
        mm.free_pages(all.pop().expect("pages to give back"), Order::PAGE);
        refused += 1;
    }
    assert_eq!(refused, 2, "one for the direct map, one for the memmap");
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm.check();
}

/// A machine that cannot hold the memmap of all that it is given keeps what it got, and works on.
#[test]
fn pitfall_24_what_does_not_fit_is_taken_back() {
    let machine = SimMachine {
        memory: [(0, 6 * 1024)].into(),
        sections: 80,
        options: Options { memmap_on_memory: false, ..SimMachine::OPTIONS },
        ..SimMachine::default()
    };
    let mm = machine.boot();
    let added = (32..80).map(SectionNr::new).take_while(|&nr| add(mm, nr).is_ok()).count() as u32;
    let refused = SectionNr::new(32 + added);
    let before = account(mm);
    for _ in 0..10 {
        assert_eq!(add(mm, refused), Err(AddError::NoMemory));
    }
    assert_eq!(account(mm), before);
    mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("the machine is alive");
    (32..32 + added).for_each(|nr| mm.hotplug().remove_memory(SectionNr::new(nr)).unwrap());
    assert_eq!(mm.stats().memmap_boot_pages, 0);
    mm.check();
}

#[test]
fn pitfall_25_removing_what_is_online_is_refused() {
    let mm = SimMachine::default().boot();
    grow(mm, BLOCK);
    let page = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.platform().write(page, 1);
    let before = account(mm);
    assert_eq!(mm.hotplug().remove_memory(BLOCK), Err(RemoveError::Online));
    assert_eq!(mm.hotplug().remove_memory(SectionNr::new(0)), Err(RemoveError::Online), "boot memory");
    assert_eq!((account(mm), mm.platform().read(page)), (before, 1));
}

/// Sub-sections that are not plugged were never managed: taking their block away does not subtract them.
#[test]
fn pitfall_27_unplugged_pages_are_not_managed() {
    let mm = SimMachine::default().boot();
    let plugged = PageblockSet::range(0..20);
    for _ in 0..3 {
        mm.hotplug().add_memory(NodeId::FIRST, BLOCK, plugged, MemoryContent::Unknown).unwrap();
        grow(mm, NEXT);
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        let managed = || mm.stats().zones[2].managed;
        assert_eq!(managed(), 32_256 + 19 * 512);
        mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(10..20)).unwrap();
        assert_eq!(managed(), 32_256 + 9 * 512);
        shrink(mm, BLOCK);
        assert_eq!(managed(), 32_256);
        shrink(mm, NEXT);
        assert_eq!(managed(), 0);
        mm.check();
    }
}

/// The very first allocation after boot, and all counters before it, whatever the policy.
#[test]
fn pitfall_29_counters_are_right_before_the_first_allocation() {
    for (init, content) in [
        (InitPolicy::Eager, MemoryContent::Unknown),
        (InitPolicy::Deferred, MemoryContent::Unknown),
        (InitPolicy::Lazy, MemoryContent::Unknown),
        (InitPolicy::Lazy, MemoryContent::Zero),
    ] {
        let memory = [(0, 4 * SECTION_PAGES)].into();
        let mm = SimMachine {
            memory,
            options: Options { init, content, ..SimMachine::OPTIONS },
            ..SimMachine::default()
        }
        .boot();
        mm.check();
        let zone = mm.stats().zones[0];
        assert_eq!((zone.spanned, zone.present), (4 * 32_768, 4 * 32_768), "{init:?}");
        assert_eq!(zone.managed, 4 * 32_768 - 4 * 512 - 1024, "{init:?}");
        assert_eq!(zone.free + mm.stats().deferred_pages(), zone.managed, "{init:?}");
        for order in [0, 10, 0].map(Order::new) {
            mm.alloc_pages(order, Gfp::Kernel).unwrap();
            mm.check();
        }
    }
}
