//! Bytes that are accessed as devices want it: registers, and memory that a device accesses too.
//!
//! Mirrors Linux `readl` and `writel`. All accesses are volatile, aligned and in bounds.
#![expect(unsafe_code, reason = "accesses registers, and memory that devices access too")]

use core::ptr::NonNull;

use tidevm_mm::NoPageTable;

use super::platform;

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
    ///
    /// # Errors
    /// [`NoPageTable`].
    pub fn registers(phys: u64, size: u64) -> Result<Self, NoPageTable> {
        // SAFETY: the registers were just mapped, for good. They are a device's, so no Rust value lies there.
        platform::map_device(phys, size).map(|start| unsafe { Self::new(start, size) })
    }

    /// The bytes at `start`.
    ///
    /// # Safety
    /// They must stay mapped as long as the span lives, and no Rust value may lie there.
    ///
    /// # Panics
    /// When `start` is null.
    pub unsafe fn new(start: *mut u8, size: u64) -> Self {
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
        // SAFETY: `at` has checked that the address is in bounds and aligned. The bytes are mapped by the contract of `new`,
        // and a number may have any bits.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// Writes the number at `offset`.
    ///
    /// # Panics
    /// When it is out of bounds or not aligned.
    pub fn set<T: Word>(&self, offset: u64, value: T) {
        // SAFETY: as in `get`; no Rust value lies there, by the contract of `new`.
        unsafe { self.at::<T>(offset).write_volatile(value) };
    }
}

// SAFETY: an access is one of a register or of shared memory, from whichever CPU it comes.
unsafe impl Send for Span {}
