//! Boot memory whose struct pages are initialised later: by whoever runs out of memory before, and by
//! all CPUs in parallel once they run.
//!
//! Mirrors Linux `deferred_init_memmap` and `deferred_grow_zone` in `mm/mm_init.c`, with sections as the
//! unit of both. Each section is claimed under a lock and initialised outside of it. Differs from
//! Linux on purpose: there, growing ends as soon as the parallel workers start, so an allocation can
//! fail although memory is on its way; here growers and workers claim from the same counter to the
//! end, and who finds nothing left to claim waits for what others still have at work.
//!
//! Invariants: every section from `next` on is `Present` and in no free list; one below it that is
//! not online is being initialised by the CPU that claimed it. Spans and present pages count all of
//! them from boot on, managed pages follow as they come.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::Mm;
use crate::addr::{PfnRange, PhysRange, SectionNr};
use crate::lock::{Guard, Rank, SpinLock};
use crate::memblock::Memblock;
use crate::page::ZoneType;
use crate::platform::Platform;

/// The sections of boot memory that are not initialised.
pub(crate) struct Deferred {
    claims: SpinLock<Claims>,
    /// Sections that are not online yet, those that are claimed included.
    left: AtomicU32,
    /// Pages that will be free in them.
    pages: AtomicU64,
    /// The zone that they belong to (Linux defers in a node's last zone only).
    zone: AtomicU8,
    /// Whether an allocation that finds too little may initialise more.
    grow: AtomicBool,
    /// Whether limits follow from all of boot memory.
    finished: AtomicBool,
}

pub(crate) struct Claims {
    /// What boot knew of memory; `None` before boot.
    memblock: Option<&'static Memblock>,
    /// The first section that nobody has claimed.
    next: SectionNr,
    /// Sections from there on.
    unclaimed: u32,
}

impl Deferred {
    pub(crate) const fn new() -> Self {
        let claims = Claims { memblock: None, next: SectionNr::new(0), unclaimed: 0 };
        Self {
            claims: SpinLock::new(Rank::Deferred, claims),
            left: AtomicU32::new(0),
            pages: AtomicU64::new(0),
            zone: AtomicU8::new(0),
            grow: AtomicBool::new(true),
            finished: AtomicBool::new(true),
        }
    }

    /// The sections with RAM from `next` on, all of one zone, are left for later.
    pub(crate) fn set(&self, memblock: &'static Memblock, next: SectionNr) {
        let unclaimed = memblock.sections().filter(|&nr| nr >= next).count() as u32;
        let claims = Claims { memblock: Some(memblock), next, unclaimed };
        self.pages.store(claims.free(), Ordering::Relaxed);
        self.zone.store(ZoneType::of_boot_memory(next) as u8, Ordering::Relaxed);
        self.finished.store(false, Ordering::Relaxed);
        *self.claims.lock() = claims;
        self.left.store(unclaimed, Ordering::Release);
    }

    /// Whether an allocation that finds too little may initialise more; to show what happens else.
    pub(crate) fn set_grow(&self, grow: bool) {
        self.grow.store(grow, Ordering::Relaxed);
    }

    /// Sections that are not online yet.
    #[inline]
    pub(crate) fn left(&self) -> u32 {
        // Pairs with the decrement in `done`: who sees fewer finds the memory of those that came.
        self.left.load(Ordering::Acquire)
    }

    /// Whether limits follow from all of boot memory.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    /// Pages that will be free once they are initialised. Whoever adds them to counters of zones reads
    /// this first, or may miss a section that comes meanwhile.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Acquire)
    }

    /// The next section, for the caller to initialise. When there is none, those that are left are
    /// others' and come by themselves.
    fn claim(&self) -> Option<(SectionNr, &'static Memblock)> {
        let mut claims = self.claims.lock();
        let memblock = claims.memblock?;
        let nr = memblock.section_from(claims.next)?;
        claims.next = SectionNr::new(nr.get() + 1);
        claims.unclaimed -= 1;
        Some((nr, memblock))
    }

    /// A section that was claimed is online, with so many pages.
    fn done(&self, pages: u64) {
        self.pages.fetch_sub(pages, Ordering::Release);
        self.left.fetch_sub(1, Ordering::AcqRel);
    }

    /// Keeps everybody from claiming sections, with none under way.
    pub(crate) fn freeze(&self) -> Guard<'_, Claims> {
        let claims = self.claims.lock();
        // Who has claimed one needs no lock of this rank, nor the caller's, to be done with it.
        while self.left() != claims.unclaimed {
            core::hint::spin_loop();
        }
        claims
    }
}

impl Claims {
    /// RAM that is not initialised: ranges of frames, ascending.
    pub(crate) fn ram(&self) -> impl Iterator<Item = PfnRange> {
        self.rest(self.memblock.into_iter().flat_map(Memblock::memory))
    }

    /// The sections that nobody has claimed.
    pub(crate) fn sections(&self) -> impl Iterator<Item = SectionNr> {
        let sections = self.memblock.into_iter().flat_map(|memblock| memblock.sections());
        sections.filter(|&nr| nr >= self.next)
    }

    /// What of it will be free.
    pub(crate) fn free(&self) -> u64 {
        let free = self.rest(self.memblock.into_iter().flat_map(Memblock::free));
        free.map(|range| u64::from(range.pages())).sum()
    }

    fn rest(&self, ranges: impl Iterator<Item = PhysRange>) -> impl Iterator<Item = PfnRange> {
        let from = self.next.start();
        ranges
            .map(PhysRange::inner_frames)
            .map(move |range| PfnRange { start: range.start.max(from), end: range.end.max(from) })
            .filter(|range| !range.is_empty())
    }
}

impl<P: Platform> Mm<P> {
    /// Initialises one section whose struct pages were left for later, and frees its memory. `false`
    /// when none is left to claim. For all CPUs, any number at a time.
    pub fn init_deferred(&self) -> bool {
        let Some((nr, memblock)) = self.deferred.claim() else { return false };
        self.init_claimed(nr, memblock);
        true
    }

    /// Recomputes what follows from the sizes of the zones once all of boot memory is initialised;
    /// `false` as long as it is not.
    pub fn finish_deferred(&self) -> bool {
        let _hotplug = self.lock_hotplug();
        if self.deferred.left() > 0 {
            return false;
        }
        self.update_limits();
        self.deferred.finished.store(true, Ordering::Relaxed);
        true
    }

    /// Makes more of `zone` available to an allocation that found too little when [`Deferred::left`]
    /// was `before`. `true` when it may find more now; `false` when there is no more to come.
    pub(crate) fn grow_zone(&self, zone: ZoneType, before: u32) -> bool {
        let deferred = &self.deferred;
        let is_its_zone = deferred.zone.load(Ordering::Relaxed) == zone as u8;
        if before == 0 || !is_its_zone || !deferred.grow.load(Ordering::Relaxed) {
            return false;
        }
        while deferred.left() == before {
            match deferred.claim() {
                Some((nr, memblock)) => self.init_claimed(nr, memblock),
                None => core::hint::spin_loop(),
            }
        }
        // Some of it has come, by this CPU or others.
        true
    }

    fn init_claimed(&self, nr: SectionNr, memblock: &Memblock) {
        let pages = self.free_boot_section(memblock, nr);
        self.deferred.done(pages);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use crate::addr::{Order, SECTION_PAGES, SectionNr};
    use crate::memmap_init::InitPolicy;
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
        let grow = |zone| mm.grow_zone(zone, mm.deferred.left());
        assert!(!grow(ZoneType::Dma32) && !grow(ZoneType::Movable));
        assert_eq!(online(), [true, true, true, false, false]);
        assert!(grow(ZoneType::Normal) && grow(ZoneType::Normal));
        assert!(mm.grow_zone(ZoneType::Normal, 1), "others have been here meanwhile");
        assert_eq!(online(), [true; 5]);
        assert!(!grow(ZoneType::Normal));
        mm.check();
    }

    /// S1.5: with the last section claimed and not there yet, who finds nothing waits for it.
    #[test]
    fn an_allocation_waits_for_memory_that_is_on_its_way() {
        let mm = machine(InitPolicy::Deferred, 3).boot();
        assert!(mm.init_deferred());
        let (nr, memblock) = mm.deferred.claim().expect("one is left");
        assert!(mm.deferred.claim().is_none() && !mm.init_deferred() && !mm.finish_deferred());
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
