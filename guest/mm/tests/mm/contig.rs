//! Allocations of several pageblocks that lie side by side.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use tidevm_mm::{
    AllocError, DevPagemap, FaultStep, Gfp, MemoryContent, Mm, NodeId, OfflineError, Order, PageblockSet,
    PfnRange, SectionNr, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, Random, Tenant};

fn machine(cpus: usize) -> &'static Mm<Sim> {
    let mm = SimMachine { cpus, ..SimMachine::default() }.boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm
}

fn frames(range: PfnRange) -> impl Iterator<Item = tidevm_mm::Pfn> {
    (0..range.pages()).map(move |page| range.start().add(page))
}

/// Pages in use in the range move, and keep their content.
#[test]
fn a_range_in_use_is_emptied_first() {
    let mm = machine(1);
    let tenant = Tenant::new(mm, 0, 20_000);
    (0..20_000).for_each(|slot| assert!(tenant.fill(slot, slot as u64).is_ok()));
    let before = mm.stats();
    let range = mm.alloc_contig_pages(12).unwrap();
    assert_eq!((range.pages(), range.start().section()), (12 * 512, BLOCK));
    assert!(mm.stats().pages_migrated > before.pages_migrated, "nothing was in the way");
    assert_eq!(mm.stats().zones[2].managed, before.zones[2].managed);
    frames(range).for_each(|pfn| mm.platform().write(pfn, 7));
    tenant.verify_all();
    mm.check();
    mm.free_contig_range(range);
    tenant.verify_all();
    tenant.release_all();
    mm.check();
}

/// The allocated pages are single pages. Each has its own holder and is freed by itself.
#[test]
fn its_pages_are_single_ones() {
    let mm = machine(1);
    let free = mm.stats().zones[2];
    let range = mm.alloc_contig_pages(63).unwrap();
    assert_eq!(range.pages(), 63 * 512);
    assert_eq!(mm.alloc_contig_pages(1), Err(AllocError), "every pageblock is taken");
    frames(range).for_each(|pfn| mm.set_holder(pfn, 5));
    mm.check();
    assert!(
        matches!(mm.hotplug().offline(BLOCK), Err(OfflineError::Unmovable(stuck)) if stuck.pages == 63 * 512)
    );
    frames(range).for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
    mm.check();
    let after = mm.stats().zones[2];
    assert_eq!((after.free + after.pcp, after.managed), (free.free + free.pcp, free.managed));
    mm.hotplug().offline(BLOCK).unwrap();
}

/// The lowest range that is free is taken; a number that is a power of two is aligned to its size.
#[test]
fn ranges_lie_at_multiples_of_their_size() {
    let mm = machine(1);
    // Pageblock 0 holds the memmap.
    for (count, first) in [(4, 4), (3, 1), (2, 8), (8, 16), (5, 10), (1, 15)] {
        let range = mm.alloc_contig_pages(count).unwrap();
        assert_eq!(range, BLOCK.pageblocks(&(first..first + count)), "{count} pageblocks");
    }
    mm.check();
}

/// Memory that has struct pages but is not online is refused: a memory block whose onlining failed, and device
/// memory.
#[test]
fn memory_that_is_not_online_is_refused() {
    let mm = machine(1);
    let (failed, device) = (SectionNr::new(33), SectionNr::new(34));
    mm.hotplug().add_memory(NodeId::FIRST, failed, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.platform().inject(FaultStep::Online, 0);
    mm.hotplug().online(failed, ZoneType::Movable).unwrap_err();
    let map = DevPagemap::new(device.frames(), NodeId::FIRST);
    mm.memremap_pages(map).unwrap();
    for nr in [failed, device] {
        let range = mm.hotplug().alloc_contig_range(nr, PageblockSet::range(4..8));
        assert_eq!(range, Err(OfflineError::NotOnline), "{nr:?}");
        let pageblock = mm.hotplug().alloc_contig_pageblock(nr.start().add(512 * 4));
        assert_eq!(pageblock, Err(OfflineError::NotOnline), "{nr:?}");
    }
    mm.check();
}

/// A range that cannot be allocated is refused with the reason, and nothing changes.
#[test]
fn refusals() {
    let mm = machine(1);
    let some = PageblockSet::range(4..8);
    assert_eq!(mm.hotplug().alloc_contig_range(SectionNr::new(35), some), Err(OfflineError::NotOnline));
    assert_eq!(mm.hotplug().alloc_contig_range(SectionNr::new(99), some), Err(OfflineError::NotOnline));
    assert_eq!(
        mm.hotplug().alloc_contig_range(BLOCK, PageblockSet::range(0..4)),
        Err(OfflineError::HoldsMemmap)
    );
    mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(7..9)).unwrap();
    assert_eq!(mm.hotplug().alloc_contig_range(BLOCK, some), Err(OfflineError::NotPlugged));
    mm.hotplug().online_pageblocks(BLOCK, PageblockSet::range(7..9)).unwrap();
    for count in [0, 65, u32::MAX] {
        assert_eq!(mm.alloc_contig_pages(count), Err(AllocError), "{count}");
    }
    mm.platform().inject(FaultStep::Isolate, 2);
    assert_eq!(mm.hotplug().alloc_contig_range(BLOCK, some), Err(OfflineError::Busy));
    mm.check();
    // Boot memory can be allocated too, except where it is reserved.
    assert!(matches!(
        mm.hotplug().alloc_contig_range(SectionNr::new(0), PageblockSet::range(0..2)),
        Err(OfflineError::Unmovable(_))
    ));
    mm.hotplug().alloc_contig_range(SectionNr::new(0), some).unwrap();
    mm.check();
}

/// S3.12: lists are drained and not disabled.
#[test]
fn lists_are_drained_and_stay_enabled() {
    let mm = machine(1);
    let cached = || {
        let held: Vec<_> = (0..100).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
        held.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
        mm.stats().zones[2].pcp
    };
    let before = cached();
    let disables = mm.stats().pcp_disables;
    let drains = mm.stats().pcp_drains;
    let range = mm.alloc_contig_pages(2).unwrap();
    assert_eq!(mm.stats().pcp_disables, disables);
    // Before isolation and again after migration, for pages that were freed in between.
    assert_eq!(mm.stats().pcp_drains, drains + 2);
    assert_eq!(cached(), before);
    mm.free_contig_range(range);
}

/// S3.12: while other CPUs allocate and free, the allocation may fail, and never takes a page that is in use.
#[test]
fn it_may_fail_and_never_corrupts() {
    let mm = machine(3);
    let tenant = Tenant::new(mm, 0, 12_000);
    let stop = AtomicBool::new(false);
    let mut random = Random::new("contig");
    let mut got = 0;
    thread::scope(|scope| {
        for cpu in 1..3 {
            let (stop, tenant, mut random) = (&stop, &tenant, random.fork());
            let slots = (cpu - 1) * 6000..cpu * 6000;
            scope.spawn(move || {
                Sim::run_on(cpu, || {
                    while !stop.load(SeqCst) {
                        let slot = slots.start + random.below(slots.len());
                        if !tenant.release(slot) {
                            let _ = tenant.fill(slot, random.next());
                        }
                    }
                });
            });
        }
        for round in 0..60u64 {
            let count = 1 + random.below(16) as u32;
            if let Ok(range) = mm.alloc_contig_pages(count) {
                got += 1;
                frames(range).for_each(|pfn| mm.platform().write(pfn, round << 32 | u64::from(pfn.get())));
                thread::yield_now();
                for pfn in frames(range) {
                    assert_eq!(mm.platform().read(pfn), round << 32 | u64::from(pfn.get()), "{pfn:?}");
                }
                mm.free_contig_range(range);
            }
            if round % 16 == 0 {
                mm.check();
            }
        }
        stop.store(true, SeqCst);
    });
    assert!(got > 0, "no allocation succeeded");
    tenant.verify_all();
    tenant.release_all();
    mm.check();
}
