//! From memblock to zones.
//!
//! Mirrors Linux `free_area_init`, `memblock_free_all` and `mm_core_init`. Two passes: first every
//! section with RAM gets its memmap from memblock, then section after section is mapped,
//! initialised and freed into its zone, or left for later (see `deferred`). So after the first
//! section the platform can have page-table pages from the allocator to map the rest.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Order, PAGE_SIZE, PfnRange, PhysAddr, PhysRange, SectionNr};
use crate::buddy::Place;
use crate::contig::PcpPolicy;
use crate::memblock::Memblock;
use crate::memmap_init::{Content, InitPolicy, set_heads};
use crate::node::{MAX_NODES, ZoneId};
use crate::page::{Kind, ZoneType};
use crate::pageblock::MigrateType;
use crate::pgmap::DeviceInit;
use crate::platform::Platform;
use crate::range::RemovalPolicy;
use crate::sparse::{SectionPages, SectionState};
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
    pub content: Content,
    /// How struct pages of device memory are initialised.
    pub device_init: DeviceInit,
}

/// Why there is no allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// No CPUs, or more than there are [`PerCpu`](crate::PerCpu)s.
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
        let hotplug = self.lock_hotplug();
        self.take_boot_memmaps(memblock, content)?;
        let memblock: &'static Memblock = memblock;
        memblock.sections().for_each(|nr| self.count_boot_section(memblock, nr));
        self.zones().for_each(Zone::keep_boot_span);
        self.build_zonelists();
        // Where lazily would be as costly as eagerly, at least it need not be now.
        let defer = init == InitPolicy::Deferred || init == InitPolicy::Lazy && content == Content::Unknown;
        let later = if defer { self.first_deferred(memblock) } else { [None; MAX_NODES] };
        for nr in memblock.sections() {
            let section = self.sparse.section(nr).expect("it has a memmap");
            let memmap = section.memmap().expect("memblock gave a large page for it");
            self.platform.map_memmap(nr, memmap).map_err(|_| BootError::NoPageTable(nr))?;
            if later[section.node().index()].is_none_or(|later| nr < later) {
                self.free_boot_section(memblock, nr);
            }
        }
        self.update_limits();
        for next in later.into_iter().flatten() {
            self.deferred.set(memblock, self.boot_zone(next), next);
        }
        drop(hotplug);
        Ok(())
    }

    /// Takes memory for the memmap of every section with RAM, on the section's node if there is room, and
    /// notes which zone the section belongs to.
    fn take_boot_memmaps(&self, memblock: &mut Memblock, content: Content) -> Result<(), BootError> {
        let mut next = memblock.section_from(SectionNr::new(0));
        while let Some(nr) = next {
            let section = self.sparse.section(nr).ok_or(BootError::OutOfRange(nr.start().address()))?;
            let size = u64::from(MEMMAP_PAGES) * PAGE_SIZE;
            let node = memblock.node_of(nr);
            let memmap = memblock.alloc_on(node, size, size).ok_or(BootError::NoMemory)?;
            section.set_memmap(Some(memmap.pfn()));
            section.set_zone(node.zone(ZoneType::of_boot_memory(nr)));
            self.nodes.include(node);
            section.set_boot();
            section.set_zeroed(content == Content::Zero);
            self.sparse.set_state(nr, SectionState::Present);
            next = memblock.section_from(SectionNr::new(nr.get() + 1));
        }
        Ok(())
    }

    /// Makes a section's RAM part of its zone.
    fn count_boot_section(&self, memblock: &Memblock, nr: SectionNr) {
        let zone = self.zone(self.boot_zone(nr));
        for memory in memblock.memory() {
            let ram = memory.inner_frames().intersect(nr.frames());
            if !ram.is_empty() {
                zone.grow_span(ram);
                zone.add_present(ram.pages().into());
            }
        }
    }

    /// Initialises a section, which has a memmap, and frees what of it is not in use: so many pages.
    pub(crate) fn free_boot_section(&self, memblock: &Memblock, nr: SectionNr) -> u64 {
        let pages = self.sparse.pages_to_initialise(nr);
        let zone = self.zone(pages.section().zone());
        self.init_section(pages, zone.id());
        self.sparse.set_state(nr, SectionState::Initialised);
        mark_taken(memblock, pages);
        self.sparse.set_state(nr, SectionState::Online);
        let mut freed = 0;
        for free in memblock.free() {
            let free = free.inner_frames().intersect(nr.frames());
            zone.add_managed(free.pages().into());
            self.free_range(pages, free);
            freed += u64::from(free.pages());
        }
        freed
    }

    /// Gives `range`, in the section, whose pages are in no block and movable, to the allocator.
    pub(crate) fn free_range(&self, pages: SectionPages<'_>, range: PfnRange) {
        let mut buddy = self.zone(pages.section().zone()).lock();
        let mut rest = range;
        while let Some((pfn, order)) = rest.chunks().next() {
            if order == Order::MAX {
                let largest = PfnRange { start: pfn, end: range.end.align_down(order) };
                buddy.append_largest(&self.sparse, pages, largest, MigrateType::Movable);
                rest.start = largest.end;
            } else {
                buddy.free_block(&self.sparse, pages, pfn, order, Place::Tail);
                rest.start = pfn.add(order.pages());
            }
        }
    }

    /// Recomputes what follows from the sizes of the zones.
    pub(crate) fn update_limits(&self) {
        self.build_zonelists();
        setup_watermarks(self.zones().as_slice());
        self.update_pcp_limits();
    }

    /// The zone of a section that was there at boot.
    fn boot_zone(&self, nr: SectionNr) -> ZoneId {
        self.sparse.section(nr).expect("it has a memmap").zone()
    }

    /// The first section of each node that can be left for later: the second of the node's highest zone
    /// (Linux `defer_init`).
    fn first_deferred(&self, memblock: &Memblock) -> [Option<SectionNr>; MAX_NODES] {
        let mut highest = [None; MAX_NODES];
        for zone in memblock.sections().map(|nr| self.boot_zone(nr)) {
            // The last one counts: they ascend.
            highest[zone.node().index()] = Some(zone);
        }
        highest.map(|zone| memblock.sections().filter(|&nr| Some(self.boot_zone(nr)) == zone).nth(1))
    }
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
