//! Time: the time-stamp counter, and moments and durations in its ticks.
//!
//! Mirrors Linux `arch/x86/kernel/tsc.c`. The counter's frequency comes from the VMM (`tsc_early_khz=`) or
//! from CPUID, or it is measured; it is never guessed. It differs from Linux on purpose: the counter is taken
//! as invariant and as synchronous between CPUs, which KVM provides, without a check.
#![expect(unsafe_code, reason = "reads the time-stamp counter")]

use core::arch::x86_64::{__cpuid, _rdtsc};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;

/// Ticks in a millisecond; set once at boot.
static KHZ: AtomicU64 = AtomicU64::new(0);

/// A point in time, in ticks of the time-stamp counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(pub u64);

impl Instant {
    /// The current moment.
    pub fn now() -> Self {
        // SAFETY: every x86-64 CPU has the instruction, and ring 0 may use it.
        Self(unsafe { _rdtsc() })
    }

    /// `millis` milliseconds from now.
    pub fn in_millis(millis: u64) -> Self {
        Self(Self::now().0.saturating_add(millis.saturating_mul(khz())))
    }

    /// Nanoseconds since the counter was 0.
    pub fn nanos(self) -> u64 {
        const NANOS: u64 = 1_000_000;
        let (millis, rest) = (self.0 / khz(), self.0 % khz());
        millis * NANOS + rest * NANOS / khz()
    }

    /// Whether this moment has come.
    pub fn has_passed(self) -> bool {
        Self::now() >= self
    }
}

/// Ticks in a millisecond.
pub fn khz() -> u64 {
    KHZ.load(Ordering::Relaxed)
}

/// Sets the frequency: from the command line, else from CPUID, else by a measurement with the PC's interval
/// timer.
///
/// # Panics
/// When none of them gives it.
pub fn init(from_cmdline: Option<u64>) {
    let khz = from_cmdline
        .filter(|&khz| khz != 0)
        .or_else(hypervisor_khz)
        .or_else(measured_khz)
        .expect("no TSC frequency: give tsc_early_khz= on the command line");
    KHZ.store(khz, Ordering::Relaxed);
}

/// The frequency leaf that VMware defined and KVM's users set (0x4000_0010, eax in kHz).
fn hypervisor_khz() -> Option<u64> {
    const TIMING: u32 = 0x4000_0010;
    let is_guest = __cpuid(1).ecx >> 31 != 0;
    let max = if is_guest { __cpuid(0x4000_0000).eax } else { 0 };
    (max >= TIMING).then(|| u64::from(__cpuid(TIMING).eax)).filter(|&khz| khz != 0)
}

/// Measures the frequency against channel 2 of the 8254 (Linux `pit_calibrate_tsc`). `None` when there is no
/// such timer. A sample is wrong when the host takes the CPU away from this guest meanwhile, so the best of
/// three counts.
fn measured_khz() -> Option<u64> {
    const ATTEMPTS: u32 = 20;
    let control = cpu::port_read(PIT_CONTROL);
    let samples = (0..ATTEMPTS).filter_map(|_| pit_sample()).take(3);
    let best = samples.min_by_key(|sample| sample.error);
    cpu::port_write(PIT_CONTROL, control);
    best.map(|sample| sample.ticks / SAMPLE_MILLIS)
}

/// Bit 0 opens the gate of the 8254's channel 2, bit 1 connects it to the speaker, and bit 5 is its output.
const PIT_CONTROL: u16 = 0x61;
const SAMPLE_MILLIS: u64 = 10;

/// One measurement.
struct Sample {
    /// Ticks of the time-stamp counter in [`SAMPLE_MILLIS`].
    ticks: u64,
    /// By how many ticks the sample may be wrong.
    error: u64,
}

fn pit_sample() -> Option<Sample> {
    const CHANNEL_2: u16 = 0x42;
    const MODE: u16 = 0x43;
    const OUTPUT: u8 = 1 << 5;
    const PIT_HZ: u64 = 1_193_182;
    const COUNT: u16 = (PIT_HZ * SAMPLE_MILLIS / 1000) as u16;
    /// On any CPU this is longer than a sample. The number of reads cannot be the limit: where instructions
    /// are counted instead of timed (QEMU's `-icount`), a read takes a few nanoseconds.
    const MOST_TICKS: u64 = 200_000_000;
    let now = || Instant::now().0;
    let has_ended = || cpu::port_read(PIT_CONTROL) & OUTPUT != 0;
    cpu::port_write(PIT_CONTROL, cpu::port_read(PIT_CONTROL) & !2 | 1);
    // One shot (mode 0), low byte first; the output is low until the count has run down.
    let [low, high] = COUNT.to_le_bytes();
    cpu::port_write(MODE, 0b1011_0000);
    cpu::port_write(CHANNEL_2, low);
    let before = now();
    cpu::port_write(CHANNEL_2, high);
    let after = now();
    if has_ended() {
        return None;
    }
    let mut looked = now();
    while looked < after + MOST_TICKS {
        let ended = has_ended();
        let end = now();
        if ended {
            return Some(Sample { ticks: end - after, error: (after - before) + (end - looked) });
        }
        looked = end;
    }
    None
}
