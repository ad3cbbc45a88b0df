//! Pageblocks that are evacuated round by round: what is tried again, when it is given up, what the error says, and
//! what is left behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use tidevm_mm::{
    FaultStep, Gfp, Holder, MemoryContent, Mm, MovableOwner, NodeId, OfflineError, Order, OwnerId,
    PageblockSet, Pfn, PfnRange, SectionNr, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, Tenant, unmovable};

const NEXT: SectionNr = SectionNr::new(33);

/// A default machine with `blocks` memory blocks of one section online in Movable.
fn machine(blocks: u32) -> &'static Mm<Sim> {
    let mm = SimMachine::default().boot();
    for nr in (32..32 + blocks).map(SectionNr::new) {
        mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(nr, ZoneType::Movable).unwrap();
    }
    mm
}

/// A default machine with one memory block of two sections online in Movable.
fn large_block() -> &'static Mm<Sim> {
    let mm = SimMachine::default().boot();
    let plugged = [PageblockSet::ALL; 2];
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, plugged, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm
}

/// Allocates the first `pages` pages of pageblock `pageblock` of section `nr`.
fn take(mm: &Mm<Sim>, nr: SectionNr, pageblock: u32, pages: u32) -> Vec<Pfn> {
    mm.hotplug().alloc_contig_range(nr, PageblockSet::range(pageblock..pageblock + 1)).unwrap();
    let first = nr.start().add(512 * pageblock);
    (pages..512).for_each(|page| mm.free_pages(first.add(page), Order::PAGE));
    drop(mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Movable)));
    (0..pages).map(|page| first.add(page)).collect()
}

/// Memory that was to be taken away and stays is used last: the next attempt will find it less in use.
#[test]
fn memory_that_stays_is_used_last() {
    for after in [0, 31, 62] {
        let mm = machine(2);
        mm.platform().inject(FaultStep::Isolate, after);
        assert_eq!(mm.hotplug().offline(BLOCK), Err(OfflineError::Busy));
        mm.check();
        // Pageblock 0 holds the memmap. Pageblocks are isolated in pairs, and the pair that failed was not.
        let end = (after + 1) & !1;
        let was_isolated = |pfn: &Pfn| pfn.section() == BLOCK && pfn.pageblock() < end;
        let taken: Vec<Pfn> = (0..62).map(|_| mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap()).collect();
        let first = taken.iter().position(was_isolated).unwrap_or(taken.len());
        assert!(taken[first..].iter().all(was_isolated), "after {after}: {taken:?}");
        assert_eq!(taken.len() - first, (end as usize / 2).saturating_sub(1), "after {after}");
    }
}

/// Memory that was added is used last, so that it can leave again: whole memory blocks, and pageblocks.
#[test]
fn memory_that_was_added_is_used_last() {
    let mm = machine(2);
    let sections = [(); 2].map(|()| mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).unwrap().section());
    assert_eq!(sections, [BLOCK, NEXT]);
    let pair = PageblockSet::range(10..12);
    mm.hotplug().offline_pageblocks(BLOCK, pair).unwrap();
    mm.hotplug().online_pageblocks(BLOCK, pair).unwrap();
    let largest: Vec<Pfn> = (0..60).map(|_| mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap()).collect();
    assert!(!largest.contains(&BLOCK.start().add(10 * 512)), "{largest:?}");
    mm.check();
}

/// A pageblock that was unplugged comes back as a movable one, whatever its pages were used for before.
#[test]
fn a_pageblock_comes_back_as_a_movable_one() {
    let mm = SimMachine::default().boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Normal).unwrap();
    let unmovable = || mm.pageblock_types(BLOCK)[0];
    let before = unmovable();
    let kernel = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Kernel).unwrap();
    assert!(unmovable() > before);
    let pageblocks = PageblockSet::range(kernel.pageblock()..kernel.pageblock() + 1);
    mm.free_pages(kernel, Order::PAGEBLOCK);
    let rest = unmovable();
    mm.hotplug().offline_pageblocks(BLOCK, pageblocks).unwrap();
    mm.hotplug().online_pageblocks(BLOCK, pageblocks).unwrap();
    assert!(unmovable() < rest, "{} of {rest} pageblocks are unmovable", unmovable());
    mm.check();
}

/// Pages that cannot move are counted and named in every section of a memory block, not only in the first that has
/// one.
#[test]
fn pages_that_cannot_move_are_named_in_all_sections() {
    let mm = large_block();
    let held: Vec<Pfn> = [(BLOCK, 10, 2), (NEXT, 0, 1), (NEXT, 63, 3)]
        .into_iter()
        .flat_map(|(nr, pageblock, pages)| take(mm, nr, pageblock, pages))
        .collect();
    for (tag, &pfn) in (0..).zip(&held) {
        mm.set_holder(pfn, tag);
    }
    let named = |tag: u32| Some((held[tag as usize], Holder::Tagged(tag)));
    let stuck = (6, 0, [0, 1, 2, 3].map(named));
    let before = mm.platform().grace_periods();
    assert_eq!(unmovable(mm.hotplug().offline(BLOCK)), stuck);
    assert_eq!(
        mm.platform().grace_periods(),
        before + 1,
        "found before anything moves, after lists were stopped"
    );
    mm.check();
    held.iter().for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
    mm.hotplug().offline(BLOCK).unwrap();
    mm.check();
}

/// The same for pages without an owner, which are given up after some rounds.
#[test]
fn pages_that_did_not_move_are_named_in_all_sections() {
    let mm = large_block();
    let held: Vec<Pfn> = [(BLOCK, 10, 1), (NEXT, 7, 1), (NEXT, 63, 1)]
        .into_iter()
        .flat_map(|(nr, pageblock, pages)| take(mm, nr, pageblock, pages))
        .collect();
    let named = |at: usize| Some((held[at], Holder::Unclaimed));
    let stuck = (3, 0, [named(0), named(1), named(2), None]);
    assert_eq!(unmovable(mm.hotplug().offline(BLOCK)), stuck);
    mm.check();
    assert_eq!(mm.stats().zones[2].nr_isolate_pageblock, 0);
}

/// When isolation fails in the second section, the first is as it was too, and its pages can be used.
#[test]
fn isolation_that_fails_in_a_later_section_is_undone_in_all() {
    let mm = large_block();
    let free = mm.stats().zones[2].free;
    // The first two pageblocks hold the memmap: 62 of the first section are isolated, and 64 of the second.
    for after in [0, 1, 61, 62, 63, 125] {
        mm.platform().inject(FaultStep::Isolate, after);
        assert_eq!(mm.hotplug().offline(BLOCK), Err(OfflineError::Busy), "{after}");
        let zone = mm.stats().zones[2];
        assert_eq!((zone.nr_isolate_pageblock, zone.free), (0, free), "{after}");
        mm.check();
    }
}

/// The pages of every section of a memory block move.
#[test]
fn pages_move_out_of_all_sections() {
    let mm = large_block();
    let tenant = Tenant::new(mm, 0, 33_000);
    assert_eq!(tenant.fill_all(), 33_000);
    let held = [BLOCK, NEXT].map(|nr| tenant.held_in(nr));
    assert!(held[0] > 0 && held[1] > 0, "{held:?}");
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!([BLOCK, NEXT].map(|nr| tenant.held_in(nr)), [0; 2]);
    tenant.verify_all();
    mm.check();
}

/// An owner of pages, as slow or as greedy as a test makes it.
struct Owner {
    mm: &'static Mm<Sim>,
    pages: Mutex<Vec<Pfn>>,
    /// Pages that are isolated.
    isolated: AtomicUsize,
    /// Pages that it was asked to keep after all.
    put_back: AtomicUsize,
    /// Gives up one page per round; the round of the last one.
    one_per_round: bool,
    round: AtomicU64,
    /// When it is asked for a page, it takes all memory but this number of pages, once.
    leaves: Mutex<Option<usize>>,
    taken: Mutex<Vec<Pfn>>,
    /// Frees each page as soon as it is handed over.
    frees: AtomicBool,
}

impl Owner {
    /// An owner of the first `count` pages of pageblock 40 of the first memory block.
    fn new(mm: &'static Mm<Sim>, count: u32, one_per_round: bool, leaves: Option<usize>) -> &'static Self {
        let pages = take(mm, BLOCK, 40, count);
        for (index, &pfn) in (0..).zip(&pages) {
            mm.platform().write(pfn, 1000 + index);
        }
        let owner: &'static Self = Box::leak(Box::new(Self {
            mm,
            pages: Mutex::new(pages.clone()),
            isolated: AtomicUsize::new(0),
            put_back: AtomicUsize::new(0),
            one_per_round,
            round: AtomicU64::new(u64::MAX),
            leaves: Mutex::new(leaves),
            taken: Mutex::default(),
            frees: AtomicBool::new(false),
        }));
        mm.register_owner(OwnerId(3), owner);
        for (index, &pfn) in (0..).zip(&pages) {
            mm.set_owner(pfn, OwnerId(3), index);
        }
        owner
    }

    fn assert_content(&self) {
        for (index, &pfn) in (0..).zip(&*self.pages.lock().unwrap()) {
            assert_eq!(self.mm.platform().read(pfn), 1000 + index, "content of page {index}");
        }
    }
}

impl MovableOwner for Owner {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        assert_eq!(self.pages.lock().unwrap()[index as usize], pfn);
        if let Some(leaves) = self.leaves.lock().unwrap().take() {
            let mut taken = self.taken.lock().unwrap();
            taken.extend(std::iter::from_fn(|| self.mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()));
            taken.drain(..leaves).for_each(|pfn| self.mm.free_pages(pfn, Order::PAGE));
        }
        let round = self.mm.platform().grace_periods();
        if self.one_per_round && self.round.swap(round, SeqCst) == round {
            return false;
        }
        self.isolated.fetch_add(1, SeqCst);
        true
    }

    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool {
        let page = &mut self.pages.lock().unwrap()[index as usize];
        assert_eq!(*page, from);
        *page = to;
        self.isolated.fetch_sub(1, SeqCst);
        if self.frees.load(SeqCst) {
            self.mm.free_pages(to, Order::PAGE);
        }
        true
    }

    fn put_back(&self, pfn: Pfn, index: u64) {
        assert_eq!(self.pages.lock().unwrap()[index as usize], pfn);
        self.isolated.fetch_sub(1, SeqCst);
        self.put_back.fetch_add(1, SeqCst);
    }
}

/// As long as each round moves a page, rounds go on: only rounds without progress in a row end the attempt.
#[test]
fn slow_progress_is_progress() {
    let mm = machine(1);
    let owner = Owner::new(mm, 50, true, None);
    mm.hotplug().offline(BLOCK).unwrap();
    assert!(mm.platform().grace_periods() >= 49, "a page per round");
    assert_eq!(mm.stats().pages_migrated, 50);
    owner.assert_content();
    mm.check();
}

/// Room for every page is enough, and room for all but one is not: then none of them moves.
#[test]
fn room_for_every_page_is_enough() {
    const PAGES: usize = 30;
    for (room, is_enough) in [(PAGES, true), (PAGES - 1, false)] {
        let mm = machine(1);
        let owner = Owner::new(mm, PAGES as u32, false, None);
        // The rest of the pageblock is free, and goes with it.
        let rest = 40 * 512 + PAGES as u32..41 * 512;
        let in_rest = |pfn: &Pfn| rest.contains(&(pfn.get().wrapping_sub(BLOCK.start().get())));
        let held: Vec<Pfn> = std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::Movable).ok()).collect();
        held.iter().filter(|pfn| in_rest(pfn)).for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
        drop(mm.zone_pcp_disable(NodeId::FIRST.zone(ZoneType::Movable)));
        let boot = held.iter().filter(|pfn| pfn.section() < BLOCK).take(room);
        boot.for_each(|&pfn| mm.free_pages(pfn, Order::PAGE));
        let result = mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(40..41));
        assert_eq!(result.is_ok(), is_enough, "{room} pages of room: {result:?}");
        assert_eq!(mm.stats().pages_migrated, if is_enough { PAGES as u64 } else { 0 });
        owner.assert_content();
        mm.check();
    }
}

/// A page belongs to its owner from the moment when it is handed over: the owner may free it at once.
#[test]
fn an_owner_may_free_a_page_that_it_is_given() {
    let mm = machine(1);
    let owner = Owner::new(mm, 70, false, None);
    owner.frees.store(true, SeqCst);
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!(mm.stats().pages_migrated, 70);
    mm.check();
    let boot = mm.stats().zones[0];
    assert_eq!(boot.free + boot.pcp, boot.managed, "no page is in use");
}

/// When memory runs out between the look for room and the moves, pages without a target stay with their owner, who
/// can use them again, and the error says that there is no room.
#[test]
fn pages_without_a_target_are_put_back() {
    for (pages, room) in [(20, 0), (20, 5), (100, 0), (100, 40)] {
        let mm = machine(1);
        let owner = Owner::new(mm, pages, false, Some(room));
        let result = mm.hotplug().offline(BLOCK);
        let left = pages - room as u32;
        let Err(OfflineError::NoRoom(stuck)) = result else { panic!("{room} pages of room: {result:?}") };
        assert_eq!(stuck.pages, left, "pages that stay, of {pages} with room for {room}");
        assert_eq!(mm.stats().pages_migrated, room as u64);
        assert_eq!(owner.isolated.load(SeqCst), 0, "pages that are isolated for ever");
        // A round ends with the first batch that finds no target, so owners are not asked for the other pages.
        let rounds = mm.platform().grace_periods() as usize + 1;
        assert!((1..=32 * rounds).contains(&owner.put_back.load(SeqCst)), "{:?}", owner.put_back);
        owner.assert_content();
        mm.check();
        owner.taken.lock().unwrap().drain(..).for_each(|pfn| mm.free_pages(pfn, Order::PAGE));
        mm.hotplug().offline(BLOCK).unwrap();
        owner.assert_content();
        mm.check();
    }
}

/// Memory that is being taken away is no target, although it is the lowest of its zone and has free pages.
#[test]
fn pages_do_not_move_within_the_memory_that_leaves() {
    let mm = machine(2);
    let owner = Owner::new(mm, 200, false, None);
    mm.hotplug().offline(BLOCK).unwrap();
    assert_eq!(mm.stats().pages_migrated, 200, "each page moves once");
    assert!(owner.pages.lock().unwrap().iter().all(|pfn| pfn.section() == NEXT));
    owner.assert_content();
    mm.check();
}

/// In the kernel's zones targets come from the free lists of movable pages, not from pageblocks of kernel pages.
#[test]
fn pages_do_not_move_between_kernel_pages() {
    let mm = machine(1);
    let owner = Owner::new(mm, 200, false, None);
    let kernel = mm.alloc_pages(Order::new(1), Gfp::Kernel).unwrap();
    let pageblock = |pfn: Pfn| (pfn.section(), pfn.pageblock());
    mm.hotplug().offline(BLOCK).unwrap();
    let pages = owner.pages.lock().unwrap();
    assert!(pages.iter().all(|&pfn| pageblock(pfn) != pageblock(kernel)), "{kernel:?} among {pages:?}");
    mm.check();
}

/// Targets leave the pages below the min watermark alone, also those that the search finds.
#[test]
fn targets_leave_what_is_below_the_min_watermark() {
    let mm = machine(1);
    let min = mm.zone_info(NodeId::FIRST.zone(ZoneType::Movable)).min as u32;
    let owner = Owner::new(mm, 200, false, None);
    // Of the pageblocks that stay, only these pages are free. The section has many free pages, so it is searched.
    mm.hotplug().alloc_contig_range(BLOCK, PageblockSet::range(1..40)).unwrap();
    mm.free_contig_range(PfnRange::new(BLOCK.start().add(20 * 512), min + 40));
    mm.hotplug().offline_pageblocks(BLOCK, PageblockSet::range(40..64)).unwrap();
    let in_zone = owner.pages.lock().unwrap().iter().filter(|pfn| pfn.section() == BLOCK).count();
    let zone = mm.stats().zones[2];
    assert_eq!(
        (zone.free + zone.pcp, in_zone),
        (min.into(), 40),
        "pages that are free, and pages that moved there"
    );
    owner.assert_content();
    mm.check();
}
