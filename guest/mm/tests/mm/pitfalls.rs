//! Bugs that Linux had after mechanisms like these were merged, played here. `docs/pitfalls.md` lists them all,
//! and each test has the number of its bug there.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use tidevm_mm::{
    AddError, FaultStep, Gfp, InitPolicy, MemoryContent, Mm, MovableOwner, NodeId, OfflineError, Order,
    OwnerId, PageblockSet, PcpPolicy, Pfn, RemoveError, SECTION_PAGES, SectionNr, SectionState, Stats,
    ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

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

/// Free pages, including those on per-CPU lists.
fn free(mm: &Mm<Sim>) -> u64 {
    mm.stats().zones.iter().map(|zone| zone.free + zone.pcp).sum()
}

/// The state that must be equal before an operation and after it was undone.
fn account(mm: &Mm<Sim>) -> (Vec<[u64; 4]>, [u64; 3]) {
    mm.check();
    let Stats { zones, memmap_boot_pages, memmap_altmap_pages, blocks_online, .. } = mm.stats();
    let zones = zones.map(|zone| [zone.spanned, zone.present, zone.managed, zone.free + zone.pcp]);
    (zones.to_vec(), [memmap_boot_pages, memmap_altmap_pages, blocks_online])
}

/// In the uninitialised rest of this zone no page is free. An allocation that finds too little initialises all
/// of it and then fails.
#[test]
fn pitfall_1_growing_ends() {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let reserved = [(0, 1024), (SECTION_PAGES, 3 * SECTION_PAGES)].into();
        let memory = [(0, 4 * SECTION_PAGES)].into();
        let mm = SimMachine {
            memory,
            reserved,
            options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred),
            ..SimMachine::default()
        }
        .boot();
        // The watermarks, which count deferred pages, do not refuse these allocations.
        while mm.alloc_pages(Order::MAX, Gfp::PageTable).is_ok() {}
        let refused = (0..100).all(|_| mm.alloc_pages(Order::MAX, Gfp::PageTable).is_err());
        mm.check();
        done.send((refused, mm.is_all_initialised())).unwrap();
    });
    assert_eq!(ended.recv_timeout(LIMIT), Ok((true, true)), "all sections were initialised");
}

/// Watermarks and reserves follow from the size of the whole zone in the end.
#[test]
fn pitfall_4_limits_follow_the_whole_zone() {
    let held = |init| {
        let memory = [(0, 8 * SECTION_PAGES)].into();
        let mm = SimMachine { memory, options: SimMachine::OPTIONS.with_init(init), ..SimMachine::default() }
            .boot();
        while mm.init_deferred() {}
        assert!(mm.is_all_initialised());
        // The most pages on a CPU's list, and the free pages when allocations begin to fail.
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

/// The free count includes pages that are not initialised yet.
#[test]
fn pitfall_5_deferred_memory_counts_as_free() {
    let boot = |init| {
        let memory = [(0, 8 * SECTION_PAGES)].into();
        SimMachine { memory, options: SimMachine::OPTIONS.with_init(init), ..SimMachine::default() }.boot()
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

/// Offlining ends, with lists disabled and with lists drained. It succeeds when the pages were only on another
/// CPU's list, and fails when a CPU holds one.
#[test]
fn pitfall_6_offline_ends() {
    for pcp in [PcpPolicy::Disable, PcpPolicy::DrainAgain] {
        let mm = SimMachine { cpus: 2, options: SimMachine::OPTIONS.with_pcp(pcp), ..SimMachine::default() }
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

/// Struct pages of a memory block that is added and not online are garbage here. Every walk over all sections
/// skips them: shrinking spans, migration targets, checks, counters.
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

/// Two CPUs change memory blocks of one zone while another CPU checks all of memory. The reader sees each operation
/// as one step.
#[test]
fn pitfall_8_a_check_sees_no_operation_half_done() {
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

/// Each step of adding fails once. No page of the memmap that was taken from the memory block reaches a free
/// list, and the section keeps no record.
#[test]
fn pitfall_9_10_12_a_failed_add_leaves_nothing() {
    let mm = SimMachine::default().boot();
    let before = account(mm);
    // Three runs, so that the second and the third can fail too.
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
    // The section entry is as new, so the memory block can be added with another size.
    grow(mm, BLOCK);
    shrink(mm, BLOCK);
    assert_eq!(account(mm), before);
}

/// The simulated machine panics if a memmap is unmapped without a grace period after Absent was published.
/// Removal has exactly one.
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

/// Holds one page, and frees it when migration asks for it, between migration's look at the struct page and
/// its call.
struct Quick {
    mm: OnceLock<&'static Mm<Sim>>,
    page: AtomicU32,
    asked: AtomicUsize,
}

static QUICK: Quick = Quick { mm: OnceLock::new(), page: AtomicU32::new(0), asked: AtomicUsize::new(0) };

impl MovableOwner for Quick {
    fn isolate(&self, pfn: Pfn, _: u64) -> bool {
        self.asked.fetch_add(1, SeqCst);
        assert_eq!(
            self.page.swap(0, SeqCst),
            pfn.get(),
            "the owner is asked for a page that it does not hold"
        );
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

/// The counters of memmap pages change where memmaps are taken and given back, also when a step in between
/// fails.
#[test]
fn pitfall_21_memmap_pages_are_counted_as_they_are() {
    for memmap_on_memory in [true, false] {
        let mm = SimMachine {
            options: SimMachine::OPTIONS.with_memmap_on_memory(memmap_on_memory),
            ..SimMachine::default()
        }
        .boot();
        let before = account(mm);
        let counts = |pages| if memmap_on_memory { [0, pages] } else { [pages, 0] };
        let found = || [mm.stats().memmap_boot_pages, mm.stats().memmap_altmap_pages];
        for (step, pages) in [(FaultStep::MapMemmap, 0), (FaultStep::Online, 512), (FaultStep::Isolate, 512)]
        {
            mm.platform().inject(step, 0);
            // One of the three operations fails, and the operations after it are not tried.
            let added = add(mm, BLOCK).is_ok();
            let online = added && mm.hotplug().online(BLOCK, ZoneType::Movable).is_ok();
            assert!(!online || mm.hotplug().offline(BLOCK).is_err(), "{step:?} should have failed");
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

/// Without a page for page tables, adding memory is refused and no page is lost. With each page that is freed,
/// adding gets one step further.
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

/// A machine that cannot hold the memmap of all the memory it is given keeps the part that was added.
#[test]
fn pitfall_24_memory_without_room_for_its_memmap_is_refused() {
    let machine = SimMachine {
        memory: [(0, 6 * 1024)].into(),
        sections: 80,
        options: SimMachine::OPTIONS.with_memmap_on_memory(false),
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
    mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("allocations still work");
    (32..32 + added).for_each(|nr| mm.hotplug().remove_memory(SectionNr::new(nr)).unwrap());
    assert_eq!(mm.stats().memmap_boot_pages, 0);
    mm.check();
}

#[test]
fn pitfall_25_removing_online_memory_is_refused() {
    let mm = SimMachine::default().boot();
    grow(mm, BLOCK);
    let page = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    mm.platform().write(page, 1);
    let before = account(mm);
    assert_eq!(mm.hotplug().remove_memory(BLOCK), Err(RemoveError::Online));
    assert_eq!(mm.hotplug().remove_memory(SectionNr::new(0)), Err(RemoveError::Online), "boot memory");
    assert_eq!((account(mm), mm.platform().read(page)), (before, 1));
}

/// Pageblocks that are not plugged were never managed: taking their memory block offline does not subtract
/// them.
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

/// Under every policy, the counters are right before the first allocation after boot, and it succeeds.
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
            options: SimMachine::OPTIONS.with_init(init).with_content(content),
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
