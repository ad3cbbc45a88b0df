//! The machine of the toy guest: plain memory of this process.
//!
//! A kernel does three things here that this does not: it maps memory and memmaps into page tables, it flushes TLBs, and it waits
//! for its other CPUs. PLATFORM.md says what each method must do.
#![expect(unsafe_code, reason = "stands for the machine, whose contract is unsafe")]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::error::Error;
use std::ptr::{self, NonNull};

use tidevm_mm::{
    Memblock, MemmapFrames, Mm, NoPageTable, Options, PAGE_SIZE, PerCpuPages, Pfn, PfnRange, PhysAddr,
    PhysRange, Platform, SECTION_SIZE, Section, SectionNr, SectionRange, Sparse,
};

/// Size of boot memory in bytes.
pub const BOOT_SIZE: u64 = 2 * SECTION_SIZE;

/// The machine: one CPU, and memory that is all there from the beginning.
pub struct Plain {
    memory: NonNull<u8>,
}

impl Plain {
    fn at(&self, pfn: Pfn) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(pfn.address().get() as usize)
    }

    /// Writes a page of the guest, as programs of the guest do.
    pub fn write(&self, pfn: Pfn, value: u64) {
        // SAFETY: `memory` has all frames of the guest, and the caller has allocated this one.
        unsafe { self.at(pfn).cast::<u64>().write(value) };
    }

    /// Reads a page of the guest.
    pub fn read(&self, pfn: Pfn) -> u64 {
        // SAFETY: as in `write`; memory that nothing has written is zero.
        unsafe { self.at(pfn).cast::<u64>().read() }
    }
}

// SAFETY: the memory belongs to the process, not to a thread.
unsafe impl Sync for Plain {}

// SAFETY: the memmap window is always mapped, and each section has its own part of it. There is one CPU, so none has another
// one's number, and no other CPU has to be waited for.
unsafe impl Platform for Plain {
    const MIGRATES: bool = true;

    fn this_cpu(&self) -> usize {
        0
    }

    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        for &(to, from) in pages {
            // SAFETY: `memory` has all frames, and the two are different ones.
            unsafe { ptr::copy_nonoverlapping(self.at(from), self.at(to), PAGE_SIZE as usize) };
        }
    }

    // A kernel writes page tables in the methods from here on.
    fn map_memmap(&self, _: SectionNr, _: Pfn) -> Result<(), NoPageTable> {
        Ok(())
    }

    fn map_prepared_memmap(&self, _: SectionNr, _: Pfn) {}

    fn unmap_memmap(&self, _: SectionNr) {}

    /// Only asked for where the memmap lies elsewhere than in the memory that is added.
    fn map_memmap_base(&self, _: SectionNr, _: &MemmapFrames) -> Result<(), NoPageTable> {
        Err(NoPageTable)
    }

    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames {
        unreachable!("the memmap of {section:?} is one piece")
    }

    fn map_direct(&self, _: PfnRange) -> Result<(), NoPageTable> {
        Ok(())
    }

    fn prepare(&self, _: SectionRange) -> Result<(), NoPageTable> {
        Ok(())
    }

    fn map_prepared_direct(&self, _: PfnRange) {}

    fn release(&self, _: SectionRange) {}

    fn unmap_direct(&self, _: PfnRange) {}

    fn synchronize(&self) {}

    fn drained(&self) {}
}

/// Zeroed memory that stays for ever. The host takes no pages for what is not touched.
fn memory(size: usize, align: usize) -> NonNull<u8> {
    let layout = Layout::array::<u8>(size + align).expect("a size that an allocation can have");
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
    // SAFETY: the offset is below `align`, so it lies in the allocation, with `size` bytes behind it.
    unsafe { start.add(start.as_ptr().align_offset(align)) }
}

/// Boots the memory management: boot memory first, and then room for a region of `region_size` bytes.
///
/// # Errors
/// The memory map is too long, or has no room for the memmap.
pub fn boot(region_size: u64) -> Result<&'static Mm<Plain>, Box<dyn Error>> {
    const LARGE_PAGE: usize = 2 << 20;
    // A kernel has these in statics.
    let count = ((BOOT_SIZE + region_size) / SECTION_SIZE) as usize;
    let sections: &'static [Section] = Box::leak((0..count).map(|_| Section::new()).collect());
    let cpus: &'static [PerCpuPages] = Box::leak(Box::new([PerCpuPages::new()]));
    let window = memory(count * LARGE_PAGE, LARGE_PAGE).cast();
    // SAFETY: the window has 2 MiB for each section, and is used for nothing else.
    let sparse = unsafe { Sparse::new(window, sections) };
    let memory = memory((BOOT_SIZE + region_size) as usize, LARGE_PAGE);
    let mm = Box::leak(Box::new(Mm::new(Plain { memory }, sparse, cpus)));
    // The memory map that firmware gives. The first 4 MiB hold the kernel.
    let memblock = Box::leak(Box::new(Memblock::new()));
    memblock.add(PhysRange::new(PhysAddr::new(0), BOOT_SIZE))?;
    memblock.reserve(PhysRange::new(PhysAddr::new(0), 4 << 20))?;
    mm.boot(memblock, Options::DEFAULT)?;
    Ok(mm)
}
