//! What the page allocator and memory hotplug need from the machine.
//!
//! Takes the place of Linux's `arch_add_memory`, `vmemmap_populate`, `copy_highpage`,
//! `smp_processor_id` and `synchronize_rcu`. The kernel implements it on hardware,
//! `sim::Sim` for tests, more strictly than hardware would.
#![expect(unsafe_code, reason = "declares the contract that the memmap look-up rests on")]

use crate::addr::{MEMMAP_PAGES, Pfn, PfnRange, SectionNr};

/// The machine below `mm`.
///
/// Code that calls `mm` is not preempted and not moved to another CPU until the call returns, and
/// interrupt handlers never call `mm`.
///
/// `mm` calls the other `map_*`, `unmap_*` and `prepare_memmaps` with the memory hotplug lock held and no
/// other, so they may allocate and free page-table pages through `mm`.
///
/// # Safety
/// - `map_memmap`, `map_memmap_base` that returned `Ok`, or `map_prepared_memmap` makes the section's 2 MiB of the memmap window
///   ([`Sparse::new`](crate::Sparse::new)) readable and writable on every CPU, backed by exactly
///   the frames given, until the matching unmapping for that section; nothing else maps or writes there.
/// - `this_cpu` returns the same number during a call into `mm`.
/// - `synchronize` returns only after every CPU has been outside of `mm`, or in
///   [`relax`](Self::relax), since it was called.
pub unsafe trait Platform: Sync {
    /// Number of the CPU that runs this, below the number of CPUs given at boot.
    fn this_cpu(&self) -> usize;

    /// Copies pages, each given as `(to, from)`; all are in the direct map and no two are the same.
    /// Returns when all are copied; on which CPUs is the machine's affair.
    fn copy_pages(&self, pages: &[(Pfn, Pfn)]);

    /// Maps the memmap of `section` with one 2 MiB page onto the [`MEMMAP_PAGES`] frames from
    /// `backing`, 2 MiB aligned.
    ///
    /// [`MEMMAP_PAGES`]: crate::MEMMAP_PAGES
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had; nothing is mapped then.
    fn map_memmap(&self, section: SectionNr, backing: Pfn) -> Result<(), NoPageTable>;

    /// Makes ready what [`map_prepared_memmap`](Self::map_prepared_memmap) needs for `count` sections from
    /// `first` on.
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had.
    fn prepare_memmaps(&self, first: SectionNr, count: u32) -> Result<(), NoPageTable>;

    /// As [`map_memmap`](Self::map_memmap), for a section that is prepared and never unmapped. `mm` calls it
    /// with any lock held, its caller's among them, so it takes none, and no memory.
    fn map_prepared_memmap(&self, section: SectionNr, backing: Pfn);

    /// Takes the memmap of `section` out of the window and out of every CPU's TLB.
    fn unmap_memmap(&self, section: SectionNr);

    /// As [`map_memmap`](Self::map_memmap), but with small pages, onto `frames` (Linux
    /// `vmemmap_populate_basepages`).
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had; nothing is mapped then.
    fn map_memmap_base(&self, section: SectionNr, frames: &MemmapFrames) -> Result<(), NoPageTable>;

    /// The way back of [`map_memmap_base`](Self::map_memmap_base). Returns the frames.
    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames;

    /// Maps `range`, 2 MiB aligned, into the direct map.
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had; nothing is mapped then.
    fn map_direct(&self, range: PfnRange) -> Result<(), NoPageTable>;

    /// Takes `range` out of the direct map and out of every CPU's TLB.
    fn unmap_direct(&self, range: PfnRange);

    /// Waits until no other CPU can still hold a reference to a page that it looked up before the
    /// call, or a page that it holds for a moment only. Called under the memory hotplug lock.
    fn synchronize(&self);

    /// One turn of waiting for the memory hotplug lock, or for one that nests in it. A CPU that
    /// waits for the former holds no page references, and nobody who waits for the latter needs
    /// [`synchronize`](Self::synchronize) on another CPU, for which the CPU counts as passed here.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// Nanoseconds since some moment, for reports; a machine without a clock says 0.
    fn clock(&self) -> u64 {
        0
    }

    /// Whether to fail at `step`, so that the ways back can be tested. Asked once at every
    /// attempt of the step.
    fn fault(&self, step: FaultStep) -> bool {
        let _ = step;
        false
    }
}

/// Frames that a memmap lies in, in the order of its pages.
pub type MemmapFrames = [Pfn; MEMMAP_PAGES as usize];

/// No page for a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPageTable;

/// Steps of memory hotplug that [`Platform::fault`] can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultStep {
    /// Mapping the direct map of a run of sub-sections.
    MapDirect,
    /// Mapping the memmap of a section.
    MapMemmap,
    /// Taking the memmap's pages, from the block itself or from existing memory.
    AllocMemmap,
    /// Onlining, after the memmap is initialised.
    Online,
    /// Isolating a pageblock.
    Isolate,
    /// Migrating a page.
    Migrate,
}
