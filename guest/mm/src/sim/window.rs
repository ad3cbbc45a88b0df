//! Views of a simulated machine's sections, and damage to them, for tests only.
//!
//! Invariant: a view changes nothing, and only a memmap that is not in use can be damaged.

use core::ops::Range;
use std::vec::Vec;

use crate::Mm;
use crate::addr::{Pfn, SECTION_PAGEBLOCKS, SectionNr};
use crate::pageblock::MigrateType;
use crate::sim::Sim;
use crate::sparse::SectionState;

impl Mm<Sim> {
    /// Whether a walk over frames may look at the page of `pfn` (Linux `pfn_to_online_page`).
    pub fn is_online_page(&self, pfn: Pfn) -> bool {
        self.sparse.online_page(pfn).is_some()
    }

    /// Looks at the page of `pfn` if its section has pages for every CPU, and returns whether it is online.
    ///
    /// # Panics
    /// When the page has no valid state.
    pub fn look_at(&self, pfn: Pfn) -> bool {
        let Some(pages) = self.sparse.pages(pfn.section()) else { return false };
        // A kind that does not exist panics.
        let _ = pages.page(pfn).state().kind();
        pages.section().state() == SectionState::Online
    }

    /// The buddy blocks that a walk over `pageblocks` of the online section `nr` finds, and whether each begins with a
    /// head.
    pub fn walk(&self, nr: SectionNr, pageblocks: &Range<u32>) -> Vec<(Pfn, bool)> {
        let pages = self.sparse.online_pages(nr).expect("an online section");
        let off = self.irq_off();
        let _zone = self.lock_zone(pages.section().zone(), &off);
        pages.blocks(pageblocks).map(|(pfn, state)| (pfn, !state.is_tail())).collect()
    }

    /// Pageblocks of section `nr` by migrate type (Linux `/proc/pagetypeinfo`).
    pub fn pageblock_types(&self, nr: SectionNr) -> [u32; MigrateType::COUNT] {
        let mut count = [0; MigrateType::COUNT];
        for block in 0..SECTION_PAGEBLOCKS {
            count[self.sparse.entry(nr).pageblocks.migrate_type(block).index()] += 1;
        }
        count
    }

    /// Overwrites the memmap of section `nr`, which is not online, as happens in a hibernation that does not
    /// save it.
    pub fn lose_memmap(&self, nr: SectionNr) {
        assert!(!self.is_online_page(nr.start()), "the memmap of {nr:?} is in use");
        self.platform().scribble(nr);
    }
}
