//! Machines on platforms that a test writes: a window of memmaps, and a boot.
//!
//! The window is memory of this process. Nothing is ever unmapped in it: what must not be looked at any more is filled with
//! garbage.
#![expect(unsafe_code, reason = "a memmap window is a pointer")]

use std::alloc::{Layout, alloc};
use std::ptr::NonNull;

use tidevm_mm::{
    Memblock, Mm, Options, Page, PerCpuPages, PhysAddr, PhysRange, Platform, SECTION_PAGES, SECTION_SIZE,
    Section, SectionNr, Sparse,
};

/// Sections that a machine can have.
pub const SECTIONS: u32 = 10;
/// The first sections are boot memory.
pub const BOOT: u32 = 2;

/// No kind of page has these bits, wherever they lie in a struct page.
const GARBAGE: u8 = 0x0a;
const MEMMAP_SIZE: usize = SECTION_PAGES as usize * size_of::<Page>();

/// Room for the memmaps of [`SECTIONS`] sections. It is never freed.
#[derive(Clone, Copy)]
pub struct Window(NonNull<Page>);

// SAFETY: it is memory of atomics, and no thread's own.
unsafe impl Send for Window {}
// SAFETY: as for Send.
unsafe impl Sync for Window {}

impl Window {
    pub fn new() -> Self {
        let layout = Layout::from_size_align(SECTIONS as usize * MEMMAP_SIZE, MEMMAP_SIZE).unwrap();
        // SAFETY: the layout is not empty.
        let window = Self(NonNull::new(unsafe { alloc(layout) }).expect("memory").cast());
        (0..SECTIONS).map(SectionNr::new).for_each(|nr| window.scribble(nr));
        window
    }

    /// Fills the memmap of a section, no page of which is in use, with garbage.
    pub fn scribble(self, nr: SectionNr) {
        assert!(nr.get() < SECTIONS, "{nr:?} has no memmap");
        // SAFETY: the window has a part for this section, and references to its pages have ended.
        unsafe { self.0.cast::<u8>().add(nr.get() as usize * MEMMAP_SIZE).write_bytes(GARBAGE, MEMMAP_SIZE) }
    }
}

/// A machine with one CPU whose platform keeps memmaps in `window`, before its boot.
pub fn machine<P: Platform>(platform: P, window: Window) -> &'static Mm<P> {
    let table: Box<[Section]> = (0..SECTIONS).map(|_| Section::new()).collect();
    // SAFETY: the window was made for this many sections, and for this `Mm` only.
    let sparse = unsafe { Sparse::new(window.0, Box::leak(table)) };
    Box::leak(Box::new(Mm::new(platform, sparse, Box::leak(Box::new([PerCpuPages::new()])))))
}

/// Boots `mm` with [`BOOT`] sections, of which 4 MiB are in use.
pub fn boot<P: Platform>(mm: &'static Mm<P>, options: Options) {
    let memblock = Box::leak(Box::new(Memblock::new()));
    memblock.add(PhysRange::new(PhysAddr::new(0), u64::from(BOOT) * SECTION_SIZE)).unwrap();
    memblock.reserve(PhysRange::new(PhysAddr::new(0), 4 << 20)).unwrap();
    mm.boot(memblock, options).unwrap();
}
