//! What isolation refuses at once, and what it leaves to migration.

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, SectionNr};
use crate::isolation::{OfflineError, Stuck};
use crate::node::{NodeId, ZoneType};
use crate::options::MemoryContent;
use crate::page::{Holder, OwnerId};
use crate::page_alloc::Gfp;
use crate::pageblock_set::PageblockSet;
use crate::sim::{Sim, SimMachine};
use crate::{Mm, Options};

const BLOCK: SectionNr = SectionNr::new(32);
const HELD: u32 = 20;

fn machine(zone: ZoneType, memmap_on_memory: bool) -> &'static Mm<Sim> {
    let options = Options { memmap_on_memory, ..SimMachine::OPTIONS };
    let mm = SimMachine { options, ..SimMachine::default() }.boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, zone).unwrap();
    mm
}

/// Isolates `pageblocks` of section `nr`, and ends the isolation. Returns the pages that stand in the way and the
/// first of them.
fn refusal(mm: &Mm<Sim>, nr: SectionNr, pageblocks: PageblockSet) -> Option<(u32, Pfn, Holder)> {
    let pages = mm.sparse.pages(nr).expect("a memmap");
    let _hotplug = mm.hotplug();
    match mm.start_isolate(pages, pageblocks) {
        Ok(()) => {
            mm.undo_isolate(pages, pageblocks);
            None
        }
        Err(OfflineError::Unmovable(stuck)) => {
            let (pfn, holder) = stuck.first[0].expect("a page that stands in the way");
            Some((stuck.pages, pfn, holder))
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn one(pageblock: u32) -> PageblockSet {
    PageblockSet::range(pageblock..pageblock + 1)
}

/// A single page of each holder in a pageblock that is free otherwise. Owned pages move in every zone. Kernel pages,
/// and pages that have no owner yet, move in Movable only. A tagged page moves nowhere.
#[test]
fn a_page_stands_in_the_way_by_its_holder_and_zone() {
    let owned = Holder::Owned { owner: OwnerId(5), index: 9 };
    let holders = [
        (Holder::Unclaimed, false, true),
        (Holder::Kernel, false, true),
        (Holder::PageTable, false, true),
        (owned, false, false),
        (Holder::Tagged(3), true, true),
    ];
    for (zone, is_movable) in [(ZoneType::Movable, true), (ZoneType::Normal, false)] {
        let mm = machine(zone, true);
        mm.hotplug().alloc_contig_range(BLOCK, one(HELD)).unwrap();
        let first = BLOCK.start().add(HELD * PAGEBLOCK_PAGES);
        let held = first.add(77);
        for pfn in (0..PAGEBLOCK_PAGES).map(|page| first.add(page)).filter(|&pfn| pfn != held) {
            mm.free_pages(pfn, Order::PAGE);
        }
        for (holder, in_movable, elsewhere) in holders {
            mm.sparse.page(held).hold(Order::PAGE, holder);
            let expected = if is_movable { in_movable } else { elsewhere };
            assert_eq!(
                refusal(mm, BLOCK, one(HELD)),
                expected.then_some((1, held, holder)),
                "{holder:?} in {zone:?}"
            );
        }
        mm.sparse.page(held).hold(Order::PAGE, Holder::Unclaimed);
        mm.check();
    }
}

/// An allocated buddy block stands in the way only of a part of it: the part could not be on a list of its own.
#[test]
fn a_buddy_block_across_the_edge_stands_in_the_way() {
    let mm = machine(ZoneType::Movable, true);
    let large = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
    let at = large.pageblock();
    for half in [at, at + 1] {
        assert_eq!(refusal(mm, BLOCK, one(half)), Some((PAGEBLOCK_PAGES, large, Holder::Unclaimed)));
    }
    assert_eq!(refusal(mm, BLOCK, PageblockSet::range(at..at + 2)), None);
    let whole = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).unwrap();
    assert_eq!(refusal(mm, BLOCK, one(whole.pageblock())), None, "a whole pageblock");
    mm.check();
}

/// Memory that never moves, and memory that is not there.
#[test]
fn memmap_and_boot_memory_stand_in_the_way() {
    for memmap_on_memory in [true, false] {
        let mm = machine(ZoneType::Movable, memmap_on_memory);
        let memmap = (PAGEBLOCK_PAGES, BLOCK.start(), Holder::Memmap);
        assert_eq!(refusal(mm, BLOCK, one(0)), memmap_on_memory.then_some(memmap));
        mm.hotplug().offline_pageblocks(BLOCK, one(30)).unwrap();
        assert_eq!(refusal(mm, BLOCK, PageblockSet::range(30..31)), None, "an unplugged pageblock");
        let boot = SectionNr::new(0);
        let reserved = refusal(mm, boot, one(0)).map(|(pages, _, holder)| (pages, holder));
        assert_eq!(reserved, Some((PAGEBLOCK_PAGES, Holder::Reserved)));
        mm.check();
    }
}

/// A pageblock that is isolated already is not isolated again, and the ones before it are as they were.
#[test]
fn a_pageblock_is_isolated_once() {
    let mm = machine(ZoneType::Movable, true);
    let pages = mm.sparse.pages(BLOCK).unwrap();
    let count = || mm.zone(pages.section().zone()).nr_isolate_pageblock();
    let isolate = |pageblocks| mm.hotplug().mm.start_isolate(pages, pageblocks);
    isolate(one(HELD)).unwrap();
    for others in [HELD - 4..HELD + 4, HELD..HELD + 1] {
        assert_eq!(isolate(PageblockSet::range(others)), Err(OfflineError::Busy));
        assert_eq!(count(), 1);
        mm.check();
    }
    mm.undo_isolate(pages, one(HELD));
    assert_eq!(count(), 0);
}

/// The message has the number of pages, and the first of them with their holders.
#[test]
fn the_message_names_pages_and_holders() {
    let first =
        [Some((Pfn::new(0x123), Holder::Tagged(7))), Some((Pfn::new(0x200), Holder::Kernel)), None, None];
    let stuck = Stuck { pages: 30, listed: 2, first };
    let pages = "30 pages, 2 of them on per-CPU lists, 0x123 held by Tagged(7), 0x200 held by Kernel";
    let message = |error: OfflineError| std::format!("{error}");
    assert_eq!(message(OfflineError::Unmovable(stuck)), std::format!("pages cannot move: {pages}"));
    assert_eq!(
        message(OfflineError::NoRoom(stuck)),
        std::format!("no memory left to migrate pages to: {pages}")
    );
}
