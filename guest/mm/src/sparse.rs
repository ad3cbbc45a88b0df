//! Sections: which memory there is, and the way from a frame number to its [`Page`].
//!
//! Mirrors Linux `mm/sparse.c` and `mm/sparse-vmemmap.c`. The memmap is one window of virtual
//! addresses, indexed by frame number; a section's 2 MiB of it are mapped while the section has a
//! memmap. One table entry a section (64 bytes) holds all that is known without the memmap.
//!
//! # Why a look-up is sound
//! [`Sparse::page`] checks that the section is [`Initialised`](SectionState::Initialised) or
//! beyond. A section reaches that state only after [`Platform::map_memmap`] succeeded and every
//! page of the section was initialised, and on the way back `hotplug` first publishes `Absent`
//! (or `Present`), then calls [`Platform::synchronize`], and only then unmaps. References to pages
//! are never stored: they end when the call into `mm` does, which is what `synchronize` waits for.
//!
//! [`Platform::map_memmap`]: crate::Platform::map_memmap
//! [`Platform::synchronize`]: crate::Platform::synchronize
#![expect(unsafe_code, reason = "turns a mapped range of the memmap window into pages")]

mod section_pages;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::addr::{Pfn, SectionNr};
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::page::Page;
use crate::pageblock::PageblockFlags;
use crate::pageblock_set::PageblockSet;

pub(crate) use section_pages::SectionPages;

/// Where a section stands. Every policy of initialisation and every way in and out is a walk
/// along these states, forth and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum SectionState {
    /// Nothing of it is mapped.
    Absent = 0,
    /// Its memory and its memmap are mapped; nothing is said about the memmap's content.
    Present = 1,
    /// Its memmap can be looked at.
    Initialised = 2,
    /// Its pages are in a zone.
    Online = 3,
}

/// What is known of one section of 128 MiB. All zero is [`SectionState::Absent`].
#[repr(C, align(64))]
pub struct Section {
    state: AtomicU8,
    /// The [`ZoneId`]; of a section that is added and not online only the node means anything.
    zone: AtomicU8,
    /// Where its memory comes from: [`Section::HOT_ADDED`], [`Section::BOOT`] or [`Section::DEVICE`].
    origin: AtomicU8,
    /// What is known of the memmap's content: [`Section::ANYTHING`], [`Section::ZERO`] or
    /// [`Section::SPARSE`].
    memmap_content: AtomicU8,
    /// First frame of the memmap's pages; 0 when they are single ones.
    memmap: AtomicU32,
    /// Sub-sections whose memory is there and mapped.
    plugged: AtomicU64,
    /// Pages of the memmap taken from the memory block that begins here (low half: set aside, high
    /// half: handed out), see `altmap`.
    altmap: AtomicU32,
    /// Sections of the memory block that begins here, if one does.
    block_sections: AtomicU8,
    /// Pages on free lists, isolated ones included; changes under the zone lock.
    free: AtomicU64,
    pub(crate) pageblocks: PageblockFlags,
}

const _: () = assert!(size_of::<Section>() == 64);

impl Section {
    /// An absent section, for `[const { Section::new() }; N]`.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(SectionState::Absent as u8),
            zone: AtomicU8::new(0),
            origin: AtomicU8::new(Self::HOT_ADDED),
            memmap_content: AtomicU8::new(Self::ANYTHING),
            memmap: AtomicU32::new(0),
            plugged: AtomicU64::new(0),
            altmap: AtomicU32::new(0),
            block_sections: AtomicU8::new(0),
            free: AtomicU64::new(0),
            pageblocks: PageblockFlags::new(),
        }
    }

    /// Where the section stands.
    #[inline]
    pub(crate) fn state(&self) -> SectionState {
        // Pairs with the Release in `Sparse::set_state`: who sees Initialised sees initialised pages.
        match self.state.load(Ordering::Acquire) {
            0 => SectionState::Absent,
            1 => SectionState::Present,
            2 => SectionState::Initialised,
            3 => SectionState::Online,
            _ => unreachable!("set_state is the only writer"),
        }
    }

    #[inline]
    fn has_pages(&self) -> bool {
        // The same pairing as in `state`.
        self.state.load(Ordering::Acquire) >= SectionState::Initialised as u8
    }

    /// The zone that its pages are in.
    pub(crate) fn zone(&self) -> ZoneId {
        ZoneId::from_bits(self.zone.load(Ordering::Relaxed)).expect("set_zone is the only writer")
    }

    pub(crate) fn set_zone(&self, zone: ZoneId) {
        self.zone.store(zone.bits(), Ordering::Relaxed);
    }

    /// The node that it belongs to, from the time on when it is added.
    pub(crate) fn node(&self) -> NodeId {
        self.zone().node()
    }

    pub(crate) fn set_node(&self, node: NodeId) {
        self.set_zone(node.zone(ZoneType::Dma32));
    }

    /// Whether the section was there at boot; such a section is never removed.
    pub(crate) fn is_boot(&self) -> bool {
        self.origin.load(Ordering::Relaxed) == Self::BOOT
    }

    pub(crate) fn set_boot(&self) {
        self.origin.store(Self::BOOT, Ordering::Relaxed);
    }

    /// Whether it is device memory, whose life is a pgmap's affair (see `zone_device`).
    pub(crate) fn is_device(&self) -> bool {
        self.origin.load(Ordering::Relaxed) == Self::DEVICE
    }

    /// Says whether it is device memory; it is absent.
    pub(crate) fn set_device(&self, device: bool) {
        self.origin.store(if device { Self::DEVICE } else { Self::HOT_ADDED }, Ordering::Relaxed);
    }

    const HOT_ADDED: u8 = 0;
    const BOOT: u8 = 1;
    const DEVICE: u8 = 2;

    /// Nothing is known.
    const ANYTHING: u8 = 0;
    /// It is in memory that is zero, and nobody has written to it.
    const ZERO: u8 = 1;
    /// It was zero when its heads were written, and nothing else of it was.
    const SPARSE: u8 = 2;

    /// Says whether the memmap is all zero.
    pub(crate) fn set_zeroed(&self, zeroed: bool) {
        self.memmap_content.store(if zeroed { Self::ZERO } else { Self::ANYTHING }, Ordering::Relaxed);
    }

    /// Whether the memmap is all zero. If so, the caller writes to its heads only, if it is `lazy`.
    pub(crate) fn start_memmap(&self, lazy: bool) -> bool {
        let sparse = lazy && self.memmap_content.load(Ordering::Relaxed) == Self::ZERO;
        self.memmap_content.store(if sparse { Self::SPARSE } else { Self::ANYTHING }, Ordering::Relaxed);
        sparse
    }

    /// Whether pages may be all zero that are tails.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn is_sparse(&self) -> bool {
        self.memmap_content.load(Ordering::Relaxed) == Self::SPARSE
    }

    /// Where its memmap lies, which is mapped by one large page; none if it is mapped by small ones.
    pub(crate) fn memmap(&self) -> Option<Pfn> {
        // Frame 0 is never given to anybody.
        Some(Pfn::new(self.memmap.load(Ordering::Relaxed))).filter(|pfn| pfn.get() != 0)
    }

    pub(crate) fn set_memmap(&self, pfn: Option<Pfn>) {
        self.memmap.store(pfn.map_or(0, Pfn::get), Ordering::Relaxed);
    }

    pub(crate) fn plugged(&self) -> PageblockSet {
        PageblockSet::new(self.plugged.load(Ordering::Relaxed))
    }

    pub(crate) fn set_plugged(&self, plugged: PageblockSet) {
        self.plugged.store(plugged.bits(), Ordering::Relaxed);
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// `pages` free pages more or, as a wrapped negative number, fewer. The zone lock excludes other writers.
    #[inline]
    pub(crate) fn add_free(&self, pages: u64) {
        self.free.store(self.free().wrapping_add(pages), Ordering::Relaxed);
    }

    pub(crate) fn altmap_word(&self) -> u32 {
        self.altmap.load(Ordering::Relaxed)
    }

    pub(crate) fn set_altmap_word(&self, word: u32) {
        self.altmap.store(word, Ordering::Relaxed);
    }

    /// Sections of the memory block that begins with this one; 0 when none does.
    pub(crate) fn block_sections(&self) -> u32 {
        self.block_sections.load(Ordering::Relaxed).into()
    }

    pub(crate) fn set_block_sections(&self, sections: u32) {
        let sections = u8::try_from(sections).expect("a memory block has 64 sections at most");
        self.block_sections.store(sections, Ordering::Relaxed);
    }
}

impl Default for Section {
    fn default() -> Self {
        Self::new()
    }
}

/// All sections, and the memmap window.
pub struct Sparse {
    window: NonNull<Page>,
    sections: &'static [Section],
    /// One more than the highest section that was ever present: the end of walks over all.
    end: AtomicU32,
    /// Memory blocks that are online; each section of boot memory is one.
    blocks_online: AtomicU32,
}

// SAFETY: `window` is only dereferenced to `&Page`, which is Sync, under the checks of `page` and
// `pages`; it is the same address on every CPU (contract of `new`).
unsafe impl Sync for Sparse {}
// SAFETY: as for Sync; nothing in it belongs to one CPU.
unsafe impl Send for Sparse {}

impl Sparse {
    /// The sections in `sections` (the `n`-th is section number `n`; all absent), with the memmap
    /// window at `window`.
    ///
    /// # Safety
    /// `window`, 2 MiB aligned, starts a range of `sections.len()` x 2 MiB of virtual addresses,
    /// the same on every CPU, that is used for nothing else. The n-th 2 MiB of it are what
    /// [`Platform::map_memmap`](crate::Platform::map_memmap) maps for section `n`.
    #[must_use]
    pub const unsafe fn new(window: NonNull<Page>, sections: &'static [Section]) -> Self {
        Self { window, sections, end: AtomicU32::new(0), blocks_online: AtomicU32::new(0) }
    }

    /// Every section that was ever present, ascending.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = SectionNr> {
        (0..self.end.load(Ordering::Relaxed)).map(SectionNr::new)
    }

    /// Number of memory blocks that are online.
    pub(crate) fn blocks_online(&self) -> u32 {
        self.blocks_online.load(Ordering::Relaxed)
    }

    /// Moves section `nr`, which is in the table, to `state`. To reach `Initialised`, its memmap
    /// must be mapped and its pages written; to become `Absent`, see the header of this file.
    pub(crate) fn set_state(&self, nr: SectionNr, state: SectionState) {
        let section = self.section(nr).expect("a section that is in the table");
        let before = section.state();
        // Pairs with the Acquire in `Section::state`.
        section.state.store(state as u8, Ordering::Release);
        self.end.fetch_max(nr.get() + 1, Ordering::Relaxed);
        let block = u32::from(section.is_boot() || section.block_sections() > 0);
        match (before, state) {
            (_, SectionState::Online) => self.blocks_online.fetch_add(block, Ordering::Relaxed),
            (SectionState::Online, _) => self.blocks_online.fetch_sub(block, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Sections that the table has.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.sections.len()).unwrap_or(u32::MAX)
    }

    /// The table's entry of section `nr`, if it has one.
    #[inline]
    pub(crate) fn section(&self, nr: SectionNr) -> Option<&Section> {
        self.sections.get(nr.get() as usize)
    }

    /// The page of `pfn` (Linux `pfn_to_page`).
    ///
    /// # Panics
    /// When the section has no initialised memmap.
    #[inline]
    pub(crate) fn page(&self, pfn: Pfn) -> &Page {
        self.page_and_section(pfn).0
    }

    /// As [`page`](Self::page), and its section.
    #[inline]
    pub(crate) fn page_and_section(&self, pfn: Pfn) -> (&Page, &Section) {
        let section = match self.section(pfn.section()) {
            Some(section) if section.has_pages() => section,
            _ => no_page(pfn),
        };
        // SAFETY: the section is in the table, so the offset lies in the window; it has pages, so
        // they are mapped and hold atomics, and stay so until this CPU leaves `mm` (see the
        // header: `synchronize` comes between the state's change and the unmapping).
        (unsafe { self.window.add(pfn.get() as usize).as_ref() }, section)
    }

    /// The pages of section `nr`, if it has any that can be looked at.
    #[inline]
    pub(crate) fn pages(&self, nr: SectionNr) -> Option<SectionPages<'_>> {
        let section = self.section(nr)?;
        if !section.has_pages() {
            return None;
        }
        Some(self.view(nr, section))
    }

    /// The pages of section `nr`, if it is online.
    pub(crate) fn online_pages(&self, nr: SectionNr) -> Option<SectionPages<'_>> {
        self.pages(nr).filter(|pages| pages.section().state() == SectionState::Online)
    }

    /// The page of `pfn`, if its section is online (Linux `pfn_to_online_page`): what a walk over
    /// frames of which it knows nothing may look at.
    pub(crate) fn online_page(&self, pfn: Pfn) -> Option<&Page> {
        Some(self.online_pages(pfn.section())?.page(pfn))
    }

    /// The pages of section `nr`, whose memmap is mapped, for the one who initialises them.
    ///
    /// # Panics
    /// When the section is absent, or already has pages that others look at.
    pub(crate) fn pages_to_initialise(&self, nr: SectionNr) -> SectionPages<'_> {
        let section = self.section(nr).expect("a section that is in the table");
        assert_eq!(section.state(), SectionState::Present, "section {nr:?} is not ready for this");
        self.view(nr, section)
    }

    #[inline]
    fn view<'s>(&'s self, nr: SectionNr, section: &'s Section) -> SectionPages<'s> {
        // SAFETY: both callers found the section in the table and in a state in which its memmap
        // is mapped (Present and beyond); the rest as in `page`. A `Page` is valid with any bits
        // in its atomics, so the pages may be referred to before they are initialised.
        let pages = unsafe { self.window.add(nr.start().get() as usize).cast().as_ref() };
        SectionPages { pages, section, nr }
    }
}

#[cold]
#[inline(never)]
fn no_page(pfn: Pfn) -> ! {
    panic!("frame {:#x} has no page: its section has no initialised memmap", pfn.get())
}
