//! Sections: which memory there is, and the way from a frame number to its [`Page`].
//!
//! Mirrors Linux `mm/sparse.c` and `mm/sparse-vmemmap.c`. The memmap is one window of virtual
//! addresses, indexed by frame number; a section's 2 MiB of it are mapped while the section has a
//! memmap. The table has one entry (64 bytes) per section, with all that is known without the memmap.
//!
//! # Why a look-up is sound
//! A reference to a [`Page`] needs one thing: that its place in the window is mapped, for as long as the
//! reference lives. A `Page` is made of atomics, so any bits in it are valid: their
//! meaning does not matter for soundness.
//!
//! 1. A section that is not [`Absent`](SectionState::Absent) has its memmap mapped. [`Sparse::set_state`]
//!    is called by the [`SectionOwner`] only, which makes the section Present after
//!    [`Platform::map_memmap`], `map_memmap_base` or `map_prepared_memmap` returned. This holds for memory
//!    blocks, device memory, boot memory and deferred boot memory alike.
//! 2. [`Sparse::page`] and its kin check the state: Initialised or beyond. A section that is Present is
//!    looked at only by its owner ([`Sparse::pages_to_initialise`]), which alone could unmap it.
//! 3. The owner of a section first publishes Absent, then calls [`Platform::synchronize`], and only then
//!    unmaps. References to pages are never stored: they end when the call into `mm` does, which
//!    `synchronize` waits for.
//!
//! # When a page means something
//! From Initialised on, the words of a section's pages mean something. Either every page was written, or the
//! memmap was known to be all zero, only the heads of its buddy blocks were written, and an all-zero page is
//! one that no buddy block begins at ([`InitPolicy::Lazy`](crate::InitPolicy::Lazy)).
//!
//! Invariant: a reader finds a section Present only while its memmap is mapped, and Initialised only after
//! its pages mean something.
//!
//! [`Platform::map_memmap`]: crate::Platform::map_memmap
//! [`Platform::synchronize`]: crate::Platform::synchronize
#![expect(unsafe_code, reason = "turns a mapped range of the memmap window into pages")]

mod section_pages;
mod state;

use core::ptr::NonNull;

use crate::addr::{Pfn, SectionNr};
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::page::{Page, PageRef, part_of};
use crate::pageblock::PageblockFlags;
use crate::pageblock_set::PageblockSet;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};

pub(crate) use section_pages::SectionPages;
pub(crate) use state::SectionOwner;
pub use state::SectionState;

/// The entry of one section of 128 MiB in the table. All zero is a section that is Absent.
#[repr(C, align(64))]
pub struct Section {
    state: AtomicU8,
    /// The [`ZoneId`]. While a section is added and not online, only the node in it means anything.
    zone: AtomicU8,
    /// Where its memory comes from: [`Section::HOT_ADDED`], [`Section::BOOT`] or [`Section::DEVICE`].
    origin: AtomicU8,
    /// Whether the memmap's content is known: [`Section::ANYTHING`], [`Section::ZERO`] or
    /// [`Section::SPARSE`].
    memmap_content: AtomicU8,
    /// First frame of the large page behind the memmap; 0 when it is mapped by base pages.
    memmap: AtomicU32,
    /// Pageblocks whose memory is there and mapped.
    plugged: AtomicU64,
    /// The altmap of the memory block that begins here (see `altmap`). Low half: pages set aside; high half:
    /// pages handed out.
    altmap: AtomicU32,
    /// Number of sections of the memory block that begins here; 0 when none does.
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

    /// The state.
    #[inline]
    pub(crate) fn state(&self) -> SectionState {
        // Pairs with the Release in `Sparse::set_state`: a CPU that reads Present reads a mapped memmap, and one
        // that reads Initialised reads initialised pages.
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

    /// The zone of its pages.
    #[inline]
    pub(crate) fn zone(&self) -> ZoneId {
        // `set_zone` is the only writer.
        ZoneId::of_low_bits(self.zone.load(Ordering::Relaxed))
    }

    pub(crate) fn set_zone(&self, zone: ZoneId) {
        self.zone.store(zone.bits(), Ordering::Relaxed);
    }

    /// Its node, from the time on when it is added.
    pub(crate) fn node(&self) -> NodeId {
        self.zone().node()
    }

    pub(crate) fn set_node(&self, node: NodeId) {
        self.set_zone(node.zone(ZoneType::Dma32));
    }

    /// Whether it is boot memory, which is never removed.
    pub(crate) fn is_boot(&self) -> bool {
        self.origin.load(Ordering::Relaxed) == Self::BOOT
    }

    pub(crate) fn set_boot(&self) {
        self.origin.store(Self::BOOT, Ordering::Relaxed);
    }

    /// Whether it is device memory, which belongs to a pgmap (see `zone_device`).
    pub(crate) fn is_device(&self) -> bool {
        self.origin.load(Ordering::Relaxed) == Self::DEVICE
    }

    /// Says whether it is device memory. The section is Absent: no CPU looks at it.
    pub(crate) fn set_device<O: SectionOwner>(&self, device: bool, _owner: &O) {
        assert_eq!(self.state(), SectionState::Absent, "a section changes between memory and device memory");
        O::LOCKS.assert("a section becoming device memory");
        self.origin.store(if device { Self::DEVICE } else { Self::HOT_ADDED }, Ordering::Relaxed);
    }

    const HOT_ADDED: u8 = 0;
    const BOOT: u8 = 1;
    const DEVICE: u8 = 2;

    /// Nothing is known.
    const ANYTHING: u8 = 0;
    /// It lies in memory that is zero, and nothing has written to it.
    const ZERO: u8 = 1;
    /// It was zero, and since then only heads of buddy blocks were written.
    const SPARSE: u8 = 2;

    /// Says whether the memmap is all zero.
    pub(crate) fn set_zeroed(&self, zeroed: bool) {
        self.memmap_content.store(if zeroed { Self::ZERO } else { Self::ANYTHING }, Ordering::Relaxed);
    }

    /// Begins the initialisation of the memmap. Returns true when it is all zero and the policy is `lazy`: the
    /// caller writes only heads then, and all pages otherwise.
    pub(crate) fn start_memmap(&self, lazy: bool) -> bool {
        let sparse = lazy && self.memmap_content.load(Ordering::Relaxed) == Self::ZERO;
        self.memmap_content.store(if sparse { Self::SPARSE } else { Self::ANYTHING }, Ordering::Relaxed);
        sparse
    }

    /// Whether a page that is a tail may be all zero.
    #[cfg(any(test, feature = "hosted"))]
    pub(crate) fn is_sparse(&self) -> bool {
        self.memmap_content.load(Ordering::Relaxed) == Self::SPARSE
    }

    /// The large page behind its memmap; none when the memmap is mapped by base pages.
    pub(crate) fn memmap(&self) -> Option<Pfn> {
        // Frame 0 is never given to the allocator.
        Some(Pfn::new(self.memmap.load(Ordering::Relaxed))).filter(|pfn| pfn.get() != 0)
    }

    pub(crate) fn set_memmap(&self, pfn: Option<Pfn>) {
        self.memmap.store(pfn.map_or(0, Pfn::get), Ordering::Relaxed);
    }

    pub(crate) fn plugged(&self) -> PageblockSet {
        PageblockSet::new(self.plugged.load(Ordering::Relaxed))
    }

    pub(crate) fn set_plugged<O: SectionOwner>(&self, plugged: PageblockSet, _owner: &O) {
        O::LOCKS.assert("a change of the plugged pageblocks");
        self.plugged.store(plugged.bits(), Ordering::Relaxed);
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Adds `pages` to the number of free pages; a wrapped negative number subtracts. The zone lock excludes
    /// other writers.
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

    pub(crate) fn set_block_sections<O: SectionOwner>(&self, sections: u32, _owner: &O) {
        O::LOCKS.assert("a change of a memory block");
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
    /// One more than the highest section that was ever Present: the end of walks over all.
    end: AtomicU32,
    /// Memory blocks that are online; each section of boot memory counts as one.
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
    /// the same on every CPU, that is used for nothing else. For section `n`,
    /// [`Platform::map_memmap`](crate::Platform::map_memmap) maps the n-th 2 MiB of it.
    #[must_use]
    pub const unsafe fn new(window: NonNull<Page>, sections: &'static [Section]) -> Self {
        Self { window, sections, end: AtomicU32::new(0), blocks_online: AtomicU32::new(0) }
    }

    /// One more than the highest section that was ever Present.
    pub(crate) fn end(&self) -> SectionNr {
        SectionNr::new(self.end.load(Ordering::Relaxed))
    }

    /// Every section up to the highest that was ever Present, ascending.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = SectionNr> {
        (0..self.end().get()).map(SectionNr::new)
    }

    /// Number of memory blocks that are online.
    pub(crate) fn blocks_online(&self) -> u32 {
        self.blocks_online.load(Ordering::Relaxed)
    }

    /// Moves section `nr`, which is in the table, to `state`. The conditions are in the header of this file:
    /// Present needs a mapped memmap, Initialised needs initialised pages, Absent comes before unmapping.
    ///
    /// # Panics
    /// When no life cycle has this step.
    pub(crate) fn set_state<O: SectionOwner>(&self, nr: SectionNr, state: SectionState, _owner: &O) {
        O::LOCKS.assert("a change of a section's state");
        let section = self.entry(nr);
        let before = section.state();
        assert!(before.leads_to(state), "{nr:?} goes from {before:?} to {state:?}");
        // A model of loom has no room for all pages of a section.
        #[cfg(all(any(test, feature = "hosted"), not(feature = "loom")))]
        if state == SectionState::Initialised && !section.is_device() {
            self.view(nr, section).assert_initialised();
        }
        // Pairs with the Acquire in `Section::state`.
        section.state.store(state as u8, Ordering::Release);
        self.end.fetch_max(nr.get() + 1, Ordering::Relaxed);
        let block = u32::from(section.is_boot() || section.block_sections() > 0);
        match (before, state) {
            (_, SectionState::Online) => self.blocks_online.fetch_add(block, Ordering::Relaxed),
            (SectionState::Online, _) => self.blocks_online.fetch_sub(block, Ordering::Relaxed),
            _ => 0,
        };
        #[cfg(test)]
        crate::steps::made();
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

    /// The table's entry of section `nr`, which was found in the table before.
    pub(crate) fn entry(&self, nr: SectionNr) -> &Section {
        self.section(nr).expect("a section that is in the table")
    }

    /// The page of `pfn` (Linux `pfn_to_page`).
    ///
    /// # Panics
    /// When the section has no initialised memmap.
    #[inline]
    pub(crate) fn page(&self, pfn: Pfn) -> PageRef<'_> {
        self.page_and_section(pfn).0
    }

    /// As [`page`](Self::page), and its section.
    #[inline]
    pub(crate) fn page_and_section(&self, pfn: Pfn) -> (PageRef<'_>, &Section) {
        let section = match self.section(pfn.section()) {
            Some(section) if section.has_pages() => section,
            _ => no_page(pfn),
        };
        let index = pfn.get() as usize;
        // SAFETY: the section is in the table, so both indices lie in the window: `part_of` stays in the section.
        // `has_pages` read a state beyond Absent, so the memmap is mapped (point 1 of the header; contract of
        // `Platform`), and stays so until this CPU leaves `mm` (point 3). A `Page` is valid with any bits.
        let [page, part] = [index, part_of(index)].map(|index| unsafe { self.window.add(index).as_ref() });
        (PageRef::new(page, part, index), section)
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

    /// The pages of section `nr`, which is Present, for the owner to initialise.
    ///
    /// # Panics
    /// When the section is Absent, or other CPUs already look at its pages.
    pub(crate) fn pages_to_initialise<O: SectionOwner>(&self, nr: SectionNr, _owner: &O) -> SectionPages<'_> {
        O::LOCKS.assert("initialising pages");
        let section = self.entry(nr);
        assert_eq!(section.state(), SectionState::Present, "section {nr:?} is not ready for this");
        self.view(nr, section)
    }

    #[inline]
    fn view<'s>(&'s self, nr: SectionNr, section: &'s Section) -> SectionPages<'s> {
        // SAFETY: both callers found the section in the table and in a state beyond Absent, in which its
        // memmap is mapped (point 1 of the header). `pages` relies on point 3 for how long, as
        // `page_and_section` does; `pages_to_initialise` on its caller, the owner of the section, which does
        // not unmap it meanwhile (point 2). A `Page` is valid with any bits, so the pages may be referred to
        // before they are initialised.
        let pages = unsafe { self.window.add(nr.start().get() as usize).cast().as_ref() };
        SectionPages { pages, section, nr }
    }
}

#[cold]
#[inline(never)]
fn no_page(pfn: Pfn) -> ! {
    panic!("frame {:#x} has no page: its section has no initialised memmap", pfn.get())
}
