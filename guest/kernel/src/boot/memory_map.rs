//! From the VMM's memory map to a [`Memblock`] that knows which of it is in use, and to page tables for all of it.
//!
//! Takes the place of Linux `e820__memblock_setup` and `init_mem_mapping`. Differs from Linux on purpose: nothing is
//! mapped here. Pages for page tables are set aside, and memory is mapped when it is wanted.
//!
//! Invariant: what boot takes and writes to, such as page tables, lies in the memory that the start-up page tables
//! map ([`BOOT_MAPPED`]).
#![expect(unsafe_code, reason = "declares the linker's symbols")]

use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use spin::{Mutex, MutexGuard};
use tidevm_mm::{Memblock, PAGE_SIZE, PhysAddr, PhysRange};

use crate::boot::pvh::BootInfo;
use crate::mem::paging::{self, BOOT_MAPPED, NoPageTable, TableSource};
use crate::mem::platform;

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

/// Pages for the first page tables. They are a part of the image, so the VMM has cleared them.
#[repr(align(4096))]
struct ImageTables([AtomicU64; IMAGE_TABLES * TABLE_WORDS]);
/// As many as a boot without ACPI needs: four for the image, two for registers, one for the memmap.
const IMAGE_TABLES: usize = 7;
const TABLE_WORDS: usize = PAGE_SIZE as usize / size_of::<u64>();
static TABLES: ImageTables = ImageTables([const { AtomicU64::new(0) }; _]);
/// How many of them are in use.
static TABLES_USED: AtomicUsize = AtomicUsize::new(0);

/// Page tables before the page allocator runs: from the image, then from memblock.
pub struct EarlyTables<'m>(pub &'m mut Memblock);

/// Takes `size` bytes that are mapped from the start, aligned to pages.
pub fn alloc(memblock: &mut Memblock, size: u64) -> Option<PhysAddr> {
    memblock.alloc_below(PhysAddr::new(BOOT_MAPPED), size, PAGE_SIZE)
}

impl TableSource for EarlyTables<'_> {
    fn take(&mut self) -> Option<u64> {
        Some(alloc(self.0, PAGE_SIZE)?.get())
    }

    fn alloc(&mut self) -> Option<u64> {
        let used = TABLES_USED.fetch_add(1, Ordering::Relaxed);
        if let Some(table) = TABLES.0.get(used * TABLE_WORDS) {
            return Some(paging::virt_to_phys(ptr::from_ref(table) as u64));
        }
        let table = self.take()?;
        paging::clear_page(table);
        Some(table)
    }

    fn give_back(&mut self, _page: u64) {
        unreachable!("nothing is given back before the page allocator runs")
    }

    fn free(&mut self, _table: u64) {
        unreachable!("nothing is unmapped before the page allocator runs")
    }

    fn stays(&self, _virt: u64) -> bool {
        false
    }
}

/// Sets page tables aside for all boot memory, and returns the memblock with the ranges that exist and those that
/// are in use. Called once: a second call would wait for ever.
///
/// # Panics
/// When the memory map has more entries than memblock, or there is no memory for page tables.
pub fn read(info: &BootInfo) -> &'static mut Memblock {
    let memblock = MutexGuard::leak(MEMBLOCK.lock());
    let range = |&(start, end): &(u64, u64)| PhysRange::new(PhysAddr::new(start), end - start);
    for ram in info.ram().iter().map(range) {
        memblock.add(ram).expect(FULL);
    }
    memblock.reserve(PhysRange::new(PhysAddr::new(0), LOW_MEMORY)).expect(FULL);
    memblock.reserve(image()).expect(FULL);
    for taken in info.taken().iter().map(range) {
        memblock.reserve(taken).expect(FULL);
    }
    prepare(memblock).expect("no memory for the page tables of boot memory");
    memblock
}

/// Sets pages aside for the page tables of all RAM.
fn prepare(memblock: &mut Memblock) -> Result<(), NoPageTable> {
    let end = memblock.memory().last().map_or(PhysAddr::new(0), PhysRange::end);
    for (start, end) in platform::boot_windows(end.align_up(PAGE_SIZE).pfn()) {
        if start < end {
            let pages = paging::tables_for(start, end);
            let first = alloc(memblock, pages * PAGE_SIZE).ok_or(NoPageTable)?;
            paging::prepare_boot(start, end, first.get(), &mut EarlyTables(memblock))?;
        }
    }
    Ok(())
}

/// The kernel's image. The linker gives its start as a physical address and its end as a virtual one.
fn image() -> PhysRange {
    PhysRange::between(
        PhysAddr::new((&raw const __image_start) as u64),
        PhysAddr::new(paging::virt_to_phys((&raw const __image_end) as u64)),
    )
    .expect("the image ends behind its start")
}
