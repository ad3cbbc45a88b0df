//! The platform that memory management runs on: page tables, TLB flushes, page copies and time, as
//! `tidevm_mm::Platform` wants them. [`MM`] is here, because page tables come from its own page allocator.
//!
//! Takes the place of Linux's `arch/x86/mm/init_64.c`.
//!
//! Invariant: page-table pages are freed only after the TLBs of all CPUs are flushed.
#![expect(unsafe_code, reason = "implements the trait whose contract the memmap look-up rests on")]

use core::ops::Range;
use core::ptr::NonNull;

use tidevm_mm::{
    FaultStep, Gfp, MemmapFrames, Mm, NoPageTable, Order, Page, PerCpuPages, Pfn, PfnRange, PhysAddr,
    Platform, SECTION_SIZE, Section, SectionNr, SectionRange, Sparse,
};

use crate::cpu::time::Instant;
use crate::cpu::window::Window;
use crate::cpu::{self, tlb};
use crate::faults::Faults;
use crate::job;
use crate::mem::copy;
use crate::mem::paging::{self, BOOT_MAPPED, DIRECT_MAP, TableSource, VMEMMAP};

/// Sections of the physical address space that the guest can use: 2 TiB.
const SECTIONS: usize = (tidevm_abi::MAX_PHYS_ADDR / tidevm_abi::MEMORY_BLOCK_SIZE) as usize;
static SECTION_TABLE: [Section; SECTIONS] = [const { Section::new() }; SECTIONS];

/// The memory management.
pub static MM: Mm<KernelPlatform> = Mm::new(
    KernelPlatform,
    // SAFETY: the vmemmap window has room for the `Page` of every frame below 2 TiB, and only
    // `KernelPlatform` maps anything there.
    unsafe { Sparse::new(NonNull::new(VMEMMAP as *mut Page).expect("not at 0"), &SECTION_TABLE) },
    &PER_CPU,
);
static PER_CPU: [PerCpuPages; cpu::MAX_CPUS] = [const { PerCpuPages::new() }; cpu::MAX_CPUS];

static FAULTS: Faults<{ FaultStep::ALL.len() }> = Faults::new();

/// Makes the `after`-th attempt of `step` fail; 0 is the next one.
pub fn inject(step: FaultStep, after: u32) {
    FAULTS.inject(step as usize, after);
}

/// Number of injected faults that made their step fail, since boot.
pub fn faults_injected() -> u64 {
    FAULTS.acted()
}

/// Page tables from the page allocator. Tables that are freed are kept until the TLBs are flushed, because a
/// CPU may still walk them.
struct Tables {
    freed: [Option<u64>; Self::MOST],
}

impl Tables {
    /// Most tables that one call frees. A call unmaps at most one section, which empties at most one table,
    /// and frees a second table where the memmap is mapped by small pages.
    const MOST: usize = 2;

    const fn new() -> Self {
        Self { freed: [None; Self::MOST] }
    }

    /// The addresses of about `count` pages, if they lie side by side somewhere: one allocation for all of them. None
    /// while a fault waits for one of them: each is asked for then.
    fn stock(count: u64) -> Range<u64> {
        let order = Order::new(count.max(1).ilog2() as u8).min(Order::MAX);
        let has_fault = FAULTS.is_due(FaultStep::PageTable as usize);
        if order == Order::PAGE || has_fault {
            return 0..0;
        }
        MM.alloc_pages(order, Gfp::PageTable).map_or(0..0, |first| {
            MM.split_page(first, order);
            first.address().get()..first.add(order.pages()).address().get()
        })
    }

    /// Maps by `map`. Tables that a failed `map` gave back are freed.
    fn fill<T>(map: impl FnOnce(&mut Self) -> Result<T, paging::NoPageTable>) -> Result<T, NoPageTable> {
        let mut tables = Self::new();
        map(&mut tables).map_err(|paging::NoPageTable| {
            tables.flush();
            NoPageTable
        })
    }

    fn flush(self) {
        tlb::flush_all();
        for table in self.freed.into_iter().flatten() {
            MM.free_pages(PhysAddr::new(table).pfn(), Order::PAGE);
        }
    }
}

impl TableSource for Tables {
    fn take(&mut self) -> Option<u64> {
        if KernelPlatform.fault(FaultStep::PageTable) {
            return None;
        }
        Some(MM.alloc_pages(Order::PAGE, Gfp::PageTable).ok()?.address().get())
    }

    fn give_back(&mut self, page: u64) {
        MM.free_pages(PhysAddr::new(page).pfn(), Order::PAGE);
    }

    fn stays(&self, virt: u64) -> bool {
        sections_of_table(virt).is_some_and(|sections| MM.is_deferred(sections))
    }

    fn free(&mut self, table: u64) {
        let slot = self.freed.iter_mut().find(|slot| slot.is_none());
        *slot.expect("one call frees at most two tables") = Some(table);
    }
}

/// The sections that are mapped, or whose memmaps are mapped, by the table with the large page of `virt`.
fn sections_of_table(virt: u64) -> Option<SectionRange> {
    let (start, end) = paging::span_of_table(virt);
    let sections = match start {
        VMEMMAP.. => [start, end].map(|virt| (virt - VMEMMAP) / paging::LARGE_PAGE),
        _ => {
            [start, end].map(|virt| virt.checked_sub(DIRECT_MAP)).map(|phys| phys.unwrap_or(0) / SECTION_SIZE)
        }
    };
    let [first, end] = sections.map(|section| u32::try_from(section).unwrap_or(u32::MAX));
    SectionRange::new(SectionNr::new(first), end - first)
}

/// The hardware, as memory management uses it.
pub struct KernelPlatform;

/// Maps device registers: [`paging::map_device`] with tables from the page allocator.
///
/// # Errors
/// [`NoPageTable`].
pub fn map_device(phys: u64, size: u64) -> Result<*mut u8, NoPageTable> {
    Tables::fill(|tables| paging::map_device(phys, size, tables))
}

/// Maps one page of a stack: [`paging::map_stack_page`] with tables from the page allocator.
///
/// # Errors
/// [`NoPageTable`].
pub fn map_stack_page(virt: u64, phys: u64) -> Result<(), NoPageTable> {
    Tables::fill(|tables| paging::map_stack_page(virt, phys, tables))
}

/// The highest section whose memmap is not mapped, so that the guest has no memory there. The caller holds the memory
/// hotplug lock, so that no other CPU maps it.
///
/// # Panics
/// When the memmaps of all sections are mapped, which no machine has the memory for.
pub fn unused_section() -> SectionNr {
    let sections = (0..SECTIONS as u32).rev().map(SectionNr::new);
    let mut unused = sections.filter(|&nr| !paging::is_mapped(memmap(nr)) && !MM.is_deferred(nr.into()));
    unused.next().expect("a section without a memmap")
}

/// Where memory below `end` and its memmap are mapped when it is wanted: start and end in the direct map, which is empty
/// when the start-up tables map it all, and in the vmemmap window.
pub fn boot_windows(end: Pfn) -> [(u64, u64); 2] {
    let start = PhysAddr::new(BOOT_MAPPED).pfn();
    [(direct(start), direct(end.max(start))), (VMEMMAP, page(end))]
}

/// Where `range` and its memmaps are mapped: start and end in the direct map, and in the vmemmap window.
fn windows(range: SectionRange) -> [(u64, u64); 2] {
    let direct = [range.first(), range.end()].map(|nr| direct(nr.start()));
    let memmaps = [range.first(), range.end()].map(memmap);
    [direct, memmaps].map(|[start, end]| (start, end))
}

/// Gives back the pages that were set aside for the tables of these addresses.
fn release((start, end): (u64, u64)) {
    let mut next = start;
    while next < end {
        let mut tables = Tables::new();
        next = paging::release(next, end, &mut tables);
        // A page that was set aside was no table, so no TLB knows it.
        if tables.freed.iter().any(Option::is_some) {
            tables.flush();
        }
    }
}

/// Address of frame `pfn` in the direct map.
pub fn direct(pfn: Pfn) -> u64 {
    DIRECT_MAP + pfn.address().get()
}

/// Address of the `Page` of the section's first frame.
pub fn memmap(section: SectionNr) -> u64 {
    page(section.start())
}

/// Address of the `Page` of frame `pfn`.
fn page(pfn: Pfn) -> u64 {
    VMEMMAP + u64::from(pfn.get()) * size_of::<Page>() as u64
}

/// What comes is not mapped yet. Page tables can map memory again to the same place, so that a mapping which a rollback
/// has left would not be seen by them.
fn assert_unmapped(virt: u64) {
    assert!(!paging::is_mapped(virt), "{virt:#x} is mapped already");
}

// SAFETY: the memmap of a section is exactly one large page of the vmemmap window, or the small pages in its
// place, and nothing else maps there; `%gs:0` is constant; `job::synchronize` waits until every other CPU has
// been between two jobs, halted, or in `relax`.
unsafe impl Platform for KernelPlatform {
    const MIGRATES: bool = true;

    fn this_cpu(&self) -> usize {
        cpu::this()
    }

    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        copy::copy_pages(pages);
    }

    fn map_memmap(&self, section: SectionNr, backing: Pfn) -> Result<(), NoPageTable> {
        assert_unmapped(memmap(section));
        Tables::fill(|tables| paging::map_vmemmap(memmap(section), backing.address().get(), tables))
    }

    fn map_prepared_memmap(&self, section: SectionNr, backing: Pfn) {
        let virt = memmap(section);
        paging::map_prepared(virt, virt + paging::LARGE_PAGE, backing.address().get());
    }

    fn unmap_memmap(&self, section: SectionNr) {
        let mut tables = Tables::new();
        paging::unmap_vmemmap(memmap(section), &mut tables);
        tables.flush();
    }

    fn map_memmap_base(&self, section: SectionNr, frames: &MemmapFrames) -> Result<(), NoPageTable> {
        let frames = frames.iter().map(|frame| frame.address().get());
        Tables::fill(|tables| paging::map_vmemmap_base(memmap(section), frames, tables))
    }

    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames {
        let mut frames: MemmapFrames = [Pfn::new(0); _];
        let mut tables = Tables::new();
        let back = |place: usize, frame| frames[place] = PhysAddr::new(frame).pfn();
        paging::unmap_vmemmap_base(memmap(section), back, &mut tables);
        tables.flush();
        frames
    }

    fn map_direct(&self, range: PfnRange) -> Result<(), NoPageTable> {
        let (start, end) = (range.start().address().get(), range.end().address().get());
        assert_unmapped(paging::DIRECT_MAP + start);
        Tables::fill(|tables| paging::map_direct(start, end, tables))
    }

    fn prepare(&self, range: SectionRange) -> Result<(), NoPageTable> {
        let [direct, memmaps] = windows(range);
        let mut stock = Tables::stock(paging::tables_for(direct.0, direct.1));
        let mut tables = Tables::new();
        let prepared = paging::prepare(direct.0, direct.1, &mut stock, &mut tables).and_then(|()| {
            let memmaps = paging::prepare(memmaps.0, memmaps.1, &mut stock, &mut tables);
            memmaps.inspect_err(|_| release(direct))
        });
        if !stock.is_empty() {
            let [first, end] = [stock.start, stock.end].map(|address| PhysAddr::new(address).pfn());
            MM.free_contig_range(PfnRange::between(first, end).expect("what is left of a range"));
        }
        prepared.map_err(|paging::NoPageTable| {
            tables.flush();
            NoPageTable
        })
    }

    fn map_prepared_direct(&self, range: PfnRange) {
        let (start, end) = (range.start().address().get(), range.end().address().get());
        // Memory below is boot memory, and never unmapped.
        if start >= BOOT_MAPPED {
            paging::map_prepared(DIRECT_MAP + start, DIRECT_MAP + end, start);
        }
    }

    fn release(&self, range: SectionRange) {
        windows(range).into_iter().for_each(release);
    }

    fn unmap_direct(&self, range: PfnRange) {
        let mut tables = Tables::new();
        paging::unmap_direct(range.start().address().get(), range.end().address().get(), &mut tables);
        tables.flush();
    }

    fn synchronize(&self) {
        job::synchronize();
    }

    fn relax(&self) {
        cpu::area(cpu::this()).passes.pass();
        core::hint::spin_loop();
    }

    fn drained(&self) {
        Window::Drained.come();
    }

    fn clock(&self) -> u64 {
        Instant::now().nanos()
    }

    fn fault(&self, step: FaultStep) -> bool {
        FAULTS.acts(step as usize)
    }
}
