//! Zones: what they span, how many pages they have, and how low they may run.
//!
//! Mirrors Linux `struct zone` and the watermark part of `mm/page_alloc.c`. Differs from Linux on purpose:
//! there is no reclaim, so the watermarks decide only which requests may still allocate. Ordinary requests
//! first look for a zone above `low`, then for one above `min`. The pages below `min` are for page tables, so
//! that memory can still be added to a machine that has run out of it. No request looks at `high`: below it memory counts as
//! short.
//!
//! Memory that is deferred counts in watermarks and limits too: it is free memory that is not on the free lists
//! (see `deferred`).
//!
//! Invariants: every reader finds free <= managed <= present <= spanned. So a zone grows from the outside in and
//! shrinks from the inside out. Spans, counters and watermarks change under the memory hotplug lock, which a
//! [`HotplugHeld`] proves. Three counters do not: the CPU that initialises deferred pages takes their number down, and the
//! numbers of free pages and of isolated pageblocks change under the zone lock ([`ZoneGuard`]). Every CPU
//! may read all of them.

mod guard;
mod pcp_limits;

use crate::addr::{Pfn, PfnRange, SECTION_PAGES, SectionNr};
use crate::free_lists::FreeLists;
use crate::hotplug::HotplugHeld;
use crate::lock::{Rank, SpinLock};
use crate::node::{ZoneId, ZoneType};
use crate::sync::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

pub(crate) use guard::ZoneGuard;
pub(crate) use pcp_limits::PcpLimits;

/// A level of free memory, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watermark {
    Min = 0,
    Low = 1,
    High = 2,
}

impl Watermark {
    const COUNT: usize = 3;
}

/// One zone.
pub(crate) struct Zone {
    lists: SpinLock<FreeLists>,
    /// Copy of [`FreeLists::free`] for readers without the lock.
    free: AtomicU64,
    /// Where it begins and ends, in one word (see [`packed`]), for readers without a lock.
    span: AtomicU64,
    /// The part of the span that boot memory has; it never shrinks.
    boot_span: AtomicU64,
    present: AtomicU64,
    managed: AtomicU64,
    /// Managed pages that are not initialised yet.
    deferred: AtomicU64,
    nr_isolate_pageblock: AtomicU64,
    watermarks: [AtomicU64; Watermark::COUNT],
    /// Pages kept from requests that could be served by a higher zone, by the highest zone that
    /// the request may use.
    lowmem_reserve: [AtomicU64; ZoneType::COUNT],
    /// Limits of per-CPU lists ([`PcpLimits::packed`]), from which they are published to the CPUs.
    pcp_limits: AtomicU64,
    id: ZoneId,
}

impl Zone {
    /// The zones of all nodes, empty.
    pub(crate) const fn all() -> [Self; ZoneId::COUNT] {
        let mut zones = [const { Self::new(ZoneId::at(0)) }; ZoneId::COUNT];
        let mut index = 1;
        while index < ZoneId::COUNT {
            zones[index] = Self::new(ZoneId::at(index));
            index += 1;
        }
        zones
    }

    const fn new(id: ZoneId) -> Self {
        Self {
            lists: SpinLock::new(Rank::Zone, FreeLists::new(id)),
            free: AtomicU64::new(0),
            span: AtomicU64::new(0),
            boot_span: AtomicU64::new(0),
            present: AtomicU64::new(0),
            managed: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
            nr_isolate_pageblock: AtomicU64::new(0),
            watermarks: [const { AtomicU64::new(0) }; Watermark::COUNT],
            lowmem_reserve: [const { AtomicU64::new(0) }; ZoneType::COUNT],
            pcp_limits: AtomicU64::new(PcpLimits::OFF.packed()),
            id,
        }
    }

    pub(crate) fn id(&self) -> ZoneId {
        self.id
    }

    #[inline]
    pub(crate) fn free(&self) -> u64 {
        let free = self.free.load(Relaxed);
        #[cfg(test)]
        crate::steps::made();
        free
    }

    /// Publishes a number of free pages without the lists, for a model of their readers.
    #[cfg(all(test, feature = "loom"))]
    pub(crate) fn set_free(&self, pages: u64) {
        self.free.store(pages, Relaxed);
    }

    pub(crate) fn present(&self) -> u64 {
        self.present.load(Relaxed)
    }

    pub(crate) fn managed(&self) -> u64 {
        self.managed.load(Relaxed)
    }

    /// Pages that are free and not initialised yet. A caller that also needs the number of free ones calls
    /// [`deferred_and_free`](Self::deferred_and_free).
    pub(crate) fn deferred(&self) -> u64 {
        // Pairs with the Release in `sub_deferred`.
        let deferred = self.deferred.load(Acquire);
        #[cfg(test)]
        crate::steps::made();
        deferred
    }

    /// Deferred pages, then free ones: in this order pages that are initialised between the two reads count
    /// twice. In the other order they would be missing, and a request would be refused for lack of memory.
    pub(crate) fn deferred_and_free(&self) -> [u64; 2] {
        let deferred = self.deferred();
        [deferred, self.free()]
    }

    pub(crate) fn add_deferred(&self, pages: u64) {
        self.deferred.fetch_add(pages, Relaxed);
    }

    /// `pages` deferred pages are on the free lists now.
    pub(crate) fn sub_deferred(&self, pages: u64) {
        let before = self.deferred.fetch_sub(pages, Release);
        assert!(pages <= before, "{:?} initialises {pages} of {before} deferred pages", self.id);
    }

    /// Whether the zone has memory, even if all of it is memmap (Linux `populated_zone`).
    pub(crate) fn is_populated(&self) -> bool {
        self.present() > 0
    }

    pub(crate) fn nr_isolate_pageblock(&self) -> u64 {
        self.nr_isolate_pageblock.load(Relaxed)
    }

    /// From the zone's first page to its last, holes included; empty when it has none.
    pub(crate) fn spanned(&self) -> PfnRange {
        unpacked(self.span.load(Relaxed))
    }

    /// Makes the zone reach over `range` as well.
    pub(crate) fn grow_span(&self, range: PfnRange, _held: &HotplugHeld) {
        let span = self.spanned();
        if span.is_empty() {
            self.set_span(range);
        } else {
            self.set_span(span.hull(range));
        }
    }

    /// Remembers the span as that of boot memory.
    pub(crate) fn keep_boot_span(&self, _held: &HotplugHeld) {
        self.boot_span.store(self.span.load(Relaxed), Relaxed);
    }

    /// Draws the zone's ends in after the memory of the frames `gone` left it, or failed to join it
    /// (Linux `shrink_zone_span`). An end that was in that memory moves to the next section that is in the zone. `ours`
    /// says whether a section that was added is in the zone. Boot memory stays, so its sections are not looked at.
    pub(crate) fn shrink_span(&self, gone: PfnRange, ours: impl Fn(SectionNr) -> bool, _held: &HotplugHeld) {
        let span = self.spanned();
        if span.is_empty() {
            return;
        }
        let ours = |nr: u32| Some(SectionNr::new(nr)).filter(|&nr| ours(nr)).map(SectionNr::frames);
        let boot = Some(unpacked(self.boot_span.load(Relaxed))).filter(|boot| !boot.is_empty());
        if gone.contains(span.start()) {
            let end = Pfn::new(span.end().get() - 1).section().get() + 1;
            let first = boot.map_or(end, |boot| boot.start().section().get());
            let next = (gone.end().section().get()..first).find_map(ours).or(boot);
            self.set_span(match next {
                Some(next) => span.from(next.start()),
                None => PfnRange::new(Pfn::new(0), 0),
            });
        } else if gone.start() < span.end() && span.end() <= gone.end() {
            let last = boot.map_or(span.start(), |boot| boot.end().add(SECTION_PAGES - 1)).section().get();
            let before = (last..gone.start().section().get()).rev().find_map(ours).or(boot);
            let before = before.expect("the span's first section is ours");
            self.set_span(span.before(before.end()));
        }
    }

    fn set_span(&self, span: PfnRange) {
        let (pages, present) = (span.pages(), self.present());
        assert!(present <= pages.into(), "{:?} has {present} present pages and is to span {pages}", self.id);
        self.span.store(packed(span), Relaxed);
    }

    pub(crate) fn add_present(&self, pages: u64, _held: &HotplugHeld) {
        let present = self.present.fetch_add(pages, Relaxed) + pages;
        let spanned = self.spanned().pages();
        assert!(present <= spanned.into(), "{:?} has {present} of {spanned} pages present", self.id);
    }

    pub(crate) fn sub_present(&self, pages: u64, _held: &HotplugHeld) {
        let before = self.present.fetch_sub(pages, Relaxed);
        assert!(pages <= before, "{:?} loses {pages} of {before} present pages", self.id);
        let (managed, present) = (self.managed(), before - pages);
        assert!(managed <= present, "{:?} has {managed} of {present} pages managed", self.id);
    }

    pub(crate) fn add_managed(&self, pages: u64, _held: &HotplugHeld) {
        let managed = self.managed.fetch_add(pages, Relaxed) + pages;
        let present = self.present();
        assert!(managed <= present, "{:?} has {managed} of {present} pages managed", self.id);
    }

    pub(crate) fn sub_managed(&self, pages: u64, _held: &HotplugHeld) {
        let before = self.managed.fetch_sub(pages, Relaxed);
        assert!(pages <= before, "{:?} loses {pages} of {before} managed pages", self.id);
    }

    pub(crate) fn watermark(&self, mark: Watermark) -> u64 {
        self.watermarks[mark as usize].load(Relaxed)
    }

    pub(crate) fn lowmem_reserve(&self, highest: ZoneType) -> u64 {
        self.lowmem_reserve[highest.index()].load(Relaxed)
    }

    /// Whether `pages` may be taken by a request whose highest zone is `highest` and leave the
    /// zone above `mark` (Linux `zone_watermark_fast`).
    #[inline]
    pub(crate) fn above(&self, mark: Watermark, pages: u32, highest: ZoneType) -> bool {
        let kept = self.watermark(mark) + self.lowmem_reserve(highest) + u64::from(pages);
        // Most often the first comparison decides, and the second counter is not read.
        self.free() >= kept || self.deferred_and_free().iter().sum::<u64>() >= kept
    }

    /// Pages that requests for any zone may take before the zone is at its high watermark.
    pub(crate) fn available(&self) -> u64 {
        let kept = self.watermark(Watermark::High) + self.lowmem_reserve(ZoneType::Movable);
        self.deferred_and_free().iter().sum::<u64>().saturating_sub(kept)
    }

    /// Computes the watermarks; `share` is this zone's share of the machine's least free memory.
    fn set_watermarks(&self, share: u64) {
        let managed = self.managed();
        let is_movable = self.id.zone_type() == ZoneType::Movable;
        let min = if is_movable { (managed / 1024).clamp(32, 128) } else { share };
        let step = (share / 4).max(managed / 1000);
        let marks = [(Watermark::Min, min), (Watermark::Low, min + step), (Watermark::High, min + 2 * step)];
        for (mark, pages) in marks {
            self.watermarks[mark as usize].store(if managed == 0 { 0 } else { pages }, Relaxed);
        }
    }

    /// The limits of per-CPU lists.
    pub(crate) fn pcp_limits(&self) -> PcpLimits {
        PcpLimits::unpacked(self.pcp_limits.load(Relaxed))
    }

    pub(crate) fn set_pcp_limits(&self, limits: PcpLimits) {
        self.pcp_limits.store(limits.packed(), Relaxed);
    }
}

/// A range in one word: the first frame in the low half, the frame after the last in the high half.
fn packed(range: PfnRange) -> u64 {
    u64::from(range.start().get()) | u64::from(range.end().get()) << 32
}

fn unpacked(word: u64) -> PfnRange {
    let [start, end] = [word, word >> 32].map(|half| Pfn::new(half as u32));
    PfnRange::between(start, end).expect("`packed` made it of a range")
}

/// Requests for a higher zone leave 1/256 of that zone's pages in Dma32, and 1/32 in Normal
/// (Linux `sysctl_lowmem_reserve_ratio`).
const LOWMEM_RESERVE_RATIO: [u64; ZoneType::COUNT] = [256, 32, 1];

/// Computes watermarks and lowmem reserves of all zones from their managed pages (Linux
/// `init_per_zone_wmark_min`, `__setup_per_zone_wmarks`, `setup_per_zone_lowmem_reserve`). The least
/// free memory is one number for the machine, and zones share in it by size. A reserve is for the higher
/// zones of the same node.
pub(crate) fn setup_watermarks(zones: &[Zone], _held: &HotplugHeld) {
    let for_kernel = |zone: &&Zone| zone.id.zone_type() != ZoneType::Movable;
    let lowmem: u64 = zones.iter().filter(for_kernel).map(Zone::managed).sum();
    let min_free_kbytes = (lowmem * 4 * 16).isqrt().clamp(128, 262_144);
    let pages_min = min_free_kbytes / 4;
    let (nodes, rest) = zones.as_chunks::<{ ZoneType::COUNT }>();
    debug_assert!(rest.is_empty(), "a node has all zones");
    for node in nodes {
        let managed = node.each_ref().map(Zone::managed);
        for (zone, index) in node.iter().zip(0..) {
            zone.set_watermarks(pages_min * managed[index] / lowmem.max(1));
            let mut above = 0;
            for (reserve, managed) in zone.lowmem_reserve.iter().zip(managed).skip(index + 1) {
                above += managed;
                reserve.store(above / LOWMEM_RESERVE_RATIO[index], Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
