//! Evacuating pageblocks: isolate, migrate, check, take.
//!
//! Mirrors Linux `alloc_contig_range` and the loop of `offline_pages`, which is one loop here. A memory
//! block that goes offline, pageblocks that are unplugged and an allocation (see `contig`) differ only in
//! their size and in the use of the pages afterwards. The pageblocks are of one section, or of several
//! that are in one zone.
//!
//! Differs from Linux on purpose: the loop ends. Isolated pageblocks only ever lose pages, so the number
//! of pages left falls or stays the same. After [`IDLE_ROUNDS`] rounds without progress the pageblocks are
//! given up, and the error names the pages that are left.
//!
//! On a machine that does not migrate ([`Platform::MIGRATES`]) there is no loop: a page that is in use fails it all.
//!
//! Invariant: after an error no pageblock is isolated that was not before, and none is taken.

use crate::Mm;
use crate::hotplug::HotplugHeld;
use crate::isolation::{OfflineError, Stuck};
use crate::node::ZoneId;
use crate::options::PcpPolicy;
use crate::page::Kind;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;
use crate::sparse::SectionPages;
use crate::sync::Ordering::Relaxed;
use crate::target::Targets;

/// Rounds without progress before the pageblocks are given up.
const IDLE_ROUNDS: u32 = 16;

/// Pageblocks of one section.
pub(crate) type Part<'s> = (SectionPages<'s>, PageblockSet);

impl<P: Platform> Mm<P> {
    /// Takes the pages of `parts`, all of them managed by the allocator, out of `zone`, all of them or
    /// none. Per-CPU lists are dealt with by the [`PcpPolicy`] that was chosen at boot.
    pub(crate) fn take_pageblocks<'s>(
        &self,
        zone: ZoneId,
        parts: impl Iterator<Item = Part<'s>> + Clone,
        held: &HotplugHeld,
    ) -> Result<(), OfflineError> {
        self.take_pageblocks_as(zone, parts, self.options.get().pcp, Kind::Offline, held)
    }

    /// The same with a policy of the caller's. Each pageblock is one buddy block of `kind` afterwards.
    pub(crate) fn take_pageblocks_as<'s>(
        &self,
        zone: ZoneId,
        parts: impl Iterator<Item = Part<'s>> + Clone,
        policy: PcpPolicy,
        kind: Kind,
        held: &HotplugHeld,
    ) -> Result<(), OfflineError> {
        let _disabled = (policy == PcpPolicy::Disable).then(|| self.disable_pcp(zone, held));
        if policy != PcpPolicy::Disable {
            self.drain_pcp(zone, held);
        }
        self.isolate_all(parts.clone()).map_err(Self::in_words_of)?;
        if let Err(error) = self.evacuate(zone, parts.clone(), policy == PcpPolicy::DrainAgain, held) {
            parts.for_each(|(pages, pageblocks)| self.undo_isolate(pages, pageblocks));
            return Err(Self::in_words_of(error));
        }
        parts.for_each(|(pages, pageblocks)| self.take_isolated(pages, pageblocks, kind));
        Ok(())
    }

    /// Where nothing can move, that a page cannot move says nothing about the page.
    fn in_words_of(error: OfflineError) -> OfflineError {
        match error {
            OfflineError::Unmovable(stuck) if !P::MIGRATES => OfflineError::InUse(stuck),
            other => other,
        }
    }

    /// Isolates `parts`, all of them or none.
    fn isolate_all<'s>(&self, parts: impl Iterator<Item = Part<'s>> + Clone) -> Result<(), OfflineError> {
        let mut rest = parts.clone();
        let mut isolated = 0;
        while let Some((pages, pageblocks)) = rest.next() {
            if let Err(mut error) = self.start_isolate(pages, pageblocks) {
                parts.take(isolated).for_each(|(pages, pageblocks)| self.undo_isolate(pages, pageblocks));
                if let OfflineError::Unmovable(stuck) = &mut error {
                    rest.for_each(|(pages, pageblocks)| self.count_unmovable(pages, pageblocks, stuck));
                }
                return Err(error);
            }
            isolated += 1;
        }
        Ok(())
    }

    /// Migrates the pages of the isolated `parts`, until all of them are free. Nothing moves when there is
    /// not room for all of them, because a part of them would take up the room for nothing.
    fn evacuate<'s>(
        &self,
        zone: ZoneId,
        parts: impl Iterator<Item = Part<'s>> + Clone,
        drain: bool,
        held: &HotplugHeld,
    ) -> Result<(), OfflineError> {
        let left_in = |parts: &mut dyn Iterator<Item = Part<'s>>| {
            let mut stuck = Stuck::none();
            parts.for_each(|(pages, pageblocks)| stuck.append(self.test_pages_isolated(pages, pageblocks)));
            stuck
        };
        let stuck = left_in(&mut parts.clone());
        if !P::MIGRATES {
            if stuck.pages == 0 {
                return Ok(());
            }
            // Pages that other CPUs are giving back, or held for a moment only, are free then.
            self.platform.synchronize();
            let stuck = left_in(&mut parts.clone());
            return if stuck.pages == 0 { Ok(()) } else { Err(OfflineError::Unmovable(stuck)) };
        }
        if u64::from(stuck.pages) > self.room_for_movable() {
            return Err(OfflineError::NoRoom(stuck));
        }
        let mut targets = Targets::new(self, zone.node());
        let mut left = u32::MAX;
        let mut idle = 0;
        let mut synchronized = false;
        let mut stranded = 0;
        loop {
            let no_room = parts
                .clone()
                .any(|(pages, pageblocks)| self.migrate_pageblocks(pages, pageblocks, &mut targets));
            if drain {
                self.drain_pcp(zone, held);
            }
            let stuck = left_in(&mut parts.clone());
            if synchronized && stuck.listed > stranded {
                self.counters.pcp_stranded.fetch_add(u64::from(stuck.listed - stranded), Relaxed);
                stranded = stuck.listed;
            }
            if stuck.pages == 0 {
                return Ok(());
            }
            idle = if stuck.pages < left { 0 } else { idle + 1 };
            left = stuck.pages;
            if idle == IDLE_ROUNDS {
                return Err(if no_room {
                    OfflineError::NoRoom(stuck)
                } else {
                    OfflineError::Unmovable(stuck)
                });
            }
            // After this, code that held a page of these pageblocks for a moment has given it up.
            self.platform.synchronize();
            // No CPU is still inside a free that began before isolation; a page on a per-CPU list now is
            // stranded.
            synchronized = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::sync::OnceLock;

    use super::PcpPolicy;
    use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, SectionNr};
    use crate::hotplug::HotplugHeld;
    use crate::isolation::OfflineError;
    use crate::node::{NodeId, ZoneType};
    use crate::options::MemoryContent;
    use crate::page::{Holder, OwnerId};
    use crate::page_alloc::Gfp;
    use crate::pageblock::MigrateType;
    use crate::pageblock_set::PageblockSet;
    use crate::pcplist::ListOf;
    use crate::sim::{Sim, SimMachine};
    use crate::{Mm, MovableOwner};

    const BLOCK: SectionNr = SectionNr::new(33);

    fn movable() -> (&'static Mm<Sim>, SectionNr) {
        let mm = SimMachine { cpus: 2, ..SimMachine::default() }.boot();
        mm.hotplug()
            .add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown)
            .expect("a new block");
        mm.hotplug().online(BLOCK, ZoneType::Movable).expect("it goes online");
        (mm, BLOCK)
    }

    #[test]
    fn a_pageblock_can_be_taken_whole_and_given_back() {
        let (mm, nr) = movable();
        let before = mm.stats().zones[ZoneType::Movable.index()];
        let disables = mm.stats().pcp_disables;
        let pfn = nr.start().add(7 * PAGEBLOCK_PAGES);
        mm.hotplug().alloc_contig_pageblock(pfn.add(3)).expect("it is free");
        mm.check();
        assert_eq!(mm.stats().pcp_disables, disables + 1, "by the policy of the machine");
        let taken = mm.stats().zones[ZoneType::Movable.index()];
        assert_eq!((taken.managed, taken.free), (before.managed, before.free - u64::from(PAGEBLOCK_PAGES)));
        let again = mm.hotplug().alloc_contig_pageblock(pfn);
        mm.free_pages(pfn, Order::PAGEBLOCK);
        mm.check();
        assert_eq!(mm.stats().zones[ZoneType::Movable.index()], before);
        let Err(OfflineError::Unmovable(stuck)) = again else { panic!("{again:?}") };
        assert_eq!((stuck.pages, stuck.first[0]), (PAGEBLOCK_PAGES, Some((pfn, Holder::Kernel))));
        assert_eq!(
            mm.hotplug().alloc_contig_pageblock(SectionNr::new(34).start()),
            Err(OfflineError::NotOnline)
        );
    }

    /// Step by step: the lists are drained, a page is freed to its list, and its pageblock is isolated.
    #[test]
    fn a_page_that_is_freed_after_a_single_drain_is_stranded() {
        let (mm, nr) = movable();
        mm.options.change(|options| options.pcp = PcpPolicy::DrainOnce);
        let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page");
        let pageblocks = PageblockSet::range(pfn.pageblock()..pfn.pageblock() + 1);

        let pages = mm.sparse.pages(nr).expect("a memmap");
        let zone = NodeId::FIRST.zone(ZoneType::Movable);
        let hotplug = mm.hotplug();
        mm.drain_pcp(zone, hotplug.held());
        mm.free_pages(pfn, Order::PAGE);
        mm.start_isolate(pages, pageblocks).expect("nothing is in the way");
        let Err(OfflineError::Unmovable(stuck)) =
            mm.evacuate(zone, core::iter::once((pages, pageblocks)), false, hotplug.held())
        else {
            panic!("the range was taken with a page of it on a list")
        };
        assert_eq!((stuck.pages, stuck.listed), (1, 1));
        assert_eq!(stuck.first[0], Some((pfn, Holder::Unclaimed)));
        assert_eq!(mm.stats().pcp_stranded, 1);

        // Draining again frees it.
        mm.evacuate(zone, core::iter::once((pages, pageblocks)), true, hotplug.held())
            .expect("it is free now");
        mm.undo_isolate(pages, pageblocks);
        drop(hotplug);
        mm.check();
        assert_eq!(mm.stats().pcp_stranded, 1);
    }

    /// An owner of one page. While it is asked for the page for the first time, another page goes to a per-CPU list,
    /// by a CPU that read the type of its pageblock before isolation. The next time that list is empty again.
    struct Slow {
        mm: OnceLock<&'static Mm<Sim>>,
        other: AtomicU32,
        asked: AtomicU32,
    }

    static SLOW: Slow = Slow { mm: OnceLock::new(), other: AtomicU32::new(0), asked: AtomicU32::new(0) };

    impl MovableOwner for Slow {
        fn isolate(&self, pfn: Pfn, _: u64) -> bool {
            let mm = self.mm.get().expect("set first");
            let zone = mm.sparse.entry(pfn.section()).zone();
            let asked = self.asked.fetch_add(1, SeqCst);
            if asked == 0 {
                let other = Pfn::new(self.other.load(SeqCst));
                let of = ListOf { order: Order::PAGE, mt: MigrateType::Movable };
                assert!(mm.free_to_pcp(mm.sparse.page(other), other, zone, of));
            } else {
                mm.drain_pcp(zone, &HotplugHeld::without_mm());
            }
            asked > 0
        }

        fn hand_over(&self, _: Pfn, _: Pfn, _: u64) -> bool {
            true
        }

        fn put_back(&self, pfn: Pfn, _: u64) {
            unreachable!("{pfn:?} is handed over")
        }
    }

    /// A free that began before isolation may end after it. So a page on a per-CPU list counts as stranded only after
    /// all CPUs have left the allocator once.
    #[test]
    fn a_page_whose_free_was_in_progress_is_not_stranded() {
        let (mm, nr) = movable();
        mm.options.change(|options| options.pcp = PcpPolicy::DrainOnce);
        SLOW.mm.set(mm).ok().expect("one test");
        mm.register_owner(OwnerId(0), &SLOW);
        let [page, other] = [(); 2].map(|()| mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page"));
        mm.set_owner(page, OwnerId(0), 0);
        SLOW.other.store(other.get(), SeqCst);
        mm.hotplug().offline(nr).expect("the page moves in the second round");
        assert_eq!((SLOW.asked.load(SeqCst), mm.stats().pcp_stranded), (2, 0));
        mm.check();
    }
}
