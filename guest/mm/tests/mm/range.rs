//! Ranges of plugged memory: they join their zone untouched, are initialised as they are wanted, and leave as they came.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::thread;

use tidevm_mm::{
    AddAndOnlineError, AddError, AddedPart, BlockState, DevPagemap, FaultStep, Gfp, InitPolicy, MEMMAP_PAGES,
    MemoryContent, MemremapError, Mm, NodeId, OfflineError, OnlineError, Order, PageblockSet, Pfn,
    RemoveError, RemovedPart, SECTION_PAGES, SectionNr, SectionRange, SectionState, Stats, ZoneType,
};
use tidevm_mm_sim::{PlatformCall, Sim, SimMachine};

use crate::faults::state_of;
use crate::workload::{BLOCK, Random, Tenant};

const NODE: NodeId = NodeId::FIRST;
/// Sections of the table, and of the region behind boot memory.
const SECTIONS: u32 = 64;
const REGION: u32 = 32;

fn machine(init: InitPolicy, cpus: usize) -> &'static Mm<Sim> {
    SimMachine {
        sections: SECTIONS,
        cpus,
        options: SimMachine::OPTIONS.with_init(init).with_content(MemoryContent::Zero),
        page_tables: true,
        ..SimMachine::default()
    }
    .boot()
}

fn lazy() -> &'static Mm<Sim> {
    machine(InitPolicy::Lazy, 1)
}

/// A lazy machine with `count` sections behind boot memory, whose page tables take no memory.
fn without_tables(count: u32) -> &'static Mm<Sim> {
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    SimMachine { sections: BLOCK.get() + count, options, ..SimMachine::default() }.boot()
}

/// `count` sections from the `first`-th of the region on.
fn range(first: u32, count: u32) -> SectionRange {
    SectionRange::new(section(first), count).expect("the table has it")
}

/// The `index`-th section of the region.
fn section(index: u32) -> SectionNr {
    SectionNr::new(BLOCK.get() + index)
}

/// Plugs a range as memory blocks of `block` sections.
fn plug_by(mm: &Mm<Sim>, range: SectionRange, block: u32) -> Result<SectionNr, AddedPart> {
    mm.hotplug().add_and_online_memory(NODE, range, block, ZoneType::Movable, MemoryContent::Zero, || true)
}

fn plug(mm: &Mm<Sim>, range: SectionRange) {
    assert_eq!(plug_by(mm, range, 1), Ok(range.end()));
    mm.check();
}

fn unplug(mm: &Mm<Sim>, range: SectionRange) -> Result<(), RemovedPart> {
    let result = mm.hotplug().offline_and_remove_from_end(range, || true);
    mm.check();
    result
}

/// Sections of the region in `state`.
fn in_state(mm: &Mm<Sim>, state: SectionState) -> Vec<u32> {
    (0..REGION).filter(|&index| mm.section_state(section(index)) == state).collect()
}

fn take_all(mm: &Mm<Sim>) -> Vec<Pfn> {
    std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()).collect()
}

fn give_back(mm: &Mm<Sim>, pages: Vec<Pfn>) {
    pages.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
}

/// All counters are those of an eager machine at once, and nothing is mapped or initialised for it. All of it can be
/// allocated, each page once, and the end is that of an eager machine too.
#[test]
fn a_range_joins_its_zone_untouched() {
    for block in [1, 4] {
        let [mm, eager] = [lazy(), machine(InitPolicy::Eager, 1)];
        for mm in [mm, eager] {
            assert_eq!(plug_by(mm, range(0, 8), block), Ok(section(8)));
            mm.check();
        }
        let (stats, whole) = (mm.stats(), eager.stats());
        // The simulated machine takes a table per mapping, and so fewer for a range.
        let movable =
            |stats: &Stats| (stats.zones[2].present, stats.zones[2].managed, stats.zones[2].all_free());
        assert_eq!(movable(&stats), movable(&whole));
        assert_eq!(
            (stats.memmap_altmap_pages, stats.blocks_online),
            (whole.memmap_altmap_pages, whole.blocks_online)
        );
        assert_eq!(stats.zones[2].deferred, u64::from(8 * (SECTION_PAGES - MEMMAP_PAGES)));
        assert_eq!(in_state(mm, SectionState::Absent).len(), REGION as usize);
        assert!(range(0, 8).sections().all(|nr| !mm.platform().is_mapped(nr.start())));

        let page = mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page");
        assert_eq!(in_state(mm, SectionState::Online), (0..block).collect::<Vec<_>>(), "one memory block");
        assert_eq!(page.section(), section(0));
        mm.check();
        mm.free_pages(page, Order::PAGE);
        let (pages, of_eager) = (take_all(mm), take_all(eager));
        assert_eq!(pages.iter().collect::<HashSet<_>>().len(), pages.len(), "each page once");
        let in_region = |pages: &[Pfn]| pages.iter().filter(|page| page.section() >= section(0)).count();
        assert_eq!(in_region(&pages), in_region(&of_eager));
        assert_eq!((mm.stats().deferred_pages(), in_state(mm, SectionState::Online).len()), (0, 8));
        mm.check();
        give_back(mm, pages);
        assert_eq!(unplug(mm, range(0, 8)), Ok(()));
        assert_eq!(mm.stats().zones[2].present, 0);
    }
}

/// What nobody has wanted leaves without a grace period, a drain or a look at a page, whatever its size. Everything is as
/// before.
#[test]
fn a_range_leaves_as_it_came() {
    let mm = lazy();
    let before = state_of(mm, SECTIONS).of_region();
    for round in 0..3 {
        plug(mm, range(0, 16));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        let drains = mm.stats().pcp_drains;
        mm.platform().watch(move |call| seen.lock().unwrap().push(call));
        mm.hotplug().offline_and_remove_from_end(range(0, 16), || unreachable!("one step")).unwrap();
        mm.platform().unwatch();
        assert_eq!(*calls.lock().unwrap(), [PlatformCall::Release(range(0, 16))], "round {round}");
        assert_eq!(mm.stats().pcp_drains, drains);
        assert_eq!(state_of(mm, SECTIONS).of_region(), before);
    }
}

/// Growing and shrinking in parts: neighbours become one range, and any part leaves.
#[test]
fn parts_come_and_go() {
    let mm = lazy();
    let runs = |mm: &Mm<Sim>| {
        let mut runs = Vec::new();
        mm.hotplug().each_memory_block(BLOCK, |block| {
            assert_eq!(
                (block.state, block.boot, block.memmap_on_memory),
                (BlockState::Deferred, false, true)
            );
            assert_eq!(
                (block.plugged, block.memmap, block.zone),
                (SECTION_PAGES, MEMMAP_PAGES, Some(NODE.zone(ZoneType::Movable)))
            );
            runs.push((block.first.get() - BLOCK.get(), block.count));
            true
        });
        runs
    };
    let spanned = |mm: &Mm<Sim>| mm.stats().zones[2].spanned / u64::from(SECTION_PAGES);
    plug(mm, range(8, 4));
    plug(mm, range(0, 4));
    assert_eq!((runs(mm), spanned(mm)), (vec![(0, 4), (8, 4)], 12));
    plug(mm, range(4, 4));
    assert_eq!(runs(mm), [(0, 12)]);
    assert_eq!(unplug(mm, range(5, 2)), Ok(()));
    assert_eq!((runs(mm), spanned(mm)), (vec![(0, 5), (7, 5)], 12));
    assert_eq!(unplug(mm, range(0, 2)), Ok(()));
    assert_eq!(unplug(mm, range(9, 3)), Ok(()));
    assert_eq!((runs(mm), spanned(mm)), (vec![(2, 3), (7, 2)], 7));
    // A walk that begins in the middle of a range.
    let mut first = None;
    mm.hotplug().each_memory_block(section(3), |block| {
        first = Some((block.first, block.count));
        false
    });
    assert_eq!(first, Some((section(3), 2)));
    // A range that has a hole goes as far as the hole.
    let hole = RemovedPart { first: section(7), error: Some(OfflineError::NotOnline) };
    assert_eq!(unplug(mm, range(2, 7)), Err(hole));
    assert_eq!((runs(mm), spanned(mm)), (vec![(2, 3)], 3));
}

/// Pages in use hold the memory blocks that they cannot leave, and no other.
#[test]
fn pages_in_use_hold_their_memory_block_only() {
    let mm = lazy();
    plug(mm, range(0, 12));
    let pages: Vec<Pfn> =
        (0..2 * SECTION_PAGES).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()).collect();
    let used = in_state(mm, SectionState::Online);
    assert_eq!(used, [0, 1, 2], "memory is used from the lowest address up");
    let held = pages.iter().copied().find(|page| page.section() == section(1)).unwrap();
    pages.iter().for_each(|&page| {
        if page == held {
            mm.set_holder(page, 7)
        }
    });
    let rest = pages.into_iter().filter(|&page| page != held).collect();
    give_back(mm, rest);
    let removed = unplug(mm, range(0, 12)).unwrap_err();
    assert_eq!(removed.first, section(2));
    let Some(OfflineError::Unmovable(stuck)) = removed.error else { panic!("{removed:?}") };
    assert_eq!((stuck.pages, stuck.first[0].map(|(pfn, _)| pfn)), (1, Some(held)));
    assert_eq!((in_state(mm, SectionState::Online), mm.stats().zones[2].deferred), (vec![0, 1], 0));
    mm.free_pages(held, Order::PAGE);
    assert_eq!(unplug(mm, range(0, 2)), Ok(()));
}

/// Pages that can move do: the content of all of them stays, though their memory leaves.
#[test]
fn pages_move_from_what_leaves_to_what_is_deferred() {
    let mm = lazy();
    plug(mm, range(0, 2));
    let tenant = Tenant::new(mm, 1, SECTION_PAGES as usize);
    tenant.fill_all();
    plug(mm, range(2, 2));
    assert_eq!(unplug(mm, range(1, 1)), Ok(()), "its pages fit into what is deferred");
    tenant.verify_all();
    assert!(in_state(mm, SectionState::Online).contains(&2));
    assert_eq!(tenant.release_all(), SECTION_PAGES as usize);
    assert_eq!(unplug(mm, range(2, 2)), Ok(()));
    assert_eq!(unplug(mm, range(0, 1)), Ok(()));
}

/// A part of a deferred memory block is unplugged: that memory block is initialised, and no other.
#[test]
fn a_part_of_a_deferred_memory_block_leaves() {
    let mm = lazy();
    plug(mm, range(0, 8));
    let pageblocks = PageblockSet::range(10..14);
    mm.hotplug().offline_pageblocks(section(3), pageblocks).unwrap();
    mm.check();
    assert_eq!(in_state(mm, SectionState::Online), [3]);
    assert_eq!(mm.plugged(section(3)), PageblockSet::ALL.without(pageblocks));
    assert_eq!(unplug(mm, range(0, 8)), Ok(()), "it leaves with what is plugged of it");
    assert_eq!(mm.stats().zones[2].present, 0);
}

/// Deferred memory is there for every operation that names it.
#[test]
fn deferred_memory_is_not_vacant() {
    let mm = lazy();
    plug(mm, range(0, 6));
    let all = PageblockSet::ALL;
    let exists = AddedPart { end: section(4), error: AddError::Exists.into() };
    assert_eq!(plug_by(mm, range(4, 4), 1), Err(exists));
    assert_eq!(mm.hotplug().add_memory(NODE, section(5), all, MemoryContent::Zero), Err(AddError::Exists));
    let map = DevPagemap::new(range(5, 2).frames(), NODE);
    assert_eq!(mm.memremap_pages(map), Err(MemremapError::Conflict(section(5))));
    assert_eq!(in_state(mm, SectionState::Online), [], "nothing was initialised to find that");
    assert_eq!(mm.hotplug().remove_memory(section(0)), Err(RemoveError::Online));
    assert_eq!(mm.hotplug().online(section(1), ZoneType::Movable), Err(OnlineError::Online));
    assert_eq!(mm.hotplug().online_pageblocks(section(2), PageblockSet::FIRST), Err(OnlineError::Plugged));
    mm.hotplug().offline(section(3)).expect("a memory block that nobody uses");
    mm.check();
    assert_eq!(in_state(mm, SectionState::Present), [3]);
    mm.hotplug().remove_memory(section(3)).unwrap();
    mm.hotplug().offline_and_remove_memory(range(4, 2)).unwrap();
    assert_eq!(unplug(mm, range(0, 3)), Ok(()));
    assert_eq!(mm.stats().zones[2].present, 0);
}

/// An allocation of many pageblocks finds memory that nobody has wanted.
#[test]
fn contiguous_pages_come_from_deferred_memory() {
    let mm = lazy();
    plug(mm, range(0, 4));
    let pages = mm.alloc_contig_pages(60).expect("60 pageblocks in a row");
    assert!(range(0, 4).sections().any(|nr| nr == pages.start().section()));
    mm.check();
    mm.free_contig_range(pages);
    assert_eq!(unplug(mm, range(0, 4)), Ok(()));
}

/// A section that holds too much of a memmap for the pageblocks that are wanted is not initialised in vain, and neither is
/// memory of another zone.
#[test]
fn contiguous_pages_initialise_what_can_hold_them_only() {
    let mm = without_tables(REGION);
    plug(mm, range(0, 4));
    let normal = |first| {
        mm.hotplug().add_and_online_memory(
            NODE,
            range(first, 4),
            4,
            ZoneType::Normal,
            MemoryContent::Zero,
            || true,
        )
    };
    assert_eq!(normal(8), Ok(section(12)));
    assert!(mm.alloc_contig_pages(64).is_err(), "each section holds its memmap");
    assert_eq!(in_state(mm, SectionState::Online), []);
    assert_eq!(plug_by(mm, range(4, 4), 4), Ok(section(8)));
    let pages = mm.alloc_contig_pages(64).expect("a section without a memmap");
    assert_eq!((pages.start(), in_state(mm, SectionState::Online)), (section(5).start(), vec![4, 5, 6, 7]));
    mm.free_contig_range(pages);
    assert_eq!(unplug(mm, range(0, 12)).map_err(|part| part.first), Ok(()));
}

/// Pages that are in the way of a removal can move to all the room that there is once deferred memory has left: other
/// zones keep nothing back for that memory any more.
#[test]
fn what_has_left_takes_no_room_from_pages_that_move() {
    const MANY: u32 = 224;
    let mm = without_tables(MANY);
    plug(mm, range(0, 1));
    let tenant = Tenant::new(mm, 1, 25_000);
    tenant.fill_all();
    let boot = &mm.stats().zones[0];
    let kept: Vec<Pfn> = (0..boot.all_free() - 29_000)
        .map(|_| mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("boot memory"))
        .collect();
    plug(mm, range(1, MANY - 1));
    assert_eq!(unplug(mm, range(0, MANY)), Ok(()));
    tenant.verify_all();
    assert_eq!(tenant.release_all(), 25_000);
    give_back(mm, kept);
}

/// Where the table of ranges is full, memory is initialised at once, and nothing of the attempt stays.
#[test]
fn what_does_not_fit_into_the_table_comes_at_once() {
    // Every other section, and more than the table of ranges has room for.
    const MANY: u32 = 2 * 66;
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    let mm = SimMachine { sections: BLOCK.get() + MANY, options, page_tables: true, ..SimMachine::default() }
        .boot();
    let sections = BLOCK.get() + MANY;
    while mm.init_deferred() {}
    let before = state_of(mm, sections).of_region();
    (0..MANY).step_by(2).for_each(|first| plug(mm, range(first, 1)));
    let online = (0..MANY).filter(|&nr| mm.section_state(section(nr)) == SectionState::Online);
    assert_eq!(online.collect::<Vec<_>>(), [128, 130]);
    let present = mm.stats().zones[2].present;
    assert_eq!(present, u64::from(MANY / 2 * SECTION_PAGES));
    (0..MANY).step_by(2).for_each(|first| assert_eq!(unplug(mm, range(first, 1)), Ok(())));
    assert_eq!(state_of(mm, sections).of_region(), before);
    // What was set aside for the last ones was given back, and can be again.
    plug(mm, range(128, 4));
    assert_eq!(unplug(mm, range(128, 4)), Ok(()));
}

/// Boot memory that is deferred does not leave.
#[test]
fn boot_memory_does_not_leave_with_a_range() {
    let mm = without_tables(REGION);
    let deferred = mm.stats().deferred_pages();
    let boot = SectionRange::new(SectionNr::new(1), 1).unwrap();
    assert!(deferred > 0 && mm.is_deferred(boot));
    let refused = RemovedPart { first: boot.end(), error: Some(OfflineError::NotOnline) };
    assert_eq!(unplug(mm, boot), Err(refused));
    assert_eq!(mm.stats().deferred_pages(), deferred);
}

/// Memory of a node that had none is found by allocations as soon as it is deferred.
#[test]
fn a_node_gets_its_first_memory_as_a_range() {
    let mm = lazy();
    let node = NodeId::new(1);
    let added = mm.hotplug().add_and_online_memory(
        node,
        range(0, 2),
        1,
        ZoneType::Movable,
        MemoryContent::Zero,
        || true,
    );
    assert_eq!(added, Ok(section(2)));
    mm.check();
    assert_eq!(mm.stats().nodes[1][2].present, u64::from(2 * SECTION_PAGES));
    let pages = take_all(mm);
    assert!(pages.iter().any(|page| page.section() == section(1)));
    // Offline and online again, it is in the zone of its node.
    give_back(mm, pages);
    mm.hotplug().offline(section(1)).unwrap();
    mm.hotplug().online(section(1), ZoneType::Movable).unwrap();
    mm.check();
    assert_eq!(mm.stats().nodes[1][2].present, u64::from(2 * SECTION_PAGES));
    assert_eq!(unplug(mm, range(0, 2)), Ok(()));
    assert_eq!(mm.stats().nodes[1][2].present, 0);
}

/// Memory whose content is unknown has its struct pages written.
#[test]
fn memory_of_unknown_content_is_not_taken_for_zero() {
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy);
    let mm = SimMachine { sections: SECTIONS, options, ..SimMachine::default() }.boot();
    let unknown = |first| {
        mm.hotplug().add_and_online_memory(
            NODE,
            range(first, 2),
            1,
            ZoneType::Movable,
            MemoryContent::Unknown,
            || true,
        )
    };
    assert_eq!(unknown(0), Ok(section(2)));
    let pages = take_all(mm);
    assert!(pages.iter().any(|page| page.section() == section(1)));
    mm.check();
    give_back(mm, pages);
    assert_eq!(unplug(mm, range(0, 2)), Ok(()));
}

/// Ranges that are not alike stay apart, and an operation on all of them settles all of them.
#[test]
fn ranges_that_are_not_alike_stay_apart() {
    let mm = lazy();
    plug(mm, range(0, 2));
    assert_eq!(plug_by(mm, range(4, 4), 4), Ok(section(8)));
    let unknown = mm.hotplug().add_and_online_memory(
        NODE,
        range(2, 2),
        1,
        ZoneType::Movable,
        MemoryContent::Unknown,
        || true,
    );
    assert_eq!(unknown, Ok(section(4)));
    let mut runs = Vec::new();
    mm.hotplug().each_memory_block(section(0), |block| {
        runs.push((block.first.get() - BLOCK.get(), block.count, block.sections));
        true
    });
    assert_eq!(runs, [(0, 2, 1), (2, 2, 1), (4, 1, 4)]);
    // A walk that begins in the middle of a memory block begins with the next one.
    let mut is_empty = true;
    mm.hotplug().each_memory_block(section(5), |_| {
        is_empty = false;
        true
    });
    assert!(is_empty);
    mm.hotplug().offline_and_remove_memory(range(0, 8)).expect("all of it is settled");
    mm.check();
    assert_eq!(mm.stats().zones[2].present, 0);
}

/// The span of a zone ends with its own memory, though the memory of another zone beside it is deferred.
#[test]
fn spans_end_with_the_memory_of_their_zone() {
    let mm = without_tables(REGION);
    let normal = mm.hotplug().add_and_online_memory(
        NODE,
        range(4, 4),
        1,
        ZoneType::Normal,
        MemoryContent::Zero,
        || true,
    );
    assert_eq!(normal, Ok(section(8)));
    plug(mm, range(0, 4));
    plug(mm, range(8, 4));
    assert_eq!(unplug(mm, range(8, 4)), Ok(()));
    assert_eq!(mm.stats().zones[2].spanned, u64::from(4 * SECTION_PAGES));
    assert_eq!(unplug(mm, range(4, 4)), Ok(()));
    assert_eq!(mm.stats().zones[1].spanned, 0);
    assert_eq!(unplug(mm, range(0, 4)), Ok(()));
}

/// Of several memory blocks in the way the lowest is named, deferred or not. A page table for deferred memory must stay.
#[test]
fn the_lowest_memory_in_the_way_is_found() {
    let mm = lazy();
    mm.hotplug().add_memory(NODE, section(6), PageblockSet::ALL, MemoryContent::Zero).unwrap();
    plug(mm, range(2, 2));
    let map = DevPagemap::new(range(0, 8).frames(), NODE);
    assert_eq!(mm.memremap_pages(map), Err(MemremapError::Conflict(section(2))));
    assert!(mm.is_deferred(range(0, 3)) && !mm.is_deferred(range(4, 8)));
    mm.init_deferred();
    assert_eq!(mm.memremap_pages(map), Err(MemremapError::Conflict(section(2))));
    mm.hotplug().remove_memory(section(6)).unwrap();
    assert_eq!(unplug(mm, range(2, 2)), Ok(()));
    assert!(!mm.is_deferred(range(0, 8)));
}

/// Each step that can fail does, and leaves everything as it was.
#[test]
fn every_step_rolls_back() {
    let mm = lazy();
    let before = state_of(mm, SECTIONS).of_region();
    let no_table = AddAndOnlineError::Add(AddError::NoPageTable);
    let steps = [
        (FaultStep::MapDirect, 0, no_table),
        (FaultStep::PageTable, 0, no_table),
        (FaultStep::AllocMemmap, 0, AddAndOnlineError::Add(AddError::NoMemory)),
        (FaultStep::MapMemmap, 0, no_table),
        // The table for the memmaps.
        (FaultStep::PageTable, 1, no_table),
        (FaultStep::Online, 0, AddAndOnlineError::Online(OnlineError::Vetoed)),
    ];
    for (step, after, error) in steps {
        mm.platform().inject(step, after);
        assert_eq!(
            plug_by(mm, range(0, 8), 2),
            Err(AddedPart { end: section(0), error }),
            "{step:?} {after}"
        );
        assert_eq!(state_of(mm, SECTIONS).of_region(), before, "{step:?} {after}");
    }
    for (wrong, block) in
        [(range(0, 0), 1), (range(0, 3), 2), (range(1, 4), 2), (range(0, 6), 3), (range(0, 4), 0)]
    {
        let end = wrong.first();
        assert_eq!(plug_by(mm, wrong, block), Err(AddedPart { end, error: AddError::Misaligned.into() }));
    }
    let beyond = AddedPart { end: section(31), error: AddError::OutOfRange.into() };
    assert_eq!(plug_by(mm, range(31, 2), 1), Err(beyond));
    let normal = mm.hotplug().add_and_online_memory(
        NODE,
        range(0, 1),
        1,
        ZoneType::Dma32,
        MemoryContent::Zero,
        || true,
    );
    assert_eq!(normal, Err(AddedPart { end: section(0), error: OnlineError::WrongZone.into() }));
    // Only its end is in no such zone.
    let below = SectionNr::new(BLOCK.get() - 1);
    let across = mm.hotplug().add_and_online_memory(
        NODE,
        SectionRange::new(below, 2).unwrap(),
        1,
        ZoneType::Dma32,
        MemoryContent::Zero,
        || true,
    );
    assert_eq!(across, Err(AddedPart { end: below, error: OnlineError::WrongZone.into() }));
    assert_eq!(state_of(mm, SECTIONS).of_region(), before);
    plug(mm, range(0, 8));
    assert_eq!(unplug(mm, range(0, 8)), Ok(()), "nothing stayed set aside");
}

/// Where memory cannot be deferred, the memory blocks come one by one: what came before a failure stays, and the caller
/// can end it between two.
#[test]
fn memory_blocks_come_and_go_one_by_one_where_they_must() {
    let lazy = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    let elsewhere = lazy.with_memmap_on_memory(false);
    let without_growing = lazy.with_grow(false);
    for options in [SimMachine::OPTIONS, elsewhere, without_growing] {
        let memory = [(0, 4 * SECTION_PAGES)].into();
        let mm = SimMachine { sections: SECTIONS, memory, options, ..SimMachine::default() }.boot();
        let before = state_of(mm, SECTIONS).of_region();
        mm.platform().inject(FaultStep::Online, 2);
        let vetoed = AddedPart { end: section(4), error: OnlineError::Vetoed.into() };
        assert_eq!(plug_by(mm, range(0, 8), 2), Err(vetoed));
        assert_eq!(in_state(mm, SectionState::Online), [0, 1, 2, 3]);
        mm.check();
        let left = Cell::new(2);
        let go_on = || left.replace(left.get() - 1) > 1;
        let added = mm.hotplug().add_and_online_memory(
            NODE,
            range(4, 4),
            1,
            ZoneType::Movable,
            MemoryContent::Unknown,
            go_on,
        );
        assert_eq!((added, left.get()), (Ok(section(6)), 0));
        let stopped = mm.hotplug().offline_and_remove_from_end(range(0, 6), || false);
        assert_eq!(stopped, Err(RemovedPart { first: section(5), error: None }));
        assert_eq!(unplug(mm, range(0, 5)), Ok(()));
        let whole = mm.hotplug().add_and_online_memory(
            NODE,
            range(8, 1),
            1,
            ZoneType::Movable,
            MemoryContent::Unknown,
            || unreachable!("nothing is left to do"),
        );
        assert_eq!(whole, Ok(section(9)));
        assert_eq!(unplug(mm, range(8, 1)), Ok(()));
        // Half of a memory block cannot leave.
        assert_eq!(plug_by(mm, range(0, 2), 2), Ok(section(2)));
        let half = RemovedPart { first: section(2), error: Some(OfflineError::NotOnline) };
        assert_eq!(unplug(mm, range(1, 1)), Err(half));
        assert_eq!(unplug(mm, range(0, 2)), Ok(()));
        assert_eq!(state_of(mm, SECTIONS).of_region(), before);
    }
}

/// Half of a deferred memory block cannot leave either, and the table of ranges may be full: nothing is lost then.
#[test]
fn no_part_is_lost() {
    let mm = machine(InitPolicy::Lazy, 1);
    assert_eq!(plug_by(mm, range(0, 8), 4), Ok(section(8)));
    let half = RemovedPart { first: section(6), error: Some(OfflineError::NotOnline) };
    assert_eq!(unplug(mm, range(5, 1)), Err(half));
    assert_eq!(in_state(mm, SectionState::Online), [4, 5, 6, 7]);
    assert_eq!(unplug(mm, range(0, 8)), Ok(()));
}

/// CPUs allocate and free while ranges come and go. No page is lost, and each has one holder.
#[test]
fn ranges_come_and_go_under_load() {
    let mut random = Random::new("range::ranges_come_and_go_under_load");
    let mm = machine(InitPolicy::Lazy, 3);
    let before = state_of(mm, SECTIONS).of_region();
    thread::scope(|scope| {
        let users: Vec<_> = (1..3)
            .map(|cpu| {
                let mut random = random.fork();
                scope.spawn(move || Sim::run_on(cpu, || use_memory(mm, cpu as u64, &mut random)))
            })
            .collect();
        let mut plugged = vec![false; REGION as usize];
        while !users.iter().all(|user| user.is_finished()) {
            let (first, count) = (random.below(REGION as usize), 1 + random.below(8));
            let end = (first + count).min(REGION as usize);
            let run = plugged[first..end].iter().take_while(|&&is| is == plugged[first]).count();
            let here = range(first as u32, run as u32);
            let change = &mut plugged[first..first + run];
            if change[0] {
                let removed = mm.hotplug().offline_and_remove_from_end(here, || true);
                let kept = removed.map_or_else(|part| part.first.get() - here.first().get(), |()| 0);
                change[kept as usize..].fill(false);
            } else {
                plug_by(mm, here, 1).expect("nothing fails");
                change.fill(true);
            }
            mm.check();
        }
        for (index, _) in plugged.iter().enumerate().filter(|&(_, &is)| is) {
            assert_eq!(unplug(mm, range(index as u32, 1)), Ok(()), "all pages are free");
        }
    });
    assert_eq!(state_of(mm, SECTIONS).of_region(), before);
}

/// Takes and gives back pages, whose content says who holds them.
fn use_memory(mm: &'static Mm<Sim>, me: u64, random: &mut Random) {
    let mut held: Vec<(Pfn, Order)> = Vec::new();
    let word = |pfn: Pfn| me << 32 | u64::from(pfn.get());
    for _ in 0..6_000 {
        mm.platform().step(|| {
            if held.len() < 600 && random.chance(55) {
                let order = Order::new(random.below(Order::COUNT) as u8);
                if let Ok(pfn) = mm.alloc_pages(order, Gfp::Movable) {
                    mm.platform().write(pfn, word(pfn));
                    held.push((pfn, order));
                }
            } else if !held.is_empty() {
                let (pfn, order) = held.swap_remove(random.below(held.len()));
                assert_eq!(mm.platform().read(pfn), word(pfn));
                mm.free_pages(pfn, order);
            }
        });
    }
    held.into_iter().for_each(|(pfn, order)| mm.free_pages(pfn, order));
}
