//! Memmap taken from the range that it describes.
//!
//! Mirrors Linux `struct vmem_altmap` and `altmap_alloc_block_buf`: a bump allocator over pages set aside at
//! the start of the range. Nothing is recycled; freeing only counts, so that removal can prove that
//! everything came back. Differs from Linux on purpose: Linux keeps it on the heap beside the memory block;
//! here it is two counters in the table entry of the memory block's first section, or in the pgmap.
//!
//! Invariant: `alloc <= free`; `alloc == 0` before the range is added and after it is removed.

use crate::addr::{Order, Pfn, SectionNr};
use crate::sparse::Section;

/// Pages at the start of a range that are set aside for the memmap of all its sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmemAltmap {
    base: Pfn,
    /// Pages set aside.
    free: u32,
    /// Pages that are allocated.
    alloc: u32,
}

impl VmemAltmap {
    /// Sets `free` pages aside at the start of section `nr`, fewer than 2^16.
    pub(crate) fn new(nr: SectionNr, free: u32) -> Self {
        Self::at(nr.start(), free)
    }

    /// Sets `free` pages aside from `base`.
    pub(crate) fn at(base: Pfn, free: u32) -> Self {
        Self { base, free, alloc: 0 }
    }

    /// The same with `alloc` pages allocated.
    pub(crate) fn with_allocated(self, alloc: u32) -> Self {
        Self { alloc, ..self }
    }

    /// The altmap of the memory block that begins with `section`, number `nr`, if it has one.
    pub(crate) fn of(nr: SectionNr, section: &Section) -> Option<Self> {
        let word = section.altmap_word();
        (word != 0).then(|| Self { base: nr.start(), free: word & 0xffff, alloc: word >> 16 })
    }

    /// Records it in the table entry of the memory block's first section.
    pub(crate) fn store(self, section: &Section) {
        section.set_altmap_word(self.free | self.alloc << 16);
    }

    /// Takes it out of the table. Everything was freed.
    pub(crate) fn clear(self, section: &Section) {
        self.end();
        section.set_altmap_word(0);
    }

    /// Checks at the end of its life that everything was freed.
    pub(crate) fn end(self) {
        assert_eq!(self.alloc, 0, "{} pages of memmap still in use in {:?}", self.alloc, self.base);
    }

    /// Pages set aside: the usable memory of a memory block begins behind them.
    pub(crate) fn offset(self) -> u32 {
        self.free
    }

    /// Pages that are allocated.
    pub(crate) fn allocated(self) -> u32 {
        self.alloc
    }

    /// Takes the next `order` pages, aligned to their size.
    pub(crate) fn alloc(&mut self, order: Order) -> Option<Pfn> {
        let next = self.base.add(self.alloc);
        assert!(next.is_aligned(order), "an altmap hands out pages in one order");
        if self.alloc + order.pages() > self.free {
            return None;
        }
        self.alloc += order.pages();
        Some(next)
    }

    /// Gives `order` pages back.
    pub(crate) fn free(&mut self, order: Order) {
        assert!(order.pages() <= self.alloc, "frees {} of {} pages", order.pages(), self.alloc);
        self.alloc -= order.pages();
    }
}

#[cfg(test)]
mod tests {
    use super::VmemAltmap;
    use crate::addr::{Order, SectionNr};
    use crate::sparse::Section;

    #[test]
    fn allocates_the_pages_that_were_set_aside() {
        let (nr, section) = (SectionNr::new(5), Section::new());
        assert_eq!(VmemAltmap::of(nr, &section), None);
        let mut altmap = VmemAltmap::new(nr, 1024);
        assert_eq!(altmap.alloc(Order::PAGEBLOCK), Some(nr.start()));
        assert_eq!(altmap.alloc(Order::PAGEBLOCK), Some(nr.start().add(512)));
        assert_eq!(altmap.alloc(Order::PAGE), None, "exhausted");
        altmap.store(&section);
        assert_eq!(VmemAltmap::of(nr, &section), Some(altmap));
        assert_eq!((altmap.offset(), altmap.allocated()), (1024, 1024));
        altmap.free(Order::PAGEBLOCK);
        altmap.free(Order::PAGEBLOCK);
        altmap.clear(&section);
        assert_eq!(VmemAltmap::of(nr, &section), None);
    }

    #[test]
    #[should_panic(expected = "512 pages of memmap still in use")]
    fn nothing_may_be_left_at_removal() {
        let mut altmap = VmemAltmap::new(SectionNr::new(5), 512);
        altmap.alloc(Order::PAGEBLOCK);
        altmap.clear(&Section::new());
    }

    #[test]
    #[should_panic(expected = "frees 512 of 0 pages")]
    fn frees_no_more_than_it_gave() {
        VmemAltmap::new(SectionNr::new(5), 512).free(Order::PAGEBLOCK);
    }
}
