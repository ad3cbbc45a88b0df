//! Time stamps for measurements: when boot reached its milestones, in ticks of the time-stamp counter since the
//! kernel's first instructions, and how many ticks it took to add memory and to follow a new target.
//!
//! Takes the place of Linux's `initcall_debug` and boot tracing. Every stamp is written by one CPU; readers
//! tolerate a stamp that is not written yet.

use core::sync::atomic::{AtomicU64, Ordering};

use tidevm_abi::BootTimes;

use crate::cpu::time::{self, Instant};
use crate::mem::MM;

/// The time-stamp counter at [`start`].
static START: AtomicU64 = AtomicU64::new(0);
/// Ticks from [`START`] on; 0 means "not yet".
static MAPPED: AtomicU64 = AtomicU64::new(0);
static FIRST_ALLOCATION: AtomicU64 = AtomicU64::new(0);
static INITIALISED: AtomicU64 = AtomicU64::new(0);
/// Sections whose struct pages were written before the first allocation.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
/// The boot CPU is about to enter its job loop.
static READY: AtomicU64 = AtomicU64::new(0);
/// Ticks that the memory took that was added last.
static LAST_ADD: AtomicU64 = AtomicU64::new(0);
/// Ticks that a memory device's driver worked for the last target that was reached.
static LAST_RESIZE: AtomicU64 = AtomicU64::new(0);

/// The kernel starts.
pub fn start() {
    START.store(Instant::now().0, Ordering::Relaxed);
}

fn note(stamp: &AtomicU64) {
    let ticks = Instant::now().0 - START.load(Ordering::Relaxed);
    stamp.store(ticks.max(1), Ordering::Relaxed);
}

/// The memory map is read, and pages for page tables are set aside.
pub fn mapped() {
    note(&MAPPED);
}

/// The page allocator gives pages.
pub fn first_allocation() {
    note(&FIRST_ALLOCATION);
    WRITTEN.store(MM.memmaps_written(), Ordering::Relaxed);
    if MM.is_all_initialised() {
        INITIALISED.store(FIRST_ALLOCATION.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The page allocator has all boot memory, later than at the first allocation.
pub fn initialised() {
    note(&INITIALISED);
}

/// All CPUs are up and all drivers are bound.
pub fn ready() {
    note(&READY);
}

/// Ticks from the kernel's first instructions to [`ready`]. Where instructions are the clock (QEMU's `-icount
/// shift=0`), they are instructions.
pub fn boot() -> u64 {
    READY.load(Ordering::Relaxed)
}

/// The milestones, in microseconds.
pub fn times() -> BootTimes {
    let micros = |stamp: &AtomicU64| stamp.load(Ordering::Relaxed).saturating_mul(1000) / time::khz().max(1);
    let initialised = (INITIALISED.load(Ordering::Relaxed) != 0).then(|| micros(&INITIALISED));
    BootTimes {
        mapped: micros(&MAPPED),
        first_allocation: micros(&FIRST_ALLOCATION),
        initialised,
        memmaps_written: WRITTEN.load(Ordering::Relaxed),
    }
}

/// A driver has worked `ticks` for a target, and reports that it is reached.
pub fn target_reached(ticks: u64) {
    LAST_RESIZE.store(ticks, Ordering::Relaxed);
}

/// Ticks that a driver worked for the last target, from when it saw the notification until it reported. Where
/// instructions are the clock (QEMU's `-icount shift=0`), they are instructions.
pub fn last_resize() -> u64 {
    LAST_RESIZE.load(Ordering::Relaxed)
}

/// A memory block or several were added, or failed to be added, since `began`. The time counts from when the device
/// had plugged the device blocks.
pub fn added(began: Instant) {
    LAST_ADD.store(Instant::now().0 - began.0, Ordering::Relaxed);
}

/// Ticks that the memory took that was added last. Where instructions are the clock (QEMU's `-icount shift=0`),
/// they are instructions.
pub fn last_add() -> u64 {
    LAST_ADD.load(Ordering::Relaxed)
}
