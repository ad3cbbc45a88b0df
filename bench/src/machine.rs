//! A machine of plain memory: the memory management on memory of this process.
//!
//! It takes the place of the guest kernel and adds no cost of its own. Unlike `tidevm-mm-sim` it checks nothing,
//! so the hot paths are those of the guest. The memmap window is one mapping that takes memory only where it is
//! touched, so machines of terabytes fit.
//!
//! Invariant: the window and the table of sections live longer than the `Mm` that refers to them.
#![expect(unsafe_code, reason = "maps memory, and implements the platform, whose contract is unsafe")]

use std::cell::Cell;
use std::ptr::{self, NonNull};

use tidevm_mm::{
    InitPolicy, Memblock, MemoryContent, Mm, NodeId, Options, PAGE_SIZE, Page, PageblockSet, PerCpuPages,
    Pfn, PfnRange, PhysAddr, PhysRange, Platform, SECTION_PAGES, SECTION_SIZE, Section, SectionNr,
    SectionRange, Sparse, ZoneType,
};

/// Size in bytes of the memmap of one section.
pub const MEMMAP_SIZE: usize = SECTION_PAGES as usize * size_of::<Page>();
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed memory of this process, aligned to 2 MiB.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    base: *mut libc::c_void,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Sync for Mapping {}
// SAFETY: as for Sync.
unsafe impl Send for Mapping {}

impl Mapping {
    /// A mapping of `len` bytes that takes memory only where it is touched.
    ///
    /// # Panics
    /// When the process has not enough address space.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses the addresses of the new mapping, so it overlaps no other one.
        let base = unsafe { libc::mmap(ptr::null_mut(), len + LARGE_PAGE, access, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "no addresses for {len} bytes");
        let start = base.cast::<u8>().wrapping_add(base.cast::<u8>().align_offset(LARGE_PAGE));
        Self { start: NonNull::new(start).expect("not at 0"), len, base }
    }

    /// A mapping of `len` bytes that has all its memory, in pages of 2 MiB where the host has them.
    ///
    /// # Panics
    /// As [`new`](Self::new), and when the host has too little memory.
    #[must_use]
    pub fn populated(len: usize) -> Self {
        let this = Self::new(len);
        this.populate(len);
        this
    }

    /// Gives the first `len` bytes their memory.
    fn populate(&self, len: usize) {
        let start = self.start.as_ptr().cast();
        // SAFETY: the range belongs to this mapping, and neither call changes its content. The first call is
        // only a hint, so its result does not matter.
        let status = unsafe {
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
            libc::madvise(start, len, libc::MADV_POPULATE_WRITE)
        };
        assert_eq!(status, 0, "no memory for {len} bytes: {}", std::io::Error::last_os_error());
    }

    /// The first byte.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// All bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is initialised by the kernel, and `&mut self` excludes other users.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range, and its users borrow `self`.
        unsafe { libc::munmap(self.base, self.len + LARGE_PAGE) };
    }
}

/// The platform under the memory management.
pub struct Host {
    /// The content of pages; `None` on machines whose pages are never copied.
    memory: Option<Mapping>,
}

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Makes this thread CPU `cpu` of the machines that it uses. No other thread may be that CPU of the same machine.
pub fn become_cpu(cpu: usize) {
    CPU.set(cpu);
}

// SAFETY: the whole window is always readable and writable, and each section has its own part of it. A thread is one
// CPU (contract of `become_cpu`). Memory comes and goes only while one thread uses the machine, so every other CPU is
// outside of `mm` when `synchronize` is called.
unsafe impl Platform for Host {
    const MIGRATES: bool = true;

    #[inline]
    fn this_cpu(&self) -> usize {
        CPU.get()
    }

    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        if pages.is_empty() {
            return;
        }
        let memory = self.memory.as_ref().expect("a machine whose pages have content").start();
        for &(to, from) in pages {
            let at = |pfn: Pfn| memory.wrapping_add(pfn.address().get() as usize);
            // SAFETY: the mapping has `PAGE_SIZE` bytes for each frame, and `to` and `from` differ.
            unsafe { ptr::copy_nonoverlapping(at(from), at(to), PAGE_SIZE as usize) };
        }
    }

    // All of the window is mapped at all times.
    fn map_prepared_memmap(&self, _: SectionNr, _: Pfn) {}

    fn unmap_memmap(&self, _: SectionNr) {}

    fn map_prepared_direct(&self, _: PfnRange) {}

    fn unmap_direct(&self, _: PfnRange) {}

    fn synchronize(&self) {}
}

/// The properties of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Boot memory in bytes, whole sections.
    pub boot: u64,
    /// Memory after boot memory that can be added, in bytes, whole sections.
    pub region: u64,
    /// When struct pages are initialised.
    pub init: InitPolicy,
    /// The content of memory before it is used.
    pub content: MemoryContent,
    /// Whether the memmap has its memory before it is touched. The memmap of terabytes is too large for that.
    pub warm: bool,
    /// Whether pages have content.
    pub with_content: bool,
    /// CPUs.
    pub cpus: usize,
}

impl Spec {
    /// A machine with `boot` bytes of memory that is known to be zero, initialised lazily, with a warm memmap.
    #[must_use]
    pub const fn new(boot: u64) -> Self {
        Self {
            boot,
            region: 0,
            init: InitPolicy::Lazy,
            content: MemoryContent::Zero,
            warm: true,
            with_content: false,
            cpus: 1,
        }
    }

    /// Makes the machine, runs `work` on it, and drops it.
    pub fn with<R: 'static>(self, work: impl FnOnce(&PlainMachine) -> R) -> R {
        let sections = ((self.boot + self.region) / SECTION_SIZE) as usize;
        let window = Mapping::new(sections * MEMMAP_SIZE);
        if self.warm {
            window.populate(sections * MEMMAP_SIZE);
        }
        let table = Mapping::new(sections * size_of::<Section>());
        // SAFETY: a section that is all zero is a valid absent section. `table` lives longer than `mm`, the only
        // user of the reference.
        let sections = unsafe { std::slice::from_raw_parts(table.start().cast::<Section>(), sections) };
        let memory = self.with_content.then(|| Mapping::new((self.boot + self.region) as usize));
        let per_cpu: &'static [PerCpuPages] = Box::leak((0..self.cpus).map(|_| PerCpuPages::new()).collect());
        // SAFETY: the window is a mapping of its own with room for the memmaps of all sections, and it lives longer
        // than `mm`.
        let sparse = unsafe { Sparse::new(NonNull::new(window.start().cast()).expect("not at 0"), sections) };
        let mm = Mm::new(Host { memory }, sparse, per_cpu);
        work(&PlainMachine { spec: self, mm })
    }
}

/// A machine with its memory management.
pub struct PlainMachine {
    spec: Spec,
    /// The memory management, before boot.
    pub mm: Mm<Host>,
}

impl PlainMachine {
    /// Boots the machine. The first 4 MiB are in use.
    ///
    /// # Panics
    /// When the boot fails.
    pub fn boot(&self) {
        self.boot_from(self.memblock());
    }

    /// The memory at boot, for [`boot_from`](Self::boot_from).
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

    /// Boots the memory management from `memblock`.
    ///
    /// # Panics
    /// When the boot fails.
    pub fn boot_from(&self, memblock: &'static mut Memblock) {
        let options = Options::DEFAULT.with_nr_cpus(self.spec.cpus).with_init(self.spec.init);
        let options = options.with_content(self.spec.content);
        self.mm.boot(memblock, options).expect("the machine boots");
    }

    /// The memory blocks that can be added.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = SectionNr> + use<> {
        let first = (self.spec.boot / SECTION_SIZE) as u32;
        let count = (self.spec.region / SECTION_SIZE) as u32;
        (first..first + count).map(SectionNr::new)
    }

    /// Adds the whole region as one range of memory blocks, in the Movable zone.
    ///
    /// # Panics
    /// When that fails.
    pub fn plug_all(&self) {
        let flags = self.spec.content;
        let hotplug = self.mm.hotplug();
        hotplug
            .add_and_online_memory(NodeId::FIRST, self.region(), 1, ZoneType::Movable, flags, || true)
            .expect("a region that is not there");
    }

    /// Takes the whole region away again.
    ///
    /// # Panics
    /// When a page of it is in use.
    pub fn unplug_all(&self) {
        self.mm.hotplug().offline_and_remove_from_end(self.region(), || true).expect("nothing is in use");
    }

    /// The sections of the region.
    fn region(&self) -> SectionRange {
        let first = SectionNr::new((self.spec.boot / SECTION_SIZE) as u32);
        SectionRange::new(first, (self.spec.region / SECTION_SIZE) as u32).expect("the table has all of them")
    }

    /// Gives the content of all pages its memory.
    ///
    /// # Panics
    /// When the host has too little memory, or pages have no content.
    pub fn populate_content(&self) {
        let memory = self.mm.platform().memory.as_ref().expect("a machine whose pages have content");
        memory.populate(memory.len);
    }

    /// Adds a memory block and brings it online in the Movable zone.
    ///
    /// # Panics
    /// When the memory block cannot be added or brought online.
    pub fn plug(&self, block: SectionNr) {
        self.mm
            .hotplug()
            .add_memory(NodeId::FIRST, block, PageblockSet::ALL, self.spec.content)
            .expect("a block that is not there");
        self.mm.hotplug().online(block, ZoneType::Movable).expect("a block that is not online");
    }
}
