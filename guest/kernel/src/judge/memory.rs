//! Memory as the judge uses it: pages that the device reads and writes, and windows onto plugged memory.
//!
//! Takes the place of the driver's glue to memory management (`virtio/mem.rs`). It differs on purpose: plugged memory does
//! not join a zone, because a row unplugs it a moment later. It is mapped for as long as the row looks at it.
//!
//! Invariants: an [`Area`] owns its pages for good, and nothing in Rust refers to them, so the device may write to them at
//! any time. A [`Window`] covers whole large pages that no other window covers.
#![expect(unsafe_code, reason = "has memory that the device accesses too")]

use tidevm_mm::{Gfp, NoPageTable, Order, PAGE_SIZE, Pfn, PfnRange, PhysAddr, Platform};

use crate::mem::MM;
use crate::mem::paging::{LARGE_PAGE, clear_page, phys_to_virt};
use crate::mem::span::Span;

/// Pages that the device may read and write.
#[derive(Debug)]
pub struct Area {
    phys: u64,
    size: u64,
    span: Span,
}

impl Area {
    /// An area of 2^`order` pages, all zero.
    ///
    /// # Panics
    /// When there is no memory, which a judge's machine has.
    pub fn new(order: u8) -> Self {
        let order = Order::new(order);
        let first = MM.alloc_pages(order, Gfp::Kernel).expect("memory for the judge's queue").address().get();
        let size = u64::from(order.pages()) * PAGE_SIZE;
        (first..first + size).step_by(PAGE_SIZE as usize).for_each(clear_page);
        // SAFETY: the area owns these pages for good, and nothing in Rust refers to them.
        let span = unsafe { Span::new(phys_to_virt(first), size) };
        Self { phys: first, size, span }
    }

    /// The physical address of `offset`.
    pub fn address(&self, offset: u64) -> u64 {
        assert!(offset < self.size, "offset {offset:#x} of {:#x} bytes", self.size);
        self.phys + offset
    }

    /// Its bytes.
    pub fn span(&self) -> &Span {
        &self.span
    }
}

/// Plugged memory that the judge looks at.
#[derive(Debug)]
pub struct Window {
    range: PfnRange,
    span: Span,
}

impl Window {
    /// A window onto `size` bytes of physical memory from `start` on, both in whole large pages.
    ///
    /// # Errors
    /// [`NoPageTable`].
    ///
    /// # Panics
    /// When something is mapped there, or the window is not whole large pages.
    pub fn new(start: u64, size: u64) -> Result<Self, NoPageTable> {
        assert!((start | size).is_multiple_of(LARGE_PAGE), "{size:#x} bytes at {start:#x}");
        let range = PfnRange::new(pfn(start), (size / PAGE_SIZE) as u32);
        let _hotplug = MM.hotplug();
        MM.platform().map_direct(range)?;
        // SAFETY: the range was just mapped, and the window takes the mapping away when it goes, with the span. Plugged
        // memory that is in no zone belongs to nothing else.
        let span = unsafe { Span::new(phys_to_virt(start), size) };
        Ok(Self { range, span })
    }

    /// Its bytes.
    pub fn span(&self) -> &Span {
        &self.span
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _hotplug = MM.hotplug();
        MM.platform().unmap_direct(self.range);
    }
}

fn pfn(phys: u64) -> Pfn {
    PhysAddr::new(phys).pfn()
}
