//! The simulated machine itself: its memory, what is mapped, and what a test may change and see of it.
//!
//! Invariant: the window lives as long as the machine. The machine lives as long as the process, or as a
//! [`Machine`](super::Machine).

mod calls;
mod memmap;
mod steps;
mod tables;
mod watch;
pub(crate) mod window;

use core::array;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use tidevm_mm::hosted::with_cpu;
use tidevm_mm::{
    FaultStep, MemoryContent, Mm, Order, PAGEBLOCK_PAGES, Pfn, PfnRange, Platform, SECTION_PAGES, SectionNr,
    SectionRange, SectionState,
};

use self::memmap::Mapped;
use self::steps::Steps;
use self::tables::Table;
use self::watch::CallObserver;
pub use self::watch::PlatformCall;
use self::window::Window;

/// The content of a page after it was unmapped.
const LOST: u64 = 0xdead_dead_dead_dead;
const STEPS: usize = FaultStep::ALL.len();

/// The indices of the pageblocks that `range` is made of.
fn pageblocks_of(range: PfnRange) -> Range<usize> {
    assert!(range.start().is_aligned(Order::PAGEBLOCK) && range.end().is_aligned(Order::PAGEBLOCK));
    assert!(!range.is_empty(), "maps nothing at {:?}", range.start());
    let [first, end] = [range.start(), range.end()].map(|pfn| (pfn.get() / PAGEBLOCK_PAGES) as usize);
    first..end
}

/// A machine on which nothing is mapped at first.
pub struct Sim {
    /// CPUs that may run.
    cpus: usize,
    pub(crate) window: Window,
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
    pub(crate) mm: OnceLock<&'static Mm<Sim>>,
    /// Whether page-table pages come from it, and those in use.
    page_tables: bool,
    tables_in_use: Mutex<Vec<Table>>,
    started: Instant,
}

impl Sim {
    /// A machine of `sections` sections. `cpus`, `content` and `page_tables` are those of a
    /// [`SimMachine`](super::SimMachine).
    pub(crate) fn new(sections: u32, cpus: usize, content: MemoryContent, page_tables: bool) -> Self {
        let pages = sections as usize * SECTION_PAGES as usize;
        let pageblocks = || (0..pages / PAGEBLOCK_PAGES as usize).map(|_| AtomicBool::new(false)).collect();
        Self {
            cpus,
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
        let before = with_cpu(|own| own.replace(cpu));
        let result = body();
        with_cpu(|own| own.set(before));
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
        let words = &self.window.words(pfn.section())[pfn.in_section() * 8..][..8];
        array::from_fn(|index| words[index].load(Relaxed))
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
    pub(crate) fn prepare_boot(&self, range: PfnRange) {
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

    /// The memory management that runs on this machine.
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
        let first_pages = range.frames().step_by(PAGEBLOCK_PAGES as usize);
        first_pages.for_each(|first| self.mm().assert_unplugged(first));
    }
}
