//! A machine that costs nothing: the memory management on plain memory of this process.
//!
//! It stands in for the guest kernel where that would only add its own cost. Unlike `tidevm_mm::sim`
//! it checks nothing, and hot paths are as they are in the guest. The memmap window is one mapping, of
//! which only what is touched takes memory, so machines of terabytes fit.
#![expect(unsafe_code, reason = "maps memory, and stands for the machine, whose contract is unsafe")]

use std::ptr::{self, NonNull};

use tidevm_mm::{
    DeviceInit, InitPolicy, Memblock, MemmapFrames, MemoryContent, Mm, NoPageTable, NodeId, Options,
    PAGE_SIZE, Page, PageblockSet, PcpPolicy, PerCpuPages, Pfn, PfnRange, PhysAddr, PhysRange, Platform,
    RemovalPolicy, SECTION_PAGES, SECTION_SIZE, Section, SectionNr, Sparse, ZoneType,
};

/// Bytes of the memmap of one section.
pub const MEMMAP_SIZE: usize = SECTION_PAGES as usize * size_of::<Page>();
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed memory of this process, aligned to 2 MiB.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    base: *mut libc::c_void,
}

// SAFETY: it is memory of the process, not of a thread.
unsafe impl Sync for Mapping {}
// SAFETY: as for Sync.
unsafe impl Send for Mapping {}

impl Mapping {
    /// `len` bytes, none of which takes memory before it is touched.
    ///
    /// # Panics
    /// When the process cannot have so many addresses.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, of which nobody has a part.
        let base = unsafe { libc::mmap(ptr::null_mut(), len + LARGE_PAGE, access, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "no addresses for {len} bytes");
        let start = base.cast::<u8>().wrapping_add(base.cast::<u8>().align_offset(LARGE_PAGE));
        Self { start: NonNull::new(start).expect("not at 0"), len, base }
    }

    /// The same, and all of it is there, in pages of 2 MiB where the host has them.
    ///
    /// # Panics
    /// As [`new`](Self::new), and when there is too little memory.
    #[must_use]
    pub fn populated(len: usize) -> Self {
        let this = Self::new(len);
        this.populate(len);
        this
    }

    /// Makes the first `len` bytes be there.
    fn populate(&self, len: usize) {
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is our own; neither call changes what is in it. That there are large pages
        // is only wished for.
        let status = unsafe {
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
            libc::madvise(start, len, libc::MADV_POPULATE_WRITE)
        };
        assert_eq!(status, 0, "no memory for {len} bytes: {}", std::io::Error::last_os_error());
    }

    /// Its first byte.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours and initialised, and `&mut self` keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and whoever used it has borrowed the value.
        unsafe { libc::munmap(self.base, self.len + LARGE_PAGE) };
    }
}

/// The machine below.
pub struct Host {
    /// Where the content of pages is, if anybody wants to have it copied.
    memory: Option<Mapping>,
}

// SAFETY: the window is readable and writable all the time, and distinct pages of it for every section;
// there is one CPU, which is outside of `mm` whenever nobody calls.
unsafe impl Platform for Host {
    fn this_cpu(&self) -> usize {
        0
    }

    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        if pages.is_empty() {
            return;
        }
        let memory = self.memory.as_ref().expect("a machine whose pages have content").start();
        for &(to, from) in pages {
            let at = |pfn: Pfn| memory.wrapping_add(pfn.address().get() as usize);
            // SAFETY: the mapping has a place for every frame, and `to` and `from` differ.
            unsafe { ptr::copy_nonoverlapping(at(from), at(to), PAGE_SIZE as usize) };
        }
    }

    fn map_memmap(&self, _: SectionNr, _: Pfn) -> Result<(), NoPageTable> {
        Ok(())
    }

    fn prepare_memmaps(&self, _: SectionNr, _: u32) -> Result<(), NoPageTable> {
        Ok(())
    }

    fn map_prepared_memmap(&self, _: SectionNr, _: Pfn) {}

    fn unmap_memmap(&self, _: SectionNr) {}

    fn map_memmap_base(&self, _: SectionNr, _: &MemmapFrames) -> Result<(), NoPageTable> {
        // Memmaps lie on the memory here, where they are one piece.
        Err(NoPageTable)
    }

    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames {
        unreachable!("the memmap of {section:?} is one piece")
    }

    fn map_direct(&self, _: PfnRange) -> Result<(), NoPageTable> {
        Ok(())
    }

    fn unmap_direct(&self, _: PfnRange) {}

    fn synchronize(&self) {}
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Bytes of memory at boot, whole sections.
    pub boot: u64,
    /// Bytes that can be added behind it, likewise.
    pub region: u64,
    /// When struct pages are initialised.
    pub init: InitPolicy,
    /// What they and the rest of memory hold before.
    pub content: MemoryContent,
    /// Whether memory for the memmap is there before it is touched. Terabytes have to do without.
    pub warm: bool,
    /// Whether pages have content.
    pub with_content: bool,
}

impl Spec {
    /// A machine of `boot` bytes, lazy, known to be zero, its memmap in memory that is there.
    #[must_use]
    pub const fn new(boot: u64) -> Self {
        Self {
            boot,
            region: 0,
            init: InitPolicy::Lazy,
            content: MemoryContent::Zero,
            warm: true,
            with_content: false,
        }
    }

    /// Makes the machine, has `work` use it, and unmakes it.
    pub fn with<R: 'static>(self, work: impl FnOnce(&BenchMachine) -> R) -> R {
        let sections = ((self.boot + self.region) / SECTION_SIZE) as usize;
        let window = Mapping::new(sections * MEMMAP_SIZE);
        if self.warm {
            window.populate(sections * MEMMAP_SIZE);
        }
        let table = Mapping::new(sections * size_of::<Section>());
        // SAFETY: a section that is all zero is an absent one, so this is a table of them. `table` lives
        // longer than whoever has the reference, which is `mm` in this function alone.
        let sections = unsafe { std::slice::from_raw_parts(table.start().cast::<Section>(), sections) };
        let memory = self.with_content.then(|| Mapping::new((self.boot + self.region) as usize));
        let per_cpu: &'static [PerCpuPages] = Box::leak(Box::new([PerCpuPages::new()]));
        // SAFETY: the window is a mapping of its own with room for so many sections, which lives
        // longer than `mm`.
        let sparse = unsafe { Sparse::new(NonNull::new(window.start().cast()).expect("not at 0"), sections) };
        let mm = Mm::new(Host { memory }, sparse, per_cpu);
        work(&BenchMachine { spec: self, mm })
    }
}

/// A machine, and what it was made of.
pub struct BenchMachine {
    spec: Spec,
    /// Its memory management, before boot.
    pub mm: Mm<Host>,
}

impl BenchMachine {
    /// Boots it. The first 4 MiB are in use.
    ///
    /// # Panics
    /// When it does not boot.
    pub fn boot(&self) {
        self.boot_from(self.memblock());
    }

    /// What it has at boot, for [`boot_from`](Self::boot_from).
    ///
    /// # Panics
    /// Never: the table has room for two ranges.
    #[must_use]
    pub fn memblock(&self) -> &'static mut Memblock {
        let memblock = Box::leak(Box::new(Memblock::new()));
        memblock.add(PhysRange::new(PhysAddr::new(0), self.spec.boot)).expect("one range");
        memblock.reserve(PhysRange::new(PhysAddr::new(0), 4 << 20)).expect("one range");
        memblock
    }

    /// Boots it: what of booting is the memory management's.
    ///
    /// # Panics
    /// When it does not boot.
    pub fn boot_from(&self, memblock: &'static mut Memblock) {
        let options = Options {
            nr_cpus: 1,
            memmap_on_memory: true,
            pcp: PcpPolicy::Disable,
            removal: RemovalPolicy::PerBlock,
            init: self.spec.init,
            grow: true,
            content: self.spec.content,
            device_init: DeviceInit::Once,
        };
        self.mm.boot(memblock, options).expect("the machine boots");
    }

    /// The memory blocks that can be added.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = SectionNr> + use<> {
        let first = (self.spec.boot / SECTION_SIZE) as u32;
        let count = (self.spec.region / SECTION_SIZE) as u32;
        (first..first + count).map(SectionNr::new)
    }

    /// Makes memory be there for the content of all pages.
    ///
    /// # Panics
    /// When there is too little, or pages have no content.
    pub fn populate_content(&self) {
        let memory = self.mm.platform().memory.as_ref().expect("a machine whose pages have content");
        memory.populate(memory.len);
    }

    /// Adds a memory block, onto the Movable zone.
    ///
    /// # Panics
    /// When it cannot be added.
    pub fn plug(&self, block: SectionNr) {
        self.mm
            .hotplug()
            .add_memory(NodeId::FIRST, block, PageblockSet::ALL, self.spec.content)
            .expect("a block that is not there");
        self.mm.hotplug().online(block, ZoneType::Movable).expect("a block that is not online");
    }
}
