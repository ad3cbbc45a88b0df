//! The table of device memory: one entry per mapped range, its pgmap.
//!
//! Mirrors Linux `struct dev_pagemap` and the tree in which `get_dev_pagemap` looks one up by frame
//! number. Differs from Linux on purpose: Linux enters a pgmap before its range has a memmap, which readers
//! then did not find; here a pgmap becomes visible last.
//!
//! # The life of an entry
//! | stage | refs | written by |
//! |---|---|---|
//! | free | 0 | the CPU that holds the memory hotplug lock |
//! | initialising | 0 | every CPU that claims a chunk of its pages by [`Pgmap::claim`]; its memmap is mapped |
//! | live | pages + references to them | users of its pages, which count references |
//!
//! `refs` is the gate: a CPU that reads a value above 0 (Acquire) sees everything that was written before it
//! was set (Release): every page of the range, and this entry. It goes back to 0 in one step, and only from
//! `pages`, so no reference exists afterwards and none can be taken.
//!
//! Invariant: `refs` of a live entry is its number of device pages plus the number of references to them.

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::geometry::{MAX_NODES, MAX_PGMAPS};
use crate::hotplug::HotplugHeld;
use crate::lock::{Locks, Rank};
use crate::node::NodeId;
use crate::page::{Kind, PageRef};
use crate::sparse::SectionOwner;
use crate::sync::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// Names a mapped range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgmapNr(pub(crate) u8);

/// Totals of device memory, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceStats {
    /// From the first page of a node's first range to the last page of its last range, summed over the nodes.
    /// This is all that a Device zone has: none of its pages is present, managed or free.
    pub spanned: u64,
    /// Pages that can be used: the pages of live ranges without the ones set aside at their start.
    pub pages: u64,
    /// References: [`pages`](Self::pages), and one for each use of a page.
    pub refs: u64,
    /// Calls that named a pgmap that does not exist, since boot.
    pub invalid: u64,
}

/// The entry of one mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PgmapInfo {
    /// The whole range.
    pub range: PfnRange,
    /// The pages that can be used.
    pub pages: PfnRange,
    /// Pages that its memmap takes, in the range or elsewhere.
    pub memmap_pages: u32,
    /// Whether the memmap lies in the range itself.
    pub altmap: bool,
    /// Whether all pages are initialised and can be used.
    pub live: bool,
    /// As [`DeviceStats::refs`].
    pub refs: u64,
    /// Struct pages that were written under the memory hotplug lock.
    pub locked_pages: u64,
    /// How long the mapping held the memory hotplug lock, in nanoseconds.
    pub locked_ns: u64,
    /// From then on until all pages were initialised, in nanoseconds.
    pub init_ns: u64,
    /// CPUs that initialised pages of it; bit `n` is CPU `n`, and CPU `n + 64`, and so on.
    pub cpus: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Free = 0,
    Initialising = 1,
    Live = 2,
}

/// One entry of the table.
pub(crate) struct Pgmap {
    stage: AtomicU8,
    start: AtomicU32,
    pages: AtomicU32,
    node: AtomicU8,
    /// Pages at the start that are the device's own.
    reserve: AtomicU32,
    /// Pages behind them that are set aside for the memmap, 0 when it lies elsewhere; and how many of
    /// them hold it.
    altmap_free: AtomicU32,
    altmap_alloc: AtomicU32,
    refs: AtomicU64,
    /// First page that no CPU has claimed.
    next: AtomicU32,
    /// Number of pages that are initialised.
    done: AtomicU32,
    cpus: AtomicU64,
    locked_pages: AtomicU64,
    locked_ns: AtomicU64,
    init_began: AtomicU64,
    init_ns: AtomicU64,
}

/// A pageblock of device pages that this CPU has claimed to initialise. The range stays mapped and Present
/// until all chunks are finished.
#[derive(Debug)]
pub(crate) struct Chunk(PfnRange);

// A range that is initialising is not unmapped, and its sections change state when the last chunk is finished.
impl SectionOwner for Chunk {
    const LOCKS: Locks = Locks::NONE;
}

impl Chunk {
    /// Its pages.
    pub(crate) fn pages(&self) -> PfnRange {
        self.0
    }
}

impl Pgmap {
    const fn new() -> Self {
        Self {
            stage: AtomicU8::new(Stage::Free as u8),
            start: AtomicU32::new(0),
            pages: AtomicU32::new(0),
            node: AtomicU8::new(0),
            reserve: AtomicU32::new(0),
            altmap_free: AtomicU32::new(0),
            altmap_alloc: AtomicU32::new(0),
            refs: AtomicU64::new(0),
            next: AtomicU32::new(0),
            done: AtomicU32::new(0),
            cpus: AtomicU64::new(0),
            locked_pages: AtomicU64::new(0),
            locked_ns: AtomicU64::new(0),
            init_began: AtomicU64::new(0),
            init_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        // Pairs with the Release in `Described::begin`: a CPU that reads Initialising sees the range.
        match self.stage.load(Acquire) {
            0 => Stage::Free,
            1 => Stage::Initialising,
            _ => Stage::Live,
        }
    }

    /// All of the range.
    pub(crate) fn range(&self) -> PfnRange {
        PfnRange::new(Pfn::new(self.start.load(Relaxed)), self.pages.load(Relaxed))
    }

    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(self.node.load(Relaxed))
    }

    /// The sections of the range.
    pub(crate) fn sections(&self) -> impl Iterator<Item = SectionNr> + Clone + use<> {
        sections(self.range())
    }

    /// The pages that are set aside for the memmap; not all of them need to hold it.
    pub(crate) fn altmap_pages(&self) -> PfnRange {
        PfnRange::new(self.range().start().add(self.reserve.load(Relaxed)), self.altmap_free.load(Relaxed))
    }

    /// The pages that can be used: the rest of the range.
    pub(crate) fn device_pages(&self) -> PfnRange {
        self.range().from(self.altmap_pages().end())
    }

    pub(crate) fn altmap(&self) -> Option<VmemAltmap> {
        let (pages, allocated) = (self.altmap_pages(), self.altmap_alloc.load(Relaxed));
        (!pages.is_empty()).then(|| VmemAltmap::at(pages.start(), pages.pages()).with_allocated(allocated))
    }

    pub(crate) fn memmap_pages(&self) -> u32 {
        self.range().pages() / SECTION_PAGES * crate::MEMMAP_PAGES
    }

    /// Makes it the entry of `range`, whose first `reserve` pages are left alone. No CPU sees it before
    /// [`Described::begin`].
    pub(crate) fn describe(
        &self,
        range: PfnRange,
        node: NodeId,
        reserve: u32,
        altmap: Option<VmemAltmap>,
        _held: &HotplugHeld,
    ) -> Described<'_> {
        assert!(self.stage() == Stage::Free, "the entry of {range:?} is in use");
        self.node.store(node.get(), Relaxed);
        self.start.store(range.start().get(), Relaxed);
        self.pages.store(range.pages(), Relaxed);
        self.reserve.store(reserve, Relaxed);
        self.altmap_free.store(altmap.map_or(0, VmemAltmap::offset), Relaxed);
        self.altmap_alloc.store(altmap.map_or(0, VmemAltmap::allocated), Relaxed);
        self.next.store(self.device_pages().start().get(), Relaxed);
        self.done.store(0, Relaxed);
        self.cpus.store(0, Relaxed);
        self.init_ns.store(0, Relaxed);
        Described(self)
    }

    /// Claims the next pageblock of pages for `cpu`, if one is left.
    pub(crate) fn claim(&self, cpu: usize) -> Option<Chunk> {
        let end = self.range().end().get();
        let take = |next: u32| (next < end).then(|| next + PAGEBLOCK_PAGES);
        let first = self.next.fetch_update(Relaxed, Relaxed, take).ok()?;
        self.cpus.fetch_or(1 << (cpu % u64::BITS as usize), Relaxed);
        Some(Chunk(PfnRange::new(Pfn::new(first), PAGEBLOCK_PAGES)))
    }

    /// Counts `chunk` as initialised; `last` is its last page. Returns true for the last chunk: that CPU sees the
    /// writes of all other CPUs.
    pub(crate) fn finish(&self, chunk: &Chunk, last: PageRef<'_>) -> bool {
        assert_eq!(last.state().kind(), Kind::Device, "the last page of {chunk:?}, which is finished");
        self.count_finished(chunk)
    }

    /// [`Self::finish`] without its check.
    pub(crate) fn count_finished(&self, chunk: &Chunk) -> bool {
        let pages = chunk.pages().pages();
        self.done.fetch_add(pages, AcqRel) + pages == self.device_pages().pages()
    }

    /// Opens the gate. All pages are initialised, and their sections are in state Initialised.
    pub(crate) fn publish(&self, now: u64) {
        self.init_ns.store(now.saturating_sub(self.init_began.load(Relaxed)), Relaxed);
        // The pages' own references, all at once. This is the gate; the stage only says that it was opened.
        self.refs.store(self.device_pages().pages().into(), Release);
        self.stage.store(Stage::Live as u8, Release);
    }

    /// Closes the gate, if no reference is taken; else returns the number of references.
    pub(crate) fn kill(&self, _held: &HotplugHeld) -> Result<Closed<'_>, u64> {
        let pages = u64::from(self.device_pages().pages());
        // Pairs with the Release in `put`: the writes of all users are done.
        match self.refs.compare_exchange(pages, 0, Acquire, Relaxed) {
            Ok(_) => Ok(Closed(self)),
            Err(refs) => Err(refs.saturating_sub(pages)),
        }
    }

    pub(crate) fn refs(&self) -> u64 {
        self.refs.load(Acquire)
    }

    /// Takes a reference, unless the gate is closed.
    pub(crate) fn try_get(&self) -> bool {
        self.refs.fetch_update(Acquire, Relaxed, |refs| (refs > 0).then(|| refs + 1)).is_ok()
    }

    /// Gives a reference back.
    pub(crate) fn put(&self) {
        let before = self.refs.fetch_sub(1, Release);
        let pages = u64::from(self.device_pages().pages());
        assert!(before > pages, "a reference too many is given back: {before} of {pages} pages");
    }

    /// Checks that a reference is taken: a page whose user changes stays mapped.
    pub(crate) fn assert_taken(&self) {
        let (refs, pages) = (self.refs(), u64::from(self.device_pages().pages()));
        assert!(refs > pages, "the user of a page changes with {refs} references to {pages} pages");
    }

    fn info(&self) -> PgmapInfo {
        let live = self.stage() == Stage::Live;
        PgmapInfo {
            range: self.range(),
            pages: self.device_pages(),
            memmap_pages: self.memmap_pages(),
            altmap: self.altmap().is_some(),
            live,
            refs: self.refs(),
            locked_pages: self.locked_pages.load(Relaxed),
            locked_ns: self.locked_ns.load(Relaxed),
            init_ns: if live { self.init_ns.load(Relaxed) } else { 0 },
            cpus: self.cpus.load(Relaxed),
        }
    }
}

/// An entry that is described, and that no other CPU sees yet.
pub(crate) struct Described<'p>(&'p Pgmap);

impl Described<'_> {
    /// Lets every CPU claim chunks of the range, whose sections are Present. So far `pages` struct pages were
    /// written under the lock, in `nanoseconds` up to `now`.
    pub(crate) fn begin(self, pages: u64, nanoseconds: u64, now: u64) {
        let Self(pgmap) = self;
        pgmap.locked_pages.store(pages, Relaxed);
        pgmap.locked_ns.store(nanoseconds, Relaxed);
        pgmap.init_began.store(now, Relaxed);
        pgmap.stage.store(Stage::Initialising as u8, Release);
    }
}

/// An entry whose gate is closed for good: the right to take its sections away.
pub(crate) struct Closed<'p>(&'p Pgmap);

// No reference to a page is taken, and the memory hotplug lock, with which the gate was closed, excludes others.
impl SectionOwner for Closed<'_> {
    const LOCKS: Locks = Locks::with(Rank::Hotplug, Rank::Hotplug);
}

impl Closed<'_> {
    /// Frees the entry for another range. [`Platform::synchronize`] was called since the gate was closed.
    ///
    /// [`Platform::synchronize`]: crate::Platform::synchronize
    pub(crate) fn release(self, _held: &HotplugHeld) {
        let Self(pgmap) = self;
        // The next CPU that takes the entry holds the same lock.
        pgmap.stage.store(Stage::Free as u8, Relaxed);
    }
}

/// The sections of `range`, which is whole sections.
pub(crate) fn sections(range: PfnRange) -> impl Iterator<Item = SectionNr> + Clone + use<> {
    (range.start().section().get()..range.end().section().get()).map(SectionNr::new)
}

/// All pgmaps.
pub(crate) struct Pgmaps {
    table: [Pgmap; MAX_PGMAPS],
    invalid: AtomicU64,
}

impl Pgmaps {
    pub(crate) const fn new() -> Self {
        Self { table: [const { Pgmap::new() }; MAX_PGMAPS], invalid: AtomicU64::new(0) }
    }

    /// Entry `nr`.
    pub(crate) fn get(&self, nr: PgmapNr) -> &Pgmap {
        &self.table[usize::from(nr.0)]
    }

    /// An entry that is free, and stays free as long as the lock is held.
    pub(crate) fn vacant(&self, _held: &HotplugHeld) -> Option<PgmapNr> {
        let at = self.table.iter().position(|pgmap| pgmap.stage() == Stage::Free)?;
        Some(PgmapNr(at as u8))
    }

    /// Every entry that is in use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PgmapNr, &Pgmap)> {
        let used = self.table.iter().enumerate().filter(|(_, pgmap)| pgmap.stage() != Stage::Free);
        used.map(|(at, pgmap)| (PgmapNr(at as u8), pgmap))
    }

    /// The live entry that has device page `pfn`. It does not change until this CPU leaves `mm`: see [`Platform::synchronize`](crate::Platform::synchronize).
    pub(crate) fn of(&self, pfn: Pfn) -> Option<(PgmapNr, &Pgmap)> {
        // Reads the gate first, then the fields that it protects.
        self.iter().find(|(_, pgmap)| pgmap.refs() > 0 && pgmap.device_pages().contains(pfn))
    }

    /// Counts a call that named a pgmap that does not exist.
    pub(crate) fn count_invalid(&self) {
        self.invalid.fetch_add(1, Relaxed);
    }

    pub(crate) fn info(&self, nr: PgmapNr) -> Option<PgmapInfo> {
        let pgmap = self.get(nr);
        (pgmap.stage() != Stage::Free).then(|| pgmap.info())
    }

    pub(crate) fn stats(&self) -> DeviceStats {
        let mut spans = [(u32::MAX, 0); MAX_NODES];
        let mut stats = DeviceStats { invalid: self.invalid.load(Relaxed), ..DeviceStats::default() };
        for (_, pgmap) in self.iter() {
            let range = pgmap.range();
            let (start, end) = &mut spans[pgmap.node().index()];
            (*start, *end) = ((*start).min(range.start().get()), (*end).max(range.end().get()));
            stats.refs += pgmap.refs();
            if pgmap.stage() == Stage::Live {
                stats.pages += u64::from(pgmap.device_pages().pages());
            }
        }
        stats.spanned = spans.iter().map(|&(start, end)| u64::from(end.saturating_sub(start))).sum();
        stats
    }
}

// A chunk does not cross sections.
const _: () =
    assert!(SECTION_PAGES.is_multiple_of(PAGEBLOCK_PAGES) && Order::PAGEBLOCK.pages() == PAGEBLOCK_PAGES);
