//! Verifies every invariant of the allocator, of the sections and of their accounting.
//!
//! No Linux file does this. It may run while other CPUs allocate and free: per-CPU lists are stopped, and each zone is
//! looked at under its lock. It costs time in proportion to buddy blocks, not to pages; hosted builds look at the
//! tails of buddy blocks as well.
//!
//! | invariants of | are checked by |
//! |---|---|
//! | `page`, `pageblock` | `check_section`, `check_free`, `check_holder`, and `tails` in hosted builds |
//! | `free_lists`, `buddy` | `check_lists` |
//! | `pcplist` | `check_pcp`, `check_limits` |
//! | `zone`, `zonelist` | `check_zone`, `check_limits` |
//! | `sparse`, `altmap`, `memory_block` | `check_sections` |
//! | `pgmap`, `zone_device` | `check_pgmaps` |
//! | `deferred` | `check_deferred` |
//!
//! Not here: hosted builds check the order of locks whenever one is taken (`lock`), and a memory map does not
//! change after boot.

mod blocks;
mod device;
mod limits;
#[cfg(any(test, feature = "hosted"))]
mod tails;
#[cfg(test)]
mod tests;

use self::blocks::Memmaps;
use crate::Mm;
use crate::added_block::memmap_pageblocks;
use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGES};
use crate::deferred::Claims;
use crate::free_area::FreeArea;
use crate::free_lists::FreeLists;
use crate::migrate::Owners;
use crate::node::ZoneId;
use crate::page::{Holder, Kind, PageState};
use crate::pageblock::MigrateType;
use crate::pcplist::{PcpStopped, StoppedLists, listed};
use crate::platform::Platform;
use crate::sparse::{Section, SectionPages};

/// The memory that [`Mm::check`] knows of, in pages. A page is a place for a struct page, so holes in a section
/// count too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// Pages whose struct pages were checked.
    pub pages: u64,
    /// Pages of memory that is deferred: their struct pages are not written yet.
    pub deferred: u64,
}

/// Sums over a zone's sections, in pages unless said otherwise.
#[derive(Default)]
struct Tally {
    /// Free buddy blocks by order and migrate type.
    free: [[u32; MigrateType::COUNT]; Order::COUNT],
    pcp: u64,
    allocated: u64,
    present: u64,
    isolated_blocks: u64,
    span: Option<PfnRange>,
    looked_at: u64,
}

impl<P: Platform> Mm<P> {
    /// Checks everything and returns the number of pages that were looked at, and of those that cannot be yet.
    ///
    /// # Panics
    /// When an invariant does not hold, with the values that differ.
    pub fn check(&self) -> Checked {
        let hotplug = self.hotplug();
        hotplug.check_limits();
        let stopped = self.stop_pcp(self.zones().as_slice(), hotplug.held());
        // From now on no CPU initialises deferred memory.
        let off = self.irq_off();
        let deferred = self.deferred.freeze(&off);
        self.check_deferred(&deferred);
        let mut memmaps = Memmaps::default();
        self.check_pgmaps(&mut memmaps);
        self.check_sections(&deferred, memmaps);
        let sections: u64 = deferred.ranges().iter().map(|range| u64::from(range.sections.len())).sum();
        Checked {
            pages: self.zones().map(|zone| self.check_zone(zone.id(), &stopped, &deferred)).sum(),
            deferred: sections * u64::from(SECTION_PAGES),
        }
    }

    /// Checks one zone, whose lists are stopped, under its lock.
    fn check_zone(&self, zone: ZoneId, stopped: &PcpStopped<'_, P>, deferred: &Claims) -> u64 {
        let lists = stopped.lists(zone);
        lists.clone().for_each(|lists| check_pcp(zone, &lists));
        let listed: u64 = lists.map(|lists| u64::from(lists.count())).sum();
        let of = self.zone(zone);
        let off = self.irq_off();
        let buddy = self.lock_zone(zone, &off);
        let owners = self.owners();
        let mut tally = Tally::default();
        let online = self.sparse.numbers().filter_map(|nr| self.sparse.online_pages(nr));
        for pages in online.filter(|pages| pages.section().zone() == zone) {
            check_section(pages, zone, &owners, &mut tally);
        }
        for ram in deferred.present(zone) {
            tally.present += u64::from(ram.pages());
            tally.span = Some(tally.span.map_or(ram, |all| all.hull(ram)));
        }
        assert_eq!(tally.pcp, listed, "{zone:?}: pages in state Pcp, pages on lists");
        let in_buddy = buddy.free() + buddy.isolated();
        let used = tally.pcp + tally.allocated;
        assert_eq!(of.managed(), of.deferred() + in_buddy + used, "{zone:?}: managed, sum of uses");
        assert_eq!(of.present(), tally.present, "{zone:?}: present, sum of sections");
        assert_eq!(of.nr_isolate_pageblock(), tally.isolated_blocks, "{zone:?}: isolated pageblocks");
        let span = tally.span.unwrap_or(PfnRange::new(Pfn::new(0), 0));
        assert_eq!(of.spanned(), span, "{zone:?}: span, reach of sections");
        assert_eq!(of.free(), buddy.free(), "{zone:?}: published number of free pages, pages on lists");
        assert_eq!(buddy.free_blocks(), tally.free, "{zone:?}: blocks on lists, blocks in sections");
        buddy.check_lists(&self.sparse);
        tally.looked_at
    }
}

fn check_pcp<P: Platform>(zone: ZoneId, lists: &StoppedLists<'_, P>) {
    let mut count = 0;
    for (pfn, page, order) in lists.blocks() {
        assert_eq!(page.state(), listed(order), "{pfn:?} on a per-CPU list");
        count += order.pages();
    }
    assert_eq!(lists.count(), count, "{zone:?}: count of a per-CPU list, pages on it");
}

/// Walks an online section, which must be tiled by buddy blocks.
fn check_section(pages: SectionPages<'_>, zone: ZoneId, owners: &Owners, tally: &mut Tally) {
    let frames = pages.nr().frames();
    let section = pages.section();
    let (mut free, mut offline, mut memmap) = (0, 0, 0);
    #[cfg(any(test, feature = "hosted"))]
    let mut tails = tails::Tails::new(pages);
    let mut pfn = frames.start();
    while pfn < frames.end() {
        let state = pages.block(pfn);
        let (kind, order) = (state.kind(), state.order());
        let block = u64::from(order.pages());
        assert!(pfn.is_aligned(order), "{pfn:?} is no place for {state:?}");
        assert!(!state.is_reported() || kind == Kind::Free, "{pfn:?} is reported, and is {state:?}");
        match kind {
            Kind::Uninit | Kind::Tail => panic!("{pfn:?} should begin a block, and is {state:?}"),
            Kind::Free => {
                free += block;
                tally.free[order.index()][check_free(pages, pfn, order).index()] += 1;
            }
            Kind::Pcp => tally.pcp += block,
            Kind::Allocated => {
                check_holder(pages, pfn, state, owners);
                tally.allocated += block;
            }
            Kind::Reserved | Kind::Hole => assert!(section.is_boot(), "{pfn:?} is {state:?}"),
            Kind::Offline => offline += block,
            Kind::Memmap => {
                let mt = section.pageblocks.migrate_type(pfn.pageblock());
                assert_eq!(mt, MigrateType::Unmovable, "type of the pageblock with memmap at {pfn:?}");
                memmap += block;
            }
            Kind::Device => panic!("{pfn:?} is device memory in {zone:?}"),
        }
        if kind != Kind::Hole {
            tally.present += block;
            let span = PfnRange::new(pfn, order.pages());
            tally.span = Some(tally.span.map_or(span, |all| all.hull(span)));
        }
        #[cfg(any(test, feature = "hosted"))]
        tails.check(pfn, order);
        pfn = pfn.add(order.pages());
    }
    assert_eq!(section.free(), free, "free pages of {:?}", pages.nr());
    let own = memmap_pageblocks(pages.nr(), section);
    assert_eq!(memmap, u64::from(own.pages()), "memmap pages in {:?}", pages.nr());
    if !section.is_boot() {
        let unplugged = crate::PageblockSet::ALL.without(section.plugged());
        assert_eq!(offline, u64::from(unplugged.pages()), "unplugged pages in {:?}", pages.nr());
    }
    let isolated = (0..crate::SECTION_PAGEBLOCKS).filter(|&b| section.pageblocks.is_isolated(b));
    tally.isolated_blocks += isolated.count() as u64;
    tally.looked_at += u64::from(frames.pages());
}

/// Checks an allocated buddy block: its holder's word can be read, and an owner is a registered one.
fn check_holder(pages: SectionPages<'_>, pfn: Pfn, state: PageState, owners: &Owners) {
    if let Holder::Owned { owner, index } = pages.page(pfn).holder(state) {
        assert_eq!(state.order(), Order::PAGE, "{pfn:?}, owned by {owner:?} as {index}, is no single page");
        assert!(owners.get(owner).is_some(), "{pfn:?} is owned by {owner:?}, which is not registered");
    }
}

/// Checks a free buddy block: all its pageblocks have one type, and it was merged as far as possible.
fn check_free(pages: SectionPages<'_>, pfn: Pfn, order: Order) -> MigrateType {
    let flags = &pages.section().pageblocks;
    let mt = flags.migrate_type(pfn.pageblock());
    for offset in (0..order.pages()).step_by(PAGEBLOCK_PAGES as usize) {
        let other = flags.migrate_type(pfn.add(offset).pageblock());
        assert_eq!(mt, other, "types of the pageblocks of free {pfn:?}, order {order:?}");
    }
    if order < Order::MAX {
        let buddy = pfn.buddy(order);
        let buddy_mt = flags.migrate_type(buddy.pageblock());
        let apart = (mt == MigrateType::Isolate) != (buddy_mt == MigrateType::Isolate);
        let both_free = order >= Order::PAGEBLOCK && pages.page(buddy).state().is(Kind::Free, order);
        assert!(apart || !both_free, "{pfn:?} and {buddy:?}, order {order:?}, are both free");
    }
    mt
}

impl FreeLists {
    /// Follows every list and compares it with its pageblocks.
    fn check_lists(&self, sparse: &crate::Sparse) {
        for mt in [MigrateType::Unmovable, MigrateType::Movable, MigrateType::Isolate] {
            let mut pages = 0;
            for order in (0..Order::COUNT as u8).map(Order::new) {
                let (mut len, mut unreported) = (0, 0);
                let mut before = None;
                let mut at = self.first(order, mt);
                while let Some(pfn) = at {
                    let area = sparse.area(pfn);
                    assert_eq!(
                        area.words().list(),
                        Some(order),
                        "list of {pfn:?} on the list of {order:?}, {mt:?}"
                    );
                    pages += u64::from(check_area(area, sparse.page(pfn).state(), pfn));
                    unreported += u32::from(!sparse.page(pfn).state().is_reported());
                    assert_eq!(area.words().before().pageblock(), before, "link back from {pfn:?}");
                    let section = sparse.section(pfn.section()).map(section_type(pfn));
                    assert_eq!(section, Some(mt), "type of the pageblock of {pfn:?}");
                    (before, at) = (Some(pfn), area.words().after().pageblock());
                    len += 1;
                }
                assert_eq!(len, self.len(order, mt), "{order:?}, {mt:?}: list");
                assert_eq!(unreported, self.unreported(order, mt), "{order:?}, {mt:?}: unreported");
                assert_eq!(before, self.last(order, mt), "{order:?}, {mt:?}: end of the list");
                assert_eq!(self.smallest(order, mt) == Some(order), len > 0, "{order:?}, {mt:?}: bit");
            }
            assert_eq!(pages, self.pages(mt), "{:?}: pages on lists of {mt:?}", self.zone());
        }
    }
}

/// Checks the words of a pageblock that is on a list, and returns its free pages. `first` is the state of its first
/// page, `pfn`.
fn check_area(area: FreeArea<'_>, first: PageState, pfn: Pfn) -> u32 {
    if first.kind() == Kind::Free {
        assert_eq!(
            (area.words().list(), area.pages()),
            (Some(first.order()), 0),
            "list and bits of free {pfn:?}"
        );
        return first.order().pages();
    }
    assert_eq!(area.words().list(), area.largest(), "list of {pfn:?}, its largest free block");
    area.pages()
}

fn section_type(pfn: Pfn) -> impl Fn(&Section) -> MigrateType {
    move |section| section.pageblocks.migrate_type(pfn.pageblock())
}
