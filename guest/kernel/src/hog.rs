//! Jobs on one workload's pages: allocate and fill, check, free. Each step handles a few pages, so
//! that the CPU's other jobs go on.

use alloc::boxed::Box;
use alloc::sync::Arc;

use tidevm_abi::{Answer, HogKind};
use tidevm_mm::{Gfp, Order, PAGEBLOCK_PAGES, Pfn, PfnRange, ZoneStats, ZoneType};

use crate::MM;
use crate::agent::Asker;
use crate::job::{Job, Step};
use crate::workload::{Take, Workload};

/// Pages of one step.
const BATCH: u32 = 64;
/// Pages that stay together when a hog is scattered.
const RUN: Order = Order::new(4);

/// Allocates and fills `wanted` pages.
pub struct Hog {
    asker: Asker,
    workload: Arc<Workload>,
    wanted: u32,
    held: u32,
    /// Order of the blocks of which only the first [`RUN`] is kept; `None` keeps all.
    scatter: Option<Order>,
    /// Of [`HogKind::Contiguous`]: pages that are allocated and not filled yet.
    buffer: PfnRange,
}

impl Hog {
    /// A job that answers `asker`.
    pub fn new(asker: Asker, workload: Arc<Workload>, wanted: u32, scattered: bool) -> Box<Self> {
        let scatter = if scattered { scatter_order(workload.kind(), wanted) } else { None };
        let buffer = PfnRange::new(Pfn::new(0), 0);
        Box::new(Self { asker, workload, wanted, held: 0, scatter, buffer })
    }

    /// One more page; `None` when there is no memory for it.
    fn take(&mut self) -> Option<Pfn> {
        if self.workload.kind() != HogKind::Contiguous {
            return MM.alloc_pages(Order::PAGE, gfp(self.workload.kind())).ok();
        }
        if self.held == 0 {
            let blocks = MM.alloc_contig_pages(self.wanted.div_ceil(PAGEBLOCK_PAGES)).ok()?;
            self.buffer = PfnRange::new(blocks.start(), self.wanted);
            MM.free_contig_range(blocks.from(self.buffer.end()));
        }
        let first = self.buffer.start();
        self.buffer = self.buffer.from(first.add(1));
        Some(first)
    }

    /// Takes one block, keeps its first run and frees the rest. `false` when there is no block.
    fn take_scattered(&mut self, block: Order) -> bool {
        let Ok(first) = MM.alloc_pages(block, gfp(self.workload.kind())) else { return false };
        let mut order = block;
        while order > RUN {
            let half = Order::new(order.get() - 1);
            MM.split_page_to(first, order, half);
            MM.free_pages(first.add(half.pages()), half);
            order = half;
        }
        MM.split_page(first, RUN);
        for index in 0..RUN.pages() {
            self.put(first.add(index));
        }
        true
    }

    fn put(&mut self, pfn: Pfn) {
        self.workload.put(self.held, pfn);
        self.held += 1;
    }

    fn end(&self) -> Step {
        self.asker.answer(Answer::Hogged { pages: u64::from(self.held) });
        Step::Done
    }
}

impl Job for Hog {
    fn step(&mut self) -> Step {
        for _ in 0..BATCH {
            if self.held == self.wanted {
                return self.end();
            }
            if let Some(block) = self.scatter {
                if self.wanted - self.held >= RUN.pages() && self.take_scattered(block) {
                    return Step::Again;
                }
                // The last few pages, and what no whole block is left for, come as they come.
                self.scatter = None;
            }
            match self.take() {
                Some(pfn) => self.put(pfn),
                None => return self.end(),
            }
        }
        Step::Again
    }
}

fn gfp(kind: HogKind) -> Gfp {
    match kind {
        HogKind::Movable | HogKind::Pinned | HogKind::Contiguous => Gfp::Movable,
        HogKind::Unmovable => Gfp::Kernel,
    }
}

/// The block of which `wanted` pages, a run a block, go once through the memory that is free for
/// them; `None` when there would be nothing left between two runs. Rather a little too large, so
/// that they get to the end of memory: the few pages over then fill holes.
fn scatter_order(kind: HogKind, wanted: u32) -> Option<Order> {
    let stats = MM.stats();
    let movable = stats.zones[ZoneType::Movable as usize].free;
    let all: u64 = stats.zones.iter().map(ZoneStats::all_free).sum();
    let free = match kind {
        HogKind::Unmovable => all - movable,
        _ if movable >= u64::from(wanted) => movable,
        _ => all,
    };
    let blocks = (wanted / RUN.pages()).max(1);
    let share = u32::try_from(free / u64::from(blocks) * 4 / 3).unwrap_or(u32::MAX);
    let order = Order::new((31 - share.max(1).leading_zeros()).min(u32::from(Order::MAX.get())) as u8);
    (order > RUN).then_some(order)
}

/// What [`EachPage`] does with a page.
enum Task {
    Verify {
        corrupt: u64,
        first_corrupt: Option<Pfn>,
    },
    /// Pages that lie side by side are freed together; these are still to be freed.
    Release {
        run: PfnRange,
    },
}

/// Goes through a workload's pages once.
pub struct EachPage {
    asker: Asker,
    workload: Arc<Workload>,
    next: u32,
    pages: u64,
    task: Task,
}

impl EachPage {
    /// Checks every page's content.
    pub fn verify(asker: Asker, workload: Arc<Workload>) -> Box<Self> {
        let task = Task::Verify { corrupt: 0, first_corrupt: None };
        Box::new(Self { asker, workload, next: 0, pages: 0, task })
    }

    /// Frees every page, and forgets the workload.
    pub fn release(asker: Asker, workload: Arc<Workload>) -> Box<Self> {
        let task = Task::Release { run: PfnRange::new(Pfn::new(0), 0) };
        Box::new(Self { asker, workload, next: 0, pages: 0, task })
    }

    fn visit(&mut self, index: u32, pfn: Pfn) {
        self.pages += 1;
        match &mut self.task {
            Task::Verify { corrupt, first_corrupt } => {
                if !self.workload.content(index).matches(pfn) {
                    *corrupt += 1;
                    first_corrupt.get_or_insert(pfn);
                }
                self.workload.let_go(index, pfn);
            }
            Task::Release { run } => {
                self.workload.give_up(index);
                // Per-CPU lists hand pages out downwards.
                if pfn == run.end() || pfn.add(1) == run.start() {
                    *run = run.hull(PfnRange::new(pfn, 1));
                } else {
                    MM.free_contig_range(*run);
                    *run = PfnRange::new(pfn, 1);
                }
            }
        }
    }

    /// Visits up to [`BATCH`] pages.
    fn visit_some(&mut self) -> Step {
        for _ in 0..BATCH {
            if self.next == self.workload.capacity() {
                return Step::Done;
            }
            match self.workload.take(self.next) {
                Take::Held(pfn) => self.visit(self.next, pfn),
                Take::Empty => {}
                // It is being moved just now, by the other CPU or between two of its steps.
                Take::Busy => return Step::Again,
            }
            self.next += 1;
        }
        Step::Again
    }

    fn answer(&self) -> Answer {
        let pages = self.pages;
        match self.task {
            Task::Verify { corrupt, first_corrupt } => Answer::Verified {
                pages,
                corrupt,
                first_corrupt: first_corrupt.map(|pfn| u64::from(pfn.get())),
            },
            Task::Release { .. } => {
                self.workload.unregister();
                Answer::Released { pages }
            }
        }
    }
}

impl Job for EachPage {
    fn step(&mut self) -> Step {
        let step = self.visit_some();
        if let Task::Release { run } = &mut self.task {
            // No page is held from one step to the next.
            MM.free_contig_range(*run);
            *run = PfnRange::new(Pfn::new(0), 0);
        }
        if step == Step::Done {
            self.asker.answer(self.answer());
        }
        step
    }
}
