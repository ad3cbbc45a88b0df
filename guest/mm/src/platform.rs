//! The services that the page allocator and memory hotplug need from the machine.
//!
//! Takes the place of Linux's `arch_add_memory`, `vmemmap_populate`, `copy_highpage`,
//! `smp_processor_id` and `synchronize_rcu`. The kernel implements it on hardware,
//! `tidevm-mm-sim` for tests, more strictly than hardware would.
//!
//! Invariants: a memmap that `mm` has had mapped stays mapped until `mm` unmaps it; a step that fails has
//! changed nothing.
#![expect(unsafe_code, reason = "declares the contract that the memmap look-up rests on")]

mod calls;

use core::fmt;

use crate::addr::{MEMMAP_PAGES, Pfn, PfnRange, SectionNr, SectionRange};

pub(crate) use calls::Calls;

/// The machine below `mm`.
///
/// Boot memory is prepared as by [`prepare`](Self::prepare) before [`Mm::boot`](crate::Mm::boot), and stays so.
///
/// Code that calls `mm` is not preempted and not moved to another CPU until the call returns, and
/// interrupt handlers never call `mm`; or the machine implements [`irq_save`](Self::irq_save), which says what holds then.
///
/// Six methods have no default. The defaults of the others are those of a machine that only grows: all its page tables
/// are there from the start, it does not migrate pages, and every memmap lies in one piece. `map_memmap`, `map_direct`,
/// `prepare` and `release` belong together: a machine whose page tables come from `mm` implements all four.
///
/// `mm` makes each call with these of its locks held (the lock order is in the documentation of the crate).
/// Hosted builds check it:
///
/// | call | is made with | so it |
/// |---|---|---|
/// | `map_memmap`, `map_memmap_base`, `map_direct`, `prepare`, `release`, `unmap_*` | the memory hotplug lock, and no other | may allocate and free page-table pages through `mm` |
/// | `copy_pages`, `synchronize` | the memory hotplug lock, and no other | may wait for jobs that allocate and free |
/// | `fault` | the memory hotplug lock, and no other | |
/// | `relax` | at most the memory hotplug lock | may not take it |
/// | `clock` | at most the memory hotplug lock | |
/// | `map_prepared_direct` | the lock of deferred memory | takes no lock and allocates nothing |
/// | `map_prepared_memmap`, `this_cpu`, `get_cpu`, `put_cpu`, `irq_save`, `irq_restore` | any | takes no lock and allocates nothing |
///
/// # Safety
/// - `map_memmap` or `map_memmap_base` that returned `Ok`, and `map_prepared_memmap`, make the section's 2 MiB
///   of the memmap window ([`Sparse::new`](crate::Sparse::new)) readable and writable on every CPU, backed by
///   exactly the frames given, until the matching unmapping for that section; nothing else maps or writes
///   there.
/// - `this_cpu` returns the same number from `irq_save` to `irq_restore`, and no other CPU has this number then.
///   Between the two the CPU runs no other code that calls `mm`.
/// - `synchronize` returns only after every CPU, and every thread that was preempted in a call into `mm`, has been outside
///   of `mm`, or in [`relax`](Self::relax), since it was called.
///
/// # Example
/// The least that a platform can be: one CPU, and memory that is always mapped. The example `toy_guest` has it with memory that
/// comes and goes.
///
/// ```
/// use std::alloc::{Layout, alloc_zeroed};
/// use std::ptr::NonNull;
/// use tidevm_mm::{
///     Gfp, Memblock, Mm, Options, Order, PerCpuPages, Pfn, PfnRange, PhysAddr, PhysRange, Platform, Section, SectionNr, Sparse,
/// };
///
/// struct Plain;
///
/// // SAFETY: the window is always mapped, and there is one CPU.
/// unsafe impl Platform for Plain {
///     fn this_cpu(&self) -> usize { 0 }
///     fn map_prepared_memmap(&self, _: SectionNr, _: Pfn) {}
///     fn unmap_memmap(&self, _: SectionNr) {}
///     fn map_prepared_direct(&self, _: PfnRange) {}
///     fn unmap_direct(&self, _: PfnRange) {}
///     fn synchronize(&self) {}
/// }
///
/// static SECTIONS: [Section; 2] = [const { Section::new() }; 2];
/// static CPUS: [PerCpuPages; 1] = [PerCpuPages::new()];
///
/// // 2 MiB of struct pages for each section.
/// let layout = Layout::from_size_align(2 * (2 << 20), 2 << 20)?;
/// // SAFETY: the layout is not empty.
/// let window = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("the host has 4 MiB");
/// // SAFETY: the window has room for two sections, and nothing else uses it.
/// let sparse = unsafe { Sparse::new(window.cast(), &SECTIONS) };
/// let mm = Mm::new(Plain, sparse, &CPUS);
/// let memblock = Box::leak(Box::new(Memblock::new()));
/// memblock.add(PhysRange::new(PhysAddr::new(0), 256 << 20))?;
/// mm.boot(memblock, Options::DEFAULT)?;
/// let page = mm.alloc_pages(Order::PAGE, Gfp::Kernel)?;
/// mm.free_pages(page, Order::PAGE);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub unsafe trait Platform: Sync {
    /// Whether the machine moves pages, by [`copy_pages`](Self::copy_pages). Without it no page has an owner, memory that is
    /// in use stays online ([`OfflineError::InUse`](crate::OfflineError::InUse)), and memory that nothing uses can go.
    const MIGRATES: bool = false;

    /// Number of the CPU that makes the call, below the number of CPUs given at boot.
    fn this_cpu(&self) -> usize;

    /// As [`this_cpu`](Self::this_cpu), and this CPU uses its per-CPU lists until [`put_cpu`](Self::put_cpu), so
    /// [`synchronize`](Self::synchronize) on another CPU waits for it (Linux `get_cpu`). A machine whose CPUs are only
    /// between two calls into `mm` where `synchronize` counts on them has nothing to do.
    #[inline]
    fn get_cpu(&self) -> usize {
        self.this_cpu()
    }

    /// Ends [`get_cpu`](Self::get_cpu).
    #[inline]
    fn put_cpu(&self) {}

    /// Turns interrupts of this CPU off, and preemption with them. Returns what [`irq_restore`](Self::irq_restore) needs
    /// to know (Linux `local_irq_save`). Calls nest.
    ///
    /// `mm` calls it before it is at per-CPU lists and before it takes any lock but that of memory hotplug. So interrupt
    /// handlers may allocate and free pages, and any thread may be preempted and moved to another CPU, in the middle of a
    /// call into `mm` too. Handlers call nothing else, and do not wait for threads. The default is for machines where
    /// nothing that calls `mm` comes between.
    #[inline(always)]
    fn irq_save(&self) -> usize {
        0
    }

    /// Ends the last [`irq_save`](Self::irq_save) that has not ended, which returned `flags` (Linux `local_irq_restore`).
    #[inline(always)]
    fn irq_restore(&self, flags: usize) {
        _ = flags;
    }

    /// Copies pages, each given as `(to, from)`; all are in the direct map and no two are the same.
    /// Returns when all are copied; the machine chooses the CPUs that copy. Called only if the machine
    /// [`MIGRATES`](Self::MIGRATES).
    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        panic!("{} pages are to move on a machine that copies none", pages.len());
    }

    /// Maps the memmap of `section` with one 2 MiB page onto the [`MEMMAP_PAGES`] frames from
    /// `backing`, 2 MiB aligned.
    ///
    /// [`MEMMAP_PAGES`]: crate::MEMMAP_PAGES
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had; nothing is mapped then.
    fn map_memmap(&self, section: SectionNr, backing: Pfn) -> Result<(), NoPageTable> {
        self.map_prepared_memmap(section, backing);
        Ok(())
    }

    /// As [`map_memmap`](Self::map_memmap), for a section that is prepared. `mm` calls it
    /// with any lock held, and so may its callers, so it takes no lock and allocates nothing.
    fn map_prepared_memmap(&self, section: SectionNr, backing: Pfn);

    /// Takes the memmap of `section` out of the window and out of every CPU's TLB.
    fn unmap_memmap(&self, section: SectionNr);

    /// As [`map_memmap`](Self::map_memmap), but with small pages, onto `frames` (Linux
    /// `vmemmap_populate_basepages`). Memory is added like this when its memmap is to lie in older memory, and that has
    /// no 2 MiB in one piece.
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had, or the machine maps memmaps in one piece only; nothing is
    /// mapped then.
    fn map_memmap_base(&self, section: SectionNr, frames: &MemmapFrames) -> Result<(), NoPageTable> {
        _ = (section, frames);
        Err(NoPageTable)
    }

    /// Undoes [`map_memmap_base`](Self::map_memmap_base). Returns the frames.
    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames {
        panic!("the memmap of {section:?} is to be in pieces, and none was mapped like that");
    }

    /// Maps `range`, 2 MiB aligned, into the direct map.
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had; nothing is mapped then.
    fn map_direct(&self, range: PfnRange) -> Result<(), NoPageTable> {
        self.map_prepared_direct(range);
        Ok(())
    }

    /// Sets aside what [`map_prepared_direct`](Self::map_prepared_direct) and
    /// [`map_prepared_memmap`](Self::map_prepared_memmap) of any part of `range` need. Nothing of it is mapped, nor will
    /// be in another way before it is given back.
    ///
    /// # Errors
    /// [`NoPageTable`] when a page-table page cannot be had; nothing is set aside then.
    fn prepare(&self, range: SectionRange) -> Result<(), NoPageTable> {
        _ = range;
        Ok(())
    }

    /// As [`map_direct`](Self::map_direct), for pageblocks that are prepared. `mm` calls it with any lock held, and so
    /// may its callers, so it takes no lock and allocates nothing.
    fn map_prepared_direct(&self, range: PfnRange);

    /// Gives back what was set aside for `range`, none of which was mapped since, unless
    /// [`Mm::is_deferred`](crate::Mm::is_deferred) says that memory beside it needs it too.
    fn release(&self, range: SectionRange) {
        _ = range;
    }

    /// Takes `range` out of the direct map and out of every CPU's TLB.
    fn unmap_direct(&self, range: PfnRange);

    /// Waits until no other CPU can still hold a reference to a page that it looked up before the call, or a
    /// page that it took for a moment only, or goes by limits of per-CPU lists that it read before. Called under the
    /// memory hotplug lock, so by one CPU at a time.
    fn synchronize(&self);

    /// One turn of waiting for the memory hotplug lock. The waiting CPU holds no reference to a page that could be
    /// unmapped and is not at its per-CPU lists, so [`synchronize`](Self::synchronize) on another CPU does not wait for
    /// it.
    fn relax(&self) {
        crate::sync::spin_loop();
    }

    /// All per-CPU lists of a zone were drained. A test can hold the CPU here, so that other CPUs free pages
    /// between the drain and what follows it. Called without the locks of zones.
    fn drained(&self) {}

    /// Nanoseconds since a fixed moment, for reports; 0 on a machine without a clock.
    fn clock(&self) -> u64 {
        0
    }

    /// Whether to fail at `step`, so that error paths can be tested. Called once per attempt of the step.
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

impl fmt::Display for NoPageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no page for a page table")
    }
}

impl core::error::Error for NoPageTable {}

/// Steps of memory hotplug that [`Platform::fault`] can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultStep {
    /// Mapping a run of pageblocks into the direct map.
    MapDirect,
    /// Mapping the memmap of a section.
    MapMemmap,
    /// Taking the memmap's pages, from the memory itself or from older memory.
    AllocMemmap,
    /// Onlining, after the memmap is initialised.
    Online,
    /// Isolating a pageblock.
    Isolate,
    /// Taking a page for a page table, while entries are written. `mm` does not ask for this step: the machine
    /// does, inside of `map_*` and `prepare`.
    PageTable,
    /// Migrating a page.
    Migrate,
}

impl FaultStep {
    /// All of them, in the order of a growth and a shrink.
    pub const ALL: [Self; 7] = [
        Self::MapDirect,
        Self::MapMemmap,
        Self::AllocMemmap,
        Self::Online,
        Self::Isolate,
        Self::PageTable,
        Self::Migrate,
    ];
}
