//! Device memory: ranges that a driver maps, with struct pages of their own. The allocator never gets them.
//!
//! Mirrors Linux `mm/memremap.c` and `memmap_init_zone_device` in `mm/mm_init.c`. Mapping has two phases:
//!
//! 1. Under the memory hotplug lock, [`Hotplug::memremap_start`] maps the range and its memmap, and writes
//!    only the struct pages of the pages that hold the memmap.
//! 2. Outside of the lock, [`Mm::memremap_init`] writes the rest, which takes most of the time. Any number of
//!    CPUs may do so, for any number of ranges. The CPU that finishes the last chunk publishes the range.
//!
//! A section of device memory goes from Absent by Present to Initialised and is never Online, so a walk over
//! the allocator's memory does not find it (Linux: `pfn_to_online_page` is NULL). While its pages are written
//! it is Present, when no look-up of a page succeeds. A reader of device pages also looks at the pgmap, which
//! becomes visible after that (see `pgmap`). So a reader that walks frame numbers finds all pages of a range
//! or none.
//!
//! Differs from Linux on purpose:
//! - the pgmap is published last, not first;
//! - a range is whole sections, so no section has pages of two kinds;
//! - a step that fails undoes all steps before it, and so does a wrong argument: nothing is only warned
//!   about;
//! - unmapping a range in use is refused, and the error names a user; Linux waits for the users for ever;
//! - the zone's span covers exactly the ranges that are mapped, so it shrinks. Linux's never does, because
//!   shrinking read struct pages that were never written; here no page is read for it.
//!
//! | file | is |
//! |---|---|
//! | this one | mapping, both phases |
//! | `users` | references to pages |
//! | `unmap` | unmapping |
//!
//! Invariant: pages at the start that the device keeps for itself (`reserve`) and their struct pages are
//! never touched.

mod unmap;
mod users;

pub use unmap::MemunmapError;
pub use users::{DevPage, DevPageError};

use core::fmt;

use crate::Mm;
use crate::addr::{
    MEMMAP_PAGES, Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGES, SectionNr, SectionRange,
};
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;
use crate::memmap::{MemmapError, MemmapSource};
use crate::node::NodeId;
use crate::options::DeviceInit;
use crate::page::{Kind, Page, PageRef, PageState};
use crate::pageblock_set::PageblockSet;
use crate::pgmap::{Pgmap, PgmapInfo, PgmapNr, Stage, sections};
use crate::platform::Platform;
use crate::sparse::{SectionOwner, SectionState};
use crate::sync::one_step;
use crate::variant::{self, Variant};

/// Device memory to be mapped (Linux `struct dev_pagemap`).
///
/// ```
/// use tidevm_mm::{DevAltmap, DevPagemap, NodeId, SECTION_PAGES, SectionRange, SectionNr};
/// use tidevm_mm_sim::SimMachine;
///
/// let mm = SimMachine::default().boot();
/// // 256 MiB of persistent memory at 4 GiB, whose memmap lies behind its first 2 MiB.
/// let range = SectionRange::new(SectionNr::new(32), 2).expect("it is below 16 TiB").frames();
/// let altmap = DevAltmap { reserve: 512, free: 1024 };
/// let nr = mm.memremap_pages(DevPagemap::new(range, NodeId::FIRST).with_altmap(altmap))?;
/// // It has pages, and none of them is ever allocated. A driver counts the users of each.
/// let page = range.start().add(SECTION_PAGES);
/// mm.get_dev_page(page, 7)?;
/// mm.put_dev_page(page, 7)?;
/// mm.hotplug().memunmap_pages(nr)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DevPagemap {
    /// Its frames: whole sections.
    pub range: PfnRange,
    /// Its node. A memmap in the kernel's memory comes from there, or from near there.
    pub node: NodeId,
    /// Where its memmap lies: in the range itself, or else in the kernel's memory.
    pub altmap: Option<DevAltmap>,
}

impl DevPagemap {
    /// `range` on `node`, with its memmap in the kernel's memory.
    #[must_use]
    pub const fn new(range: PfnRange, node: NodeId) -> Self {
        Self { range, node, altmap: None }
    }

    /// The same with its memmap in the range itself.
    #[must_use]
    pub const fn with_altmap(mut self, altmap: DevAltmap) -> Self {
        self.altmap = Some(altmap);
        self
    }
}

/// The start of a range that holds its memmap (Linux `struct vmem_altmap`). Both are multiples of
/// 512 pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevAltmap {
    /// Pages at the start that are the device's own.
    pub reserve: u32,
    /// Pages behind them for the memmap, at least 512 per section.
    pub free: u32,
}

/// Why device memory was not mapped. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemremapError {
    /// The range is empty.
    Empty,
    /// The range is not whole sections, or the altmap not whole pageblocks.
    Misaligned,
    /// The section table has no entry for it.
    OutOfRange,
    /// This section has memory already.
    Conflict(SectionNr),
    /// The altmap is too small for the memmap.
    AltmapTooSmall {
        /// Pages that the memmap needs.
        needed: u32,
    },
    /// The altmap leaves nothing of the range.
    AltmapTooLarge,
    /// [`MAX_PGMAPS`](crate::MAX_PGMAPS) ranges are mapped already.
    TooMany,
    /// No page for a page table.
    NoPageTable,
    /// No memory for the memmap.
    NoMemory,
}

impl fmt::Display for MemremapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the range is empty"),
            Self::Misaligned => {
                f.write_str("the range is not whole sections, or the altmap not whole pageblocks")
            }
            Self::OutOfRange => f.write_str("the section table has no entry for the range"),
            Self::Conflict(nr) => write!(f, "there is memory at {:#x} already", nr.start().address().get()),
            Self::AltmapTooSmall { needed } => write!(f, "the memmap needs an altmap of {needed} pages"),
            Self::AltmapTooLarge => f.write_str("the altmap leaves nothing of the range"),
            Self::TooMany => f.write_str("too many ranges are mapped"),
            Self::NoPageTable => f.write_str("no page for a page table"),
            Self::NoMemory => f.write_str("no memory for the memmap"),
        }
    }
}

impl core::error::Error for MemremapError {}

/// There is no such pgmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPgmap;

impl fmt::Display for NoPgmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no device memory is mapped by this number")
    }
}

impl core::error::Error for NoPgmap {}

impl From<MemmapError> for MemremapError {
    fn from(error: MemmapError) -> Self {
        match error {
            MemmapError::NoMemory => Self::NoMemory,
            MemmapError::NoPageTable => Self::NoPageTable,
        }
    }
}

impl DevPagemap {
    fn validate(&self) -> Result<(), MemremapError> {
        let range = self.range;
        let is_whole = |pages: u32, of: u32| pages.is_multiple_of(of);
        let pages = range.pages();
        if pages == 0 {
            return Err(MemremapError::Empty);
        }
        if !is_whole(range.start().get() | range.end().get(), SECTION_PAGES) {
            return Err(MemremapError::Misaligned);
        }
        let Some(DevAltmap { reserve, free }) = self.altmap else { return Ok(()) };
        let needed = pages / SECTION_PAGES * MEMMAP_PAGES;
        match reserve.checked_add(free) {
            _ if !is_whole(reserve | free, PAGEBLOCK_PAGES) => Err(MemremapError::Misaligned),
            _ if free < needed => Err(MemremapError::AltmapTooSmall { needed }),
            Some(taken) if taken < pages => Ok(()),
            _ => Err(MemremapError::AltmapTooLarge),
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Maps device memory and initialises its pages, on this CPU alone.
    ///
    /// # Errors
    /// See [`MemremapError`].
    pub fn memremap_pages(&self, map: DevPagemap) -> Result<PgmapNr, MemremapError> {
        let nr = self.hotplug().memremap_start(map)?;
        while self.memremap_init(nr) == Ok(true) {}
        Ok(nr)
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// The phase under the memory hotplug lock: maps the range and its memmap. The pages can be used when
    /// [`Mm::memremap_init`] has nothing left to do.
    ///
    /// # Errors
    /// See [`MemremapError`].
    pub fn memremap_start(&self, map: DevPagemap) -> Result<PgmapNr, MemremapError> {
        map.validate()?;
        let mm = self.mm;
        let began = mm.platform.clock();
        let range = SectionRange::new(map.range.start().section(), map.range.pages() / SECTION_PAGES);
        let range = range.filter(|range| range.end().get() <= mm.sparse.len());
        if let Some(nr) = mm.first_taken(range.ok_or(MemremapError::OutOfRange)?) {
            return Err(MemremapError::Conflict(nr));
        }
        let nr = mm.pgmaps.vacant(self.held()).ok_or(MemremapError::TooMany)?;
        let altmap = map.altmap.map(|DevAltmap { reserve, free }| {
            let base = map.range.start().add(reserve);
            VmemAltmap::at(base, free)
        });
        let mut source = MemmapSource::new(map.node, altmap);
        self.map_device(map.range, &mut source)?;
        // From here on nothing fails.
        let pgmap = mm.pgmaps.get(nr);
        let reserve = map.altmap.map_or(0, |altmap| altmap.reserve);
        let described = pgmap.describe(map.range, map.node, reserve, source.altmap(), self.held());
        for section in sections(map.range) {
            let entry = mm.sparse.entry(section);
            entry.set_device(true, self.held());
            entry.set_node(map.node);
            entry.set_plugged(PageblockSet::ALL, self.held());
            // All pageblocks, including those in which no buddy block begins.
            entry.pageblocks.reset();
            mm.sparse.set_state(section, SectionState::Present, self.held());
        }
        let written = self.init_locked(nr, pgmap);
        let now = mm.platform.clock();
        described.begin(written, now.saturating_sub(began), now);
        Ok(nr)
    }

    /// Maps `range`, then its memmap.
    fn map_device(&self, range: PfnRange, source: &mut MemmapSource) -> Result<(), MemremapError> {
        let mut mapped = 0;
        let map_one = |nr| {
            self.map_direct(nr, PageblockSet::ALL).map_err(|_| MemremapError::NoPageTable)?;
            mapped += 1;
            Ok(())
        };
        let map_memmaps = |()| Ok(self.map_memmaps(sections(range), source)?);
        let result = sections(range).try_for_each(map_one).and_then(map_memmaps);
        if result.is_err() {
            sections(range).take(mapped).for_each(|nr| self.unmap_direct(nr, PageblockSet::ALL));
        }
        result
    }

    /// Writes the struct pages that are written under the lock, and returns their number: the ones of the
    /// pages that are set aside for the memmap. The others only when the policy is to write them twice.
    fn init_locked(&self, nr: PgmapNr, pgmap: &Pgmap) -> u64 {
        let aside = pgmap.altmap_pages();
        for first in pageblocks(aside) {
            self.init_memmap_pageblock(first);
        }
        let mut written = u64::from(aside.pages());
        if self.mm.options.get().device_init == DeviceInit::Twice {
            let all = pgmap.device_pages();
            for first in pageblocks(all) {
                self.mm.init_device_pages(PfnRange::new(first, PAGEBLOCK_PAGES), nr, self.held());
            }
            written += u64::from(all.pages());
        }
        written
    }

    /// Marks a pageblock that is set aside for the memmap.
    fn init_memmap_pageblock(&self, first: Pfn) {
        let pages = self.mm.sparse.pages_to_initialise(first.section(), self.held());
        Page::init_pageblock(pages.parts(first.pageblock()), PageState::new(Kind::Tail, Order::PAGE));
        pages.page(first).set_state(PageState::new(Kind::Memmap, Order::PAGEBLOCK));
    }
}

impl<P: Platform> Mm<P> {
    /// Initialises one pageblock of the pages of pgmap `nr`, outside of all locks. Any number of CPUs may do so
    /// at once. `false` when there was nothing left to claim: other CPUs may still be initialising their
    /// pageblocks, and the pages can be used when the last one is done.
    ///
    /// # Errors
    /// [`NoPgmap`]; it is counted in [`DeviceStats::invalid`](crate::DeviceStats::invalid).
    pub fn memremap_init(&self, nr: PgmapNr) -> Result<bool, NoPgmap> {
        let pgmap = self.pgmaps.get(nr);
        match pgmap.stage() {
            Stage::Free => {
                self.pgmaps.count_invalid();
                return Err(NoPgmap);
            }
            Stage::Live => return Ok(false),
            Stage::Initialising => {}
        }
        let Some(chunk) = pgmap.claim(self.platform.this_cpu()) else { return Ok(false) };
        let last = self.init_device_pages(chunk.pages(), nr, &chunk);
        if pgmap.finish(&chunk, last) {
            let publish = || pgmap.publish(self.platform.clock());
            if variant::is(Variant::PgmapFirst) {
                publish();
            }
            for section in pgmap.sections() {
                self.sparse.set_state(section, SectionState::Initialised, &chunk);
            }
            if !variant::is(Variant::PgmapFirst) {
                publish();
            }
        }
        Ok(true)
    }

    /// Writes the struct pages of a pageblock of device memory. Returns its last page.
    fn init_device_pages(&self, range: PfnRange, nr: PgmapNr, owner: &impl SectionOwner) -> PageRef<'_> {
        let pages = self.sparse.pages_to_initialise(range.start().section(), owner);
        let pageblock = range.start().pageblock();
        // Two stores per page and little else.
        for chunk in pages.pageblock(pageblock).chunks(16) {
            one_step(|| chunk.iter().for_each(|page| page.init_device(nr.0.into())));
        }
        Page::init_pageblock(pages.parts(pageblock), PageState::new(Kind::Device, Order::PAGE));
        pages.page(range.start().add(range.pages() - 1))
    }

    /// The facts about pgmap `nr`, if it exists.
    pub fn pgmap(&self, nr: PgmapNr) -> Option<PgmapInfo> {
        self.pgmaps.info(nr)
    }
}

/// The first pages of the pageblocks of `range`.
fn pageblocks(range: PfnRange) -> impl Iterator<Item = Pfn> {
    (0..range.pages()).step_by(PAGEBLOCK_PAGES as usize).map(move |offset| range.start().add(offset))
}

#[cfg(test)]
mod tests;
