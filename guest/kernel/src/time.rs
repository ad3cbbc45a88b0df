//! Time: the time-stamp counter, and instants and durations in its ticks.
//!
//! The counter's frequency comes from the VMM (`tsc_early_khz=`) or from CPUID, or is measured; it is
//! never guessed. It is taken as invariant and synchronous between CPUs, as KVM provides it.
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
    /// Now.
    pub fn now() -> Self {
        // SAFETY: every x86-64 CPU has the instruction, and ring 0 may use it.
        Self(unsafe { _rdtsc() })
    }

    /// `millis` milliseconds from now.
    pub fn in_millis(millis: u64) -> Self {
        Self(Self::now().0.saturating_add(millis.saturating_mul(khz())))
    }

    /// Whether it lies in the past.
    pub fn has_passed(self) -> bool {
        Self::now() >= self
    }
}

/// Ticks in a millisecond.
pub fn khz() -> u64 {
    KHZ.load(Ordering::Relaxed)
}

/// Sets the frequency: what the command line says, else what CPUID says, else what the PC's interval
/// timer measures.
///
/// # Panics
/// When none of them knows.
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

/// Measures the frequency against channel 2 of the 8254, for 10 ms (Linux `pit_calibrate_tsc`). `None`
/// when there is no such timer.
fn measured_khz() -> Option<u64> {
    const CHANNEL_2: u16 = 0x42;
    const MODE: u16 = 0x43;
    /// Bit 0 opens channel 2's gate, bit 1 the speaker; bit 5 is the channel's output.
    const CONTROL: u16 = 0x61;
    const OUTPUT: u8 = 1 << 5;
    const TICKS_IN_10_MS: u16 = 11_932;
    /// No counter takes so many reads; each of them takes a microsecond on a PC.
    const MOST_READS: u32 = 10_000_000;
    cpu::port_write(CONTROL, cpu::port_read(CONTROL) & !2 | 1);
    // One shot (mode 0), low byte first; the output is low until the count has run down.
    cpu::port_write(MODE, 0b1011_0000);
    for byte in TICKS_IN_10_MS.to_le_bytes() {
        cpu::port_write(CHANNEL_2, byte);
    }
    let start = Instant::now();
    if cpu::port_read(CONTROL) & OUTPUT != 0 {
        return None;
    }
    (0..MOST_READS).any(|_| cpu::port_read(CONTROL) & OUTPUT != 0).then(|| (Instant::now().0 - start.0) / 10)
}
