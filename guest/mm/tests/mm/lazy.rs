//! Struct pages that are initialised when they are first used.

use tidevm_mm::sim::{Machine, Sim};
use tidevm_mm::{
    Content, Gfp, InitPolicy, Mm, NodeId, Order, Pfn, SECTION_PAGES, SectionNr, SubSections, ZoneType,
};

use crate::workload::BLOCK;

const ALL_PAGES: usize = SECTION_PAGES as usize;

fn machine(init: InitPolicy, content: Content) -> &'static Mm<Sim> {
    Machine { init, content, ..Machine::default() }.boot()
}

fn add(mm: &Mm<Sim>, content: Content) {
    mm.add_memory(NodeId::FIRST, BLOCK, SubSections::ALL, content).unwrap();
    mm.online(BLOCK, ZoneType::Movable).unwrap();
}

fn written(mm: &Mm<Sim>, nr: SectionNr) -> usize {
    mm.platform().written_pages(nr)
}

/// Every page that can be had, in the order in which they come.
fn take_all(mm: &Mm<Sim>) -> Vec<Pfn> {
    std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()).collect()
}

/// S4.21: 31 free blocks of 1024 pages, one of 512, and the memmap's own.
#[test]
fn onlining_writes_the_heads_of_free_blocks_and_nothing_else() {
    let mm = machine(InitPolicy::Lazy, Content::Zero);
    add(mm, Content::Zero);
    assert_eq!(written(mm, BLOCK), 31 + 1 + 1);
    mm.check();

    let mm = machine(InitPolicy::Eager, Content::Zero);
    add(mm, Content::Zero);
    assert_eq!(written(mm, BLOCK), ALL_PAGES);
}

/// S2.3, S2.4: what is written beside heads of free blocks is what was handed out.
#[test]
fn a_page_is_initialised_when_it_is_handed_out() {
    let mm = machine(InitPolicy::Lazy, Content::Zero);
    add(mm, Content::Zero);
    let before = written(mm, BLOCK);
    let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
    assert_eq!(written(mm, BLOCK), before, "its head was written, and its tails need not be");
    mm.split_page(block, Order::MAX);
    assert_eq!(written(mm, BLOCK), before + 1023);
    mm.free_contig_range(tidevm_mm::PfnRange::new(block, 1024));
    mm.check();

    let mm = machine(InitPolicy::Lazy, Content::Zero);
    add(mm, Content::Zero);
    let pages: Vec<Pfn> = (0..600).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
    // A refill takes 63 pages at most that nobody has asked for yet, and a split leaves ten heads.
    let touched = written(mm, BLOCK) - before;
    assert!((590..600 + 63 + 10).contains(&touched), "{touched} pages");
    mm.check();
    pages.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    mm.check();
}

/// Decision 3: one clearing, never two, where it is not known what is there.
#[test]
fn a_memmap_that_may_hold_anything_is_written_once() {
    let mm = machine(InitPolicy::Lazy, Content::Unknown);
    // Boot memory is left for later then.
    assert_eq!(mm.stats().memmaps_written, 1);
    while mm.init_deferred() {}
    assert_eq!(mm.stats().memmaps_written, 2);
    add(mm, Content::Unknown);
    assert_eq!((written(mm, BLOCK), mm.stats().memmaps_written), (ALL_PAGES, 3));
    mm.check();
}

/// Only what is fresh from its provider is known to be zero: not a memmap that was used before, and
/// none in pages of older memory.
#[test]
fn what_was_used_is_not_zero() {
    let mm = machine(InitPolicy::Lazy, Content::Zero);
    add(mm, Content::Zero);
    let pages = take_all(mm);
    pages.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    mm.offline(BLOCK).unwrap();
    mm.online(BLOCK, ZoneType::Movable).unwrap();
    assert_eq!(written(mm, BLOCK), ALL_PAGES);
    mm.check();

    let machine = Machine {
        init: InitPolicy::Lazy,
        content: Content::Zero,
        memmap_on_memory: false,
        ..Machine::default()
    };
    let mm = machine.boot();
    let used: Vec<Pfn> = take_all(mm);
    used.iter().for_each(|&page| mm.platform().write(page, 1));
    used.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    add(mm, Content::Zero);
    assert_eq!(written(mm, BLOCK), ALL_PAGES);
    mm.check();
}

/// S2.12 and the section state machine: whoever does not look at the memmap sees no difference, from
/// boot to the last page and back.
#[test]
fn eager_and_lazy_end_in_the_same_state() {
    let [eager, lazy] =
        [machine(InitPolicy::Eager, Content::Unknown), machine(InitPolicy::Lazy, Content::Zero)];
    let same = |what: &str| {
        for mm in [eager, lazy] {
            mm.check();
        }
        let [stats, others] = [eager, lazy].map(|mm| tidevm_mm::Stats { memmaps_written: 0, ..mm.stats() });
        assert_eq!(stats, others, "{what}");
        for zone in ZoneType::ALL {
            assert_eq!(
                eager.free_blocks(NodeId::FIRST.zone(zone)),
                lazy.free_blocks(NodeId::FIRST.zone(zone)),
                "{what}: {zone:?}"
            );
        }
    };
    same("boot");
    add(eager, Content::Unknown);
    add(lazy, Content::Zero);
    same("online");
    let (of_eager, of_lazy) = (take_all(eager), take_all(lazy));
    assert!(of_eager == of_lazy, "pages come in the same order");
    assert_eq!(
        of_eager.len() as u64,
        eager.stats().zones.iter().map(|zone| zone.managed).sum::<u64>()
            - eager.stats().zones.iter().map(|zone| zone.free + zone.pcp).sum::<u64>()
    );
    same("all taken");
    for &page in &of_eager {
        eager.free_pages(page, Order::PAGE);
        lazy.free_pages(page, Order::PAGE);
    }
    same("all free");
    for mm in [eager, lazy] {
        mm.offline(BLOCK).unwrap();
        mm.remove_memory(BLOCK).unwrap();
    }
    same("removed");
}

/// Boot memory: what is free is left alone there too.
#[test]
fn boot_writes_as_many_pages_as_there_are_blocks() {
    let mm = machine(InitPolicy::Lazy, Content::Zero);
    let heads: usize = [0, 1].map(|nr| written(mm, SectionNr::new(nr))).iter().sum();
    assert!(heads < 100, "{heads} pages were written of {}", 2 * ALL_PAGES);
}
