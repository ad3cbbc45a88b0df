//! Memory as the judge uses it: pages that the device reads and writes, windows onto plugged memory, and registers.
//!
//! Takes the place of the driver's glue to memory management (`virtio/mem.rs`). It differs on purpose: plugged memory does
//! not join a zone, because a row unplugs it a moment later. It is mapped for as long as the row looks at it.
//!
//! Invariants: an [`Area`] owns its pages for good, and nothing in Rust refers to them, so the device may write to them at
//! any time. A [`Window`] covers whole large pages that no other window covers. All accesses are volatile and in bounds.
#![expect(unsafe_code, reason = "accesses memory that the device accesses too, and registers")]

use core::ptr::NonNull;

use tidevm_mm::{Gfp, NoPageTable, Order, PAGE_SIZE, Pfn, PfnRange, PhysAddr, Platform};

use crate::mem::paging::{LARGE_PAGE, clear_page, phys_to_virt};
use crate::mem::{MM, platform};

/// A number as memory and registers have it.
pub trait Word: Copy {}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// Bytes that stay mapped as long as this value's owner lives.
#[derive(Debug)]
pub struct Span {
    start: NonNull<u8>,
    size: u64,
}

impl Span {
    /// The registers at physical address `phys`, `size` bytes, mapped for good.
    pub fn registers(phys: u64, size: u64) -> Result<Self, NoPageTable> {
        platform::map_device(phys, size).map(|start| Self::new(start, size))
    }

    fn new(start: *mut u8, size: u64) -> Self {
        Self { start: NonNull::new(start).expect("mappings are in the upper half"), size }
    }

    fn at<T: Word>(&self, offset: u64) -> *mut T {
        let end = offset.checked_add(size_of::<T>() as u64);
        assert!(end.is_some_and(|end| end <= self.size), "offset {offset:#x} of {:#x} bytes", self.size);
        let pointer = self.start.as_ptr().wrapping_add(offset as usize).cast::<T>();
        assert!(pointer.is_aligned(), "offset {offset:#x} is not aligned");
        pointer
    }

    /// The number at `offset`.
    ///
    /// # Panics
    /// When it is out of bounds or not aligned.
    pub fn get<T: Word>(&self, offset: u64) -> T {
        // SAFETY: `at` has checked that the address is in bounds and aligned; the bytes are mapped (see the type), and a
        // number may have any bits.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// Writes the number at `offset`.
    ///
    /// # Panics
    /// When it is out of bounds or not aligned.
    pub fn set<T: Word>(&self, offset: u64, value: T) {
        // SAFETY: as in `get`; no Rust value lies there: it is memory that the judge alone owns, or registers.
        unsafe { self.at::<T>(offset).write_volatile(value) };
    }
}

/// Pages that the device may read and write.
#[derive(Debug)]
pub struct Area {
    phys: u64,
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
        Self { phys: first, span: Span::new(phys_to_virt(first), size) }
    }

    /// The physical address of `offset`.
    pub fn address(&self, offset: u64) -> u64 {
        assert!(offset < self.span.size, "offset {offset:#x} of {:#x} bytes", self.span.size);
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
        Ok(Self { range, span: Span::new(phys_to_virt(start), size) })
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
