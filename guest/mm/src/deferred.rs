//! Boot memory whose struct pages are initialised later: by an allocation that finds too little memory, and,
//! unless the policy is [`InitPolicy::Lazy`](crate::InitPolicy::Lazy), by all CPUs in parallel once they run.
//!
//! Mirrors Linux `deferred_init_memmap` and `deferred_grow_zone` in `mm/mm_init.c`, with the section as the
//! unit of both. A CPU claims a section under a lock and initialises it outside of the lock.
//!
//! Differs from Linux on purpose:
//! - In Linux growing ends as soon as the parallel workers start, so an allocation can fail although memory
//!   is on its way. Here growers and workers claim from the same counter to the end, and a grower that finds
//!   nothing left to claim waits for the sections that other CPUs have claimed.
//! - A worker that finds no section left on its node helps the next node (Linux leaves that to the scheduler,
//!   which runs a node's workers on its CPUs).
//! - Boot writes nothing about a section that is left for later. It sets memory for all such memmaps of a zone
//!   aside in one piece, and takes one page-table page per 64 GiB. So with EPT or NPT the time to the first
//!   page hardly depends on the size of memory.
//!
//! Numbers such as S1.5 in the tests are those of the claims in `docs/features.md`.
//!
//! Invariants: every section of a zone that has RAM, from `next` on, is Absent, and memory for its memmap is
//! set aside. A section below `next` that is not online is being initialised by the CPU that claimed it.
//! Spans, present and managed pages count all of them from boot on.

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Pfn, PfnRange, SectionNr};
use crate::grow::GrowZone;
use crate::lock::{Guard, Locks, Rank, SpinLock};
use crate::memblock::{Memblock, Run};
use crate::node::{MAX_NODES, NodeId, ZoneId, ZoneType};
use crate::platform::Platform;
use crate::sparse::{Section, SectionOwner};
use crate::sync::{AtomicU32, Ordering, spin_loop};
use crate::variant::{self, Variant};

/// The sections of boot memory that are not initialised.
pub(crate) struct Deferred {
    claims: SpinLock<Claims>,
    /// Sections of each zone that are not online yet, claimed ones included.
    left: [AtomicU32; ZoneId::COUNT],
    /// Sections that were initialised, by the section's node and the node of the CPU that did it.
    by: [[AtomicU32; MAX_NODES]; MAX_NODES],
    /// One more than the last section that was left for later.
    end: AtomicU32,
}

/// Which sections no CPU has claimed.
#[derive(Clone, Copy)]
pub(crate) struct Claims {
    /// The memory map at boot; `None` before boot.
    memblock: Option<&'static Memblock>,
    zones: [Option<Unclaimed>; ZoneId::COUNT],
}

/// The sections of a zone that no CPU has claimed.
#[derive(Clone, Copy)]
pub(crate) struct Unclaimed {
    /// The first one.
    pub(crate) next: SectionNr,
    /// Their number.
    pub(crate) count: u32,
    /// Where the memmap of the first one goes; the memmaps of the others follow.
    pub(crate) memmap: Pfn,
}

/// A section that this CPU has claimed: no other CPU touches it until it is online.
struct Claimed {
    nr: SectionNr,
    zone: ZoneId,
    memmap: Pfn,
    memblock: &'static Memblock,
}

// The claim was made under the lock, and a section is claimed once; it is boot memory, so it is never unmapped.
impl SectionOwner for Claimed {
    // Not the lock of `Deferred`: its holder may be waiting for this section in `freeze`.
    const LOCKS: Locks = Locks::up_to(Rank::Hotplug);
}

impl Deferred {
    pub(crate) const fn new() -> Self {
        let claims = Claims { memblock: None, zones: [None; ZoneId::COUNT] };
        Self {
            claims: SpinLock::new(Rank::Deferred, claims),
            left: [const { AtomicU32::new(0) }; ZoneId::COUNT],
            by: [const { [const { AtomicU32::new(0) }; MAX_NODES] }; MAX_NODES],
            end: AtomicU32::new(0),
        }
    }

    /// Leaves the sections of `zone` with RAM for later, from the first one of `unclaimed` to the zone's end.
    pub(crate) fn set(&self, memblock: &'static Memblock, zone: ZoneId, unclaimed: Unclaimed) {
        let mut claims = self.claims.lock();
        claims.memblock = Some(memblock);
        claims.zones[zone.index()] = Some(unclaimed);
        let end = claims.runs(zone).last().map_or(0, |run| run.end.get());
        self.end.fetch_max(end, Ordering::Relaxed);
        self.left[zone.index()].store(unclaimed.count, Ordering::Relaxed);
    }

    /// Sections of `zone` that are not online yet.
    #[inline]
    pub(crate) fn left(&self, zone: ZoneId) -> u32 {
        // Pairs with the decrement in `done`: a CPU that reads a smaller number finds the memory that came.
        self.left[zone.index()].load(Ordering::Acquire)
    }

    /// Sections that were initialised since boot, by the section's node and the node of the CPU that did it.
    pub(crate) fn initialised(&self) -> [[u32; MAX_NODES]; MAX_NODES] {
        self.by.each_ref().map(|cpus| cpus.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Whether section `nr` is boot memory of a machine that leaves sections for later, claimed or not.
    fn holds(&self, nr: SectionNr) -> bool {
        // Most memory that is added lies above all boot memory.
        if nr.get() >= self.end.load(Ordering::Relaxed) {
            return false;
        }
        let memblock = self.claims.lock().memblock;
        memblock.is_some_and(|memblock| memblock.runs().any(|run| run.contains(nr)))
    }

    /// Claims the next section of `zone`, for the caller to initialise. None when every section that is left
    /// was claimed by another CPU, which is initialising it.
    fn claim(&self, zone: ZoneId) -> Option<Claimed> {
        let mut claims = self.claims.lock();
        let memblock = claims.memblock?;
        let unclaimed = claims.zones[zone.index()]?;
        let Unclaimed { next: nr, count, memmap } = unclaimed;
        let rest = memblock.runs_of(zone, SectionNr::new(nr.get() + 1)).next();
        if variant::is(Variant::ClaimInTwoSteps) {
            drop(claims);
            claims = self.claims.lock();
        }
        claims.zones[zone.index()] =
            rest.map(|run| Unclaimed { next: run.first, count: count - 1, memmap: memmap.add(MEMMAP_PAGES) });
        Some(Claimed { nr, zone, memmap, memblock })
    }

    /// Counts a claimed section that a CPU of node `by` has put online: the claim ends.
    fn done(&self, claimed: Claimed, by: NodeId) {
        self.count_done(claimed.zone, by);
    }

    /// Counts a section of `zone` that a CPU of node `by` has put online.
    pub(crate) fn count_done(&self, zone: ZoneId, by: NodeId) {
        self.by[zone.node().index()][by.index()].fetch_add(1, Ordering::Relaxed);
        self.left[zone.index()].fetch_sub(1, Ordering::Release);
    }

    /// Waits until no claimed section is being initialised, and keeps all CPUs from claiming sections.
    pub(crate) fn freeze(&self) -> Guard<'_, Claims> {
        let claims = self.claims.lock();
        // A CPU that has claimed a section needs neither this lock nor the memory hotplug lock to finish it.
        while ZoneId::all().any(|zone| self.left(zone) != claims.count(zone)) {
            spin_loop();
        }
        claims
    }
}

impl Claims {
    /// Number of sections of `zone` that no CPU has claimed.
    pub(crate) fn count(&self, zone: ZoneId) -> u32 {
        self.zones[zone.index()].map_or(0, |unclaimed| unclaimed.count)
    }

    /// The sections of `zone` that no CPU has claimed.
    pub(crate) fn runs(&self, zone: ZoneId) -> impl Iterator<Item = Run> {
        let unclaimed = self.memblock.zip(self.zones[zone.index()]);
        unclaimed.into_iter().flat_map(move |(memblock, unclaimed)| memblock.runs_of(zone, unclaimed.next))
    }

    /// The lowest run of such sections from section `from` on, of any zone.
    pub(crate) fn run_from(&self, from: SectionNr) -> Option<Run> {
        let runs = ZoneId::all().flat_map(|zone| self.runs(zone)).filter(|run| run.end > from);
        let lowest = runs.min_by_key(|run| run.first)?;
        Some(Run { first: lowest.first.max(from), ..lowest })
    }

    /// RAM of `zone` in them: ranges of frames, ascending.
    pub(crate) fn ram(&self, zone: ZoneId) -> impl Iterator<Item = PfnRange> {
        self.runs(zone).flat_map(|run| run.parts(self.memblock.into_iter().flat_map(Memblock::memory)))
    }

    /// Pages of that RAM that will be free.
    pub(crate) fn free(&self, zone: ZoneId) -> u64 {
        self.runs(zone).map(|run| run.pages(self.memblock.into_iter().flat_map(Memblock::free))).sum()
    }
}

impl<P: Platform> Mm<P> {
    /// Initialises one section that was left for later, and frees its memory: a section of this CPU's node,
    /// or of the next node when they are all claimed. `false` when none is left to claim. Any number of
    /// CPUs may call it at once.
    pub fn init_deferred(&self) -> bool {
        let nodes = self.nodes.by_distance(self.this_cpu().node());
        let claimed = nodes.flat_map(zones_of).find_map(|zone| self.deferred.claim(zone));
        claimed.is_some_and(|claimed| {
            self.init_claimed(claimed);
            true
        })
    }

    /// The CPU that should call [`init_deferred`](Self::init_deferred) next, when one caller at a time is to
    /// initialise everything and always write to memory of its own node: this CPU as long as its node has
    /// sections to claim, then the first CPU of another node that has. `None` when none is left to claim.
    pub fn next_deferred_cpu(&self) -> Option<usize> {
        let claims = self.deferred.claims.lock();
        let this = self.platform.this_cpu();
        let mut nodes = self.nodes.by_distance(self.this_cpu().node());
        let node = nodes.find(|&node| zones_of(node).any(|zone| claims.count(zone) > 0))?;
        if node == self.this_cpu().node() {
            return Some(this);
        }
        // A node without CPUs is as far from all of them.
        Some(self.cpus().iter().position(|cpu| cpu.node() == node).unwrap_or(this))
    }

    /// Whether section `nr` is boot memory, initialised or not.
    pub(crate) fn is_boot_memory(&self, nr: SectionNr) -> bool {
        self.sparse.section(nr).is_some_and(Section::is_boot) || self.deferred.holds(nr)
    }

    /// Whether no section is left for later and none is being initialised.
    pub fn is_all_initialised(&self) -> bool {
        ZoneId::all().all(|zone| self.deferred.left(zone) == 0)
    }

    /// Initialises a claimed section. Takes no lock but the zone's, and allocates nothing: the allocation that
    /// needs the section may hold any other lock.
    fn init_claimed(&self, claimed: Claimed) {
        let &Claimed { nr, zone, memmap, memblock } = &claimed;
        self.platform.map_prepared_memmap(nr, memmap);
        self.make_present(nr, zone, memmap, &claimed);
        let pages = self.free_boot_section(memblock, nr, &claimed);
        // For a moment the pages count twice. Watermarks may read too many pages, but not too few: a request
        // that they refuse is not retried.
        self.zone(zone).sub_deferred(pages);
        self.deferred.done(claimed, self.this_cpu().node());
    }
}

impl<P: Platform> GrowZone for Mm<P> {
    #[inline]
    fn deferred_sections_left(&self, zone: ZoneId) -> u32 {
        self.deferred.left(zone)
    }

    /// Initialises a section of `zone` for an allocation that found too little, or waits for another CPU to.
    #[cold]
    #[inline(never)]
    fn grow_zone(&self, zone: ZoneId, before: u32) -> bool {
        if before == 0 || !self.options.get().grow {
            return false;
        }
        while self.deferred.left(zone) == before {
            match self.deferred.claim(zone) {
                Some(claimed) => self.init_claimed(claimed),
                None => spin_loop(),
            }
        }
        // At least one section came online, by this CPU or another.
        true
    }
}

/// The zones of a node, the highest first.
fn zones_of(node: NodeId) -> impl Iterator<Item = ZoneId> {
    ZoneType::ALL.into_iter().rev().map(move |zone| node.zone(zone))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use crate::addr::{Order, SECTION_PAGES, SectionNr};
    use crate::grow::GrowZone;
    use crate::node::{NodeId, ZoneType};
    use crate::options::{InitPolicy, Options};
    use crate::page_alloc::Gfp;
    use crate::sim::{Sim, SimMachine};
    use crate::sparse::SectionState;
    use crate::zone::Watermark;
    use crate::{Mm, steps};

    fn machine(init: InitPolicy, sections: u32) -> SimMachine {
        SimMachine {
            memory: [(0, sections * SECTION_PAGES)].into(),
            cpus: 2,
            options: Options { init, ..SimMachine::OPTIONS },
            ..SimMachine::default()
        }
    }

    /// S1.12, S1.13: only the highest zone grows, and only while sections are left.
    #[test]
    fn only_the_highest_zone_grows() {
        let memory = [(0, 2 * SECTION_PAGES), (32 * SECTION_PAGES, 3 * SECTION_PAGES)].into();
        let mm = SimMachine {
            memory,
            options: Options { init: InitPolicy::Deferred, ..SimMachine::OPTIONS },
            ..SimMachine::default()
        }
        .boot();
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
        assert!(mm.grow_zone(NodeId::FIRST.zone(ZoneType::Normal), 1), "another CPU has grown it");
        assert_eq!(online(), [true; 5]);
        assert!(!grow(ZoneType::Normal));
        mm.check();
    }

    /// S1.5: when the last section is claimed and not online yet, an allocation that finds nothing waits for it.
    #[test]
    fn an_allocation_waits_for_memory_that_is_on_its_way() {
        let mm = machine(InitPolicy::Deferred, 3).boot();
        assert!(mm.init_deferred());
        let zone = NodeId::FIRST.zone(ZoneType::Dma32);
        let claimed = mm.deferred.claim(zone).expect("one is left");
        assert!(mm.deferred.claim(zone).is_none() && !mm.init_deferred() && !mm.is_all_initialised());
        // Stops above the low watermark: below it this thread would wait for the section that it has claimed.
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
            assert!(early.is_err(), "{early:?} pages were allocated before the section was online");
            mm.init_claimed(claimed);
            let count = came.recv_timeout(Duration::from_secs(60)).expect("the allocations go on");
            assert_eq!(count, 1000);
        });
        assert!(mm.is_all_initialised());
        mm.check();
    }

    /// S1.17: watermarks, reserves and limits of per-CPU lists are those of an eager boot, before and after
    /// initialisation.
    #[test]
    fn limits_are_those_of_all_memory() {
        let [mm, eager] = [InitPolicy::Deferred, InitPolicy::Eager].map(|init| machine(init, 6).boot());
        let limits = |mm: &Mm<Sim>| {
            let zone = &mm.zones[0];
            let reserves = ZoneType::ALL.map(|highest| zone.lowmem_reserve(highest));
            (zone.watermark(Watermark::Min), zone.watermark(Watermark::Low), reserves, zone.pcp_limits())
        };
        assert_eq!((limits(mm), mm.zones[0].managed()), (limits(eager), eager.zones[0].managed()));
        assert!(mm.zones[0].deferred() > 4 * u64::from(SECTION_PAGES));
        let room = mm.room_for_movable();
        while mm.init_deferred() {}
        assert_eq!(mm.room_for_movable(), room, "pages that can be moved to, before and after");
        assert!(mm.is_all_initialised());
        assert_eq!(limits(mm), limits(eager));
        assert_eq!(mm.zones[0].deferred(), 0);
    }

    /// Wherever another CPU initialises a section between two reads, its pages are not missing from a sum of free and
    /// deferred pages. They count once, or twice.
    #[test]
    fn pages_that_are_initialised_meanwhile_are_not_missed() {
        // Each gets the number of all free pages.
        type Sum = (&'static str, fn(&Mm<Sim>, u64) -> u64);
        let sums: [Sum; 3] = [
            ("whether the last page above a watermark may be taken", |mm, all| {
                let zone = &mm.zones[0];
                let kept = zone.watermark(Watermark::Min) + zone.lowmem_reserve(ZoneType::Dma32);
                zone.above(Watermark::Min, (all - kept) as u32, ZoneType::Dma32).into()
            }),
            ("room for pages that move", |mm, _| mm.room_for_movable()),
            ("counters of the zone", |mm, _| mm.stats().zones[0].all_free()),
        ];
        for (what, sum) in sums {
            for at in 0.. {
                let mm = machine(InitPolicy::Deferred, 3).boot();
                let all = mm.stats().zones[0].all_free();
                let before = sum(mm, all);
                let (reads, mut found) = (Cell::new(0), 0);
                let other_cpu = move || {
                    if reads.replace(reads.get() + 1) == at {
                        assert!(Sim::run_on(1, || mm.init_deferred()));
                    }
                };
                let steps = steps::each(other_cpu, || found = sum(mm, all));
                assert!(found >= before, "{what}: {found} of {before}, after read {at}");
                assert!(steps > 1, "{what}: {steps} reads");
                if steps <= at {
                    break;
                }
            }
        }
    }
}
