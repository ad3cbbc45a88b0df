//! Allocations that need more memory than boot has initialised.
//!
//! Numbers such as S4.15 are those of the claims in `docs/features.md`.

use tidevm_mm::{
    Gfp, InitPolicy, Mm, NodeId, Order, Pfn, SECTION_PAGES, SectionNr, SectionState, ZoneStats, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

/// Sections of boot memory.
const SECTIONS: u32 = 8;

fn machine(init: InitPolicy, memory: &[(u32, u32)]) -> &'static Mm<Sim> {
    SimMachine {
        memory: memory.to_vec(),
        options: SimMachine::OPTIONS.with_init(init),
        ..SimMachine::default()
    }
    .boot()
}

fn deferred() -> &'static Mm<Sim> {
    machine(InitPolicy::Deferred, &[(0, SECTIONS * SECTION_PAGES)])
}

fn take(mm: &Mm<Sim>, pages: u32) -> Vec<Pfn> {
    (0..pages).map_while(|_| mm.alloc_pages(Order::PAGE, Gfp::Kernel).ok()).collect()
}

fn initialised(mm: &Mm<Sim>) -> u32 {
    let online = |&nr: &u32| mm.section_state(SectionNr::new(nr)) == SectionState::Online;
    (0..36).filter(online).count() as u32
}

fn finish(mm: &Mm<Sim>) {
    while mm.init_deferred() {}
    assert!(mm.is_all_initialised());
}

/// S1.3, S1.4: demands from nothing to nine tenths of memory are met, and only as many sections as needed are
/// initialised for them. Workers initialise the rest.
#[test]
fn any_early_demand_initialises_only_the_sections_it_needs() {
    for tenths in 0..=9 {
        let mm = deferred();
        let demand = SECTIONS * SECTION_PAGES * tenths / 10;
        let pages = take(mm, demand);
        assert_eq!(pages.len() as u32, demand, "{tenths} tenths");
        let early = initialised(mm);
        assert!(early <= demand.div_ceil(SECTION_PAGES) + 1, "{tenths} tenths: {early} sections");
        mm.check();
        finish(mm);
        let by_workers = mm.stats().deferred_sections[0][0];
        assert_eq!(
            by_workers,
            SECTIONS - 1,
            "all but the first were initialised after boot, by growing or by workers"
        );
        assert_eq!(mm.stats().memmaps_written, u64::from(SECTIONS), "S1.9: each memmap is written once");
        mm.check();
    }
}

/// S1.8: less memory is left than requested. Growing reports progress, the allocation tries again and fails; a
/// smaller request succeeds.
#[test]
fn a_zone_that_grows_by_too_little_is_tried_again() {
    let mm = machine(InitPolicy::Deferred, &[(0, SECTION_PAGES), (SECTION_PAGES, 3)]);
    let mut blocks = 0;
    while mm.alloc_pages(Order::MAX, Gfp::PageTable).is_ok() {
        blocks += 1;
    }
    assert!(blocks > 20, "{blocks} buddy blocks");
    assert_eq!((initialised(mm), mm.stats().deferred_pages()), (2, 0));
    mm.check();
    let last: Vec<Pfn> = std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::PageTable).ok()).collect();
    let beyond = last.iter().filter(|pfn| pfn.get() >= SECTION_PAGES).count();
    assert_eq!(beyond, 3);
    mm.check();
}

/// S1.10: memory maps with one zone and with two, with holes, with few pages in the last section, and with no
/// section to leave for later.
#[test]
fn memory_maps_of_all_kinds_boot() {
    const HIGH: u32 = 1 << 20;
    let maps: [&[(u32, u32)]; 6] = [
        &[(0, SECTION_PAGES)],
        &[(0, 5 * SECTION_PAGES)],
        &[(0, 2 * SECTION_PAGES + 1), (3 * SECTION_PAGES + 77, SECTION_PAGES)],
        &[(0, 2 * SECTION_PAGES), (HIGH, 3 * SECTION_PAGES)],
        &[(0, 2 * SECTION_PAGES), (HIGH + 5, 20)],
        &[(0, 40_000), (HIGH - SECTION_PAGES, SECTION_PAGES), (HIGH + SECTION_PAGES, 2 * SECTION_PAGES)],
    ];
    for map in maps {
        let [mm, eager] = [InitPolicy::Deferred, InitPolicy::Eager].map(|init| machine(init, map));
        let (there, whole) = (mm.stats(), eager.stats());
        for (zone, of_eager) in there.zones.iter().zip(whole.zones) {
            assert_eq!((zone.spanned, zone.present), (of_eager.spanned, of_eager.present), "{map:?}");
        }
        mm.check();
        finish(mm);
        mm.check();
        assert_eq!(mm.stats().zones, whole.zones, "{map:?}");
        assert_eq!(take(mm, u32::MAX).len(), take(eager, u32::MAX).len(), "{map:?}");
    }
}

/// S1.11: a zone grows by whole sections, in buddy blocks of the largest order. The simulated memmap is full of
/// garbage, so reading a page before it is written panics.
#[test]
fn growth_is_by_whole_sections_in_the_largest_blocks() {
    let mm = deferred();
    let zone = NodeId::FIRST.zone(ZoneType::Dma32);
    let largest = || mm.free_blocks(zone)[usize::from(Order::MAX.get())].iter().sum::<u32>();
    for section in 1..SECTIONS {
        let before = (initialised(mm), mm.stats().deferred_pages(), largest());
        assert!(mm.init_deferred());
        let (sections, to_come, blocks) = (initialised(mm), mm.stats().deferred_pages(), largest());
        assert_eq!(sections, before.0 + 1);
        // The last section holds the memmaps of all sections.
        let pages = if section == SECTIONS - 1 { SECTION_PAGES - SECTIONS * 512 } else { SECTION_PAGES };
        assert_eq!(before.1 - to_come, u64::from(pages));
        assert_eq!(blocks - before.2, pages / Order::MAX.pages());
        mm.check();
    }
}

/// S1.18: while memory is initialised and used, managed, present and spanned pages are constant. Free, used and
/// deferred pages add up to managed ones (`check`).
#[test]
fn accounts_balance_while_memory_is_initialised() {
    let mm = deferred();
    let start = mm.stats().zones[0];
    let (first, mut held) = (mm.stats().deferred_pages(), Vec::new());
    for round in 0..24u32 {
        if round % 5 == 4 {
            mm.init_deferred();
        } else {
            held.extend(take(mm, 9000));
        }
        if round % 3 == 2 {
            held.drain(..4000).for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
        }
        mm.check();
        let (zone, to_come) = (mm.stats().zones[0], mm.stats().deferred_pages());
        let sizes = |zone: ZoneStats| (zone.managed, zone.present, zone.spanned);
        assert_eq!(sizes(zone), sizes(start));
        assert_eq!(zone.free + zone.pcp + held.len() as u64 + to_come, zone.managed);
    }
    assert!(mm.stats().deferred_pages() < first, "no section was initialised");
}
