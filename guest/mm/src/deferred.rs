//! Memory that is there and not wanted yet: its struct pages are initialised later, by an allocation that finds
//! too little memory. Boot memory is deferred, and, under [`InitPolicy::Lazy`](crate::InitPolicy::Lazy), memory
//! that was plugged. Unless the policy is `Lazy`, all CPUs initialise deferred boot memory in parallel once they run.
//!
//! Mirrors Linux `deferred_init_memmap` and `deferred_grow_zone` in `mm/mm_init.c`, with the memory block as the
//! unit of both. A CPU claims a memory block under a lock and initialises it outside of the lock.
//!
//! Differs from Linux on purpose:
//! - In Linux growing ends as soon as the parallel workers start, so an allocation can fail although memory
//!   is on its way. Here growers and workers claim from the same ranges to the end, and a grower that finds
//!   nothing left to claim waits for the memory blocks that other CPUs have claimed.
//! - A worker that finds nothing left on its node helps the next node (Linux leaves that to the scheduler,
//!   which runs a node's workers on its CPUs).
//! - Boot writes nothing about a section that is left for later. It sets memory for all such memmaps of a zone
//!   aside in one piece. So the time to the first page hardly depends on the size of memory.
//! - Deferred memory is mapped when it is claimed.
//! - Plugged memory is deferred in the same way (Linux initialises it when it comes online). It leaves as it came, as a
//!   range, when nobody has claimed it (see `memory_block::range`).
//!
//! Numbers such as S1.5 in the tests are those of the claims in `docs/features.md`.
//!
//! Invariants: every section of a deferred range is Absent, and everything that initialising it could lack is set aside:
//! memory for its memmap and pages for page tables. A memory block that left its range and is neither online nor
//! removed is being initialised by the CPU that claimed it. Spans, present and managed pages count deferred memory from
//! the time on when it is deferred.

mod claims;
mod ranges;

use core::marker::PhantomData;

use crate::Mm;
use crate::added_block::MemoryBlock;
use crate::addr::{MEMMAP_PAGES, Pfn, SectionNr, SectionRange};
use crate::geometry::{DEFERRED_RANGES, MAX_NODES};
use crate::grow::GrowZone;
use crate::hotplug::Hotplug;
use crate::irq::IrqOff;
use crate::lock::{Guard, Locks, Rank, SpinLock};
use crate::memblock::{Memblock, Run};
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::platform::Platform;
use crate::sparse::{Section, SectionOwner, SectionState};
use crate::sync::{AtomicU32, Ordering, spin_loop};
use crate::variant::{self, Variant};

pub(crate) use claims::Claims;
use ranges::DeferredRanges;
pub(crate) use ranges::{DeferredRange, Origin};

/// The memory blocks that are not initialised.
pub(crate) struct Deferred {
    claims: SpinLock<Claims>,
    /// Memory blocks of each zone that are not online yet, claimed ones included.
    left: [AtomicU32; ZoneId::COUNT],
    /// Claims of all zones that have not ended. It rises under the lock of `claims` only.
    under_way: AtomicU32,
    /// Sections of boot memory that were initialised, by the section's node and the node of the CPU that did it.
    by: [[AtomicU32; MAX_NODES]; MAX_NODES],
    /// One more than the last section of boot memory that was left for later.
    boot_end: AtomicU32,
}

/// Memory blocks that this CPU has claimed: no other CPU touches them until they are online.
struct Claimed<'c, P: Platform> {
    range: DeferredRange,
    memblock: Option<&'static Memblock>,
    /// Interrupts are off until they are online, because what would interrupt this CPU might wait for them.
    off: PhantomData<&'c IrqOff<'c, P>>,
}

// The claim was made under the lock, and a memory block is claimed once. Who would unmap it waits for the claim to end
// first: see `settle`.
impl<P: Platform> SectionOwner for Claimed<'_, P> {
    // Not the lock of `Deferred`: its holder may be waiting for this memory block in `freeze`.
    const LOCKS: Locks = Locks::up_to(Rank::Hotplug);
}

impl Deferred {
    pub(crate) const fn new() -> Self {
        let claims = Claims { memblock: None, ranges: DeferredRanges::new() };
        Self {
            claims: SpinLock::new(Rank::Deferred, claims),
            left: [const { AtomicU32::new(0) }; ZoneId::COUNT],
            under_way: AtomicU32::new(0),
            by: [const { [const { AtomicU32::new(0) }; MAX_NODES] }; MAX_NODES],
            boot_end: AtomicU32::new(0),
        }
    }

    /// Takes the lock of what no CPU has claimed.
    pub(crate) fn claims<'c, P: Platform>(&'c self, _off: &'c IrqOff<'_, P>) -> Guard<'c, Claims> {
        self.claims.lock()
    }

    /// Boot memory is what `memblock` says.
    pub(crate) fn set_boot<P: Platform>(&self, memblock: &'static Memblock, off: &IrqOff<'_, P>) {
        self.claims(off).memblock = Some(memblock);
    }

    /// Leaves `run` for later. Its memmaps go to `memmap` and behind it.
    ///
    /// # Panics
    /// When there are more than [`DEFERRED_RANGES`] ranges.
    pub(crate) fn add_boot<P: Platform>(&self, run: Run, memmap: Pfn, off: &IrqOff<'_, P>) {
        let sections = SectionRange::new(run.first, run.len()).expect("the table has all of them");
        self.boot_end.fetch_max(run.end.get(), Ordering::Relaxed);
        let range = DeferredRange { sections, zone: run.zone, origin: Origin::Boot { memmap } };
        let is_new = self.add(range, off);
        assert!(is_new, "more than {DEFERRED_RANGES} ranges of boot memory are left for later");
    }

    /// Defers `range`, none of which is deferred. False when there are too many ranges.
    #[must_use]
    pub(crate) fn add<P: Platform>(&self, range: DeferredRange, off: &IrqOff<'_, P>) -> bool {
        let mut claims = self.claims(off);
        // Before a CPU can claim some of it.
        let is_added = claims.ranges.insert(range);
        if is_added {
            self.left[range.zone.index()].fetch_add(range.blocks(), Ordering::Relaxed);
        }
        is_added
    }

    /// Memory blocks of `zone` that are not online yet.
    #[inline]
    pub(crate) fn left(&self, zone: ZoneId) -> u32 {
        // Pairs with the decrement in `count_done`: a CPU that reads a smaller number finds the memory that came.
        self.left[zone.index()].load(Ordering::Acquire)
    }

    /// Sections of boot memory that were initialised since boot, by the section's node and the node of the CPU that did
    /// it.
    pub(crate) fn initialised(&self) -> [[u32; MAX_NODES]; MAX_NODES] {
        self.by.each_ref().map(|cpus| cpus.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Whether section `nr` is boot memory of a machine that leaves sections for later, claimed or not.
    fn is_boot_memory<P: Platform>(&self, nr: SectionNr, off: &IrqOff<'_, P>) -> bool {
        // Most memory that is added lies above all boot memory.
        if nr.get() >= self.boot_end.load(Ordering::Relaxed) {
            return false;
        }
        let memblock = self.claims(off).memblock;
        memblock.is_some_and(|memblock| memblock.runs().any(|run| run.contains(nr)))
    }

    /// Counts a claimed section of boot memory that a CPU of node `by` has put online.
    fn count_by(&self, node: NodeId, by: NodeId) {
        self.by[node.index()][by.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `blocks` claimed memory blocks of `zone` that are online.
    pub(crate) fn count_done(&self, zone: ZoneId, blocks: u32) {
        self.left[zone.index()].fetch_sub(blocks, Ordering::Release);
    }

    /// Waits until no claimed memory block is being initialised, and keeps all CPUs from claiming any.
    pub(crate) fn freeze<'c, P: Platform>(&'c self, off: &'c IrqOff<'_, P>) -> Guard<'c, Claims> {
        let claims = self.claims(off);
        if variant::is(Variant::FreezeDoesNotWait) {
            return claims;
        }
        // A CPU that has claimed a memory block needs neither this lock nor the memory hotplug lock to finish it.
        // Pairs with the Release in `init_claimed`: what it did is seen.
        while self.under_way.load(Ordering::Acquire) != 0 {
            spin_loop();
        }
        claims
    }
}

impl<P: Platform> Mm<P> {
    /// Initialises one memory block that was left for later, and frees its memory: a memory block of this CPU's node,
    /// or of the next node when they are all claimed. `false` when none is left to claim. Any number of
    /// CPUs may call it at once.
    pub fn init_deferred(&self) -> bool {
        let nodes = self.nodes.by_distance(self.this_cpu().node());
        let off = self.irq_off();
        let claimed = nodes.flat_map(zones_of).find_map(|zone| self.claim(zone, &off));
        claimed.is_some_and(|claimed| {
            self.init_claimed(claimed);
            true
        })
    }

    /// The CPU that should call [`init_deferred`](Self::init_deferred) next, when one caller at a time is to
    /// initialise everything and always write to memory of its own node: this CPU as long as its node has
    /// memory to claim, then the first CPU of another node that has. `None` when none is left to claim.
    pub fn next_deferred_cpu(&self) -> Option<usize> {
        let off = self.irq_off();
        let claims = self.deferred.claims(&off);
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
        self.sparse.section(nr).is_some_and(Section::is_boot)
            || self.deferred.is_boot_memory(nr, &self.irq_off())
    }

    /// Whether no memory is left for later and none is being initialised.
    pub fn is_all_initialised(&self) -> bool {
        ZoneId::all().all(|zone| self.deferred.left(zone) == 0)
    }

    /// The lowest section of `range` with memory: in the section table, or deferred. The caller holds the memory hotplug
    /// lock, or the answer is old.
    pub(crate) fn first_taken(&self, range: SectionRange) -> Option<SectionNr> {
        let off = self.irq_off();
        let claims = self.deferred.freeze(&off);
        let deferred = claims.ranges.iter().find(|taken| taken.sections.intersects(range));
        let deferred = deferred.map(|taken| taken.sections.first().max(range.first()));
        // Sections from `end` on were never in use.
        let mut known = range.before(self.sparse.end()).sections();
        let known = known.find(|&nr| self.section_state(nr) != SectionState::Absent);
        known.into_iter().chain(deferred).min()
    }

    /// Whether any of `range` is deferred, and no CPU has claimed it. A page table for such memory must stay, even when
    /// nothing else is mapped by it: the CPU that claims the memory makes none.
    pub fn is_deferred(&self, range: SectionRange) -> bool {
        self.deferred.claims(&self.irq_off()).ranges.intersects(range)
    }

    /// Claims the next memory block of `zone`, for the caller to initialise. None when every memory block that is left
    /// was claimed by another CPU, which is initialising it.
    fn claim<'c>(&'c self, zone: ZoneId, off: &'c IrqOff<'c, P>) -> Option<Claimed<'c, P>> {
        let mut claims = self.deferred.claims(off);
        if variant::is(Variant::ClaimInTwoSteps) {
            let range = claims.ranges.clone().pop(zone)?;
            drop(claims);
            claims = self.deferred.claims(off);
            _ = claims.ranges.pop(zone);
            return Some(self.claimed(&claims, range, off));
        }
        let range = claims.ranges.pop(zone)?;
        Some(self.claimed(&claims, range, off))
    }

    /// The claim of `range`, which was taken from `claims`. It is mapped here, under the lock: while some of a page table
    /// is deferred, the table stays, and afterwards it has an entry.
    fn claimed<'c>(
        &'c self,
        claims: &Claims,
        range: DeferredRange,
        _off: &'c IrqOff<'c, P>,
    ) -> Claimed<'c, P> {
        self.deferred.under_way.fetch_add(1, Ordering::Relaxed);
        match (range.origin, claims.memblock) {
            (Origin::Boot { memmap }, Some(memblock)) => {
                let sections = range.sections.sections().zip(memmaps_from(memmap));
                sections.for_each(|(nr, memmap)| self.map_boot_section(memblock, nr, memmap));
            }
            _ => blocks_of(&range).for_each(|block| self.map_plugged(block)),
        }
        Claimed { range, memblock: claims.memblock, off: PhantomData }
    }

    /// Initialises what was claimed. Takes no lock but the zone's, and allocates nothing: the allocation that
    /// needs the memory may hold any other lock.
    fn init_claimed(&self, claimed: Claimed<'_, P>) {
        let range = claimed.range;
        let pages = match (range.origin, claimed.memblock) {
            (Origin::Boot { memmap }, Some(memblock)) => self.init_boot(memblock, memmap, &claimed),
            (Origin::Boot { .. }, None) => unreachable!("boot memory is deferred with its memory map"),
            (Origin::Plugged { zeroed, .. }, _) => {
                blocks_of(&range).map(|block| self.init_plugged(block, range.zone, zeroed, &claimed)).sum()
            }
        };
        // For a moment the pages count twice. Watermarks may read too many pages, but not too few: a request
        // that they refuse is not retried.
        self.zone(range.zone).sub_deferred(pages);
        self.deferred.count_done(range.zone, range.blocks());
        self.deferred.under_way.fetch_sub(1, Ordering::Release);
    }

    /// Initialises claimed sections of boot memory. Returns the number of pages freed.
    fn init_boot(&self, memblock: &Memblock, memmap: Pfn, claimed: &Claimed<'_, P>) -> u64 {
        let DeferredRange { sections, zone, .. } = claimed.range;
        let mut pages = 0;
        for (nr, memmap) in sections.sections().zip(memmaps_from(memmap)) {
            self.make_present(nr, zone, memmap, claimed);
            pages += self.free_boot_section(memblock, nr, claimed);
            self.deferred.count_by(zone.node(), self.this_cpu().node());
        }
        pages
    }
}

/// The memory blocks of plugged memory; none of boot memory.
fn blocks_of(range: &DeferredRange) -> impl Iterator<Item = MemoryBlock> + use<> {
    let (is_boot, block) = (range.is_boot(), range.block() as usize);
    let firsts = range.sections.sections().step_by(block).filter(move |_| !is_boot);
    firsts.map(move |first| MemoryBlock::new(first, block).expect("a range is made of whole memory blocks"))
}

/// The memmaps of consecutive sections, the first one at `memmap`.
fn memmaps_from(memmap: Pfn) -> impl Iterator<Item = Pfn> {
    (0..).map(move |index| memmap.add(index * MEMMAP_PAGES))
}

impl<P: Platform> Hotplug<'_, P> {
    /// Initialises the plugged memory blocks of `range` that are deferred, and waits for memory that is being initialised.
    /// Afterwards each section of `range` that is not boot memory is in a state that changes under the memory hotplug
    /// lock only.
    pub fn settle(&self, range: SectionRange) {
        loop {
            let off = self.mm.irq_off();
            let mut claims = self.mm.deferred.freeze(&off);
            let Some(part) = claims.ranges.take_plugged(range) else { return };
            let claimed = self.mm.claimed(&claims, part, &off);
            drop(claims);
            self.mm.init_claimed(claimed);
        }
    }

    /// Takes the highest part of `range` that is deferred and ends where `range` does. It belongs to no range any more, and
    /// the caller removes it. None when the last memory block of `range` is not deferred.
    pub(crate) fn take_deferred_end(&self, range: SectionRange) -> Option<DeferredRange> {
        let off = self.mm.irq_off();
        let mut claims = self.mm.deferred.freeze(&off);
        let last = claims.ranges.find(SectionNr::new(range.end().get().checked_sub(1)?))?;
        if last.is_boot() {
            return None;
        }
        let wanted = last.sections.from(range.first()).before(range.end());
        let taken = claims.ranges.take_plugged(wanted).expect("it was found");
        if taken.sections == wanted {
            self.mm.deferred.count_done(taken.zone, taken.blocks());
            return Some(taken);
        }
        // A memory block that is not wholly in `range`, or no room for the rest.
        let claimed = self.mm.claimed(&claims, taken, &off);
        drop(claims);
        self.mm.init_claimed(claimed);
        None
    }
}

impl<P: Platform> GrowZone for Mm<P> {
    #[inline]
    fn deferred_blocks_left(&self, zone: ZoneId) -> u32 {
        self.deferred.left(zone)
    }

    /// Initialises a memory block of `zone` for an allocation that found too little, or waits for another CPU to.
    #[cold]
    #[inline(never)]
    fn grow_zone(&self, zone: ZoneId, before: u32) -> bool {
        if before == 0 || !self.options.get().grow {
            return false;
        }
        while self.deferred.left(zone) == before {
            let off = self.irq_off();
            match self.claim(zone, &off) {
                Some(claimed) => self.init_claimed(claimed),
                None => spin_loop(),
            }
        }
        // At least one memory block came online, by this CPU or another.
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
        let off = mm.irq_off();
        let claimed = mm.claim(zone, &off).expect("one is left");
        assert!(mm.claim(zone, &off).is_none() && !mm.init_deferred() && !mm.is_all_initialised());
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
