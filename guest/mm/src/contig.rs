//! Taking a given range of pages: isolate, migrate, check, take.
//!
//! Mirrors Linux `alloc_contig_range` and the loop of `offline_pages`, which is one loop here: a
//! memory block that goes offline and a sub-section that is unplugged differ only in their size.
//!
//! Differs from Linux on purpose: the loop ends. Isolated pageblocks only ever lose pages, so the
//! number of those left falls or stands still; after [`IDLE_ROUNDS`] rounds in which it stood
//! still the range is given up, with the pages that are left.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::isolation::OfflineError;
use crate::platform::Platform;
use crate::sparse::SectionPages;
use crate::subsection::SubSections;
use crate::target::Targets;

/// Rounds without a page less before the range is given up.
const IDLE_ROUNDS: u32 = 16;

impl<P: Platform> Mm<P> {
    /// Takes the pages of `blocks`, all of them managed by the allocator, out of it. On error they
    /// stay.
    ///
    /// Pages that CPUs keep on lists of their own are dealt with in one of two ways, chosen at
    /// boot: the lists are out of play meanwhile, or they are drained before isolation and again
    /// in every round.
    pub(crate) fn take_pageblocks(
        &self,
        pages: SectionPages<'_>,
        blocks: SubSections,
    ) -> Result<(), OfflineError> {
        let zone = pages.section().zone();
        let disabled = self.use_pcp_disable.load(Relaxed).then(|| self.zone_pcp_disable(zone));
        if disabled.is_none() {
            self.drain_pcp(zone);
        }
        self.start_isolate(pages, blocks)?;
        if let Err(error) = self.evacuate(pages, blocks, disabled.is_none()) {
            self.undo_isolate(pages, blocks);
            return Err(error);
        }
        self.take_isolated(pages, blocks);
        Ok(())
    }

    /// Migrates what is in the isolated `blocks`, until all of them are free. Nothing moves when there
    /// is not room for all of it: what would move then would only be in the way elsewhere.
    fn evacuate(
        &self,
        pages: SectionPages<'_>,
        blocks: SubSections,
        drain: bool,
    ) -> Result<(), OfflineError> {
        let stuck = self.test_pages_isolated(pages, blocks);
        if u64::from(stuck.pages) > self.room_for_movable() {
            return Err(OfflineError::NoRoom(stuck));
        }
        let mut targets = Targets::new(self, pages.section().node());
        let mut left = u32::MAX;
        let mut idle = 0;
        loop {
            let no_room = self.migrate_pageblocks(pages, blocks, &mut targets);
            if drain {
                self.drain_pcp(pages.section().zone());
            }
            let stuck = self.test_pages_isolated(pages, blocks);
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
            // Whoever held a page of the block for a moment only has let go of it then.
            self.platform.synchronize();
        }
    }
}
