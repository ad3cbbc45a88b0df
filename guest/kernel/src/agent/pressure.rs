//! Short memory: the VMM is told of it, and workloads wait for more.
//!
//! Takes the place of Linux's pressure stall information and of its allocator's slow path, which waits for reclaim. Differs on
//! purpose: there is no reclaim here, so an allocation waits for memory that the VMM plugs. The VMM sets the levels that are
//! told ([`Watch`]), and each level is told once, so a guest whose memory stays between them sends nothing.
//!
//! Jobs that take pages look at the levels after each step, and the control channel in each of its passes. Other allocations
//! of the kernel are small.
//!
//! Invariants: no allocation counts or looks here while it finds memory. An allocation waits at most as
//! long as the VMM said, and not at all when the VMM said nothing.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use tidevm_abi::{Pressure, Report, Size, Watch};
use tidevm_mm::PAGE_SIZE;

use crate::cpu::time::Instant;
use crate::cpu::{self, lapic};
use crate::mailbox;
use crate::mem::MM;

/// Pages below which memory is told, and from which on it is told that there is more.
static BELOW: AtomicU64 = AtomicU64::new(0);
static ABOVE: AtomicU64 = AtomicU64::new(0);
/// [`tidevm_mm::Mm::alloc_failed_movable`] when the watch was set.
static FAILED: AtomicU64 = AtomicU64::new(0);
/// Whether a level is still to be told.
static BELOW_ARMED: AtomicBool = AtomicBool::new(false);
static ABOVE_ARMED: AtomicBool = AtomicBool::new(false);

/// See [`Watch::patience_millis`] and [`Watch::most`]; the latter in pages.
static PATIENCE_MILLIS: AtomicU32 = AtomicU32::new(0);
static MOST: AtomicU64 = AtomicU64::new(0);

/// How often memory has come: a waiting workload tries again after each time.
static ARRIVALS: AtomicU64 = AtomicU64::new(0);
static WAITING: AtomicU32 = AtomicU32::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);
static GAVE_UP: AtomicU64 = AtomicU64::new(0);
static LONGEST_MICROS: AtomicU64 = AtomicU64::new(0);

/// Watches from now on as `watch` says, and tells how much memory is left now.
pub fn watch(watch: Watch) -> Pressure {
    let below = watch.below.0.div_ceil(PAGE_SIZE);
    let above = watch.above.map(|above| above.0.div_ceil(PAGE_SIZE));
    BELOW_ARMED.store(false, Relaxed);
    ABOVE_ARMED.store(false, Relaxed);
    BELOW.store(below, Relaxed);
    ABOVE.store(above.unwrap_or(0), Relaxed);
    PATIENCE_MILLIS.store(watch.patience_millis, Relaxed);
    MOST.store(watch.most.0 / PAGE_SIZE, Relaxed);
    FAILED.store(MM.alloc_failed_movable(), Relaxed);
    let now = pressure();
    // This answer tells what has been passed already.
    let available = now.available.0 / PAGE_SIZE;
    BELOW_ARMED.store((below > 0 || watch.patience_millis > 0) && available >= below, Relaxed);
    ABOVE_ARMED.store(above.is_some_and(|above| available < above), Relaxed);
    if watch.patience_millis == 0 {
        // Those that wait fail now.
        memory_came();
    }
    now
}

/// How much memory is left now.
fn pressure() -> Pressure {
    let available = MM.available_pages();
    Pressure {
        available: Size(available * PAGE_SIZE),
        short: is_short(available),
        waiting: WAITING.load(Relaxed),
        waited: waited(),
        gave_up: gave_up(),
        longest_micros: LONGEST_MICROS.load(Relaxed),
        failed: MM.alloc_failed_movable(),
    }
}

/// Allocations that had to wait, since boot.
pub fn waited() -> u64 {
    WAITED.load(Relaxed)
}

/// Those of them that found no memory in time.
pub fn gave_up() -> u64 {
    GAVE_UP.load(Relaxed)
}

/// Pages that a workload may ask for although the machine has not so many yet.
pub fn most_pages() -> u64 {
    MOST.load(Relaxed)
}

fn is_short(available: u64) -> bool {
    available < BELOW.load(Relaxed) || MM.alloc_failed_movable() != FAILED.load(Relaxed)
}

/// Tells the VMM of a level that memory has passed.
pub fn look() {
    let (below, above) = (BELOW_ARMED.load(Relaxed), ABOVE_ARMED.load(Relaxed));
    if !below && !above {
        return;
    }
    let available = MM.available_pages();
    let short = is_short(available);
    let plenty = available >= ABOVE.load(Relaxed);
    // Several CPUs may look at once, and one of them tells.
    let told = below && short && BELOW_ARMED.swap(false, Relaxed)
        || above && plenty && ABOVE_ARMED.swap(false, Relaxed);
    if told {
        mailbox::report(Report::Pressure(pressure()));
    }
}

/// Has waiting workloads try again.
pub fn memory_came() {
    // With `Wait::begin` and `Wait::pause`: this CPU sees who waits, or who waits sees the arrival.
    ARRIVALS.fetch_add(1, SeqCst);
    if WAITING.load(SeqCst) > 0 {
        (0..cpu::online()).for_each(lapic::wake);
    }
}

/// A workload that waits for memory. Dropping it ends the wait.
pub struct Wait {
    since: Instant,
    until: Instant,
    /// [`ARRIVALS`] when there was no memory.
    arrivals: u64,
}

impl Wait {
    /// Begins to wait, if the VMM wants it; `arrivals` is [`Wait::arrivals`] from before the allocation that failed.
    pub fn begin(arrivals: u64) -> Option<Self> {
        let patience = PATIENCE_MILLIS.load(Relaxed);
        if patience == 0 {
            return None;
        }
        WAITING.fetch_add(1, SeqCst);
        WAITED.fetch_add(1, Relaxed);
        look();
        Some(Self { since: Instant::now(), until: Instant::in_millis(patience.into()), arrivals })
    }

    /// How often memory has come.
    pub fn arrivals() -> u64 {
        ARRIVALS.load(SeqCst)
    }

    /// Until when there is nothing to try; `None`: now.
    pub fn pause(&self) -> Option<Instant> {
        (self.arrivals == Self::arrivals() && !self.until.has_passed()).then_some(self.until)
    }

    /// Goes on waiting after another allocation that failed, or gives up; `arrivals` as in [`Wait::begin`]. Another workload
    /// may have taken the memory that came.
    pub fn go_on(mut self, arrivals: u64) -> Option<Self> {
        if PATIENCE_MILLIS.load(Relaxed) == 0 || self.until.has_passed() {
            GAVE_UP.fetch_add(1, Relaxed);
            return None;
        }
        self.arrivals = arrivals;
        Some(self)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Relaxed);
        let nanos = Instant::now().nanos().saturating_sub(self.since.nanos());
        LONGEST_MICROS.fetch_max(nanos / 1000, Relaxed);
    }
}
