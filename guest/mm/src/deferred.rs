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
//! not online is being initialised by the CPU that claimed it, and `busy` counts it; spans and present
//! pages count all of them from boot on, managed pages follow as they come.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use crate::Mm;
use crate::addr::{PfnRange, PhysRange, SectionNr};
use crate::lock::{Guard, Rank, SpinLock};
use crate::memblock::Memblock;
use crate::memmap_init::InitPolicy;
use crate::page::ZoneType;
use crate::platform::Platform;

/// The sections of boot memory that are not initialised.
pub(crate) struct Deferred {
    claims: SpinLock<Claims>,
    /// Sections that are not online yet.
    left: AtomicU32,
    /// The zone that they belong to (Linux defers in a node's last zone only).
    zone: AtomicU8,
    /// Whether an allocation that finds too little may initialise more.
    grow: AtomicBool,
}

pub(crate) struct Claims {
    /// What boot knew of memory; `None` before boot.
    memblock: Option<&'static Memblock>,
    /// The first section that nobody has claimed.
    next: SectionNr,
    /// Sections that were claimed and are not online yet.
    busy: u32,
}

/// What there is to do.
enum Claim {
    /// This section is the caller's to initialise.
    Ours(SectionNr, &'static Memblock),
    /// Others are at the last ones.
    Theirs,
    /// Nothing is left.
    None,
}

impl Deferred {
    pub(crate) const fn new() -> Self {
        let claims = Claims { memblock: None, next: SectionNr::new(0), busy: 0 };
        Self {
            claims: SpinLock::new(Rank::Deferred, claims),
            left: AtomicU32::new(0),
            zone: AtomicU8::new(0),
            grow: AtomicBool::new(true),
        }
    }

    /// The sections with RAM from `next` on, `left` of them and all in `zone`, are left for later.
    pub(crate) fn set(&self, memblock: &'static Memblock, zone: ZoneType, next: SectionNr, left: u32) {
        *self.claims.lock() = Claims { memblock: Some(memblock), next, busy: 0 };
        self.zone.store(zone as u8, Ordering::Relaxed);
        self.left.store(left, Ordering::Release);
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

    fn claim(&self) -> Claim {
        let mut claims = self.claims.lock();
        let Some(memblock) = claims.memblock else { return Claim::None };
        match memblock.section_from(claims.next) {
            Some(nr) => {
                claims.next = SectionNr::new(nr.get() + 1);
                claims.busy += 1;
                Claim::Ours(nr, memblock)
            }
            None if claims.busy > 0 => Claim::Theirs,
            None => Claim::None,
        }
    }

    /// A section that was claimed is online.
    fn done(&self) {
        // In this order: who finds nobody at work any more finds fewer left than before.
        self.left.fetch_sub(1, Ordering::AcqRel);
        self.claims.lock().busy -= 1;
    }

    /// Keeps everybody from claiming sections, with none at work.
    pub(crate) fn freeze(&self) -> Guard<'_, Claims> {
        loop {
            let claims = self.claims.lock();
            if claims.busy == 0 {
                return claims;
            }
            drop(claims);
            core::hint::spin_loop();
        }
    }
}

impl Claims {
    /// RAM that is not initialised: ranges of frames, ascending.
    pub(crate) fn ram(&self) -> impl Iterator<Item = PfnRange> {
        self.rest(self.memblock.into_iter().flat_map(Memblock::memory))
    }

    /// What of it will be free.
    fn free(&self) -> u64 {
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
        let Claim::Ours(nr, memblock) = self.deferred.claim() else { return false };
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
        true
    }

    /// Pages of boot memory that will be free once they are initialised. Whoever asks whether there is
    /// enough memory adds them to the free ones (Linux does not, and refuses what would fit).
    pub fn deferred_pages(&self) -> u64 {
        if self.deferred.left() == 0 { 0 } else { self.deferred.claims.lock().free() }
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
                Claim::Ours(nr, memblock) => self.init_claimed(nr, memblock),
                Claim::Theirs => core::hint::spin_loop(),
                Claim::None => return deferred.left() != before,
            }
        }
        // Some of it has come, by this CPU or others.
        true
    }

    fn init_claimed(&self, nr: SectionNr, memblock: &Memblock) {
        self.free_boot_section(memblock, nr, InitPolicy::Eager);
        self.deferred.done();
    }
}

#[cfg(test)]
mod tests {
    use crate::addr::{SECTION_PAGES, SectionNr};
    use crate::memmap_init::InitPolicy;
    use crate::page::ZoneType;
    use crate::sim::Machine;
    use crate::sparse::SectionState;

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
}
