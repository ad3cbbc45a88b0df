//! The pages of one section, for walks from buddy block to buddy block.
//!
//! Takes the place of Linux's walks by `pfn_to_page` and `buddy_order`.
//!
//! Invariant: only `sparse` makes a [`SectionPages`], of a section whose memmap is mapped.

use core::ops::Range;

use crate::addr::{Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Pfn, SECTION_PAGES, SectionNr};
use crate::free_area::FreeArea;
use crate::page::{PARTS, Page, PageRef, PageState, part_of};
use crate::sparse::{Section, SectionState, Sparse, no_page};

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
    pub(crate) fn page(&self, pfn: Pfn) -> PageRef<'s> {
        let index = pfn.in_section();
        PageRef::new(&self.pages[index], &self.pages[part_of(index)], index)
    }

    /// The struct pages of pageblock `pageblock` that have its states.
    #[inline]
    pub(crate) fn parts(&self, pageblock: u32) -> &'s [Page; PARTS] {
        let first = part_of((pageblock << PAGEBLOCK_ORDER) as usize % self.pages.len());
        let parts = self.pages[first..].first_chunk();
        parts.expect("the states of a pageblock lie in its own struct pages")
    }

    /// Gives the pages of `bits` in the aligned range of 64 pages from `first` on, which are tails, another state.
    ///
    /// # Panics
    /// When one of them is no tail: its state was overwritten.
    #[inline]
    pub(crate) fn replace_tails(&self, first: Pfn, bits: u64, state: PageState) {
        let at = part_of(first.in_section()) & !1;
        for (part, bits) in [(0, bits as u32), (1, (bits >> u32::BITS) as u32)] {
            if let Err((index, found)) = self.pages[at + part].replace_tails(bits, state) {
                let pfn = first.add(part as u32 * u32::BITS + index);
                panic!("free {pfn:?}: state is {found:?}, and should be a tail's");
            }
        }
    }

    /// The struct pages of pageblock `pageblock`.
    pub(crate) fn pageblock(&self, pageblock: u32) -> &'s [Page] {
        let first = (pageblock << PAGEBLOCK_ORDER) as usize;
        &self.pages[first..first + PAGEBLOCK_PAGES as usize]
    }

    /// The free buddy blocks of pageblock `pageblock`.
    #[inline]
    pub(crate) fn area(&self, pageblock: u32) -> FreeArea<'s> {
        FreeArea::new(self.parts(pageblock))
    }

    /// Checks that every page means something: it was written for the section's zone, or the memmap is known to be
    /// zero where it was not.
    #[cfg(all(any(test, feature = "hosted"), not(feature = "loom")))]
    pub(super) fn assert_initialised(&self) {
        if self.section.is_sparse() {
            return;
        }
        for pageblock in 0..crate::SECTION_PAGEBLOCKS {
            let known = Page::are_written(self.parts(pageblock));
            assert!(
                known,
                "pageblock {pageblock} of {:?}, which is called initialised, was not written",
                self.nr
            );
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
        let head = first.align_down(Order::MAX);
        if head != first {
            let state = self.page(head).state();
            if !state.is_tail() && state.order() == Order::MAX {
                return (head, state);
            }
        }
        (first, self.block(first))
    }

    /// The state of the buddy block that begins at `pfn`. One that is free by its bits has no head (see `free_area`).
    #[inline]
    pub(crate) fn block(&self, pfn: Pfn) -> PageState {
        let state = self.page(pfn).state();
        if state.is_tail() { self.area(pfn.pageblock()).state_of_tail(pfn.in_pageblock()) } else { state }
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
                next = Some((after, this.block(after)));
            }
            Some((head, state))
        })
    }
}

impl Sparse {
    /// The free buddy blocks of the pageblock of `pfn`.
    ///
    /// # Panics
    /// When the section has no initialised memmap.
    #[inline]
    pub(crate) fn area(&self, pfn: Pfn) -> FreeArea<'_> {
        let Some(pages) = self.pages(pfn.section()) else { no_page(pfn) };
        pages.area(pfn.pageblock())
    }

    /// The pages of section `nr`, if it is online.
    pub(crate) fn online_pages(&self, nr: SectionNr) -> Option<SectionPages<'_>> {
        self.pages(nr).filter(|pages| pages.section().state() == SectionState::Online)
    }

    /// The page of `pfn`, if its section is online (Linux `pfn_to_online_page`): for walks over arbitrary
    /// frames.
    pub(crate) fn online_page(&self, pfn: Pfn) -> Option<PageRef<'_>> {
        Some(self.online_pages(pfn.section())?.page(pfn))
    }
}
