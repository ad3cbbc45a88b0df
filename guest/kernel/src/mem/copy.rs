//! Copies pages on all CPUs. A CPU posts a batch; every CPU that comes round its job loop takes pages from
//! it, and the CPU that posted it takes pages until none is left. So a busy CPU delays no other, and an idle
//! one saves time.
//!
//! Takes the place of Linux's `folio_copy` in migration, which runs on one CPU.
//!
//! Invariant: one CPU posts at a time. What follows from that for the pages is said at [`CopyBatch`].

use alloc::boxed::Box;

use spin::Mutex;
use tidevm_mm::{CopyBatch, Pfn};

use crate::cpu::window::Window;
use crate::cpu::{self, lapic, wait};
use crate::job::{self, Job, Progress};
use crate::mem::paging;

/// A copy takes a fraction of a millisecond, but a host may let the CPU wait.
const MILLIS: u64 = 60_000;

static BATCH: CopyBatch = CopyBatch::new();
/// Held while a batch is under way.
static POSTING: Mutex<()> = Mutex::new(());

/// Copies every page `from` to its `to`; returns when all are copied.
pub fn copy_pages(pages: &[(Pfn, Pfn)]) {
    if cpu::online() == 1 {
        return pages.iter().for_each(|&(to, from)| copy(to, from));
    }
    let _posting = POSTING.lock();
    for batch in pages.chunks(CopyBatch::MOST) {
        BATCH.post(batch);
        let me = cpu::this();
        (0..cpu::online()).filter(|&index| index != me).for_each(lapic::wake);
        Window::Posted.come();
        while BATCH.copy_next(copy) {}
        // Every other CPU may still be copying its last page.
        wait::until(MILLIS, format_args!("a page was not copied"), || BATCH.is_copied());
    }
}

fn copy(to: Pfn, from: Pfn) {
    Window::Copying.come();
    paging::copy_page(to.address().get(), from.address().get());
}

/// The job, one per CPU, that takes part in other CPUs' batches.
struct CopyJob;

impl Job for CopyJob {
    fn step(&mut self) -> Progress {
        if BATCH.copy_next(copy) { Progress::Again } else { Progress::Idle(None) }
    }
}

/// Makes every CPU take part from now on.
pub fn start() {
    (0..cpu::online()).for_each(|index| job::spawn(index, Box::new(CopyJob)));
}
