//! Workload pages in memory of the page allocator: how a hog takes them, and how they are given back.
//!
//! A hog takes single pages, one contiguous range, or runs of pages spread over all free memory. Pages that
//! lie side by side are freed together.

use alloc::sync::Arc;

use tidevm_abi::HogKind;
use tidevm_mm::{Gfp, MAX_OWNERS, Order, OwnerId, PAGEBLOCK_PAGES, Pfn, PfnRange, ZoneStats, ZoneType};

use crate::agent::pattern::PagePattern;
use crate::agent::walk::{PageSet, Taken};
use crate::agent::workload::{Hold, Workload};
use crate::mem::{MM, lending};

/// Pages that stay together when a hog is scattered.
const RUN: Order = Order::new(4);

const NO_PAGES: PfnRange = PfnRange::new(Pfn::new(0), 0);

/// The pages of a [`Workload`].
pub struct SystemPages {
    workload: Arc<Workload>,
    /// Pages taken so far, which is the next empty slot.
    taken: u32,
    /// Order of the buddy blocks whose first [`RUN`] is kept and whose rest is freed; `None` keeps all pages.
    scatter: Option<Order>,
    /// For [`HogKind::Contiguous`]: pages that are allocated and not in a slot yet.
    buffer: PfnRange,
    /// Pages that were released and are not freed yet: they lie side by side.
    released: PfnRange,
}

impl SystemPages {
    /// The pages of `workload`, to be verified or released.
    pub fn of(workload: Arc<Workload>) -> Self {
        Self { workload, taken: 0, scatter: None, buffer: NO_PAGES, released: NO_PAGES }
    }

    /// The pages of the empty `workload`, to be taken: `wanted` of them, spread over all free memory if they
    /// are `scattered`.
    pub fn to_take(workload: Arc<Workload>, wanted: u32, scattered: bool) -> Self {
        let scatter = if scattered { scatter_order(workload.kind(), wanted) } else { None };
        Self { scatter, ..Self::of(workload) }
    }

    /// Allocates one page; `None` when there is no memory for it.
    fn alloc(&mut self, wanted: u64) -> Option<Pfn> {
        if self.workload.kind() != HogKind::Contiguous {
            return MM.alloc_pages(Order::PAGE, gfp(self.workload.kind())).ok();
        }
        if self.taken == 0 {
            let wanted = u32::try_from(wanted).ok()?;
            let range = MM.alloc_contig_pages(wanted.div_ceil(PAGEBLOCK_PAGES)).ok()?;
            self.buffer = PfnRange::new(range.start(), wanted);
            MM.free_contig_range(range.from(self.buffer.end()));
        }
        let first = self.buffer.start();
        self.buffer = self.buffer.from(first.add(1));
        Some(first)
    }

    /// Allocates a buddy block of order `block`, keeps its first run and frees the rest. `false` when there
    /// is no such buddy block.
    fn take_run(&mut self, block: Order) -> bool {
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
        self.workload.put(self.taken, pfn);
        self.taken += 1;
    }
}

impl PageSet for SystemPages {
    fn take_some(&mut self, wanted: u64) -> Taken {
        if let Some(block) = self.scatter {
            if wanted >= u64::from(RUN.pages()) && self.take_run(block) {
                return Taken::Pages(RUN.pages());
            }
            // Take single pages from now on: fewer than a run are wanted, or there is no whole buddy block left.
            self.scatter = None;
        }
        // Memory may come back while there was none, or be lent: only if neither is so, there is no more.
        let was_lent = lending::is_lent();
        match self.alloc(wanted) {
            Some(pfn) => {
                self.put(pfn);
                Taken::Pages(1)
            }
            None if was_lent || lending::is_lent() => Taken::Lent,
            None => Taken::NoMore,
        }
    }

    /// Memory of a device serves requests for single movable pages.
    fn may_come_later(&self) -> bool {
        matches!(self.workload.kind(), HogKind::Movable | HogKind::Pinned)
    }

    fn begin_change(&self) -> bool {
        self.workload.begin_change()
    }

    fn end_change(&self) {
        self.workload.end_change();
    }

    fn places(&self) -> u32 {
        self.workload.capacity()
    }

    fn hold(&self, place: u32) -> Hold {
        self.workload.hold(place)
    }

    fn pattern(&self, place: u32) -> PagePattern {
        self.workload.pattern(place)
    }

    fn corrupt_owner(&self, pfn: Pfn) -> bool {
        const UNREGISTERED: OwnerId = OwnerId((MAX_OWNERS - 1) as u8);
        MM.set_owner(pfn, UNREGISTERED, 0);
        true
    }

    fn let_go(&self, place: u32, pfn: Pfn) {
        self.workload.let_go(place, pfn);
    }

    fn release(&mut self, place: u32, pfn: Pfn) {
        self.workload.give_up(place);
        let run = &mut self.released;
        // Per-CPU lists hand pages out downwards.
        if pfn == run.end() || pfn.add(1) == run.start() {
            *run = run.hull(PfnRange::new(pfn, 1));
        } else {
            MM.free_contig_range(*run);
            *run = PfnRange::new(pfn, 1);
        }
    }

    fn end_step(&mut self) {
        MM.free_contig_range(core::mem::replace(&mut self.released, NO_PAGES));
    }

    fn forget(&self) {
        self.workload.unregister();
    }
}

fn gfp(kind: HogKind) -> Gfp {
    match kind {
        HogKind::Movable | HogKind::Pinned | HogKind::Contiguous => Gfp::Movable,
        HogKind::Unmovable => Gfp::Kernel,
    }
}

/// The order of the buddy blocks that a scattered hog takes one run from. With it, `wanted` pages spread once
/// over the memory that is free for them. `None` when two runs would have no free memory between them.
///
/// The order is rounded so that the runs reach the end of memory: the few pages that remain then fill holes.
fn scatter_order(kind: HogKind, wanted: u32) -> Option<Order> {
    let stats = MM.stats();
    let movable = stats.zones[ZoneType::Movable as usize].all_free();
    let all: u64 = stats.zones.iter().map(ZoneStats::all_free).sum();
    let free = match kind {
        HogKind::Unmovable => all - movable,
        _ if movable >= u64::from(wanted) => movable,
        _ => all,
    };
    let runs = (wanted / RUN.pages()).max(1);
    let pages_per_run = u32::try_from(free / u64::from(runs) * 4 / 3).unwrap_or(u32::MAX);
    let order = (31 - pages_per_run.max(1).leading_zeros()).min(u32::from(Order::MAX.get()));
    let order = Order::new(order as u8);
    (order > RUN).then_some(order)
}
