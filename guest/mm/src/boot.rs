//! Boot: the zones are built from the memory map in memblock.
//!
//! Mirrors Linux `free_area_init`, `memblock_free_all` and `mm_core_init`. First every section with RAM gets
//! memory for its memmap from memblock. Then the memmap of each section is mapped and initialised, and the
//! section is freed into its zone, or the section is left for later (see `deferred`). Differs from Linux on
//! purpose: sections are freed one by one, so that after the first section the platform can take page-table
//! pages from the allocator to map the others.
//!
//! Invariant: a section of boot memory is Present only after its memmap is mapped.

use core::fmt;

use arrayvec::ArrayVec;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, PAGE_SIZE, Pfn, PhysAddr, PhysRange, SectionNr};
use crate::deferred::DEFERRED_RANGES;
use crate::hotplug::Hotplug;
use crate::memblock::{Memblock, Run};
use crate::node::{ZoneId, ZoneType};
use crate::options::{InitPolicy, Options};
use crate::platform::Platform;
use crate::zone::setup_watermarks;

/// Why boot failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// There are no CPUs, or more CPUs than [`PerCpuPages`](crate::PerCpuPages)s.
    Cpus,
    /// There is RAM beyond the last section.
    OutOfRange(PhysAddr),
    /// No room for the memmap, or memblock's table is full.
    NoMemory,
    /// The memmap could not be mapped.
    NoPageTable(SectionNr),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpus => f.write_str("there are no CPUs, or more than the kernel has room for"),
            Self::OutOfRange(address) => {
                write!(f, "there is RAM beyond the last section, at {:#x}", address.get())
            }
            Self::NoMemory => f.write_str("no room for the memmap, or too many ranges of memory"),
            Self::NoPageTable(nr) => write!(
                f,
                "no page for a page table to map the memmap of the section at {:#x}",
                nr.start().address().get()
            ),
        }
    }
}

impl core::error::Error for BootError {}

impl<P: Platform> Mm<P> {
    /// Builds the zones from `memblock`. In each node, memory below 4 GiB is Dma32 and memory above is Normal.
    /// Free memory can be allocated afterwards, reserved memory never. Called once, by one CPU.
    ///
    /// # Errors
    /// See [`BootError`]; the machine has no allocator then.
    pub fn boot(&self, memblock: &'static mut Memblock, options: Options) -> Result<(), BootError> {
        if options.nr_cpus == 0 || options.nr_cpus > self.per_cpu.len() {
            return Err(BootError::Cpus);
        }
        self.options.set(options);
        self.count_cpus();
        let page_zero = PhysRange::new(PhysAddr::new(0), PAGE_SIZE);
        memblock.reserve(page_zero).map_err(|_| BootError::NoMemory)?;
        self.hotplug().boot(memblock)
    }
}

impl<P: Platform> Hotplug<'_, P> {
    fn boot(&self, memblock: &'static mut Memblock) -> Result<(), BootError> {
        let mm = self.mm;
        let end = memblock.runs().last().map_or(SectionNr::new(0), |run| run.end);
        if end.get() > mm.sparse.len() {
            return Err(BootError::OutOfRange(SectionNr::new(mm.sparse.len()).start().address()));
        }
        let later = self.take_boot_memmaps(memblock)?;
        let memblock: &'static Memblock = memblock;
        memblock.runs().for_each(|run| self.count_boot_memory(memblock, run));
        mm.zones().for_each(|zone| zone.keep_boot_span(self.held()));
        self.build_zonelists();
        for run in memblock.runs() {
            for nr in before(run, &later) {
                let memmap = mm.sparse.entry(nr).memmap().expect("`take_boot_memmaps` gave it one");
                mm.platform.map_memmap(nr, memmap).map_err(|_| BootError::NoPageTable(nr))?;
                mm.make_present(nr, run.zone, memmap, self.held());
                mm.free_boot_section(memblock, nr, self.held());
            }
        }
        for (zone, later) in ZoneId::all().zip(later) {
            let Some(Later { next, memmap }) = later else { continue };
            for run in memblock.runs_of(zone, next) {
                let prepared = mm.platform.prepare_memmaps(run.first, run.len());
                prepared.map_err(|_| BootError::NoPageTable(run.first))?;
                mm.zone(zone).add_deferred(run.pages(memblock.free()));
            }
            mm.deferred.set_boot(memblock, zone, next, memmap);
        }
        self.update_limits();
        Ok(())
    }

    /// Takes memory for the memmap of every section with RAM, on the section's node if there is room. Each
    /// section gets a piece of its own, except that all sections of a zone that are left for later share one
    /// piece. Returns the sections that are left for later. A zone for which there is no such piece leaves none, and
    /// neither does a zone of so many runs that plugged memory would find no room among the deferred ranges.
    fn take_boot_memmaps(&self, memblock: &mut Memblock) -> Result<LaterByZone, BootError> {
        const SIZE: u64 = MEMMAP_PAGES as u64 * PAGE_SIZE;
        let mut later = [None; ZoneId::COUNT];
        let mut runs = 0;
        for (zone, next) in first_deferred(memblock, self.mm.options.get().init) {
            let of_zone = memblock.runs_of(zone, next).count();
            if runs + of_zone > DEFERRED_RANGES / 2 {
                continue;
            }
            runs += of_zone;
            let count: u32 = memblock.runs_of(zone, next).map(Run::len).sum();
            let memmap = memblock.alloc_on(zone.node(), u64::from(count) * SIZE, SIZE);
            later[zone.index()] = memmap.map(|memmap| Later { next, memmap: memmap.pfn() });
        }
        let mut from = SectionNr::new(0);
        // Runs are looked up again each time, because `alloc_on` changes the memblock that they borrow.
        let next = |memblock: &Memblock, from| memblock.runs().find(|run| run.end > from);
        while let Some(run) = next(memblock, from) {
            for nr in before(run, &later) {
                let memmap = memblock.alloc_on(run.zone.node(), SIZE, SIZE).ok_or(BootError::NoMemory)?;
                self.mm.sparse.entry(nr).set_memmap(Some(memmap.pfn()));
            }
            from = run.end;
        }
        Ok(later)
    }

    /// Counts the RAM of `run` as part of its zone.
    fn count_boot_memory(&self, memblock: &Memblock, run: Run) {
        self.mm.nodes.include(run.zone.node());
        let zone = self.mm.zone(run.zone);
        run.parts(memblock.memory()).for_each(|ram| zone.grow_span(ram, self.held()));
        zone.add_present(run.pages(memblock.memory()), self.held());
        zone.add_managed(run.pages(memblock.free()), self.held());
    }

    /// Recomputes everything that follows from the sizes of the zones: zonelists, watermarks and the limits
    /// of per-CPU lists. Waits while per-CPU lists are disabled.
    pub(crate) fn update_limits(&self) {
        self.build_zonelists();
        setup_watermarks(self.mm.zones().as_slice(), self.held());
        self.update_pcp_limits();
    }
}

/// The sections of a zone that are left for later.
#[derive(Clone, Copy)]
struct Later {
    /// The first one.
    next: SectionNr,
    /// Where its memmap goes; the memmaps of the others follow.
    memmap: Pfn,
}

/// The sections that are left for later, per zone.
type LaterByZone = [Option<Later>; ZoneId::COUNT];

/// The sections of a run that are not left for later.
fn before(run: Run, later: &LaterByZone) -> impl Iterator<Item = SectionNr> + use<> {
    let later = later[run.zone.index()].map(|later| later.next);
    run.sections().take_while(move |&nr| later.is_none_or(|later| nr < later))
}

/// The zones that can leave sections for later, and the first such section of each. In a node's highest zone
/// it is the second section (Linux `defer_init`). Under [`InitPolicy::Lazy`] the zones below leave all their
/// sections for later.
fn first_deferred(memblock: &Memblock, init: InitPolicy) -> ArrayVec<(ZoneId, SectionNr), { ZoneId::COUNT }> {
    let in_zone = |zone: ZoneId| {
        let above = ZoneType::ALL.into_iter().skip(zone.zone_type().index() + 1);
        let has_ram = |zone| memblock.runs_of(zone, SectionNr::new(0)).next().is_some();
        let is_highest = !above.map(|above| zone.node().zone(above)).any(has_ram);
        let skip = match init {
            InitPolicy::Eager => return None,
            InitPolicy::Deferred if !is_highest => return None,
            InitPolicy::Deferred | InitPolicy::Lazy => usize::from(is_highest),
        };
        let mut sections = memblock.runs_of(zone, SectionNr::new(0)).flat_map(Run::sections);
        Some((zone, sections.nth(skip)?))
    };
    ZoneId::all().filter_map(in_zone).collect()
}
