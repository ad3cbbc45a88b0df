//! Taking a given range of pages: isolate, migrate, check, take.
//!
//! Mirrors Linux `alloc_contig_range` and the loop of `offline_pages`, which is one loop here: a
//! memory block that goes offline and a sub-section that is unplugged differ only in their size: a
//! range is pageblocks of one section, or of several that lie in one zone.
//!
//! Differs from Linux on purpose: the loop ends. Isolated pageblocks only ever lose pages, so the
//! number of those left falls or stands still; after [`IDLE_ROUNDS`] rounds in which it stood
//! still the range is given up, with the pages that are left.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::isolation::{OfflineError, Stuck};
use crate::node::ZoneId;
use crate::platform::Platform;
use crate::sparse::SectionPages;
use crate::subsection::SubSections;
use crate::target::Targets;

/// Rounds without a page less before the range is given up.
const IDLE_ROUNDS: u32 = 16;

/// Pageblocks of one section.
pub(crate) type Part<'s> = (SectionPages<'s>, SubSections);

impl<P: Platform> Mm<P> {
    /// Takes the pages of `parts`, all of them managed by the allocator, out of `zone`, all of them or
    /// none.
    ///
    /// Pages that CPUs keep on lists of their own are dealt with in one of two ways, chosen at
    /// boot: the lists are out of play meanwhile, or they are drained before isolation and again
    /// in every round.
    pub(crate) fn take_pageblocks<'s>(
        &self,
        zone: ZoneId,
        parts: impl Iterator<Item = Part<'s>> + Clone,
    ) -> Result<(), OfflineError> {
        let disabled = self.use_pcp_disable.load(Relaxed).then(|| self.zone_pcp_disable(zone));
        if disabled.is_none() {
            self.drain_pcp(zone);
        }
        self.isolate_all(parts.clone())?;
        if let Err(error) = self.evacuate(zone, parts.clone(), disabled.is_none()) {
            parts.for_each(|(pages, blocks)| self.undo_isolate(pages, blocks));
            return Err(error);
        }
        parts.for_each(|(pages, blocks)| self.take_isolated(pages, blocks));
        Ok(())
    }

    /// Isolates `parts`, all of them or none.
    fn isolate_all<'s>(&self, parts: impl Iterator<Item = Part<'s>> + Clone) -> Result<(), OfflineError> {
        let mut rest = parts.clone();
        let mut isolated = 0;
        while let Some((pages, blocks)) = rest.next() {
            if let Err(mut error) = self.start_isolate(pages, blocks) {
                parts.take(isolated).for_each(|(pages, blocks)| self.undo_isolate(pages, blocks));
                if let OfflineError::Unmovable(stuck) = &mut error {
                    rest.for_each(|(pages, blocks)| self.count_unmovable(pages, blocks, stuck));
                }
                return Err(error);
            }
            isolated += 1;
        }
        Ok(())
    }

    /// Migrates what is in the isolated `parts`, until all of them are free. Nothing moves when there
    /// is not room for all of it: what would move then would only be in the way elsewhere.
    fn evacuate<'s>(
        &self,
        zone: ZoneId,
        parts: impl Iterator<Item = Part<'s>> + Clone,
        drain: bool,
    ) -> Result<(), OfflineError> {
        let left_in = |parts: &mut dyn Iterator<Item = Part<'s>>| {
            let mut stuck = Stuck::none();
            parts.for_each(|(pages, blocks)| stuck.append(self.test_pages_isolated(pages, blocks)));
            stuck
        };
        let stuck = left_in(&mut parts.clone());
        if u64::from(stuck.pages) > self.room_for_movable() {
            return Err(OfflineError::NoRoom(stuck));
        }
        let mut targets = Targets::new(self, zone.node());
        let mut left = u32::MAX;
        let mut idle = 0;
        loop {
            let no_room =
                parts.clone().any(|(pages, blocks)| self.migrate_pageblocks(pages, blocks, &mut targets));
            if drain {
                self.drain_pcp(zone);
            }
            let stuck = left_in(&mut parts.clone());
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
