//! Clocks: the CPU time of this thread for work of milliseconds, the wall clock for work of microseconds; and its page
//! faults.
#![expect(unsafe_code, reason = "asks the system for the thread's own time")]

use std::time::Instant;

/// Nanoseconds of CPU time that `work` takes on this thread. Reading the clock takes a fraction of a microsecond.
pub fn cpu<R>(work: impl FnOnce() -> R) -> f64 {
    let start = thread_time();
    std::hint::black_box(work());
    thread_time() - start
}

/// Nanoseconds that `work` takes, including the time in which other threads have the CPU.
pub fn wall<R>(work: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64() * 1e9
}

fn thread_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a local variable that the call may write.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "no clock of the thread");
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Page faults of this thread so far that needed no disk.
#[must_use]
pub fn page_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a local variable that the call may write, and a zeroed one is valid.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0, "no usage of the thread");
        usage.assume_init()
    };
    usage.ru_minflt as u64
}

/// The median of `values`.
///
/// # Panics
/// When `values` is empty.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs the variants in turns, `rounds` times, and returns the median of each. In turns, a disturbance of the host
/// hits all variants alike.
pub fn in_turns<const N: usize>(rounds: usize, mut variants: [&mut dyn FnMut() -> f64; N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (variant, times) in variants.iter_mut().zip(&mut times) {
            times.push(variant());
        }
    }
    times.map(median)
}
