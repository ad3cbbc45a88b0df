//! From the VMM's memory map to a direct map of all boot memory and a [`Memblock`] that knows which of it is
//! in use.
//!
//! Takes the place of Linux `e820__memblock_setup` and `init_mem_mapping`.
//!
//! Invariant: until all memory is mapped, page tables come from the first GiB, which the start-up page tables
//! map.
#![expect(unsafe_code, reason = "declares the linker's symbols")]

use spin::{Mutex, MutexGuard};
use tidevm_mm::{Memblock, PAGE_SIZE, PhysAddr, PhysRange};

use crate::boot::pvh::BootInfo;
use crate::mem::paging::{self, TableSource};

/// End of the memory that the start-up page tables map.
const FIRST_GIB: u64 = 1 << 30;
/// End of the memory that boot keeps out of the allocator: firmware, and the trampoline of
/// [`crate::cpu::smp`].
const LOW_MEMORY: u64 = 1 << 20;
const FULL: &str = "the memory map has too many entries";

unsafe extern "C" {
    safe static __image_start: u8;
    safe static __image_end: u8;
}

/// The memory that boot knows of. `mm` keeps it: boot memory stays described here.
static MEMBLOCK: Mutex<Memblock> = Mutex::new(Memblock::new());

/// Page tables from memblock, before the page allocator runs.
pub struct EarlyTables<'m>(pub &'m mut Memblock);

impl TableSource for EarlyTables<'_> {
    fn take(&mut self) -> Option<u64> {
        Some(self.0.alloc(PAGE_SIZE, PAGE_SIZE)?.get())
    }

    fn give_back(&mut self, _page: u64) {
        unreachable!("nothing is set aside before the page allocator runs")
    }

    fn free(&mut self, _table: u64) {
        unreachable!("nothing is unmapped before the page allocator runs")
    }

    fn stays(&self, _virt: u64) -> bool {
        false
    }
}

/// Maps all boot memory, and returns the memblock with the ranges that exist and those that are in use.
/// Called once: a second call would wait for ever.
///
/// # Panics
/// When the memory map has more entries than memblock, or there is no memory for page tables.
pub fn map(info: &BootInfo) -> &'static mut Memblock {
    let memblock = MutexGuard::leak(MEMBLOCK.lock());
    // Tables come from `low` until all memory is mapped.
    let mut low = Memblock::new();
    for &(start, end) in info.ram() {
        let low_end = end.min(FIRST_GIB);
        if start < low_end {
            low.add(PhysRange::new(PhysAddr::new(start), low_end - start)).expect(FULL);
        }
        memblock.add(PhysRange::new(PhysAddr::new(start), end - start)).expect(FULL);
    }
    low.reserve(PhysRange::new(PhysAddr::new(0), LOW_MEMORY)).expect(FULL);
    low.reserve(image()).expect(FULL);
    if let Some((start, end)) = info.module() {
        let module = PhysRange::new(PhysAddr::new(start), end - start);
        low.reserve(module).and_then(|()| memblock.reserve(module)).expect(FULL);
    }
    for &(start, end) in info.ram() {
        paging::map_boot_memory(start, end, &mut EarlyTables(&mut low))
            .expect("no memory for the direct map's page tables");
    }
    for range in low.reserved() {
        memblock.reserve(range).expect(FULL);
    }
    memblock
}

/// The kernel's image. The linker gives its start as a physical address and its end as a virtual one.
fn image() -> PhysRange {
    PhysRange::between(
        PhysAddr::new((&raw const __image_start) as u64),
        PhysAddr::new(paging::virt_to_phys((&raw const __image_end) as u64)),
    )
    .expect("the image ends behind its start")
}
