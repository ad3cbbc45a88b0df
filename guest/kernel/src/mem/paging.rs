//! The kernel's page tables: direct map, vmemmap window and device registers. They use 2 MiB pages, and for a memmap
//! that has no 2 MiB page small ones.
//!
//! Mirrors Linux's x86-64 layout (`Documentation/arch/x86/x86_64/mm.rst`) without KASLR:
//!
//! | virtual address | contents |
//! | --- | --- |
//! | `0xffff_8880_0000_0000` | direct map of all memory that may be accessed |
//! | `0xffff_c900_0000_0000` | windows: device registers, uncached, and firmware's tables |
//! | `0xffff_e900_0000_0000` | stacks of all CPUs but the boot CPU, see `cpu/stack.rs` |
//! | `0xffff_ea00_0000_0000` | vmemmap: one `Page` for every frame number |
//! | `0xffff_ffff_8000_0000` | the kernel, in the first GiB |
//!
//! It differs from Linux on purpose. Every CPU runs on the one set of tables, so there is nothing to
//! propagate. Unplugged memory is not mapped at all: a virtio-mem driver must not read it, not even
//! speculatively. Other memory is mapped when it is wanted (see `prepared`), but for the first GiB, which the start-up
//! tables map ([`BOOT_MAPPED`]).
//!
//! Invariants:
//! - A table page is reached from exactly one entry. It is freed when all of its own entries are zero, unless the
//!   table's source says that it stays. A table for boot memory is not: boot memory is mapped, or it stays for it.
//! - `LOCK` is held while entries change. The exceptions are entries of prepared memory (`prepared`), and boot,
//!   while one CPU runs.
#![expect(unsafe_code, reason = "edits the live page tables")]

mod base_pages;
mod boot_map;
mod prepared;
mod stack_pages;

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

pub use base_pages::{map_vmemmap_base, unmap_vmemmap_base};
pub use boot_map::{drop_identity_map, protect_kernel};
pub use prepared::{map_prepared, prepare, prepare_boot, release, tables_for};
pub use stack_pages::{is_mapped, map_stack_page};

/// Virtual address of physical address 0.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Virtual address of frame 0's `Page`.
pub const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// End of the physical memory that the start-up tables map in the direct map, for good and whatever is there.
pub const BOOT_MAPPED: u64 = 1 << 30;
/// Virtual address of the kernel's physical address 0.
pub const KERNEL: u64 = 0xffff_ffff_8000_0000;
const WINDOWS: u64 = 0xffff_c900_0000_0000;
/// Virtual address of the stacks of all CPUs but the boot CPU.
pub const STACKS: u64 = 0xffff_e900_0000_0000;

/// Size of the pages that most mappings use.
pub const LARGE_PAGE: u64 = 2 << 20;
const SMALL_PAGE: u64 = 4 << 10;
const ENTRIES: usize = 512;
/// Bytes that the large pages of one table map.
const TABLE_SPAN: u64 = ENTRIES as u64 * LARGE_PAGE;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = (1 << 3) | (1 << 4);
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
/// Software bit of an entry that is not present: its address is a page for the table (see `prepared`).
const SET_ASIDE: u64 = 1 << 10;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Flags of ordinary memory.
const MEMORY: u64 = PRESENT | WRITABLE | LARGE | GLOBAL | NO_EXECUTE;

unsafe extern "C" {
    static boot_pml4: u8;
}

static LOCK: Mutex<()> = Mutex::new(());

/// Address of the next window for registers or firmware's tables.
static NEXT_WINDOW: AtomicU64 = AtomicU64::new(WINDOWS);

/// There is no memory for a page table.
#[derive(Clone, Copy, Debug)]
pub struct NoPageTable;

/// A source of page tables: memblock during boot, the page allocator afterwards.
pub trait TableSource {
    /// Physical address of a page with any content.
    fn take(&mut self) -> Option<u64>;
    /// Takes back a page that it gave and that was no table.
    fn give_back(&mut self, page: u64);
    /// Takes back a table, which a CPU may have seen.
    fn free(&mut self, table: u64);
    /// Whether the table with the large page of `virt` must stay although it is empty.
    fn stays(&self, virt: u64) -> bool;

    /// Physical address of a zeroed page.
    fn alloc(&mut self) -> Option<u64> {
        let table = self.take()?;
        clear_page(table);
        Some(table)
    }
}

/// Virtual address of `phys` in the direct map. The caller makes sure that it is mapped.
pub fn phys_to_virt(phys: u64) -> *mut u8 {
    (DIRECT_MAP + phys) as *mut u8
}

/// Physical address behind an address of the direct map or of the kernel's image.
pub fn virt_to_phys(virt: u64) -> u64 {
    if virt >= KERNEL {
        virt - KERNEL
    } else {
        assert!((DIRECT_MAP..WINDOWS).contains(&virt), "{virt:#x} is not in the direct map");
        virt - DIRECT_MAP
    }
}

/// The addresses, start and end, that one table with large pages maps: the one with `virt`.
pub const fn span_of_table(virt: u64) -> (u64, u64) {
    let start = virt - virt % TABLE_SPAN;
    (start, start + TABLE_SPAN)
}

fn entry(table: u64, index: usize) -> &'static AtomicU64 {
    debug_assert!(index < ENTRIES);
    // SAFETY: `table` is the address of a page table (module invariant). Table pages are allocated, so they
    // are in the direct map; they are only accessed as atomics.
    unsafe { &*phys_to_virt(table).cast::<AtomicU64>().add(index) }
}

/// Index into the table of `level`: 3 is the root, 1 holds large pages, 0 small ones.
fn index(virt: u64, level: u32) -> usize {
    (virt >> (12 + 9 * level)) as usize % ENTRIES
}

fn root() -> u64 {
    // Start-up data is linked where it is loaded, so its address is a physical one.
    (&raw const boot_pml4) as u64
}

fn next_table(entry: &AtomicU64, source: &mut dyn TableSource) -> Result<u64, NoPageTable> {
    let value = entry.load(Ordering::Relaxed);
    if value & PRESENT != 0 {
        assert!(value & LARGE == 0, "{value:#x} is a page, and no table");
        return Ok(value & ADDRESS);
    }
    if value & SET_ASIDE != 0 {
        return Ok(prepared::table(entry, 0));
    }
    let table = source.alloc().ok_or(NoPageTable)?;
    let new = table | PRESENT | WRITABLE;
    if entry.compare_exchange(0, new, Ordering::Release, Ordering::Relaxed).is_err() {
        // A CPU that has claimed boot memory beside has made the table meanwhile.
        source.give_back(table);
        return Ok(prepared::table(entry, 0));
    }
    Ok(table)
}

/// The entries of the pages of `size` bytes from `virt` to `end`, at most up to the end of `table`, which has the first
/// of them.
fn entries(table: u64, virt: u64, end: u64, size: u64) -> &'static [AtomicU64] {
    let first = (virt / size) as usize % ENTRIES;
    let count = (((end - virt) / size) as usize).min(ENTRIES - first);
    // SAFETY: as in `entry`; `count` entries from `first` on are within the table.
    unsafe { core::slice::from_raw_parts(entry(table, first), count) }
}

/// Maps the large pages from `virt` to `end`, at most up to the end of one table, to the memory from `phys`
/// on. Returns where it stopped. When it fails, the tables that it made stay; the next [`unmap`] of the same
/// range frees them.
fn map_entries(
    virt: u64,
    end: u64,
    phys: u64,
    flags: u64,
    source: &mut dyn TableSource,
) -> Result<u64, NoPageTable> {
    let upper = next_table(entry(root(), index(virt, 3)), source)?;
    let table = next_table(entry(upper, index(virt, 2)), source)?;
    let slots = entries(table, virt, end, LARGE_PAGE);
    let mut new = phys | flags;
    let mut write = |slot: &AtomicU64| {
        let old = slot.load(Ordering::Relaxed);
        if old != 0 {
            assert_same(old, new & ADDRESS);
        }
        slot.store(new, Ordering::Release);
        new += LARGE_PAGE;
    };
    // Eight entries at a time: these loops are a large part of the time that adding a memory block takes.
    let (eights, rest) = slots.as_chunks::<8>();
    for eight in eights {
        eight.iter().for_each(&mut write);
    }
    rest.iter().for_each(write);
    Ok(virt + slots.len() as u64 * LARGE_PAGE)
}

/// A page may be mapped again, to the same memory only.
#[cold]
#[inline(never)]
fn assert_same(old: u64, phys: u64) {
    assert_eq!(old & ADDRESS, phys, "an address is mapped to {old:#x}, not to {phys:#x}");
}

/// Clears the entries of the large pages from `virt` to `end`, at most up to the end of one table, and frees
/// the table if it is empty then. Returns where it stopped. The tables that the root points to stay: there is
/// one per 512 GiB.
fn unmap_entries(virt: u64, end: u64, source: &mut dyn TableSource) -> u64 {
    let stop = end.min((virt / TABLE_SPAN + 1) * TABLE_SPAN);
    let upper_entry = entry(root(), index(virt, 3)).load(Ordering::Relaxed);
    if upper_entry & PRESENT == 0 {
        return stop;
    }
    let middle_entry = entry(upper_entry & ADDRESS, index(virt, 2));
    let middle = middle_entry.load(Ordering::Relaxed);
    if middle & PRESENT == 0 {
        return stop;
    }
    let table = middle & ADDRESS;
    entries(table, virt, end, LARGE_PAGE).iter().for_each(|slot| slot.store(0, Ordering::Release));
    // Before the look at the entries: memory that does not stay any more was mapped before.
    if !source.stays(virt) && is_empty(table) {
        middle_entry.store(0, Ordering::Release);
        source.free(table);
    }
    stop
}

/// Whether no entry of `table` is in use.
fn is_empty(table: u64) -> bool {
    (0..ENTRIES).all(|index| entry(table, index).load(Ordering::Relaxed) == 0)
}

fn map(virt: u64, phys: u64, size: u64, flags: u64, source: &mut dyn TableSource) -> Result<(), NoPageTable> {
    let guard = LOCK.lock();
    let (mut next, end) = (virt, virt + size.next_multiple_of(LARGE_PAGE));
    while next < end {
        match map_entries(next, end, phys + (next - virt), flags, source) {
            Ok(stop) => next = stop,
            Err(error) => {
                drop(guard);
                // One page more: the table for the page that failed may have been made.
                unmap(virt, next + LARGE_PAGE - virt, source);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Clears the entries of a range. The caller flushes the TLBs of all CPUs before the memory goes away. Until
/// then a CPU may have a freed table in its caches, so `source` must not reuse the table before.
fn unmap(virt: u64, size: u64, source: &mut dyn TableSource) {
    let _guard = LOCK.lock();
    let (mut next, end) = (virt, virt + size.next_multiple_of(LARGE_PAGE));
    while next < end {
        next = unmap_entries(next, end, source);
    }
}

/// Maps physical `[start, end)`, widened to large pages, in the direct map.
///
/// # Errors
/// [`NoPageTable`]; the range is then not mapped.
pub fn map_direct(start: u64, end: u64, source: &mut dyn TableSource) -> Result<(), NoPageTable> {
    let start = start & !(LARGE_PAGE - 1);
    map(DIRECT_MAP + start, start, end - start, MEMORY, source)
}

/// Removes physical `[start, end)`, whole large pages, from the direct map.
pub fn unmap_direct(start: u64, end: u64, source: &mut dyn TableSource) {
    assert!((start | end).is_multiple_of(LARGE_PAGE), "{start:#x}..{end:#x} is not whole large pages");
    unmap(DIRECT_MAP + start, end - start, source);
}

/// Maps the large page of the vmemmap window that holds the `Page` at `virt`.
///
/// # Errors
/// [`NoPageTable`]; nothing is mapped then.
pub fn map_vmemmap(virt: u64, phys: u64, source: &mut dyn TableSource) -> Result<(), NoPageTable> {
    map(virt, phys, LARGE_PAGE, MEMORY, source)
}

/// Unmaps a large page of the vmemmap window.
pub fn unmap_vmemmap(virt: u64, source: &mut dyn TableSource) {
    unmap(virt, LARGE_PAGE, source);
}

/// Maps device registers, `size` bytes at `phys`, for good, and returns their address (Linux
/// `ioremap`).
///
/// # Errors
/// [`NoPageTable`].
pub fn map_device(phys: u64, size: u64, source: &mut dyn TableSource) -> Result<*mut u8, NoPageTable> {
    map_window(phys, size, MEMORY | UNCACHED, source)
}

/// Maps firmware's tables, `size` bytes at `phys`, for good, and returns their address (Linux `memremap`).
/// They need not be in RAM of the memory map.
///
/// # Errors
/// [`NoPageTable`].
pub fn map_firmware(phys: u64, size: u64, source: &mut dyn TableSource) -> Result<*mut u8, NoPageTable> {
    map_window(phys, size, MEMORY, source)
}

fn map_window(
    phys: u64,
    size: u64,
    flags: u64,
    source: &mut dyn TableSource,
) -> Result<*mut u8, NoPageTable> {
    let (first, end) = (phys & !(LARGE_PAGE - 1), (phys + size).next_multiple_of(LARGE_PAGE));
    let virt = NEXT_WINDOW.fetch_add(end - first, Ordering::Relaxed);
    assert!(
        virt + (end - first) <= STACKS,
        "no addresses left for {size:#x} bytes of registers at {phys:#x}"
    );
    map(virt, first, end - first, flags, source)?;
    Ok((virt + (phys - first)) as *mut u8)
}

/// Drops all cached translations of this CPU, global ones included.
pub fn flush_tlb() {
    const PGE: u64 = 1 << 7;
    // SAFETY: toggling CR4.PGE has no effect but the flush (Intel SDM volume 3, 4.10.4.1).
    unsafe {
        asm!(
            "mov {old}, cr4",
            "mov {without}, {old}",
            "and {without}, {mask}",
            "mov cr4, {without}",
            "mov cr4, {old}",
            old = out(reg) _,
            without = out(reg) _,
            mask = in(reg) !PGE,
            options(nostack)
        );
    }
}

/// Clears one page of the direct map, by words: where `rep stosb` is emulated, each byte costs as much as a
/// word here.
pub fn clear_page(phys: u64) {
    // SAFETY: the caller owns the page, and an allocated page is in the direct map.
    unsafe {
        asm!("rep stosq", inout("rcx") 512 => _, inout("rdi") phys_to_virt(phys) => _, in("rax") 0_u64, options(nostack));
    }
}

/// Copies one page of the direct map.
pub fn copy_page(to: u64, from: u64) {
    // SAFETY: the caller owns both pages, they are different, and both are mapped.
    unsafe {
        asm!("rep movsq", inout("rcx") 512 => _, inout("rdi") phys_to_virt(to) => _, inout("rsi") phys_to_virt(from) => _, options(nostack));
    }
}
