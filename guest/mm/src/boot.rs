//! From memblock to zones.
//!
//! Mirrors Linux `free_area_init`, `memblock_free_all` and `mm_core_init`. First every
//! section with RAM gets memory for its memmap from memblock, then section after section is mapped,
//! initialised and freed into its zone, or left for later (see `deferred`). So after the first
//! section the platform can have page-table pages from the allocator to map the rest.

use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, PAGE_SIZE, Pfn, PfnRange, PhysAddr, PhysRange, SectionNr};
use crate::deferred::Unclaimed;
use crate::evacuate::PcpPolicy;
use crate::memblock::{Memblock, Run};
use crate::memmap_init::{InitPolicy, MemoryContent, set_heads};
use crate::node::{ZoneId, ZoneType};
use crate::page::Kind;
use crate::pgmap::DeviceInit;
use crate::platform::Platform;
use crate::range::RemovalPolicy;
use crate::sparse::{Section, SectionPages, SectionState};
use crate::zone::{Zone, setup_watermarks};

/// Choices made at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// CPUs that will ever run, at least 1.
    pub nr_cpus: usize,
    /// Whether the memmap of hot-added memory lies in that memory.
    pub memmap_on_memory: bool,
    /// What is done about per-CPU lists while memory is taken away.
    pub pcp: PcpPolicy,
    /// How much hot-added memory may be removed at a time.
    pub removal: RemovalPolicy,
    /// When struct pages are initialised.
    pub init: InitPolicy,
    /// Whether allocations that find too little may have more of boot memory initialised, where that
    /// was left for later.
    pub grow: bool,
    /// What is in memory at boot where nobody has written to it.
    pub content: MemoryContent,
    /// How struct pages of device memory are initialised.
    pub device_init: DeviceInit,
}

/// Why there is no allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// No CPUs, or more than there are [`PerCpuPages`](crate::PerCpuPages)s.
    Cpus,
    /// There is RAM beyond the last section.
    OutOfRange(PhysAddr),
    /// No room for the memmap, or memblock's table is full.
    NoMemory,
    /// The memmap could not be mapped.
    NoPageTable(SectionNr),
}

impl<P: Platform> Mm<P> {
    /// Builds the zones from what `memblock` knows: memory below 4 GiB is Dma32, above it Normal, each of
    /// the node that it is on.
    /// What is free there can be allocated afterwards, what is reserved never. Called once, by one
    /// CPU.
    ///
    /// # Errors
    /// See [`BootError`]; the machine has no allocator then.
    pub fn boot(&self, memblock: &'static mut Memblock, options: Options) -> Result<(), BootError> {
        let Options { nr_cpus, memmap_on_memory, pcp, removal, init, grow, content, device_init } = options;
        if nr_cpus == 0 || nr_cpus > self.per_cpu.len() {
            return Err(BootError::Cpus);
        }
        self.nr_cpus.store(nr_cpus, Relaxed);
        self.count_cpus();
        self.memmap_on_memory.store(memmap_on_memory, Relaxed);
        self.pcp_policy.set(pcp);
        self.remove_per_block.store(removal == RemovalPolicy::PerBlock, Relaxed);
        self.init_lazily.store(init == InitPolicy::Lazy, Relaxed);
        self.deferred.set_grow(grow);
        self.pgmaps.set_policy(device_init);

        let page_zero = PhysRange::new(PhysAddr::new(0), PAGE_SIZE);
        memblock.reserve(page_zero).map_err(|_| BootError::NoMemory)?;
        self.boot_memory_is_zero.store(content == MemoryContent::Zero, Relaxed);
        let hotplug = self.lock_hotplug();
        let end = memblock.runs().last().map_or(SectionNr::new(0), |run| run.end);
        if end.get() > self.sparse.len() {
            return Err(BootError::OutOfRange(SectionNr::new(self.sparse.len()).start().address()));
        }
        let later = self.take_boot_memmaps(memblock, init)?;
        let memblock: &'static Memblock = memblock;
        memblock.runs().for_each(|run| self.count_boot_memory(memblock, run));
        self.zones().for_each(Zone::keep_boot_span);
        self.build_zonelists();
        for nr in memblock.runs().flat_map(|run| before(run, &later)) {
            let memmap = self.sparse.section(nr).and_then(Section::memmap).expect("it got one above");
            self.platform.map_memmap(nr, memmap).map_err(|_| BootError::NoPageTable(nr))?;
            self.free_boot_section(memblock, nr);
        }
        for (zone, unclaimed) in ZoneId::all().zip(later) {
            let Some(unclaimed) = unclaimed else { continue };
            for run in memblock.runs_of(zone, unclaimed.next) {
                let prepared = self.platform.prepare_memmaps(run.first, run.len());
                prepared.map_err(|_| BootError::NoPageTable(run.first))?;
                self.zone(zone).add_deferred(run.pages(memblock.free()));
            }
            self.deferred.set(memblock, zone, unclaimed);
        }
        self.update_limits();
        drop(hotplug);
        Ok(())
    }

    /// Takes memory for the memmap of every section with RAM, on the section's node if there is room: for each
    /// by itself, and for all that are left for later in a zone, which are returned, in one piece. A zone for
    /// which there is no such piece leaves none.
    fn take_boot_memmaps(&self, memblock: &mut Memblock, init: InitPolicy) -> Result<Later, BootError> {
        const SIZE: u64 = MEMMAP_PAGES as u64 * PAGE_SIZE;
        let mut later = [None; ZoneId::COUNT];
        for (zone, next) in first_deferred(memblock, init) {
            let count = memblock.runs_of(zone, next).map(Run::len).sum();
            let memmap = memblock.alloc_on(zone.node(), u64::from(count) * SIZE, SIZE);
            later[zone.index()] = memmap.map(|memmap| Unclaimed { next, count, memmap: memmap.pfn() });
        }
        let mut from = SectionNr::new(0);
        // Anew each time: the memmaps are reserved in the same table.
        let next = |memblock: &Memblock, from| memblock.runs().find(|run| run.end > from);
        while let Some(run) = next(memblock, from) {
            for nr in before(run, &later) {
                let memmap = memblock.alloc_on(run.zone.node(), SIZE, SIZE).ok_or(BootError::NoMemory)?;
                self.make_present(nr, run.zone, memmap.pfn());
            }
            from = run.end;
        }
        Ok(later)
    }

    /// Says of a section of boot memory what is known of it without its memmap, and where that is.
    pub(crate) fn make_present(&self, nr: SectionNr, zone: ZoneId, memmap: Pfn) {
        let section = self.sparse.section(nr).expect("boot memory is in the table");
        section.set_memmap(Some(memmap));
        section.set_zone(zone);
        section.set_boot();
        section.set_zeroed(self.boot_memory_is_zero.load(Relaxed));
        self.sparse.set_state(nr, SectionState::Present);
    }

    /// Makes the RAM of `run` part of its zone.
    fn count_boot_memory(&self, memblock: &Memblock, run: Run) {
        self.nodes.include(run.zone.node());
        let zone = self.zone(run.zone);
        run.parts(memblock.memory()).for_each(|ram| zone.grow_span(ram));
        zone.add_present(run.pages(memblock.memory()));
        zone.add_managed(run.pages(memblock.free()));
    }

    /// Initialises a section that is present, with its memmap mapped, and frees what of it is not in use: so
    /// many pages.
    pub(crate) fn free_boot_section(&self, memblock: &Memblock, nr: SectionNr) -> u64 {
        let pages = self.sparse.pages_to_initialise(nr);
        self.init_section(pages, pages.section().zone());
        self.sparse.set_state(nr, SectionState::Initialised);
        mark_taken(memblock, pages);
        self.sparse.set_state(nr, SectionState::Online);
        let mut freed = 0;
        for free in memblock.free() {
            let free = free.inner_frames().intersect(nr.frames());
            self.free_range(pages, free);
            freed += u64::from(free.pages());
        }
        freed
    }

    /// Gives `range`, in the section, whose pages are in no block and movable, to the allocator.
    pub(crate) fn free_range(&self, pages: SectionPages<'_>, range: PfnRange) {
        self.lock_zone(pages.section().zone()).free_range(pages, range);
    }

    /// Recomputes what follows from the sizes of the zones.
    pub(crate) fn update_limits(&self) {
        self.build_zonelists();
        setup_watermarks(self.zones().as_slice());
        self.update_pcp_limits();
    }
}

/// What is left for later, by zone.
type Later = [Option<Unclaimed>; ZoneId::COUNT];

/// The sections of a run that are not left for later.
fn before(run: Run, later: &Later) -> impl Iterator<Item = SectionNr> + use<> {
    let later = later[run.zone.index()].map(|unclaimed| unclaimed.next);
    run.sections().take_while(move |&nr| later.is_none_or(|later| nr < later))
}

/// The zones of which something can be left for later, and the first section of it: in a node's highest zone
/// its second one (Linux `defer_init`), and when pages are initialised as late as can be, in the zones
/// below their first one.
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

/// Marks the parts of a section that are not free: holes, and RAM that is reserved.
fn mark_taken(memblock: &Memblock, pages: SectionPages<'_>) {
    let frames = pages.nr().frames();
    let ram = || memblock.memory().map(PhysRange::inner_frames);
    let free = || memblock.free().map(PhysRange::inner_frames);
    for hole in gaps(frames, ram()) {
        set_heads(pages, hole, Kind::Hole);
    }
    for ram in ram() {
        for reserved in gaps(ram.intersect(frames), free()) {
            set_heads(pages, reserved, Kind::Reserved);
        }
    }
}

/// The parts of `range` that are in none of `covered`, which is ascending and disjoint.
fn gaps(range: PfnRange, covered: impl Iterator<Item = PfnRange>) -> impl Iterator<Item = PfnRange> {
    let mut at = range.start;
    let last = PfnRange { start: range.end, end: range.end };
    covered
        .map(move |covered| covered.intersect(range))
        .filter(|covered| !covered.is_empty())
        .chain([last])
        .map(move |covered| PfnRange { start: core::mem::replace(&mut at, covered.end), end: covered.start })
        .filter(|gap| !gap.is_empty())
}
