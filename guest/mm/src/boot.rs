//! Boot: the zones are built from the memory map in memblock.
//!
//! Mirrors Linux `free_area_init`, `memblock_free_all` and `mm_core_init`. First every section with RAM gets
//! memory for its memmap from memblock. Then each section and its memmap are mapped and initialised, and the
//! section is freed into its zone, or the section is left for later (see `deferred`). Differs from Linux on
//! purpose: a section that boot leaves for later is not mapped.
//!
//! Invariant: a section of boot memory is Present only after it and its memmap are mapped.

use core::fmt;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, PAGE_SIZE, Pfn, PhysAddr, PhysRange, SectionNr};
use crate::geometry::DEFERRED_RANGES;
use crate::hotplug::Hotplug;
use crate::memblock::{Memblock, Run};
use crate::node::{ZoneId, ZoneType};
use crate::options::{InitPolicy, Options};
use crate::platform::Platform;
use crate::zone::setup_watermarks;

/// Why boot failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootError {
    /// There are no CPUs, or more CPUs than [`PerCpuPages`](crate::PerCpuPages)s.
    Cpus,
    /// There is RAM beyond the last section.
    OutOfRange(PhysAddr),
    /// No room for the memmap, or memblock's table is full.
    NoMemory,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpus => f.write_str("there are no CPUs, or more than the kernel has room for"),
            Self::OutOfRange(address) => {
                write!(f, "there is RAM beyond the last section, at {:#x}", address.get())
            }
            Self::NoMemory => f.write_str("no room for the memmap, or too many ranges of memory"),
        }
    }
}

impl core::error::Error for BootError {}

impl<P: Platform> Mm<P> {
    /// Builds the zones from `memblock`. In each node, memory below 4 GiB is Dma32 and memory above is Normal.
    /// Free memory can be allocated afterwards, reserved memory never. All RAM is prepared before (see
    /// [`Platform`]). Called once, by one CPU.
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
        let zones = ZoneRuns::of(memblock);
        let beyond = SectionNr::new(mm.sparse.len());
        if memblock.section_from(beyond).is_some() {
            return Err(BootError::OutOfRange(beyond.start().address()));
        }
        let mut later = self.take_boot_memmaps(memblock, &zones)?;
        let memblock: &'static Memblock = memblock;
        mm.deferred.set_boot(memblock, &mm.irq_off());
        for run in memblock.runs() {
            let managed = self.count_boot_memory(memblock, run);
            let mut rest = run;
            for nr in before(run, &later) {
                self.init_boot_section(memblock, nr, run.zone);
                rest.first = SectionNr::new(nr.get() + 1);
            }
            if let Some(later) = later[run.zone.index()].as_mut().filter(|_| rest.len() > 0) {
                let pages = if rest == run { managed } else { rest.free_pages(memblock) };
                mm.zone(run.zone).add_deferred(pages);
                mm.deferred.add_boot(rest, later.memmap, &mm.irq_off());
                later.memmap = later.memmap.add(rest.len() * MEMMAP_PAGES);
            }
        }
        mm.zones().for_each(|zone| zone.keep_boot_span(self.held()));
        self.update_limits();
        Ok(())
    }

    /// Maps and initialises section `nr`, whose memmap [`take_boot_memmaps`](Self::take_boot_memmaps) took, and frees it
    /// into `zone`.
    fn init_boot_section(&self, memblock: &Memblock, nr: SectionNr, zone: ZoneId) {
        let mm = self.mm;
        let memmap = mm.sparse.entry(nr).memmap().expect("`take_boot_memmaps` gave it one");
        let off = mm.irq_off();
        let claims = mm.deferred.freeze(&off);
        mm.map_boot_section(memblock, nr, memmap);
        drop(claims);
        mm.make_present(nr, zone, memmap, self.held());
        mm.free_boot_section(memblock, nr, self.held());
    }

    /// Takes memory for the memmap of every section with RAM, on the section's node if there is room. Each
    /// section gets a piece of its own, except that all sections of a zone that are left for later share one
    /// piece. Returns the sections that are left for later. A zone for which there is no such piece leaves none, and
    /// neither does a zone of so many runs that plugged memory would find no room among the deferred ranges.
    fn take_boot_memmaps(
        &self,
        memblock: &mut Memblock,
        zones: &[ZoneRuns; ZoneId::COUNT],
    ) -> Result<LaterByZone, BootError> {
        const SIZE: u64 = MEMMAP_PAGES as u64 * PAGE_SIZE;
        let mut later = [None; ZoneId::COUNT];
        let mut runs = 0;
        for zone in ZoneId::all() {
            let Some(deferred) = zones[zone.index()].deferred(self.mm.options.get().init) else { continue };
            if runs + deferred.runs > DEFERRED_RANGES / 2 {
                continue;
            }
            runs += deferred.runs;
            let memmap = memblock.alloc_on(zone.node(), u64::from(deferred.sections) * SIZE, SIZE);
            later[zone.index()] = memmap.map(|memmap| Later { next: deferred.next, memmap: memmap.pfn() });
        }
        let mut from = SectionNr::new(0);
        // Runs are looked up one by one, because `alloc_on` changes the memblock that they borrow.
        while let Some(run) = memblock.run_from(from) {
            for nr in before(run, &later) {
                let memmap = memblock.alloc_on(run.zone.node(), SIZE, SIZE).ok_or(BootError::NoMemory)?;
                self.mm.sparse.entry(nr).set_memmap(Some(memmap.pfn()));
            }
            from = run.end;
        }
        Ok(later)
    }

    /// Counts the RAM of `run` as part of its zone. Returns how many of its pages are managed.
    fn count_boot_memory(&self, memblock: &Memblock, run: Run) -> u64 {
        self.mm.nodes.include(run.zone.node());
        let zone = self.mm.zone(run.zone);
        for ram in memblock.ram_in(run.frames()) {
            zone.grow_span(ram, self.held());
            zone.add_present(ram.pages().into(), self.held());
        }
        let managed = run.free_pages(memblock);
        zone.add_managed(managed, self.held());
        managed
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

/// The sections of a zone that boot can leave for later.
struct DeferredPart {
    /// The first one.
    next: SectionNr,
    /// How many there are from that one on, and in how many runs.
    sections: u32,
    runs: usize,
}

/// What the runs of a zone add up to.
#[derive(Clone, Copy, Default)]
struct ZoneRuns {
    sections: u32,
    runs: usize,
    first: Option<SectionNr>,
    second: Option<SectionNr>,
    /// Its first run is the first section and no more.
    begins_with_one: bool,
    /// No zone above it in its node has RAM.
    is_highest: bool,
}

impl ZoneRuns {
    /// All zones, by their index.
    fn of(memblock: &Memblock) -> [Self; ZoneId::COUNT] {
        let mut zones = [Self::default(); ZoneId::COUNT];
        for run in memblock.runs() {
            // Runs ascend, and so do the zones of a node.
            let node = run.zone.node();
            ZoneType::ALL.into_iter().for_each(|zone| zones[node.zone(zone).index()].is_highest = false);
            let zone = &mut zones[run.zone.index()];
            let mut sections = run.sections();
            zone.is_highest = true;
            if zone.first.is_none() {
                zone.first = sections.next();
                zone.begins_with_one = run.len() == 1;
            }
            zone.second = zone.second.or_else(|| sections.next());
            zone.sections += run.len();
            zone.runs += 1;
        }
        zones
    }

    /// What can be left for later. In a node's highest zone all but the first section (Linux `defer_init`). Under
    /// [`InitPolicy::Lazy`] the zones below leave all their sections for later.
    fn deferred(&self, init: InitPolicy) -> Option<DeferredPart> {
        let &Self { sections, runs, begins_with_one, is_highest, .. } = self;
        match init {
            InitPolicy::Eager => None,
            InitPolicy::Deferred if !is_highest => None,
            _ if is_highest => {
                let runs = runs - usize::from(begins_with_one);
                self.second.map(|next| DeferredPart { next, sections: sections - 1, runs })
            }
            _ => self.first.map(|next| DeferredPart { next, sections, runs }),
        }
    }
}
