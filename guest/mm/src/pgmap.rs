//! The table of device memory: one entry a mapped range, its pgmap.
//!
//! Mirrors Linux `struct dev_pagemap` and the tree in which `get_dev_pagemap` looks one up by frame
//! number. Linux enters a pgmap there before its range has a memmap, and readers that followed it
//! found nothing there; here it becomes visible last.
//!
//! # The life of an entry
//! | stage | refs | written by |
//! |---|---|---|
//! | free | 0 | whoever holds the memory hotplug lock |
//! | initialising | 0 | its memmap is mapped; any CPU takes a chunk of its pages, by [`Pgmap::claim`] |
//! | live | pages + references to them | its pages can be looked at |
//!
//! `refs` is the gate: who finds it above 0 (Acquire) sees everything that was written before it was
//! set (Release), that is every page of the range and this entry. It goes back to 0 in one step, and
//! only from `pages`, so nobody has a reference afterwards or gets one.
//!
//! Invariant: `refs` of a live entry is its number of device pages and one for each reference to
//! one of them.

use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::addr::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::node::{MAX_NODES, NodeId};
use crate::page::{Kind, PageState};

/// Most ranges of device memory that are mapped at a time.
pub const MAX_PGMAPS: usize = 16;

/// Names a mapped range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgmapNr(pub(crate) u8);

/// How struct pages of device memory are initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceInit {
    /// Once, outside of the memory hotplug lock.
    Once,
    /// Once under the lock and once outside, as Linux did before 4.20: to compare.
    Twice,
}

/// Totals of device memory, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// From the first page of a node's first range to the last of its last, summed up over the nodes. This
    /// is all that a Device zone has: nothing of it is present, managed or free.
    pub spanned: u64,
    /// Pages that can be used: those of the live ranges but for what is set aside at their start.
    pub pages: u64,
    /// References: [`pages`](Self::pages), and one for each use of a page.
    pub refs: u64,
    /// Times that something was asked of a pgmap that does not exist, since boot.
    pub invalid: u64,
}

/// What is known of one mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgmapInfo {
    /// All of it.
    pub range: PfnRange,
    /// The pages that can be used.
    pub pages: PfnRange,
    /// Pages that its memmap takes, wherever they are.
    pub memmap_pages: u32,
    /// Whether the memmap lies in the range itself.
    pub altmap: bool,
    /// Whether all pages are initialised and can be used.
    pub live: bool,
    /// As [`DeviceStats::refs`].
    pub refs: u64,
    /// Struct pages that were written under the memory hotplug lock.
    pub locked_pages: u64,
    /// How long mapping it held the memory hotplug lock, in nanoseconds.
    pub locked_ns: u64,
    /// From then on until all pages were initialised, in nanoseconds.
    pub init_ns: u64,
    /// CPUs that initialised pages of it; bit `n` is CPU `n`.
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
    end: AtomicU32,
    node: AtomicU8,
    /// Pages at the start that are the device's own.
    reserve: AtomicU32,
    /// Pages behind them that are set aside for the memmap, 0 when it lies elsewhere; and how many of
    /// them hold it.
    altmap_free: AtomicU32,
    altmap_alloc: AtomicU32,
    refs: AtomicU64,
    /// First page that nobody has begun to initialise.
    next: AtomicU32,
    /// Pages that are initialised.
    done: AtomicU32,
    cpus: AtomicU64,
    locked_pages: AtomicU64,
    locked_ns: AtomicU64,
    init_began: AtomicU64,
    init_ns: AtomicU64,
}

impl Pgmap {
    const fn new() -> Self {
        Self {
            stage: AtomicU8::new(Stage::Free as u8),
            start: AtomicU32::new(0),
            end: AtomicU32::new(0),
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
        // Pairs with the Release in `begin`: who sees Initialising sees the range.
        match self.stage.load(Acquire) {
            0 => Stage::Free,
            1 => Stage::Initialising,
            _ => Stage::Live,
        }
    }

    /// All of the range.
    pub(crate) fn range(&self) -> PfnRange {
        PfnRange { start: Pfn::new(self.start.load(Relaxed)), end: Pfn::new(self.end.load(Relaxed)) }
    }

    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(self.node.load(Relaxed))
    }

    /// The state of each of its device pages.
    pub(crate) fn page_state(&self) -> PageState {
        PageState::device(Kind::Device, Order::PAGE, self.node())
    }

    /// The sections of the range.
    pub(crate) fn sections(&self) -> impl Iterator<Item = SectionNr> + Clone + use<> {
        sections(self.range())
    }

    /// The pages that are set aside for the memmap, which need not hold any of it.
    pub(crate) fn altmap_pages(&self) -> PfnRange {
        PfnRange::new(self.range().start.add(self.reserve.load(Relaxed)), self.altmap_free.load(Relaxed))
    }

    /// What is left for use.
    pub(crate) fn device_pages(&self) -> PfnRange {
        PfnRange { start: self.altmap_pages().end, end: self.range().end }
    }

    pub(crate) fn altmap(&self) -> Option<VmemAltmap> {
        let pages = self.altmap_pages();
        let whole = VmemAltmap::at(pages.start, pages.pages());
        (!pages.is_empty()).then(|| whole.with_allocated(self.altmap_alloc.load(Relaxed)))
    }

    pub(crate) fn memmap_pages(&self) -> u32 {
        self.range().pages() / SECTION_PAGES * crate::MEMMAP_PAGES
    }

    /// Makes it the entry of `range`, of which `reserve` pages are left alone. Nobody sees it before
    /// [`begin`](Self::begin).
    pub(crate) fn describe(&self, range: PfnRange, node: NodeId, reserve: u32, altmap: Option<VmemAltmap>) {
        self.node.store(node.get(), Relaxed);
        self.start.store(range.start.get(), Relaxed);
        self.end.store(range.end.get(), Relaxed);
        self.reserve.store(reserve, Relaxed);
        self.altmap_free.store(altmap.map_or(0, VmemAltmap::offset), Relaxed);
        self.altmap_alloc.store(altmap.map_or(0, VmemAltmap::allocated), Relaxed);
        self.next.store(self.device_pages().start.get(), Relaxed);
        self.done.store(0, Relaxed);
        self.cpus.store(0, Relaxed);
        self.init_ns.store(0, Relaxed);
    }

    /// Lets every CPU take its share of the pages. Under the lock so far `pages` struct pages were
    /// written, in `nanoseconds` up to `now`.
    pub(crate) fn begin(&self, pages: u64, nanoseconds: u64, now: u64) {
        self.locked_pages.store(pages, Relaxed);
        self.locked_ns.store(nanoseconds, Relaxed);
        self.init_began.store(now, Relaxed);
        self.stage.store(Stage::Initialising as u8, Release);
    }

    /// The next pageblock of pages that nobody has begun to initialise.
    pub(crate) fn claim(&self, cpu: usize) -> Option<PfnRange> {
        let end = self.range().end.get();
        let take = |next: u32| (next < end).then(|| next + PAGEBLOCK_PAGES);
        let first = self.next.fetch_update(Relaxed, Relaxed, take).ok()?;
        self.cpus.fetch_or(1 << (cpu % u64::BITS as usize), Relaxed);
        Some(PfnRange::new(Pfn::new(first), PAGEBLOCK_PAGES))
    }

    /// `pages` more are initialised; whether they were the last. Whoever is told so sees the writes of
    /// all who were not.
    pub(crate) fn finish(&self, pages: u32) -> bool {
        self.done.fetch_add(pages, AcqRel) + pages == self.device_pages().pages()
    }

    /// Opens the gate. All pages are initialised, and their sections say so.
    pub(crate) fn publish(&self, now: u64) {
        self.init_ns.store(now.saturating_sub(self.init_began.load(Relaxed)), Relaxed);
        // The references that the pages themselves are, all at once. This is the gate; the stage only says
        // that it was opened.
        self.refs.store(self.device_pages().pages().into(), Release);
        self.stage.store(Stage::Live as u8, Release);
    }

    /// Closes the gate for ever, if nobody has a reference; else how many there are.
    pub(crate) fn kill(&self) -> Result<(), u64> {
        let pages = u64::from(self.device_pages().pages());
        match self.refs.compare_exchange(pages, 0, AcqRel, Acquire) {
            Ok(_) => Ok(()),
            Err(refs) => Err(refs.saturating_sub(pages)),
        }
    }

    /// The entry is for somebody else. Nobody has looked at it since it was killed and before this.
    pub(crate) fn release(&self) {
        self.stage.store(Stage::Free as u8, Release);
    }

    pub(crate) fn refs(&self) -> u64 {
        self.refs.load(Acquire)
    }

    /// Takes a reference, unless the gate is closed.
    pub(crate) fn try_get(&self) -> bool {
        self.refs.fetch_update(AcqRel, Relaxed, |refs| (refs > 0).then(|| refs + 1)).is_ok()
    }

    /// Gives a reference back.
    pub(crate) fn put(&self) {
        let before = self.refs.fetch_sub(1, AcqRel);
        let pages = u64::from(self.device_pages().pages());
        assert!(before > pages, "a reference too many is given back: {before} of {pages} pages");
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

/// The sections of `range`, which is whole sections.
pub(crate) fn sections(range: PfnRange) -> impl Iterator<Item = SectionNr> + Clone + use<> {
    (range.start.section().get()..range.end.section().get()).map(SectionNr::new)
}

/// All pgmaps.
pub(crate) struct Pgmaps {
    table: [Pgmap; MAX_PGMAPS],
    twice: AtomicBool,
    invalid: AtomicU64,
}

impl Pgmaps {
    pub(crate) const fn new() -> Self {
        Self {
            table: [const { Pgmap::new() }; MAX_PGMAPS],
            twice: AtomicBool::new(false),
            invalid: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_policy(&self, policy: DeviceInit) {
        self.twice.store(policy == DeviceInit::Twice, Relaxed);
    }

    pub(crate) fn initialises_twice(&self) -> bool {
        self.twice.load(Relaxed)
    }

    /// Entry `nr`.
    pub(crate) fn get(&self, nr: PgmapNr) -> &Pgmap {
        &self.table[usize::from(nr.0)]
    }

    /// An entry that is free; the memory hotplug lock keeps it so.
    pub(crate) fn vacant(&self) -> Option<PgmapNr> {
        let at = self.table.iter().position(|pgmap| pgmap.stage() == Stage::Free)?;
        Some(PgmapNr(at as u8))
    }

    /// Every entry that is in use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PgmapNr, &Pgmap)> {
        let used = self.table.iter().enumerate().filter(|(_, pgmap)| pgmap.stage() != Stage::Free);
        used.map(|(at, pgmap)| (PgmapNr(at as u8), pgmap))
    }

    /// The live entry whose device pages `pfn` is one of. It stays what it is until this CPU leaves
    /// `mm`: see [`Platform::synchronize`](crate::Platform::synchronize).
    pub(crate) fn of(&self, pfn: Pfn) -> Option<(PgmapNr, &Pgmap)> {
        // The gate before what is behind it.
        self.iter().find(|(_, pgmap)| pgmap.refs() > 0 && pgmap.device_pages().contains(pfn))
    }

    /// Remembers that something was asked of a pgmap that does not exist.
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
            (*start, *end) = ((*start).min(range.start.get()), (*end).max(range.end.get()));
            stats.refs += pgmap.refs();
            if pgmap.stage() == Stage::Live {
                stats.pages += u64::from(pgmap.device_pages().pages());
            }
        }
        stats.spanned = spans.iter().map(|&(start, end)| u64::from(end.saturating_sub(start))).sum();
        stats
    }
}

// Chunks of initialisation do not cross sections.
const _: () =
    assert!(SECTION_PAGES.is_multiple_of(PAGEBLOCK_PAGES) && Order::PAGEBLOCK.pages() == PAGEBLOCK_PAGES);
