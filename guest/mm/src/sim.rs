//! The hosted platform: a machine for tests, stricter than a real one.
//!
//! Threads stand for CPUs ([`Sim::run_on`]). Every page has one word of content ([`Sim::write`],
//! [`Sim::read`]), so that tests see whether data survives migration. Where hardware would let a mistake
//! pass, this panics or makes it visible:
//! - content outside the direct map cannot be reached, and is lost when its page is unmapped;
//! - a memmap is filled with garbage when it is mapped (zeros may be relied on only when its backing is fresh
//!   from a host that promises them), and when it is unmapped (a later look finds garbage);
//! - the backing of a memmap must be mapped, unless it is boot memory, and backs one memmap;
//! - a section is Absent before its memmap is mapped and after it is unmapped;
//! - two threads are not one CPU at the same time, as far as they use its per-CPU lists or take steps;
//! - a memmap is only unmapped after a grace period at whose beginning its section was Absent;
//! - memory is mapped and unmapped only while its section is Absent, or while its pageblock is an unplugged one
//!   of an online memory block.
//!
//! A test sees every call of `mm` by [`Sim::watch`] (see `watch`).
//!
//! Invariant: the window, the table of sections and the `Mm` live as long as the process, or as a
//! `model::Machine`.
#![expect(unsafe_code, reason = "stands for the machine, whose contract is unsafe")]

#[cfg(feature = "shuttle")]
pub mod model;
mod watch;
mod window;

use core::cell::Cell;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst, fence};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::boxed::Box;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;
use std::vec::Vec;

use crate::addr::{
    MEMMAP_PAGES, Order, PAGE_SIZE, PAGEBLOCK_PAGES, Pfn, PfnRange, PhysAddr, PhysRange, SECTION_PAGES,
    SectionNr, SectionRange,
};
use crate::options::MemoryContent;
use crate::page::{Kind, PARTS, PageRef, part_of};
use crate::platform::{FaultStep, MemmapFrames, NoPageTable, Platform};
use crate::sparse::{Section, SectionState, Sparse};
use crate::sync::written::{self, Seen};
use crate::sync::yield_now;
use crate::{BootError, Gfp, Memblock, Mm, NodeId, Options, Page, PerCpuPages};

use watch::CallObserver;
pub use watch::PlatformCall;

crate::sync::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// The content of a page after it was unmapped.
const LOST: u64 = 0xdead_dead_dead_dead;
/// That a pageblock of a memmap is full of garbage, as a meaning of [`Seen`].
const GARBAGE: u32 = u32::MAX;
/// That it is all zero.
const ZERO: u32 = u32::MAX - 1;
const STEPS: usize = FaultStep::ALL.len();

/// The steps of one CPU. They nest: the use of per-CPU lists is a step, alone or in a step of the job loop.
struct Steps {
    /// How often it began or ended a step. It is in one while this is odd.
    count: AtomicU64,
    /// The thread that takes the step, or 0.
    thread: AtomicUsize,
    depth: AtomicU64,
}

impl Steps {
    const fn new() -> Self {
        Self { count: AtomicU64::new(0), thread: AtomicUsize::new(0), depth: AtomicU64::new(0) }
    }

    /// A number of this thread.
    fn this_thread() -> usize {
        CPU.with(|own| core::ptr::from_ref(own).addr())
    }

    /// Begins a step of this thread.
    fn begin(&self) {
        let this = Self::this_thread();
        if self.depth.load(SeqCst) == 0 {
            let before = self.thread.compare_exchange(0, this, SeqCst, SeqCst);
            assert!(before.is_ok(), "two threads are one CPU");
            self.count.fetch_add(1, SeqCst);
        }
        assert_eq!(self.thread.load(SeqCst), this, "two threads are one CPU");
        self.depth.fetch_add(1, SeqCst);
    }

    fn end(&self) {
        if self.depth.fetch_sub(1, SeqCst) == 1 {
            self.thread.store(0, SeqCst);
            self.count.fetch_add(1, SeqCst);
        }
    }
}

/// A page-table page, with the mappings that need it.
struct Table {
    page: Pfn,
    /// Those that are left, as [`direct_map`] or [`memmaps`] numbers them.
    mappings: Vec<u64>,
}

/// The indices of the pageblocks that `range` is made of.
fn pageblocks_of(range: PfnRange) -> Range<usize> {
    assert!(range.start().is_aligned(Order::PAGEBLOCK) && range.end().is_aligned(Order::PAGEBLOCK));
    assert!(!range.is_empty(), "maps nothing at {:?}", range.start());
    let [first, end] = [range.start(), range.end()].map(|pfn| (pfn.get() / PAGEBLOCK_PAGES) as usize);
    first..end
}

/// The mappings of pageblocks in the direct map.
fn direct_map(range: PfnRange) -> Range<u64> {
    let [first, end] = [range.start(), range.end()].map(|pfn| u64::from(pfn.get() / PAGEBLOCK_PAGES));
    first..end
}

/// The mappings of the memmaps of `count` sections from `first` on.
fn memmaps(first: SectionNr, count: u32) -> Range<u64> {
    let first = 1 << 32 | u64::from(first.get());
    first..first + u64::from(count)
}

/// A memmap that is mapped.
struct Mapped {
    /// The frames behind it: the first one of a large page, or all base pages.
    frames: Vec<Pfn>,
}

impl Mapped {
    fn large(&self) -> Option<Pfn> {
        (self.frames.len() == 1).then(|| self.frames[0])
    }

    /// All frames behind it.
    fn backing(&self) -> impl Iterator<Item = Pfn> + '_ {
        let each = if self.large().is_some() { MEMMAP_PAGES } else { 1 };
        self.frames.iter().flat_map(move |first| (0..each).map(|page| first.add(page)))
    }
}

/// A machine on which nothing is mapped at first.
pub struct Sim {
    window: Window,
    /// By section, from its first mapping on: one word per page.
    content: Vec<OnceLock<Vec<AtomicU64>>>,
    /// By pageblock: whether it is in the direct map.
    direct: Vec<AtomicBool>,
    /// By section: whether its memmap can be mapped without a page for a table.
    prepared: Vec<AtomicBool>,
    /// By pageblock: whether it can be mapped into the direct map without a page for a table.
    prepared_direct: Vec<AtomicBool>,
    /// By pageblock: whether it has boot memory.
    boot: Vec<AtomicBool>,
    /// By section: its memmap, while that is mapped.
    memmaps: Mutex<Vec<Option<Mapped>>>,
    /// Attempts to let pass before a step fails; negative when it does not fail.
    faults: [AtomicI64; STEPS],
    /// Whether a step that has begun to fail goes on failing.
    lasting: [AtomicBool; STEPS],
    /// How often each step was attempted.
    attempts: [AtomicU64; STEPS],
    /// Called at every call.
    probe: Mutex<Option<CallObserver>>,
    /// The host promises zeros.
    zeros: bool,
    garbage: AtomicU64,
    grace_periods: AtomicU64,
    /// By CPU: the steps that it takes.
    steps: Vec<Steps>,
    /// Since the last grace period, memmaps were unmapped and nothing else was mapped or unmapped.
    settled: AtomicBool,
    /// By section: whether it was Absent when the last grace period began, and got no memmap since.
    unseen: Vec<AtomicBool>,
    /// The memory management that runs on this machine.
    mm: OnceLock<&'static Mm<Sim>>,
    /// Whether page-table pages come from it, and those in use.
    page_tables: bool,
    tables_in_use: Mutex<Vec<Table>>,
    started: Instant,
}

// SAFETY: `window` is an allocation of atomics that lives as long as the machine.
unsafe impl Sync for Sim {}
// SAFETY: as for Sync.
unsafe impl Send for Sim {}

/// How a simulated machine is made.
#[derive(Clone, Debug)]
pub struct SimMachine {
    /// Sections that the table has.
    pub sections: u32,
    /// RAM at boot, in pages: first frame, number of frames.
    pub memory: Vec<(u32, u32)>,
    /// RAM that is in use at boot, likewise.
    pub reserved: Vec<(u32, u32)>,
    /// CPUs.
    pub cpus: usize,
    /// The node of each CPU from the first on; CPUs that are not listed are on node 0.
    pub cpu_nodes: Vec<u8>,
    /// The nodes of addresses: first frame, number of frames, node. Other RAM is on node 0.
    pub nodes: Vec<(u32, u32, u8)>,
    /// Distances that differ from the default: from, to, distance, in this direction only.
    pub distances: Vec<(u8, u8, u8)>,
    /// The options to boot with, except that [`Options::nr_cpus`] is taken from `cpus`. The content holds for
    /// memory that is mapped later too, until the memory is written to.
    pub options: Options,
    /// Whether each `map_*` takes a page-table page from the allocator, which goes back when all that was
    /// mapped with it is unmapped. Maps made before the allocator works take none.
    pub page_tables: bool,
}

impl Default for SimMachine {
    /// 256 MiB at boot with the first 4 MiB in use, one CPU, [`OPTIONS`](Self::OPTIONS), room for 4.5 GiB.
    fn default() -> Self {
        Self {
            sections: 36,
            memory: [(0, 2 * SECTION_PAGES)].into(),
            reserved: [(0, 1024)].into(),
            cpus: 1,
            cpu_nodes: Vec::new(),
            nodes: Vec::new(),
            distances: Vec::new(),
            options: Self::OPTIONS,
            page_tables: false,
        }
    }
}

impl SimMachine {
    /// The options of a default machine: memmap on memory, lists disabled while memory is taken away, eager
    /// initialisation, memory of unknown content.
    pub const OPTIONS: Options = Options::DEFAULT;

    /// The machine, before [`Mm::boot`]. It lives as long as the process does.
    pub fn build(&self) -> &'static Mm<Sim> {
        let sections: Box<[Section]> = (0..self.sections).map(|_| Section::new()).collect();
        let per_cpu: Box<[PerCpuPages]> = (0..self.cpus).map(|_| PerCpuPages::new()).collect();
        let sim = Sim::new(self.sections, self.cpus, self.options.content, self.page_tables);
        // SAFETY: `Sim::new` made a window for this many sections, for this `Mm` only.
        let sparse = unsafe { Sparse::new(sim.window.pages(), Box::leak(sections)) };
        let mm: &'static Mm<Sim> = Box::leak(Box::new(Mm::new(sim, sparse, Box::leak(per_cpu))));
        for (cpu, &node) in self.cpu_nodes.iter().enumerate() {
            mm.set_cpu_node(cpu, NodeId::new(node));
        }
        for &(from, to, distance) in &self.distances {
            mm.set_distance(NodeId::new(from), NodeId::new(to), distance);
        }
        mm.platform().mm.set(mm).ok().expect("a new machine");
        mm
    }

    /// The memory map of the machine at boot.
    pub fn memblock(&self) -> Memblock {
        let range = |&(first, pages): &(u32, u32)| {
            PhysRange::new(Pfn::new(first).address(), u64::from(pages) * PAGE_SIZE)
        };
        let mut memblock = Memblock::new();
        for memory in self.memory.iter().map(range) {
            memblock.add(memory).expect("a short memory map");
        }
        for reserved in self.reserved.iter().map(range) {
            memblock.reserve(reserved).expect("a short memory map");
        }
        for &(first, pages, node) in &self.nodes {
            memblock.set_node(range(&(first, pages)), NodeId::new(node)).expect("disjoint nodes");
        }
        memblock
    }

    /// The options that [`boot`](Self::boot) passes on.
    pub fn boot_options(&self) -> Options {
        Options { nr_cpus: self.cpus, ..self.options }
    }

    /// The machine, booted.
    pub fn boot(&self) -> &'static Mm<Sim> {
        let mm = self.build();
        self.boot_on(mm).expect("the machine boots");
        mm
    }

    /// Boots `mm`, which [`Self::build`] made.
    ///
    /// # Errors
    /// Those of [`Mm::boot`].
    pub fn boot_on(&self, mm: &Mm<Sim>) -> Result<(), BootError> {
        self.boot_from(mm, Box::leak(Box::new(self.memblock())))
    }

    fn boot_from(&self, mm: &Mm<Sim>, memblock: &'static mut Memblock) -> Result<(), BootError> {
        for &(first, pages) in &self.memory {
            mm.platform().prepare_boot(PfnRange::new(Pfn::new(first), pages));
        }
        mm.boot(memblock, self.boot_options())
    }
}

/// Zeroed pages. The allocation has no alignment and the pages are aligned in it, because the host's allocator
/// clears aligned memory by writing to it, and a machine uses a small part of its window.
struct Window {
    start: NonNull<u8>,
    layout: Layout,
}

impl Window {
    const ALIGN: usize = 1 << 21;

    fn new(pages: usize) -> Self {
        let layout = Layout::array::<u8>(pages * size_of::<Page>() + Self::ALIGN).expect("fits");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let window = Self { start, layout };
        for first in (0..pages).step_by(PAGEBLOCK_PAGES as usize).map(|index| window.page(index)) {
            // Another window may have lain there.
            written::made(first);
            Seen::now(first, ZERO).note();
        }
        window
    }

    fn page(&self, index: usize) -> &Page {
        assert!((index + 1) * size_of::<Page>() <= self.layout.size() - Self::ALIGN, "page {index}");
        // SAFETY: the page lies in the window. A `Page` is valid with any bits.
        unsafe { self.pages().add(index).as_ref() }
    }

    /// The state of the page `pfn`.
    fn state(&self, pfn: Pfn) -> u8 {
        let first = pfn.get() as usize - pfn.in_section();
        let [page, part] =
            [pfn.in_section(), part_of(pfn.in_section())].map(|index| self.page(first + index));
        PageRef::new(page, part, pfn.in_section()).state().bits()
    }

    /// The first page, 2 MiB aligned.
    fn pages(&self) -> NonNull<Page> {
        // SAFETY: the offset is below `ALIGN`, so it and all pages behind it lie in the allocation.
        unsafe { self.start.add(self.start.as_ptr().align_offset(Self::ALIGN)) }.cast()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: `new` made the allocation with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Sim {
    fn new(sections: u32, cpus: usize, content: MemoryContent, page_tables: bool) -> Self {
        let pages = sections as usize * SECTION_PAGES as usize;
        let pageblocks = || (0..pages / PAGEBLOCK_PAGES as usize).map(|_| AtomicBool::new(false)).collect();
        Self {
            window: Window::new(pages),
            content: (0..sections).map(|_| OnceLock::new()).collect(),
            direct: pageblocks(),
            prepared: (0..sections).map(|_| AtomicBool::new(false)).collect(),
            prepared_direct: pageblocks(),
            boot: pageblocks(),
            memmaps: Mutex::new((0..sections).map(|_| None).collect()),
            faults: [const { AtomicI64::new(-1) }; STEPS],
            lasting: [const { AtomicBool::new(false) }; STEPS],
            attempts: [const { AtomicU64::new(0) }; STEPS],
            probe: Mutex::new(None),
            zeros: content == MemoryContent::Zero,
            garbage: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            grace_periods: AtomicU64::new(0),
            steps: (0..cpus).map(|_| Steps::new()).collect(),
            settled: AtomicBool::new(false),
            unseen: (0..sections).map(|_| AtomicBool::new(false)).collect(),
            started: Instant::now(),
            mm: OnceLock::new(),
            page_tables,
            tables_in_use: Mutex::new(Vec::new()),
        }
    }

    /// Runs `body` as CPU `cpu`. No other thread may be that CPU meanwhile.
    pub fn run_on<R>(cpu: usize, body: impl FnOnce() -> R) -> R {
        let before = CPU.with(|own| own.replace(cpu));
        let result = body();
        CPU.with(|own| own.set(before));
        result
    }

    /// Runs `body` as one step of this CPU's job loop: [`Platform::synchronize`] on another CPU waits until
    /// it ends or waits in [`Platform::relax`].
    pub fn step<R>(&self, body: impl FnOnce() -> R) -> R {
        self.steps[self.this_cpu()].begin();
        let result = body();
        self.steps[self.this_cpu()].end();
        result
    }

    /// Writes the content of a page.
    pub fn write(&self, pfn: Pfn, word: u64) {
        self.word(pfn).store(word, SeqCst);
    }

    /// Reads the content of a page.
    pub fn read(&self, pfn: Pfn) -> u64 {
        self.word(pfn).load(SeqCst)
    }

    fn word(&self, pfn: Pfn) -> &AtomicU64 {
        self.assert_direct(pfn);
        &self.section_content(pfn.section())[pfn.in_section()]
    }

    fn section_content(&self, nr: SectionNr) -> &[AtomicU64] {
        let lost = || (0..SECTION_PAGES).map(|_| AtomicU64::new(LOST)).collect();
        self.content[nr.get() as usize].get_or_init(lost)
    }

    /// Makes the `after`-th (0 is the next) attempt of `step` fail, once.
    pub fn inject(&self, step: FaultStep, after: u32) {
        self.lasting[step as usize].store(false, SeqCst);
        self.faults[step as usize].store(after.into(), SeqCst);
    }

    /// Makes every attempt of `step` fail, or none any more.
    pub fn inject_always(&self, step: FaultStep, on: bool) {
        self.lasting[step as usize].store(on, SeqCst);
        self.faults[step as usize].store(if on { 0 } else { -1 }, SeqCst);
    }

    /// How often `step` was attempted.
    pub fn attempts(&self, step: FaultStep) -> u64 {
        self.attempts[step as usize].load(SeqCst)
    }

    /// Whether `pfn` is in the direct map.
    pub fn is_mapped(&self, pfn: Pfn) -> bool {
        self.direct[pfn.get() as usize / PAGEBLOCK_PAGES as usize].load(SeqCst)
    }

    /// The large page behind the memmap of `section`.
    pub fn memmap_of(&self, section: SectionNr) -> Option<Pfn> {
        self.memmaps.lock().expect("no panic holds it")[section.get() as usize].as_ref()?.large()
    }

    /// The raw words of the `Page` of `pfn`, whose memmap is mapped.
    pub fn struct_page(&self, pfn: Pfn) -> [u64; 8] {
        assert!(self.memmap_of(pfn.section()).is_some(), "{pfn:?} has no memmap");
        let words = &self.memmap_words(pfn.section())[pfn.in_section() * 8..][..8];
        core::array::from_fn(|index| words[index].load(core::sync::atomic::Ordering::Relaxed))
    }

    /// The raw state of the page `pfn`, whose memmap is mapped: one byte (see `page`), 0 when it was never written.
    pub fn page_state(&self, pfn: Pfn) -> u8 {
        assert!(self.memmap_of(pfn.section()).is_some(), "{pfn:?} has no memmap");
        self.window.state(pfn)
    }

    /// How often `mm` has waited for all other CPUs so far.
    pub fn grace_periods(&self) -> u64 {
        self.grace_periods.load(SeqCst)
    }

    /// Boot memory is prepared before `mm` exists.
    fn prepare_boot(&self, range: PfnRange) {
        let [first, last] = [range.start().get(), range.end().get() - 1];
        for pageblock in first / PAGEBLOCK_PAGES..=last / PAGEBLOCK_PAGES {
            self.prepared_direct[pageblock as usize].store(true, SeqCst);
            self.boot[pageblock as usize].store(true, SeqCst);
        }
        for section in first / SECTION_PAGES..=last / SECTION_PAGES {
            self.prepared[section as usize].store(true, SeqCst);
        }
    }

    fn assert_direct(&self, pfn: Pfn) {
        assert!(self.is_mapped(pfn), "page fault: {pfn:?} is not in the direct map");
    }

    fn blocks(&self, range: PfnRange) -> &[AtomicBool] {
        &self.direct[pageblocks_of(range)]
    }

    /// Notes that `range` is prepared, or is not any more. It was not before, or it was.
    fn set_prepared(&self, range: SectionRange, prepared: bool) {
        let sections = range.first().get() as usize..range.end().get() as usize;
        let pageblocks = &self.prepared_direct[pageblocks_of(range.frames())];
        for part in self.prepared[sections].iter().chain(pageblocks) {
            assert_ne!(part.swap(prepared, SeqCst), prepared, "whether {range:?} is prepared");
        }
    }

    /// A page-table page for new mappings.
    fn take_table(&self, mappings: Range<u64>) -> Result<(), NoPageTable> {
        if self.fault(FaultStep::PageTable) {
            return Err(NoPageTable);
        }
        let mm = self.mm();
        if !self.page_tables || mm.sparse.blocks_online() == 0 {
            return Ok(());
        }
        let page = mm.alloc_pages(Order::PAGE, Gfp::PageTable).map_err(|_| NoPageTable)?;
        self.write(page, u64::from(page.get()));
        let table = Table { page, mappings: mappings.collect() };
        self.tables_in_use.lock().expect("no panic holds it").push(table);
        Ok(())
    }

    /// Gives back the page-table pages that only `mappings` needed, which are gone.
    fn give_tables_back(&self, mappings: &Range<u64>) {
        let mut unused = Vec::new();
        self.tables_in_use.lock().expect("no panic holds it").retain_mut(|table| {
            table.mappings.retain(|mapping| !mappings.contains(mapping));
            if table.mappings.is_empty() {
                unused.push(table.page);
            }
            !table.mappings.is_empty()
        });
        for page in unused {
            assert_eq!(self.read(page), u64::from(page.get()), "content of a page table");
            self.mm().free_pages(page, Order::PAGE);
        }
    }

    fn mm(&self) -> &'static Mm<Self> {
        self.mm.get().expect("`SimMachine::build` set it")
    }

    /// A section whose memmap is not mapped must be Absent, or a look-up of its pages would not be sound.
    fn assert_absent(&self, section: SectionNr) {
        let state = self.mm().section_state(section);
        assert_eq!(state, SectionState::Absent, "{section:?} without a memmap");
    }

    /// Memory that is mapped or unmapped is in use by no CPU: its section is Absent, or it is an unplugged
    /// pageblock of an online memory block.
    fn assert_unused(&self, range: PfnRange) {
        let nr = range.start().section();
        let last = Pfn::new(range.end().get() - 1).section();
        if (nr.get()..=last.get())
            .all(|nr| self.mm().section_state(SectionNr::new(nr)) == SectionState::Absent)
        {
            return;
        }
        let pages =
            self.mm().sparse.online_pages(nr).expect("memory changes while its section is Absent or Online");
        for first in range.frames().step_by(PAGEBLOCK_PAGES as usize) {
            let plugged = pages.section().plugged().contains(first.pageblock());
            let state = pages.page(first).state();
            let is_offline = state.is(Kind::Offline, Order::PAGEBLOCK);
            assert!(!plugged && is_offline, "{first:?} changes while it is {state:?}, plugged: {plugged}");
        }
    }

    /// Maps the memmap of `section` onto `frames`.
    fn map_frames(&self, section: SectionNr, frames: Vec<Pfn>) {
        self.assert_absent(section);
        let mapped = Mapped { frames };
        let is_boot = |pfn: Pfn| self.boot[pfn.get() as usize / PAGEBLOCK_PAGES as usize].load(SeqCst);
        mapped.backing().filter(|&pfn| !is_boot(pfn)).for_each(|pfn| self.assert_direct(pfn));
        self.unseen[section.get() as usize].store(false, SeqCst);
        // Whether nothing was written there since the host provided it.
        let word = |pfn: Pfn| &self.section_content(pfn.section())[pfn.in_section()];
        let fresh = mapped.backing().all(|pfn| word(pfn).load(SeqCst) == LOST);
        let mut memmaps = self.memmaps.lock().expect("no panic holds it");
        assert!(memmaps[section.get() as usize].is_none(), "{section:?} has a memmap");
        for &first in &mapped.frames {
            let twice = memmaps.iter().flatten().any(|other| other.frames.contains(&first));
            assert!(!twice, "{first:?} backs two memmaps");
        }
        memmaps[section.get() as usize] = Some(mapped);
        if self.zeros && fresh { self.clear(section) } else { self.scribble(section) }
    }

    fn unmap_frames(&self, section: SectionNr) -> Vec<Pfn> {
        assert!(self.settled.load(SeqCst), "{section:?}: no grace period");
        let unseen = self.unseen[section.get() as usize].load(SeqCst);
        assert!(unseen, "{section:?} was not Absent when the grace period began");
        self.assert_absent(section);
        let mut memmaps = self.memmaps.lock().expect("no panic holds it");
        let mapped = memmaps[section.get() as usize].take().expect("unmaps a memmap that is mapped");
        mapped.backing().for_each(|pfn| self.write(pfn, 0));
        self.scribble(section);
        drop(memmaps);
        self.give_tables_back(&self::memmaps(section, 1));
        mapped.frames
    }

    /// Pages of `section` whose states were written.
    pub fn written_pages(&self, section: SectionNr) -> usize {
        section.frames().frames().filter(|&pfn| self.window.state(pfn) != 0).count()
    }

    fn clear(&self, section: SectionNr) {
        for (first, pageblock) in self.pageblock_words(section) {
            // Most of a memmap was never written.
            if Seen::now(first, ZERO).is_known() {
                continue;
            }
            // Memory that was never written must not be taken from the host.
            for word in pageblock.iter().filter(|word| word.load(core::sync::atomic::Ordering::Relaxed) != 0)
            {
                word.store(0, core::sync::atomic::Ordering::Relaxed);
            }
            written::made(first);
            Seen::now(first, ZERO).note();
        }
    }

    /// Fills the memmap of `section` with garbage. Machines by the thousand have it only in the struct pages with states.
    fn scribble(&self, section: SectionNr) {
        let mut word = self.garbage.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        for (nr, (first, pageblock)) in self.pageblock_words(section).enumerate() {
            // Most of a memmap is still full of garbage when it is mapped again.
            if Seen::now(first, GARBAGE).is_known() {
                continue;
            }
            let words = size_of::<Page>() / 8;
            let states = part_of(nr * PAGEBLOCK_PAGES as usize) % PAGEBLOCK_PAGES as usize * words;
            let few = cfg!(feature = "shuttle").then_some(states..states + PARTS * words);
            for at in few.map_or(pageblock, |few| &pageblock[few]) {
                word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
                // Each byte may be a state, and kind 10 is none.
                let garbage = (word ^ word >> 32) & !0x0f0f_0f0f_0f0f_0f0f | 0x0a0a_0a0a_0a0a_0a0a;
                at.store(garbage, core::sync::atomic::Ordering::Relaxed);
            }
            written::made(first);
            Seen::now(first, GARBAGE).note();
        }
    }

    /// The first struct page of each pageblock of `section`, and the words of its struct pages.
    fn pageblock_words(&self, section: SectionNr) -> impl Iterator<Item = (&Page, &[AtomicU64])> {
        let words = PAGEBLOCK_PAGES as usize * size_of::<Page>() / 8;
        let first = section.start().get() as usize;
        let pages = (first..).step_by(PAGEBLOCK_PAGES as usize).map(|page| self.window.page(page));
        self.memmap_words(section).chunks_exact(words).zip(pages).map(|(words, first)| (first, words))
    }

    fn memmap_words(&self, section: SectionNr) -> &[AtomicU64] {
        let first = section.start().get() as usize;
        let words = SECTION_PAGES as usize * size_of::<Page>() / 8;
        // SAFETY: the section is in the window (its entry in `memmaps` was found), `Page` is made
        // of atomics and any bits are valid in them, and eight `AtomicU64` lie in one `Page`.
        unsafe { core::slice::from_raw_parts(self.window.pages().add(first).cast().as_ptr(), words) }
    }
}

// SAFETY: `map_memmap` makes nothing readable that is not, because the window is one allocation
// that is always mapped; results and mappings agree. `this_cpu` is a thread's own.
// `synchronize` waits for steps only: nothing is ever unmapped, and a look that comes too late finds garbage. The use of
// per-CPU lists is a step.
unsafe impl Platform for Sim {
    const MIGRATES: bool = true;

    fn this_cpu(&self) -> usize {
        CPU.with(Cell::get)
    }

    fn get_cpu(&self) -> usize {
        let cpu = self.this_cpu();
        self.steps[cpu].begin();
        cpu
    }

    fn put_cpu(&self) {
        self.steps[self.this_cpu()].end();
    }

    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        self.tell(PlatformCall::CopyPages(pages.len()));
        for &(to, from) in pages {
            self.write(to, self.read(from));
        }
    }

    fn map_memmap(&self, section: SectionNr, backing: Pfn) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::MapMemmap(section));
        assert!(backing.is_aligned(Order::PAGEBLOCK), "2 MiB page at {backing:?}");
        self.take_table(memmaps(section, 1))?;
        self.settled.store(false, SeqCst);
        self.map_frames(section, std::vec![backing]);
        Ok(())
    }

    fn map_prepared_memmap(&self, section: SectionNr, backing: Pfn) {
        assert!(backing.is_aligned(Order::PAGEBLOCK), "2 MiB page at {backing:?}");
        assert!(self.prepared[section.get() as usize].swap(false, SeqCst), "{section:?} is not prepared");
        self.map_frames(section, std::vec![backing]);
    }

    fn unmap_memmap(&self, section: SectionNr) {
        self.tell(PlatformCall::UnmapMemmap(section));
        assert_eq!(self.unmap_frames(section).len(), 1, "{section:?} is not mapped by a large page");
    }

    fn map_memmap_base(&self, section: SectionNr, frames: &MemmapFrames) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::MapMemmap(section));
        self.take_table(memmaps(section, 1))?;
        self.settled.store(false, SeqCst);
        self.map_frames(section, frames.to_vec());
        Ok(())
    }

    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames {
        self.tell(PlatformCall::UnmapMemmap(section));
        self.unmap_frames(section).try_into().expect("it is mapped by small pages")
    }

    fn map_direct(&self, range: PfnRange) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::MapDirect(range));
        self.assert_unused(range);
        self.settled.store(false, SeqCst);
        self.take_table(direct_map(range))?;
        for (index, block) in self.blocks(range).iter().enumerate() {
            assert!(!block.swap(true, SeqCst), "block {index} of {range:?} is mapped");
        }
        Ok(())
    }

    fn prepare(&self, range: SectionRange) -> Result<(), NoPageTable> {
        self.tell(PlatformCall::Prepare(range));
        let (first, count, direct) = (range.first(), range.len(), direct_map(range.frames()));
        self.take_table(direct.clone())?;
        if self.take_table(memmaps(first, count)).is_err() {
            self.give_tables_back(&direct);
            return Err(NoPageTable);
        }
        self.set_prepared(range, true);
        Ok(())
    }

    fn map_prepared_direct(&self, range: PfnRange) {
        for pageblock in &self.prepared_direct[pageblocks_of(range)] {
            assert!(pageblock.swap(false, SeqCst), "a pageblock of {range:?} is not prepared");
        }
        self.assert_unused(range);
        for (index, block) in self.blocks(range).iter().enumerate() {
            assert!(!block.swap(true, SeqCst), "block {index} of {range:?} is mapped");
        }
    }

    fn release(&self, range: SectionRange) {
        self.tell(PlatformCall::Release(range));
        self.set_prepared(range, false);
        self.give_tables_back(&direct_map(range.frames()));
        self.give_tables_back(&memmaps(range.first(), range.len()));
    }

    fn unmap_direct(&self, range: PfnRange) {
        self.tell(PlatformCall::UnmapDirect(range));
        self.assert_unused(range);
        self.settled.store(false, SeqCst);
        let memmaps = self.memmaps.lock().expect("no panic holds it");
        let holds =
            memmaps.iter().flatten().flat_map(|mapped| &mapped.frames).any(|&pfn| range.contains(pfn));
        assert!(!holds, "{range:?} holds a memmap");
        for (index, block) in self.blocks(range).iter().enumerate() {
            assert!(block.swap(false, SeqCst), "block {index} of {range:?} is not mapped");
        }
        let content = self.section_content(range.start().section());
        for word in &content[range.start().in_section()..][..range.pages() as usize] {
            // Most pages were never written. A store by SeqCst costs far more than a load.
            if word.load(SeqCst) != LOST {
                word.store(LOST, SeqCst);
            }
        }
        drop(memmaps);
        self.give_tables_back(&direct_map(range));
    }

    fn synchronize(&self) {
        self.tell(PlatformCall::Synchronize);
        for (unseen, nr) in self.unseen.iter().zip((0..).map(SectionNr::new)) {
            unseen.store(self.mm().section_state(nr) == SectionState::Absent, SeqCst);
        }
        self.grace_periods.fetch_add(1, SeqCst);
        // What the caller has published is seen before the steps are looked at.
        fence(SeqCst);
        let own = self.steps[self.this_cpu()].thread.load(SeqCst);
        assert!(own == 0 || own == Steps::this_thread(), "two threads are one CPU");
        let others = self.steps.iter().enumerate().filter(|&(cpu, _)| cpu != self.this_cpu());
        for (_, steps) in others {
            let seen = steps.count.load(SeqCst);
            while seen % 2 == 1 && steps.count.load(SeqCst) == seen {
                yield_now();
            }
        }
        self.settled.store(true, SeqCst);
        // Time for the other CPUs to come in between.
        #[cfg(not(any(feature = "shuttle", feature = "loom")))]
        if self.mm().cpus().len() > 1 {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    fn relax(&self) {
        let own = &self.steps[self.this_cpu()].count;
        if own.load(SeqCst) % 2 == 1 {
            own.fetch_add(2, SeqCst);
        }
        yield_now();
    }

    fn drained(&self) {}

    fn clock(&self) -> u64 {
        self.tell(PlatformCall::Clock);
        self.started.elapsed().as_nanos() as u64
    }

    fn fault(&self, step: FaultStep) -> bool {
        self.tell(PlatformCall::Fault(step));
        let step = step as usize;
        self.attempts[step].fetch_add(1, SeqCst);
        if self.lasting[step].load(SeqCst) {
            return true;
        }
        // Counts down to -1 and stays there.
        self.faults[step].fetch_update(SeqCst, SeqCst, |left| (left >= 0).then(|| left - 1)) == Ok(0)
    }
}

/// Address of frame `pfn`, for memory maps in tests.
pub fn address(pfn: u32) -> PhysAddr {
    Pfn::new(pfn).address()
}
