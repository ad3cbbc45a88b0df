//! Boot memory whose struct pages are initialised later: by whoever runs out of memory before, and, unless
//! it is to happen at first use only, by all CPUs in parallel once they run.
//!
//! Mirrors Linux `deferred_init_memmap` and `deferred_grow_zone` in `mm/mm_init.c`, with sections as the
//! unit of both. Each section is claimed under a lock and initialised outside of it. Differs from
//! Linux on purpose: there, growing ends as soon as the parallel workers start, so an allocation can
//! fail although memory is on its way; here growers and workers claim from the same counter to the
//! end, and who finds nothing left to claim waits for what others still have at work. A worker that finds
//! none left on its node helps the next one (Linux leaves that to the scheduler, which runs a node's
//! workers on its CPUs). And a section that is left for later costs nothing at all before: nothing is
//! written about it, and memory for all memmaps of a zone is set aside in one piece, so that boot takes as
//! long for a gibibyte as for terabytes.
//!
//! Invariants: every section of a zone that has RAM, from `next` on, is `Absent`, and memory for its memmap is
//! set aside; one below it that is not online is being initialised by the CPU that claimed it. Spans, present
//! and managed pages count all of them from boot on.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Pfn, PfnRange, SectionNr};
use crate::grow::GrowZone;
use crate::lock::{Guard, Rank, SpinLock};
use crate::memblock::{Memblock, Run};
use crate::node::{MAX_NODES, NodeId, ZoneId, ZoneType};
use crate::platform::Platform;
use crate::sparse::Section;

/// The sections of boot memory that are not initialised.
pub(crate) struct Deferred {
    claims: SpinLock<Claims>,
    /// Sections of each zone that are not online yet, those that are claimed included.
    left: [AtomicU32; ZoneId::COUNT],
    /// Sections that were initialised, by their node and that of the CPU that did it.
    by: [[AtomicU32; MAX_NODES]; MAX_NODES],
    /// One behind the last section that was left for later.
    end: AtomicU32,
    /// Whether an allocation that finds too little may initialise more.
    grow: AtomicBool,
}

pub(crate) struct Claims {
    /// What boot knew of memory; `None` before boot.
    memblock: Option<&'static Memblock>,
    zones: [Option<Unclaimed>; ZoneId::COUNT],
}

/// The sections of a zone that nobody has claimed.
#[derive(Clone, Copy)]
pub(crate) struct Unclaimed {
    /// The first of them.
    pub(crate) next: SectionNr,
    /// How many there are.
    pub(crate) count: u32,
    /// Where the memmap of the first one goes; those of the others follow.
    pub(crate) memmap: Pfn,
}

/// A section that somebody has claimed.
struct Claimed {
    nr: SectionNr,
    zone: ZoneId,
    memmap: Pfn,
    memblock: &'static Memblock,
}

impl Deferred {
    pub(crate) const fn new() -> Self {
        let claims = Claims { memblock: None, zones: [None; ZoneId::COUNT] };
        Self {
            claims: SpinLock::new(Rank::Deferred, claims),
            left: [const { AtomicU32::new(0) }; ZoneId::COUNT],
            by: [const { [const { AtomicU32::new(0) }; MAX_NODES] }; MAX_NODES],
            end: AtomicU32::new(0),
            grow: AtomicBool::new(true),
        }
    }

    /// The sections of `zone` with RAM that `unclaimed` begins with, all of them to its end, are left for
    /// later.
    pub(crate) fn set(&self, memblock: &'static Memblock, zone: ZoneId, unclaimed: Unclaimed) {
        let mut claims = self.claims.lock();
        claims.memblock = Some(memblock);
        claims.zones[zone.index()] = Some(unclaimed);
        let end = claims.runs(zone).last().map_or(0, |run| run.end.get());
        self.end.fetch_max(end, Ordering::Relaxed);
        self.left[zone.index()].store(unclaimed.count, Ordering::Release);
    }

    /// Whether an allocation that finds too little may initialise more; to show what happens else.
    pub(crate) fn set_grow(&self, grow: bool) {
        self.grow.store(grow, Ordering::Relaxed);
    }

    /// Sections of `zone` that are not online yet.
    #[inline]
    pub(crate) fn left(&self, zone: ZoneId) -> u32 {
        // Pairs with the decrement in `done`: who sees fewer finds the memory of those that came.
        self.left[zone.index()].load(Ordering::Acquire)
    }

    /// Sections that were initialised since boot, by their node and the node of the CPU that did it.
    pub(crate) fn initialised(&self) -> [[u32; MAX_NODES]; MAX_NODES] {
        self.by.each_ref().map(|cpus| cpus.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Whether section `nr` is boot memory of a machine that leaves some for later, claimed or not.
    fn holds(&self, nr: SectionNr) -> bool {
        // Most memory that is added is behind all of boot memory.
        if nr.get() >= self.end.load(Ordering::Relaxed) {
            return false;
        }
        let memblock = self.claims.lock().memblock;
        memblock.is_some_and(|memblock| memblock.runs().any(|run| run.contains(nr)))
    }

    /// The next section of `zone`, for the caller to initialise. When there is none, those that are left
    /// are others' and come by themselves.
    fn claim(&self, zone: ZoneId) -> Option<Claimed> {
        let mut claims = self.claims.lock();
        let memblock = claims.memblock?;
        let unclaimed = claims.zones[zone.index()]?;
        let Unclaimed { next: nr, count, memmap } = unclaimed;
        let rest = memblock.runs_of(zone, SectionNr::new(nr.get() + 1)).next();
        claims.zones[zone.index()] =
            rest.map(|run| Unclaimed { next: run.first, count: count - 1, memmap: memmap.add(MEMMAP_PAGES) });
        Some(Claimed { nr, zone, memmap, memblock })
    }

    /// A section of `zone` that was claimed is online, by a CPU of node `by`.
    fn done(&self, zone: ZoneId, by: NodeId) {
        self.by[zone.node().index()][by.index()].fetch_add(1, Ordering::Relaxed);
        self.left[zone.index()].fetch_sub(1, Ordering::AcqRel);
    }

    /// Keeps everybody from claiming sections, with none under way.
    pub(crate) fn freeze(&self) -> Guard<'_, Claims> {
        let claims = self.claims.lock();
        // Who has claimed one needs no lock of this rank, nor the caller's, to be done with it.
        while ZoneId::all().any(|zone| self.left(zone) != claims.count(zone)) {
            core::hint::spin_loop();
        }
        claims
    }
}

impl Claims {
    /// Sections of `zone` that nobody has claimed.
    pub(crate) fn count(&self, zone: ZoneId) -> u32 {
        self.zones[zone.index()].map_or(0, |unclaimed| unclaimed.count)
    }

    /// The same, one after another.
    pub(crate) fn runs(&self, zone: ZoneId) -> impl Iterator<Item = Run> {
        let unclaimed = self.memblock.zip(self.zones[zone.index()]);
        unclaimed.into_iter().flat_map(move |(memblock, unclaimed)| memblock.runs_of(zone, unclaimed.next))
    }

    /// RAM of `zone` that is not initialised: ranges of frames, ascending.
    pub(crate) fn ram(&self, zone: ZoneId) -> impl Iterator<Item = PfnRange> {
        self.runs(zone).flat_map(|run| run.parts(self.memblock.into_iter().flat_map(Memblock::memory)))
    }

    /// Pages of it that will be free.
    pub(crate) fn free(&self, zone: ZoneId) -> u64 {
        self.runs(zone).map(|run| run.pages(self.memblock.into_iter().flat_map(Memblock::free))).sum()
    }
}

impl<P: Platform> Mm<P> {
    /// Initialises one section whose struct pages were left for later, and frees its memory: one of this
    /// CPU's node, or when they are all claimed, of the next node. `false` when none is left to claim.
    /// For all CPUs, any number at a time.
    pub fn init_deferred(&self) -> bool {
        let nodes = self.nodes.by_distance(self.this_cpu().node());
        let claimed = nodes.flat_map(zones_of).find_map(|zone| self.deferred.claim(zone));
        claimed.is_some_and(|claimed| {
            self.init_claimed(claimed);
            true
        })
    }

    /// The CPU on which one that initialises all by itself, calling [`init_deferred`](Self::init_deferred),
    /// goes on so that it always writes near by: this one, as long as its node has sections to claim, then
    /// the first one of another node that has. `None` when none is left to claim.
    pub fn next_deferred_cpu(&self) -> Option<usize> {
        let claims = self.deferred.claims.lock();
        let this = self.platform.this_cpu();
        let mut nodes = self.nodes.by_distance(self.this_cpu().node());
        let node = nodes.find(|&node| zones_of(node).any(|zone| claims.count(zone) > 0))?;
        if node == self.this_cpu().node() {
            return Some(this);
        }
        // Memory without CPUs is as far from all of them.
        Some(self.cpus().iter().position(|cpu| cpu.node() == node).unwrap_or(this))
    }

    /// Whether section `nr` was there at boot, be anything known of it yet or not.
    pub(crate) fn is_boot_memory(&self, nr: SectionNr) -> bool {
        self.sparse.section(nr).is_some_and(Section::is_boot) || self.deferred.holds(nr)
    }

    /// Whether nothing is left for later, nor being initialised just now.
    pub fn is_all_initialised(&self) -> bool {
        ZoneId::all().all(|zone| self.deferred.left(zone) == 0)
    }

    /// Takes no lock but the zone's, and no memory: an allocation may have come this far with any other
    /// lock of its caller's.
    fn init_claimed(&self, claimed: Claimed) {
        let Claimed { nr, zone, memmap, memblock } = claimed;
        self.platform.map_prepared_memmap(nr, memmap);
        self.make_present(nr, zone, memmap);
        let pages = self.free_boot_section(memblock, nr);
        // For a moment they count twice. Too many is what watermarks may be told: who is refused is refused
        // for good.
        self.zone(zone).sub_deferred(pages);
        self.deferred.done(zone, self.this_cpu().node());
    }
}

impl<P: Platform> GrowZone for Mm<P> {
    #[inline]
    fn sections_to_come(&self, zone: ZoneId) -> u32 {
        self.deferred.left(zone)
    }

    fn grow_zone(&self, zone: ZoneId, before: u32) -> bool {
        if before == 0 || !self.deferred.grow.load(Ordering::Relaxed) {
            return false;
        }
        while self.deferred.left(zone) == before {
            match self.deferred.claim(zone) {
                Some(claimed) => self.init_claimed(claimed),
                None => core::hint::spin_loop(),
            }
        }
        // Some of it has come, by this CPU or others.
        true
    }
}

/// The zones of a node, from the top.
fn zones_of(node: NodeId) -> impl Iterator<Item = ZoneId> {
    ZoneType::ALL.into_iter().rev().map(move |zone| node.zone(zone))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use crate::addr::{Order, SECTION_PAGES, SectionNr};
    use crate::grow::GrowZone;
    use crate::memmap_init::InitPolicy;
    use crate::node::{NodeId, ZoneType};
    use crate::page_alloc::Gfp;
    use crate::sim::{Machine, Sim};
    use crate::sparse::SectionState;
    use crate::zone::Watermark;

    fn machine(init: InitPolicy, sections: u32) -> Machine {
        Machine { memory: [(0, sections * SECTION_PAGES)].into(), cpus: 2, init, ..Machine::default() }
    }

    /// S1.12, S1.13: only the highest zone grows, and only as long as there is something left.
    #[test]
    fn only_the_highest_zone_grows() {
        let memory = [(0, 2 * SECTION_PAGES), (32 * SECTION_PAGES, 3 * SECTION_PAGES)].into();
        let mm = Machine { memory, init: InitPolicy::Deferred, ..Machine::default() }.boot();
        let online =
            || [0, 1, 32, 33, 34].map(|nr| mm.section_state(SectionNr::new(nr)) == SectionState::Online);
        assert_eq!(online(), [true, true, true, false, false]);
        let grow = |zone| {
            let zone = NodeId::FIRST.zone(zone);
            mm.grow_zone(zone, mm.deferred.left(zone))
        };
        assert!(!grow(ZoneType::Dma32) && !grow(ZoneType::Movable));
        assert_eq!(online(), [true, true, true, false, false]);
        assert!(grow(ZoneType::Normal) && grow(ZoneType::Normal));
        assert!(mm.grow_zone(NodeId::FIRST.zone(ZoneType::Normal), 1), "others have been here meanwhile");
        assert_eq!(online(), [true; 5]);
        assert!(!grow(ZoneType::Normal));
        mm.check();
    }

    /// S1.5: with the last section claimed and not there yet, who finds nothing waits for it.
    #[test]
    fn an_allocation_waits_for_memory_that_is_on_its_way() {
        let mm = machine(InitPolicy::Deferred, 3).boot();
        assert!(mm.init_deferred());
        let zone = NodeId::FIRST.zone(ZoneType::Dma32);
        let claimed = mm.deferred.claim(zone).expect("one is left");
        assert!(mm.deferred.claim(zone).is_none() && !mm.init_deferred() && !mm.is_all_initialised());
        // As far as it goes without it: below the low watermark this would wait for itself.
        let zone = &mm.zones[0];
        let low = zone.watermark(Watermark::Low) + zone.lowmem_reserve(ZoneType::Normal);
        while zone.free() > low + 100 {
            mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("free pages");
        }
        let (done, came) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                let pages = (0..1000).map(|_| Sim::run_on(1, || mm.alloc_pages(Order::PAGE, Gfp::Kernel)));
                done.send(pages.filter(Result::is_ok).count()).unwrap();
            });
            let early = came.recv_timeout(Duration::from_millis(200));
            assert!(early.is_err(), "{early:?} pages came from nowhere");
            mm.init_claimed(claimed);
            let count = came.recv_timeout(Duration::from_secs(60)).expect("it goes on");
            assert_eq!(count, 1000);
        });
        assert!(mm.is_all_initialised());
        mm.check();
    }

    /// S1.17: watermarks, reserves and limits of per-CPU lists are those of an eager boot, from the first
    /// moment to the end.
    #[test]
    fn limits_are_those_of_all_memory() {
        let [mm, eager] = [InitPolicy::Deferred, InitPolicy::Eager].map(|init| machine(init, 6).boot());
        let limits = |mm: &crate::Mm<Sim>| {
            let zone = &mm.zones[0];
            let reserves = ZoneType::ALL.map(|highest| zone.lowmem_reserve(highest));
            (zone.watermark(Watermark::Min), zone.watermark(Watermark::Low), reserves, zone.pcp_limits())
        };
        assert_eq!((limits(mm), mm.zones[0].managed()), (limits(eager), eager.zones[0].managed()));
        assert!(mm.zones[0].deferred() > 4 * u64::from(SECTION_PAGES));
        while mm.init_deferred() {}
        assert!(mm.is_all_initialised());
        assert_eq!(limits(mm), limits(eager));
        assert_eq!(mm.zones[0].deferred(), 0);
    }
}
