//! The pages of one section, for walks from buddy block to buddy block.
//!
//! Takes the place of Linux's walks by `pfn_to_page` and `buddy_order`.
//!
//! Invariant: only `sparse` makes a [`SectionPages`], of a section whose memmap is mapped.

use core::ops::Range;

use crate::addr::{Order, PAGEBLOCK_ORDER, Pfn, SECTION_PAGES, SectionNr};
#[cfg(all(any(test, feature = "sim"), not(feature = "loom")))]
use crate::page::Kind;
use crate::page::{Page, PageState};
use crate::sparse::Section;

/// The pages of one section. The section was checked when this was made: a look-up checks nothing.
#[derive(Clone, Copy)]
pub(crate) struct SectionPages<'s> {
    pub(super) pages: &'s [Page; SECTION_PAGES as usize],
    pub(super) section: &'s Section,
    pub(super) nr: SectionNr,
}

impl<'s> SectionPages<'s> {
    /// The page of `pfn`, which is in this section.
    #[inline]
    pub(crate) fn page(&self, pfn: Pfn) -> &'s Page {
        &self.pages[pfn.in_section()]
    }

    pub(crate) fn all(&self) -> &'s [Page; SECTION_PAGES as usize] {
        self.pages
    }

    /// Checks that every page means something: it was written for the section's zone, or the memmap is known to be
    /// zero where it was not.
    #[cfg(all(any(test, feature = "sim"), not(feature = "loom")))]
    pub(super) fn assert_initialised(&self) {
        let zone = self.section.zone();
        let tail = PageState::new(Kind::Tail, Order::PAGE, zone);
        let chunks = self.pages.chunks_exact(64).zip(self.nr.frames().frames().step_by(64));
        // Nearly all pages are tails.
        let others = chunks.filter(|(chunk, _)| !PageState::all_tails(chunk, tail, self.section.is_sparse()));
        for (page, pfn) in
            others.flat_map(|(chunk, first)| chunk.iter().zip((0..).map(move |at| first.add(at))))
        {
            let state = page.state();
            let is_known = match state.kind() {
                Kind::Uninit => self.section.is_sparse(),
                _ => state.zone() == zone,
            };
            assert!(is_known, "{pfn:?} of a section that is called initialised is {state:?}");
        }
    }

    pub(crate) fn section(&self) -> &'s Section {
        self.section
    }

    pub(crate) fn nr(&self) -> SectionNr {
        self.nr
    }

    /// The buddy block that covers pageblock `block`'s first page: its head and the head's state. Only a buddy
    /// block of the largest order can begin before the pageblock.
    pub(crate) fn covering(&self, block: u32) -> (Pfn, PageState) {
        let first = self.nr.start().add(block << PAGEBLOCK_ORDER);
        let state = self.page(first).state();
        if !state.is_tail() {
            return (first, state);
        }
        let head = first.align_down(Order::MAX);
        (head, self.page(head).state())
    }

    /// The buddy blocks that lie in the pageblocks `range` or reach into them, ascending: their heads and the
    /// heads' states. The zone lock keeps free buddy blocks from changing during the walk.
    pub(crate) fn blocks(&self, range: &Range<u32>) -> impl Iterator<Item = (Pfn, PageState)> + use<'s> {
        let this = *self;
        let end = this.nr.pageblocks(range).end();
        let mut next = Some(this.covering(range.start));
        core::iter::from_fn(move || {
            let (head, state) = next.take()?;
            let after = head.add(state.order().pages());
            if after < end {
                next = Some((after, this.page(after).state()));
            }
            Some((head, state))
        })
    }
}
