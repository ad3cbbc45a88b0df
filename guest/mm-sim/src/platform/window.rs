//! The memmap window: struct pages for all sections of a machine.
//!
//! Invariant: the pages are there as long as the window, mapped or not, so that a look-up that comes too late finds
//! garbage.
#![expect(unsafe_code, reason = "allocates the struct pages, 2 MiB aligned and untouched")]

use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::AtomicU64;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use tidevm_mm::hosted::{self, Seen, states_written};
use tidevm_mm::{PAGEBLOCK_PAGES, Page, Pfn, SECTION_PAGES, SectionNr};

/// That a pageblock of a memmap is full of garbage, as a meaning of [`Seen`].
pub(super) const GARBAGE: u32 = u32::MAX;
/// That it is all zero.
pub(super) const ZERO: u32 = u32::MAX - 1;

/// Words of a struct page.
pub(super) const PAGE_WORDS: usize = size_of::<Page>() / size_of::<AtomicU64>();

/// Zeroed pages. The allocation has no alignment and the pages are aligned in it, because the host's allocator
/// clears aligned memory by writing to it, and a machine uses a small part of its window.
pub(crate) struct Window {
    start: NonNull<u8>,
    layout: Layout,
}

impl Window {
    const ALIGN: usize = 1 << 21;

    pub(super) fn new(pages: usize) -> Self {
        let layout = Layout::array::<u8>(pages * size_of::<Page>() + Self::ALIGN).expect("fits");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let window = Self { start, layout };
        for first in (0..pages).step_by(PAGEBLOCK_PAGES as usize).map(|index| window.page(index)) {
            // Another window may have lain there.
            states_written(first);
            Seen::now(first, ZERO).note();
        }
        window
    }

    fn page(&self, index: usize) -> &Page {
        &self.all()[index]
    }

    /// All pages.
    fn all(&self) -> &[Page] {
        let count = (self.layout.size() - Self::ALIGN) / size_of::<Page>();
        // SAFETY: the allocation has so many pages from `pages` on. A `Page` is valid with any bits.
        unsafe { slice::from_raw_parts(self.pages().as_ptr(), count) }
    }

    /// The state of the page `pfn`.
    pub(super) fn state(&self, pfn: Pfn) -> u8 {
        hosted::page_state(self.all(), pfn.get() as usize)
    }

    /// The first struct page of each pageblock of `section`, and the words of its struct pages.
    pub(super) fn pageblocks(&self, section: SectionNr) -> impl Iterator<Item = (&Page, &[AtomicU64])> {
        let words = PAGEBLOCK_PAGES as usize * PAGE_WORDS;
        let first = section.start().get() as usize;
        let pages = (first..).step_by(PAGEBLOCK_PAGES as usize).map(|page| self.page(page));
        self.words(section).chunks_exact(words).zip(pages).map(|(words, first)| (first, words))
    }

    /// The words of the struct pages of `section`.
    pub(super) fn words(&self, section: SectionNr) -> &[AtomicU64] {
        let first = section.start().get() as usize;
        let pages = &self.all()[first..first + SECTION_PAGES as usize];
        // SAFETY: the slice is that of `pages`. A `Page` is made of atomics and any bits are valid in them, and
        // `PAGE_WORDS` of `AtomicU64` lie in one.
        unsafe { slice::from_raw_parts(pages.as_ptr().cast(), pages.len() * PAGE_WORDS) }
    }

    /// The first page, 2 MiB aligned.
    pub(crate) fn pages(&self) -> NonNull<Page> {
        // SAFETY: the offset is below `ALIGN`, so it and all pages behind it lie in the allocation.
        unsafe { self.start.add(self.start.as_ptr().align_offset(Self::ALIGN)) }.cast()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: `new` made the allocation with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

// SAFETY: a window is an allocation of atomics of its own.
unsafe impl Sync for Window {}
// SAFETY: as for Sync.
unsafe impl Send for Window {}
