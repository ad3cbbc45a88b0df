//! Device memory: ranges that a driver maps, with struct pages of their own that the allocator never
//! gets.
//!
//! Mirrors Linux `mm/memremap.c` and `memmap_init_zone_device` in `mm/mm_init.c`. Mapping has two
//! phases. Under the memory hotplug lock, [`Mm::memremap_start`] maps the range and its memmap and writes
//! the struct pages of the pages that hold the memmap, no others. The rest, which is what takes time,
//! is done outside of it by whoever calls [`Mm::memremap_init`]: as many CPUs as want to, for as many
//! ranges. Whoever is through last publishes.
//!
//! A section of device memory goes from Absent by Present to Initialised and never gets Online, so
//! nobody who looks for memory of the allocator finds it (Linux: `pfn_to_online_page` is NULL). While
//! its pages are written it is Present, when no look-up of a page succeeds; a reader of device pages
//! goes by the pgmap besides, which becomes visible after that (see `pgmap`). So a reader that walks
//! frame numbers finds all of a range's pages or none.
//!
//! Differs from Linux on purpose:
//! - the pgmap is published last, not first;
//! - a range is whole sections, so no section has pages of two kinds;
//! - a step that fails takes back all steps before it, and so does a wrong argument: nothing is
//!   only warned about;
//! - unmapping a range in use is refused, and says by whom; Linux waits for the users, for ever;
//! - the zone's span is what the ranges that are mapped reach over, so it shrinks. Linux's never
//!   does, because shrinking read struct pages that nobody had written; here no page is read for it.
//!
//! Invariant: pages at the start that the device keeps for itself (`reserve`) and their struct pages
//! are never touched.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Order, PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGES, SectionNr};
use crate::altmap::VmemAltmap;
use crate::node::NodeId;
use crate::page::{DevUser, Holder, Kind, PageState};
use crate::page_alloc::Gfp;
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::pgmap::{Pgmap, PgmapInfo, PgmapNr, Stage, sections};
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionState;

mod teardown;

pub use teardown::MemunmapError;

/// Device memory to be mapped (Linux `struct dev_pagemap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevPagemap {
    /// Its frames: whole sections.
    pub range: PfnRange,
    /// The node that it is near to, where its memmap comes from if it can.
    pub node: NodeId,
    /// Where its memmap lies: in the range itself, or else in memory of the kernel's.
    pub altmap: Option<DevAltmap>,
}

/// The start of a range that holds its memmap (Linux `struct vmem_altmap`). Both are multiples of
/// 512 pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevAltmap {
    /// Pages at the start that are the device's own.
    pub reserve: u32,
    /// Pages behind them for the memmap, at least 512 a section.
    pub free: u32,
}

/// Why device memory was not mapped. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemremapError {
    /// The range is empty.
    Empty,
    /// The range is not whole sections, or the altmap not whole pageblocks.
    Misaligned,
    /// The section table has no entry for it.
    OutOfRange,
    /// There is memory already in this section.
    Conflict(SectionNr),
    /// The altmap is too small for the memmap.
    AltmapTooSmall {
        /// Pages that the memmap needs.
        needed: u32,
    },
    /// The altmap leaves nothing of the range.
    AltmapTooLarge,
    /// [`MAX_PGMAPS`](crate::MAX_PGMAPS) ranges are mapped.
    TooMany,
    /// No page for a page table.
    NoPageTable,
    /// No room for the memmap.
    NoMemory,
}

/// There is no such pgmap, or nothing is left to be initialised of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPgmap;

/// Why a page of device memory cannot be used, or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevPageError {
    /// It is not a page of device memory that is mapped.
    NotDevice,
    /// This user has it.
    UsedBy(u32),
    /// The user has no reference to it, or as many as can be counted.
    Count,
}

/// A page of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevPage {
    /// Whose it is.
    pub pgmap: PgmapNr,
    /// Who uses it.
    pub user: Option<DevUser>,
    /// The type of its pageblock.
    pub migrate_type: MigrateType,
}

impl DevPagemap {
    fn validate(&self) -> Result<(), MemremapError> {
        let range = self.range;
        let is_whole = |pages: u32, of: u32| pages.is_multiple_of(of);
        let pages = range.end.get().saturating_sub(range.start.get());
        if pages == 0 {
            return Err(MemremapError::Empty);
        }
        if !is_whole(range.start.get() | range.end.get(), SECTION_PAGES) {
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
        let nr = self.memremap_start(map)?;
        while self.memremap_init(nr) == Ok(true) {}
        Ok(nr)
    }

    /// The phase under the memory hotplug lock: maps the range and its memmap. The pages can be used
    /// when [`Self::memremap_init`] has nothing left to do.
    ///
    /// # Errors
    /// See [`MemremapError`].
    pub fn memremap_start(&self, map: DevPagemap) -> Result<PgmapNr, MemremapError> {
        map.validate()?;
        let _hotplug = self.lock_hotplug();
        let began = self.platform.clock();
        let taken = |nr: &SectionNr| match self.sparse.section(*nr) {
            Some(section) => section.state() != SectionState::Absent || self.is_boot_memory(*nr),
            None => true,
        };
        if let Some(nr) = sections(map.range).find(taken) {
            let is_there = self.sparse.section(nr).is_some();
            return Err(if is_there { MemremapError::Conflict(nr) } else { MemremapError::OutOfRange });
        }
        let nr = self.pgmaps.vacant().ok_or(MemremapError::TooMany)?;
        let mut altmap = map.altmap.map(|altmap| {
            let base = map.range.start.add(altmap.reserve);
            VmemAltmap::at(base, altmap.free)
        });
        self.map_device(map, &mut altmap)?;
        // From here on nothing fails.
        let pgmap = self.pgmaps.get(nr);
        pgmap.describe(map.range, map.node, map.altmap.map_or(0, |altmap| altmap.reserve), altmap);
        for section in sections(map.range) {
            let entry = self.sparse.section(section).expect("it was found above");
            entry.set_device(true);
            entry.set_node(map.node);
            entry.set_plugged(PageblockSet::ALL);
            // All pageblocks, whatever begins in them.
            entry.pageblocks.reset();
            self.sparse.set_state(section, SectionState::Present);
        }
        let written = self.init_locked(nr, pgmap);
        let now = self.platform.clock();
        pgmap.begin(written, now.saturating_sub(began), now);
        Ok(nr)
    }

    /// Maps the range, then its memmap.
    fn map_device(&self, map: DevPagemap, altmap: &mut Option<VmemAltmap>) -> Result<(), MemremapError> {
        let range = map.range;
        let mut mapped = 0;
        let map_one = |nr| {
            self.map_direct(nr, PageblockSet::ALL).map_err(|_| MemremapError::NoPageTable)?;
            mapped += 1;
            Ok(())
        };
        let result = sections(range).try_for_each(map_one).and_then(|()| self.map_memmaps(map, altmap));
        if result.is_err() {
            sections(range).take(mapped).for_each(|nr| self.unmap_direct(nr, PageblockSet::ALL));
        }
        result
    }

    fn map_memmaps(&self, map: DevPagemap, altmap: &mut Option<VmemAltmap>) -> Result<(), MemremapError> {
        for (done, nr) in sections(map.range).enumerate() {
            if let Err(error) = self.map_device_memmap(nr, map.node, altmap) {
                self.unmap_memmaps(sections(map.range).take(done), altmap);
                return Err(error);
            }
        }
        Ok(())
    }

    fn map_device_memmap(
        &self,
        nr: SectionNr,
        node: NodeId,
        altmap: &mut Option<VmemAltmap>,
    ) -> Result<(), MemremapError> {
        let section = self.sparse.section(nr).expect("the range is in the table");
        let memmap = self.alloc_device_memmap(node, altmap).ok_or(MemremapError::NoMemory)?;
        section.set_memmap(Some(memmap));
        if self.platform.fault(FaultStep::MapMemmap) || self.platform.map_memmap(nr, memmap).is_err() {
            self.free_device_memmap(memmap, altmap);
            return Err(MemremapError::NoPageTable);
        }
        Ok(())
    }

    fn alloc_device_memmap(&self, node: NodeId, altmap: &mut Option<VmemAltmap>) -> Option<Pfn> {
        if self.platform.fault(FaultStep::AllocMemmap) {
            return None;
        }
        let (pfn, counter) = match altmap {
            Some(altmap) => (altmap.alloc(Order::PAGEBLOCK)?, &self.counters.memmap_altmap_pages),
            None => {
                let pfn = self.alloc_pages_node(node, Order::PAGEBLOCK, Gfp::Kernel).ok()?;
                self.sparse.page(pfn).set_holder(Holder::Memmap.word());
                (pfn, &self.counters.memmap_boot_pages)
            }
        };
        counter.fetch_add(MEMMAP_PAGES.into(), Relaxed);
        Some(pfn)
    }

    /// Writes the struct pages that are written under the lock, and says how many: those of the pages
    /// that are set aside for the memmap. The others only where the policy is to write them twice.
    fn init_locked(&self, nr: PgmapNr, pgmap: &Pgmap) -> u64 {
        let aside = pgmap.altmap_pages();
        for first in (aside.start.get()..aside.end.get()).step_by(PAGEBLOCK_PAGES as usize) {
            self.init_memmap_block(Pfn::new(first), pgmap.node());
        }
        let mut written = u64::from(aside.pages());
        if self.pgmaps.initialises_twice() {
            let all = pgmap.device_pages();
            for first in (all.start.get()..all.end.get()).step_by(PAGEBLOCK_PAGES as usize) {
                self.init_device_pages(PfnRange::new(Pfn::new(first), PAGEBLOCK_PAGES), nr);
            }
            written += u64::from(all.pages());
        }
        written
    }

    /// Marks a pageblock that is set aside for the memmap.
    fn init_memmap_block(&self, first: Pfn, node: NodeId) {
        let pages = self.sparse.pages_to_initialise(first.section());
        for offset in 1..PAGEBLOCK_PAGES {
            pages.page(first.add(offset)).set_state(PageState::device(Kind::Tail, Order::PAGE, node));
        }
        pages.page(first).set_state(PageState::device(Kind::Memmap, Order::PAGEBLOCK, node));
    }

    /// Initialises a pageblock's worth of the pages of pgmap `nr`, outside of all locks; any number
    /// of CPUs may do so at once. `false` when there was nothing left to do; others may still be at
    /// theirs, and the pages can be used when the last of them is through.
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
        let Some(pages) = pgmap.claim(self.platform.this_cpu()) else { return Ok(false) };
        self.init_device_pages(pages, nr);
        if pgmap.finish(pages.pages()) {
            for section in pgmap.sections() {
                self.sparse.set_state(section, SectionState::Initialised);
            }
            pgmap.publish(self.platform.clock());
        }
        Ok(true)
    }

    /// Writes struct pages of device memory, all in one section.
    fn init_device_pages(&self, range: PfnRange, nr: PgmapNr) {
        let pages = self.sparse.pages_to_initialise(range.start.section());
        let first = range.start.in_section();
        let state = self.pgmaps.get(nr).page_state();
        let (chunks, rest) = pages.all()[first..first + range.pages() as usize].as_chunks::<16>();
        debug_assert!(rest.is_empty(), "a pageblock is a multiple of 16 pages");
        // Three stores a page and little else.
        for chunk in chunks {
            for page in chunk {
                page.init_device(state, nr.0.into());
            }
        }
    }

    /// What is known of pgmap `nr`, if it is one.
    pub fn pgmap(&self, nr: PgmapNr) -> Option<PgmapInfo> {
        self.pgmaps.info(nr)
    }

    /// The page of device memory `pfn`, if it is one that can be used (Linux `get_dev_pagemap` and a
    /// look at the page). Whatever is done meanwhile, it is initialised.
    pub fn dev_page(&self, pfn: Pfn) -> Option<DevPage> {
        let (nr, pgmap) = self.pgmaps.of(pfn)?;
        let (page, section) = self.sparse.page_and_section(pfn);
        assert_eq!(page.state(), pgmap.page_state(), "state of {pfn:?} of pgmap {nr:?}");
        assert_eq!(page.pgmap(), u32::from(nr.0), "pgmap of {pfn:?}");
        let migrate_type = section.pageblocks.migrate_type(pfn.pageblock());
        Some(DevPage { pgmap: nr, user: page.dev_user(), migrate_type })
    }

    /// Takes a reference to page of device memory `pfn` in the name of `user`: it stays mapped until
    /// that is given back. A page has one user at a time, who may have many references.
    ///
    /// # Errors
    /// See [`DevPageError`].
    pub fn get_dev_page(&self, pfn: Pfn, user: u32) -> Result<(), DevPageError> {
        let (_, pgmap) = self.pgmaps.of(pfn).ok_or(DevPageError::NotDevice)?;
        if !pgmap.try_get() {
            return Err(DevPageError::NotDevice);
        }
        let result = self.sparse.page(pfn).update_dev_user(|now| match now {
            None => Ok(Some(DevUser { tag: user, count: 1 })),
            Some(DevUser { tag, .. }) if tag != user => Err(DevPageError::UsedBy(tag)),
            Some(DevUser { tag, count }) => match count.checked_add(1) {
                Some(count) => Ok(Some(DevUser { tag, count })),
                None => Err(DevPageError::Count),
            },
        });
        if result.is_err() {
            pgmap.put();
        }
        result
    }

    /// Gives back what [`Self::get_dev_page`] took.
    ///
    /// # Errors
    /// See [`DevPageError`]; nothing has changed then.
    pub fn put_dev_page(&self, pfn: Pfn, user: u32) -> Result<(), DevPageError> {
        let (_, pgmap) = self.pgmaps.of(pfn).ok_or(DevPageError::NotDevice)?;
        self.sparse.page(pfn).update_dev_user(|now| match now {
            None => Err(DevPageError::Count),
            Some(DevUser { tag, .. }) if tag != user => Err(DevPageError::UsedBy(tag)),
            Some(DevUser { tag, count }) => Ok((count > 1).then(|| DevUser { tag, count: count - 1 })),
        })?;
        pgmap.put();
        Ok(())
    }
}
