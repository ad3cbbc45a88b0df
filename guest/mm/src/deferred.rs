//! Boot memory whose struct pages are initialised later: by whoever runs out of memory before, and by
//! all CPUs in parallel once they run.
//!
//! Mirrors Linux `deferred_init_memmap` and `deferred_grow_zone` in `mm/mm_init.c`, with sections as the
//! unit of both. Each section is claimed under a lock and initialised outside of it. Differs from
//! Linux on purpose: there, growing ends as soon as the parallel workers start, so an allocation can
//! fail although memory is on its way; here growers and workers claim from the same counter to the
//! end, and who finds nothing left to claim waits for what others still have at work. Each node has its
//! own sections, of its last zone; a worker that finds none left on its node helps the next one (Linux
//! leaves that to the scheduler, which runs a node's workers on its CPUs).
//!
//! Invariants: every section of a node from `next` on is `Present` and in no free list; one below it that is
//! not online is being initialised by the CPU that claimed it. Spans and present pages count all of
//! them from boot on, managed pages follow as they come.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::Mm;
use crate::addr::{PfnRange, PhysRange, SectionNr};
use crate::lock::{Guard, Rank, SpinLock};
use crate::memblock::Memblock;
use crate::node::{MAX_NODES, NodeId, ZoneId};
use crate::platform::Platform;

/// The sections of boot memory that are not initialised.
pub(crate) struct Deferred {
    claims: SpinLock<Claims>,
    nodes: [OfNode; MAX_NODES],
    /// Whether an allocation that finds too little may initialise more.
    grow: AtomicBool,
    /// Whether limits follow from all of boot memory.
    finished: AtomicBool,
}

/// Those of one node, for readers without the lock.
struct OfNode {
    /// Sections that are not online yet, those that are claimed included.
    left: AtomicU32,
    /// Pages that will be free in them.
    pages: AtomicU64,
    /// The zone that they belong to (Linux defers in a node's last zone only).
    zone: AtomicU8,
    /// Sections that CPUs of each node have initialised.
    by: [AtomicU32; MAX_NODES],
}

pub(crate) struct Claims {
    /// What boot knew of memory; `None` before boot.
    memblock: Option<&'static Memblock>,
    nodes: [Unclaimed; MAX_NODES],
}

#[derive(Clone, Copy)]
struct Unclaimed {
    /// The first section that nobody has claimed.
    next: Option<SectionNr>,
    /// Sections of the node from there on.
    count: u32,
}

impl Deferred {
    pub(crate) const fn new() -> Self {
        let claims = Claims { memblock: None, nodes: [Unclaimed { next: None, count: 0 }; MAX_NODES] };
        Self {
            claims: SpinLock::new(Rank::Deferred, claims),
            nodes: [const {
                OfNode {
                    left: AtomicU32::new(0),
                    pages: AtomicU64::new(0),
                    zone: AtomicU8::new(0),
                    by: [const { AtomicU32::new(0) }; MAX_NODES],
                }
            }; MAX_NODES],
            grow: AtomicBool::new(true),
            finished: AtomicBool::new(true),
        }
    }

    /// The sections of `zone`'s node with RAM from `next` on, all of that zone, are left for later.
    pub(crate) fn set(&self, memblock: &'static Memblock, zone: ZoneId, next: SectionNr) {
        let node = zone.node();
        let mut claims = self.claims.lock();
        claims.memblock = Some(memblock);
        claims.nodes[node.index()].next = Some(next);
        let count = claims.sections(node).count() as u32;
        claims.nodes[node.index()].count = count;
        self.finished.store(false, Ordering::Relaxed);
        let of_node = &self.nodes[node.index()];
        of_node.pages.store(claims.free(node), Ordering::Relaxed);
        of_node.zone.store(zone.bits(), Ordering::Relaxed);
        of_node.left.store(count, Ordering::Release);
    }

    /// Whether an allocation that finds too little may initialise more; to show what happens else.
    pub(crate) fn set_grow(&self, grow: bool) {
        self.grow.store(grow, Ordering::Relaxed);
    }

    /// Sections of `node` that are not online yet.
    #[inline]
    pub(crate) fn left(&self, node: NodeId) -> u32 {
        // Pairs with the decrement in `done`: who sees fewer finds the memory of those that came.
        self.nodes[node.index()].left.load(Ordering::Acquire)
    }

    /// Whether limits follow from all of boot memory.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    /// Pages that will be free once they are initialised. Whoever adds them to counters of zones reads
    /// this first, or may miss a section that comes meanwhile.
    pub(crate) fn pages(&self) -> u64 {
        self.nodes.iter().map(|node| node.pages.load(Ordering::Acquire)).sum()
    }

    /// Sections that were initialised since boot, by their node and the node of the CPU that did it.
    pub(crate) fn initialised(&self) -> [[u32; MAX_NODES]; MAX_NODES] {
        let by = |node: usize| core::array::from_fn(|cpu| self.nodes[node].by[cpu].load(Ordering::Relaxed));
        core::array::from_fn(by)
    }

    /// The next section of `node`, for the caller to initialise. When there is none, those that are left
    /// are others' and come by themselves.
    fn claim(&self, node: NodeId) -> Option<(SectionNr, &'static Memblock)> {
        let mut claims = self.claims.lock();
        let memblock = claims.memblock?;
        let unclaimed = &mut claims.nodes[node.index()];
        let nr = unclaimed.next?;
        unclaimed.next = memblock.section_of_node_from(node, SectionNr::new(nr.get() + 1));
        unclaimed.count -= 1;
        Some((nr, memblock))
    }

    /// A section of `node` that was claimed is online, with so many pages, by a CPU of node `by`.
    fn done(&self, node: NodeId, pages: u64, by: NodeId) {
        let of_node = &self.nodes[node.index()];
        of_node.by[by.index()].fetch_add(1, Ordering::Relaxed);
        of_node.pages.fetch_sub(pages, Ordering::Release);
        of_node.left.fetch_sub(1, Ordering::AcqRel);
    }

    /// Keeps everybody from claiming sections, with none under way.
    pub(crate) fn freeze(&self) -> Guard<'_, Claims> {
        let claims = self.claims.lock();
        // Who has claimed one needs no lock of this rank, nor the caller's, to be done with it.
        while NodeId::all().any(|node| self.left(node) != claims.nodes[node.index()].count) {
            core::hint::spin_loop();
        }
        claims
    }
}

impl Claims {
    /// Sections of `node` that nobody has claimed, ascending.
    pub(crate) fn sections(&self, node: NodeId) -> impl Iterator<Item = SectionNr> {
        let after =
            move |nr: &SectionNr| self.memblock?.section_of_node_from(node, SectionNr::new(nr.get() + 1));
        core::iter::successors(self.nodes[node.index()].next, after)
    }

    /// RAM of `node` that is not initialised: ranges of frames, ascending.
    pub(crate) fn ram(&self, node: NodeId) -> impl Iterator<Item = PfnRange> {
        let ram = |nr| within(nr, self.memblock.into_iter().flat_map(Memblock::memory));
        self.sections(node).flat_map(ram)
    }

    /// Pages of it that will be free.
    pub(crate) fn free(&self, node: NodeId) -> u64 {
        let free = |nr| within(nr, self.memblock.into_iter().flat_map(Memblock::free));
        self.sections(node).flat_map(free).map(|range| u64::from(range.pages())).sum()
    }
}

/// What of `ranges` is in section `nr`.
fn within(nr: SectionNr, ranges: impl Iterator<Item = PhysRange>) -> impl Iterator<Item = PfnRange> {
    ranges.map(move |range| range.inner_frames().intersect(nr.frames())).filter(|range| !range.is_empty())
}

impl<P: Platform> Mm<P> {
    /// Initialises one section whose struct pages were left for later, and frees its memory: one of this
    /// CPU's node, or when they are all claimed, of the next node. `false` when none is left to claim.
    /// For all CPUs, any number at a time.
    pub fn init_deferred(&self) -> bool {
        let mut nodes = self.nodes.by_distance(self.this_cpu().node());
        nodes.any(|node| match self.deferred.claim(node) {
            Some((nr, memblock)) => {
                self.init_claimed(nr, memblock);
                true
            }
            None => false,
        })
    }

    /// The CPU on which one that initialises all by itself, calling [`init_deferred`](Self::init_deferred),
    /// goes on so that it always writes near by: this one, as long as its node has sections to claim, then
    /// the first one of another node that has. `None` when none is left to claim.
    pub fn next_deferred_cpu(&self) -> Option<usize> {
        let claims = self.deferred.claims.lock();
        let this = self.platform.this_cpu();
        let mut nodes = self.nodes.by_distance(self.this_cpu().node());
        let node = nodes.find(|node| claims.nodes[node.index()].next.is_some())?;
        if node == self.this_cpu().node() {
            return Some(this);
        }
        // Memory without CPUs is as far from all of them.
        Some(self.cpus().iter().position(|cpu| cpu.node() == node).unwrap_or(this))
    }

    /// Recomputes what follows from the sizes of the zones once all of boot memory is initialised;
    /// `false` as long as it is not.
    pub fn finish_deferred(&self) -> bool {
        let _hotplug = self.lock_hotplug();
        if NodeId::all().any(|node| self.deferred.left(node) > 0) {
            return false;
        }
        self.update_limits();
        self.deferred.finished.store(true, Ordering::Relaxed);
        true
    }

    /// Makes more of `zone` available to an allocation that found too little when [`Deferred::left`] of
    /// its node was `before`. `true` when it may find more now; `false` when there is no more to come.
    pub(crate) fn grow_zone(&self, zone: ZoneId, before: u32) -> bool {
        let (deferred, node) = (&self.deferred, zone.node());
        let is_its_zone = deferred.nodes[node.index()].zone.load(Ordering::Relaxed) == zone.bits();
        if before == 0 || !is_its_zone || !deferred.grow.load(Ordering::Relaxed) {
            return false;
        }
        while deferred.left(node) == before {
            match deferred.claim(node) {
                Some((nr, memblock)) => self.init_claimed(nr, memblock),
                None => core::hint::spin_loop(),
            }
        }
        // Some of it has come, by this CPU or others.
        true
    }

    fn init_claimed(&self, nr: SectionNr, memblock: &Memblock) {
        let pages = self.free_boot_section(memblock, nr);
        self.deferred.done(memblock.node_of(nr), pages, self.this_cpu().node());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use crate::addr::{Order, SECTION_PAGES, SectionNr};
    use crate::memmap_init::InitPolicy;
    use crate::node::NodeId;
    use crate::page::ZoneType;
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
        let grow = |zone| mm.grow_zone(NodeId::FIRST.zone(zone), mm.deferred.left(NodeId::FIRST));
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
        let (nr, memblock) = mm.deferred.claim(NodeId::FIRST).expect("one is left");
        assert!(mm.deferred.claim(NodeId::FIRST).is_none() && !mm.init_deferred() && !mm.finish_deferred());
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
            mm.init_claimed(nr, memblock);
            let count = came.recv_timeout(Duration::from_secs(60)).expect("it goes on");
            assert_eq!(count, 1000);
        });
        assert!(mm.finish_deferred());
        mm.check();
    }

    /// S1.17: watermarks, reserves and limits of per-CPU lists are those of an eager boot.
    #[test]
    fn limits_are_recomputed_at_the_end() {
        let [mm, eager] = [InitPolicy::Deferred, InitPolicy::Eager].map(|init| machine(init, 6).boot());
        let limits = |mm: &crate::Mm<Sim>| {
            let zone = &mm.zones[0];
            let reserves = ZoneType::ALL.map(|highest| zone.lowmem_reserve(highest));
            (zone.watermark(Watermark::Min), zone.watermark(Watermark::Low), reserves, zone.pcp_limits())
        };
        assert_ne!(limits(mm), limits(eager));
        while mm.init_deferred() {}
        assert!(mm.finish_deferred());
        assert_eq!(limits(mm), limits(eager));
        assert_eq!(mm.deferred.pages(), 0);
    }
}
