//! When a request takes over a whole pageblock of the other type, and what it takes otherwise.

use std::vec::Vec;

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, SectionNr};
use crate::free_block::FreeBlock;
use crate::free_lists::Place;
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::options::MemoryContent;
use crate::page::{Holder, Kind, PageState};
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::sim::{Sim, SimMachine};
use crate::zone::ZoneGuard;
use crate::{Mm, OwnerId};

const BLOCK: SectionNr = SectionNr::new(32);
const ZONE: ZoneId = NodeId::FIRST.zone(ZoneType::Normal);
const HALF: u32 = PAGEBLOCK_PAGES / 2;

/// A machine whose zone Normal has `pageblocks` pageblocks, all of them free and movable.
fn machine(pageblocks: u32) -> &'static Mm<Sim> {
    let mm = SimMachine::default().boot();
    // The first one holds the memmap.
    let plugged = PageblockSet::range(0..pageblocks + 1);
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, plugged, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Normal).unwrap();
    mm
}

/// Takes single pages of pageblock `pageblock` off the free lists in the name of `holder`, the lowest first, or
/// only the ones with even numbers.
fn take(zone: &mut ZoneGuard<'_>, pageblock: u32, pages: u32, step: u32, holder: Holder) {
    let first = BLOCK.start().add(pageblock * PAGEBLOCK_PAGES);
    let section = zone.section_pages(first);
    let mt = section.section().pageblocks.migrate_type(pageblock);
    let wanted = |pfn: Pfn| pfn.get().is_multiple_of(step) && pfn.get() - first.get() < pages * step;
    zone.split_to_pageblocks(section, pageblock);
    // Everything that is free leaves the lists, and what is not wanted returns.
    let free: Vec<_> = section.blocks(&(pageblock..pageblock + 1)).collect();
    for (pfn, state) in free {
        assert!(state.kind() == Kind::Free && state.order() <= Order::PAGEBLOCK);
        let block = zone.remove(FreeBlock::new(section, pfn, state.order(), mt));
        _ = zone.allocate_pages(block, holder);
    }
    for pfn in (0..PAGEBLOCK_PAGES).map(|page| first.add(page)).filter(|&pfn| !wanted(pfn)) {
        zone.free_and_merge(section, pfn, Order::PAGE, Place::Tail);
    }
}

fn type_of(mm: &Mm<Sim>, pageblock: u32) -> MigrateType {
    mm.sparse.entry(BLOCK).pageblocks.migrate_type(pageblock)
}

/// Takes one page of type `mt`; returns its pageblock.
fn take_one(mm: &Mm<Sim>, mt: MigrateType) -> u32 {
    let holder = if mt == MigrateType::Movable { Holder::Unclaimed } else { Holder::Kernel };
    let off = mm.irq_off();
    let mut zone = mm.lock_zone(ZONE, &off);
    let block = zone.rmqueue(Order::PAGE, mt).expect("a free page");
    zone.allocate(block, holder).pageblock()
}

/// A kernel page takes over a pageblock of which half is free. Of one with more movable pages than that it takes a
/// page, and the pageblock keeps its type: kernel pages would prevent each such pageblock from being taken away.
#[test]
fn a_pageblock_is_taken_over_if_half_of_it_is_free() {
    let owned = Holder::Owned { owner: OwnerId(0), index: 1 };
    for holder in [Holder::Unclaimed, owned] {
        for (used, expected) in [(HALF, MigrateType::Unmovable), (HALF + 1, MigrateType::Movable)] {
            let mm = machine(1);
            take(&mut mm.lock_zone(ZONE, &mm.irq_off()), 1, used, 1, holder);
            assert_eq!(take_one(mm, MigrateType::Unmovable), 1);
            assert_eq!(type_of(mm, 1), expected, "{used} pages are in use by {holder:?}");
            // The rest follows the type.
            let free = mm.lock_zone(ZONE, &mm.irq_off()).pages(expected);
            assert_eq!(free, u64::from(PAGEBLOCK_PAGES - used - 1));
        }
    }
}

/// Pages that do not move anyway speak for a kernel page, and against a movable one.
#[test]
fn pages_of_the_type_count_as_free_ones() {
    for holder in [Holder::Kernel, Holder::PageTable, Holder::Tagged(1)] {
        let mm = machine(1);
        take(&mut mm.lock_zone(ZONE, &mm.irq_off()), 1, 400, 1, holder);
        take_one(mm, MigrateType::Unmovable);
        assert_eq!(type_of(mm, 1), MigrateType::Unmovable, "{holder:?}");
        // The other way: 111 pages are free and 401 do not move.
        take_one(mm, MigrateType::Movable);
        assert_eq!(type_of(mm, 1), MigrateType::Unmovable, "{holder:?}");
    }
}

/// Pages on a per-CPU list speak for neither type: a CPU may allocate them at any time.
#[test]
fn pages_on_per_cpu_lists_do_not_count() {
    let mm = machine(1);
    take(&mut mm.lock_zone(ZONE, &mm.irq_off()), 1, HALF + 1, 1, Holder::Kernel);
    for page in 0..HALF + 1 {
        let page = mm.sparse.page(BLOCK.start().add(PAGEBLOCK_PAGES + page));
        page.set_state(PageState::new(Kind::Pcp, Order::PAGE));
    }
    take_one(mm, MigrateType::Unmovable);
    assert_eq!(type_of(mm, 1), MigrateType::Movable);
}

/// A kernel page looks at a pageblock however small its free buddy blocks are.
#[test]
fn a_kernel_page_looks_at_small_buddy_blocks() {
    let mm = machine(1);
    take(&mut mm.lock_zone(ZONE, &mm.irq_off()), 1, HALF, 2, Holder::Kernel);
    take_one(mm, MigrateType::Unmovable);
    assert_eq!(type_of(mm, 1), MigrateType::Unmovable);
}

/// A movable page takes over a pageblock only for a large free buddy block: small ones are not worth a look.
#[test]
fn a_movable_page_does_not_look_at_small_buddy_blocks() {
    // With every second page in use the free buddy blocks are single pages, and half of the pageblock is free.
    for (step, expected) in [(2, MigrateType::Unmovable), (1, MigrateType::Movable)] {
        let mm = machine(1);
        take(&mut mm.lock_zone(ZONE, &mm.irq_off()), 1, HALF, step, Holder::Unclaimed);
        {
            let off = mm.irq_off();
            let mut zone = mm.lock_zone(ZONE, &off);
            let pages = zone.section_pages(BLOCK.start());
            zone.move_free(pages, &(1..2), MigrateType::Unmovable);
            pages.section().pageblocks.set_type(1, MigrateType::Unmovable);
        }
        take_one(mm, MigrateType::Movable);
        assert_eq!(type_of(mm, 1), expected, "every page of {step}");
    }
}

/// The largest free buddy block decides which pageblock is taken over. So kernel pages gather in the pageblock that
/// has most room for them.
#[test]
fn the_largest_free_buddy_block_is_taken_first() {
    // A pageblock that is wholly free wins.
    let mm = machine(3);
    for full in [1, 3] {
        take(&mut mm.lock_zone(ZONE, &mm.irq_off()), full, 100, 1, Holder::Unclaimed);
    }
    assert_eq!(take_one(mm, MigrateType::Unmovable), 2);
    let types = [1, 2, 3].map(|pageblock| type_of(mm, pageblock));
    assert_eq!(types, [MigrateType::Movable, MigrateType::Unmovable, MigrateType::Movable]);

    // Else the one with the largest free buddy block, here of 256 pages. The other one has 128 at most.
    let mm = machine(3);
    for (pageblock, used) in [(1, HALF + 1), (2, HALF), (3, HALF + 1)] {
        take(&mut mm.lock_zone(ZONE, &mm.irq_off()), pageblock, used, 1, Holder::Unclaimed);
    }
    assert_eq!(take_one(mm, MigrateType::Unmovable), 2);
    assert_eq!(type_of(mm, 2), MigrateType::Unmovable);
}

/// If no pageblock is worth taking over, the smallest buddy block that fits is cut.
#[test]
fn the_smallest_buddy_block_is_cut_if_no_pageblock_is_taken_over() {
    let mm = machine(2);
    // The smallest free buddy block has two pages in the first pageblock, and one page in the second.
    take(&mut mm.lock_zone(ZONE, &mm.irq_off()), 1, HALF + 2, 1, Holder::Unclaimed);
    take(&mut mm.lock_zone(ZONE, &mm.irq_off()), 2, PAGEBLOCK_PAGES - 1, 1, Holder::Unclaimed);
    assert_eq!([(); 2].map(|()| take_one(mm, MigrateType::Unmovable)), [2, 1]);
    assert_eq!([1, 2].map(|pageblock| type_of(mm, pageblock)), [MigrateType::Movable; 2]);
}
