//! Page allocators that a kernel author could take instead, behind one interface. All are crates of crates.io, each
//! behind a spin lock where it has none of its own, as a kernel would use it.
//!
//! Invariant: a page is known by its number; page 0 is the first of the memory that the allocator was given.
#![expect(unsafe_code, reason = "calls allocators that take addresses")]

use std::alloc::Layout;
use std::ptr::NonNull;

use bitmap_allocator::{BitAlloc, BitAlloc1M};
use buddy_alloc::buddy_alloc::{BuddyAlloc, BuddyAllocParam};
use buddy_system_allocator::FrameAllocator;
use free_list::{FreeList, PageLayout, PageRange};
use spin::Mutex;
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;
use tidevm_mm::{Gfp, Order, PAGE_SIZE, Pfn};

use crate::machine::{Mapping, PlainMachine};

const PAGE: usize = PAGE_SIZE as usize;

/// A page allocator.
pub trait PageAlloc {
    /// Its name and version.
    const NAME: &'static str;
    /// Whether pages can be given back in any order, all over memory.
    const SCATTERS: bool = true;

    /// Takes 2^`order` pages, aligned to their size.
    fn alloc(&self, order: u8) -> Option<usize>;

    /// Gives back what [`alloc`](Self::alloc) with this order gave.
    fn free(&self, page: usize, order: u8);
}

/// Ours, on a machine whose region is plugged.
impl PageAlloc for PlainMachine {
    const NAME: &'static str = "tidevm-mm";

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        self.mm.alloc_pages(Order::new(order), Gfp::Movable).ok().map(|pfn| pfn.get() as usize)
    }

    #[inline]
    fn free(&self, page: usize, order: u8) {
        self.mm.free_pages(Pfn::new(page as u32), Order::new(order));
    }
}

/// `buddy_system_allocator`.
pub struct BuddySystem(Mutex<FrameAllocator>);

impl BuddySystem {
    /// With `pages` pages.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let mut frames = FrameAllocator::new();
        frames.add_frame(0, pages);
        Self(Mutex::new(frames))
    }
}

impl PageAlloc for BuddySystem {
    const NAME: &'static str = "buddy_system_allocator 0.13";

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        self.0.lock().alloc(1 << order)
    }

    #[inline]
    fn free(&self, page: usize, order: u8) {
        self.0.lock().dealloc(page, 1 << order);
    }
}

/// `bitmap-allocator`, for up to a million pages.
pub struct Bitmap(Mutex<Box<BitAlloc1M>>);

impl Bitmap {
    /// With `pages` pages.
    ///
    /// # Panics
    /// When the bitmap has no room for them.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        assert!(pages <= BitAlloc1M::CAP, "{pages} pages");
        let mut bits = Box::new(BitAlloc1M::DEFAULT);
        bits.insert(0..pages);
        Self(Mutex::new(bits))
    }
}

impl PageAlloc for Bitmap {
    const NAME: &'static str = "bitmap-allocator 0.4";

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        match order {
            0 => self.0.lock().alloc(),
            _ => self.0.lock().alloc_contiguous(None, 1 << order, order.into()),
        }
    }

    #[inline]
    fn free(&self, page: usize, order: u8) {
        match order {
            0 => self.0.lock().dealloc(page),
            _ => self.0.lock().dealloc_contiguous(page, 1 << order),
        };
    }
}

/// `free-list`, with room for 1024 ranges.
pub struct Ranges(Mutex<FreeList<1024>>);

impl Ranges {
    /// With `pages` pages.
    ///
    /// # Panics
    /// Never: there is room for one range.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let mut list = FreeList::new();
        let all = PageRange::new(PAGE, (pages + 1) * PAGE).expect("not empty");
        // SAFETY: the crate keeps numbers and accesses no memory.
        unsafe { list.deallocate(all) }.expect("one range");
        Self(Mutex::new(list))
    }
}

impl PageAlloc for Ranges {
    const NAME: &'static str = "free-list 0.3";
    // Its table of ranges overflows, and takes microseconds a page until it does.
    const SCATTERS: bool = false;

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        let size = PAGE << order;
        let layout = PageLayout::from_size_align(size, size).ok()?;
        let range = self.0.lock().allocate(layout).ok()?;
        Some(range.start() / PAGE)
    }

    #[inline]
    fn free(&self, page: usize, order: u8) {
        let range = PageRange::from_start_len(page * PAGE, PAGE << order).expect("a range that it gave");
        // SAFETY: as in `new`. A table without room is an error, and the range is lost.
        _ = unsafe { self.0.lock().deallocate(range) };
    }
}

/// `buddy-alloc`. It has its table in the memory that it gives out.
pub struct BuddyAllocator(Mutex<BuddyAlloc>, Mapping);

// SAFETY: the allocator is used under its lock, and its memory belongs to the process.
unsafe impl Sync for BuddyAllocator {}

impl BuddyAllocator {
    /// With `pages` pages, less its table.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let memory = Mapping::new(pages * PAGE);
        let param = BuddyAllocParam::new_with_zero_filled(memory.start(), pages * PAGE, PAGE);
        // SAFETY: the mapping belongs to this allocator alone, and lives as long.
        Self(Mutex::new(unsafe { BuddyAlloc::new(param) }), memory)
    }
}

impl PageAlloc for BuddyAllocator {
    const NAME: &'static str = "buddy-alloc 0.6";

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        NonNull::new(self.0.lock().malloc(PAGE << order)).map(|at| number(at.as_ptr(), &self.1))
    }

    #[inline]
    fn free(&self, page: usize, _order: u8) {
        self.0.lock().free(address(page, &self.1));
    }
}

/// `talc`. It has its lists in the memory that it gives out.
pub struct TalcAllocator(Mutex<Talc<Manual, DefaultBinning>>, Mapping);

impl TalcAllocator {
    /// With `pages` pages, less its lists.
    ///
    /// # Panics
    /// When the crate refuses the memory.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let memory = Mapping::new(pages * PAGE);
        let mut talc = Talc::new(Manual);
        // SAFETY: the mapping belongs to this allocator alone, and lives as long.
        unsafe { talc.claim(memory.start(), pages * PAGE) }.expect("memory for a heap");
        Self(Mutex::new(talc), memory)
    }

    fn layout(order: u8) -> Layout {
        Layout::from_size_align(PAGE << order, PAGE << order).expect("a power of two")
    }
}

impl PageAlloc for TalcAllocator {
    const NAME: &'static str = "talc 5.1";

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        // SAFETY: the layout has a size.
        let at = unsafe { self.0.lock().allocate(Self::layout(order)) }?;
        Some(number(at.as_ptr(), &self.1))
    }

    #[inline]
    fn free(&self, page: usize, order: u8) {
        // SAFETY: the caller gives back what `alloc` gave, with the same order.
        unsafe { self.0.lock().deallocate(address(page, &self.1), Self::layout(order)) };
    }
}

/// The number of the page at `address`.
fn number(address: *mut u8, memory: &Mapping) -> usize {
    (address as usize - memory.start() as usize) / PAGE
}

/// The address of page `number`.
fn address(number: usize, memory: &Mapping) -> *mut u8 {
    memory.start().wrapping_add(number * PAGE)
}
