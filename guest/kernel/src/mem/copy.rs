//! Copies pages on all CPUs. A CPU posts a batch; every CPU that comes round its job loop takes pages from
//! it, and the CPU that posted it takes pages until none is left. So a busy CPU delays no other, and an idle
//! one saves time.
//!
//! Takes the place of Linux's `folio_copy` in migration, which runs on one CPU.
//!
//! Invariant: `TURN` holds the batch's length and the next page to take, in one word. So a CPU that has taken
//! a turn reads the pages of the same batch afterwards, and each page is taken once.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::Mutex;
use tidevm_mm::Pfn;

use crate::cpu::window::Window;
use crate::cpu::{self, lapic, wait};
use crate::job::{self, Job, Progress};
use crate::mem::paging;

/// Most pages per batch.
const BATCH: usize = 64;
/// A copy takes a fraction of a millisecond, but a host may let the CPU wait.
const MILLIS: u64 = 60_000;

/// `(to, from)` of each page of the batch, as frame numbers.
static PAGES: [(AtomicU32, AtomicU32); BATCH] = [const { (AtomicU32::new(0), AtomicU32::new(0)) }; BATCH];
/// Length of the batch in the upper half, next page in the lower.
static TURN: AtomicU64 = AtomicU64::new(0);
/// Number of pages of the batch that are copied.
static COPIED: AtomicU32 = AtomicU32::new(0);
/// Held while a batch is under way.
static POSTING: Mutex<()> = Mutex::new(());

/// Copies every page `from` to its `to`; returns when all are copied.
pub fn copy_pages(pages: &[(Pfn, Pfn)]) {
    if cpu::online() == 1 {
        return pages.iter().for_each(|&(to, from)| copy(to.get(), from.get()));
    }
    let _posting = POSTING.lock();
    for batch in pages.chunks(BATCH) {
        for ((to, from), place) in batch.iter().zip(&PAGES) {
            place.0.store(to.get(), Ordering::Relaxed);
            place.1.store(from.get(), Ordering::Relaxed);
        }
        COPIED.store(0, Ordering::Relaxed);
        TURN.store((batch.len() as u64) << 32, Ordering::Release);
        let me = cpu::this();
        (0..cpu::online()).filter(|&index| index != me).for_each(lapic::wake);
        Window::Posted.come();
        while take_turn() {}
        // Every other CPU may still be copying its last page.
        wait::until(MILLIS, format_args!("a page was not copied"), || {
            COPIED.load(Ordering::Acquire) == batch.len() as u32
        });
    }
}

/// Copies one page of the batch; `false` when none is left.
fn take_turn() -> bool {
    let turn = TURN.fetch_update(Ordering::Acquire, Ordering::Relaxed, |turn| {
        ((turn as u32) < (turn >> 32) as u32).then_some(turn + 1)
    });
    let Ok(turn) = turn else { return false };
    let (to, from) = &PAGES[turn as u32 as usize];
    copy(to.load(Ordering::Relaxed), from.load(Ordering::Relaxed));
    COPIED.fetch_add(1, Ordering::Release);
    true
}

fn copy(to: u32, from: u32) {
    Window::Copying.come();
    paging::copy_page(Pfn::new(to).address().get(), Pfn::new(from).address().get());
}

/// The job, one per CPU, that takes part in other CPUs' batches.
struct CopyJob;

impl Job for CopyJob {
    fn step(&mut self) -> Progress {
        if take_turn() { Progress::Again } else { Progress::Idle(None) }
    }
}

/// Makes every CPU take part from now on.
pub fn start() {
    (0..cpu::online()).for_each(|index| job::spawn(index, Box::new(CopyJob)));
}
