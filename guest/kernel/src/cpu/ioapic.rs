//! The I/O APIC: which device interrupts reach the boot CPU, and the lines through which drivers see them.
//!
//! The handler records an interrupt and does no more. That is enough for an edge. A level (PCI's INTx, which
//! devices may share) stays asserted until its device is quieted, so the handler masks the line, and the
//! driver opens it again after it has looked at the device (Linux `IRQF_ONESHOT`).
//!
//! Invariant: only the boot CPU accesses the registers, with interrupts off.
#![expect(unsafe_code, reason = "accesses the I/O APIC's registers")]

use core::iter;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use x86_64::instructions::interrupts::without_interrupts;

use crate::cpu;
use crate::mem::paging::{self, NoPageTable, TableSource};

/// Global system interrupts that can be routed.
pub const NR_GSI: u32 = 24;
/// Vector of global system interrupt 0; interrupt `n` has vector `FIRST_VECTOR + n`.
pub const FIRST_VECTOR: u8 = 0x30;

const ADDRESS: u64 = 0xfec0_0000;
const SIZE: u64 = 0x20;
const LEVEL: u32 = 1 << 15;
const OPEN: u32 = 0;
const MASKED: u32 = 1 << 16;

static REGISTERS: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// How often each interrupt was raised.
static RAISED: [AtomicU32; NR_GSI as usize] = [const { AtomicU32::new(0) }; NR_GSI as usize];
/// How often interrupts were raised in all. It rises after the count of the interrupt, so a line that sees no change has missed
/// nothing.
static RAISED_IN_ALL: AtomicU32 = AtomicU32::new(0);
/// One bit per interrupt: it is level-triggered.
static LEVELS: AtomicU32 = AtomicU32::new(0);
/// One bit per interrupt: it came, its line is masked, and no driver has opened it again.
static PENDING: AtomicU32 = AtomicU32::new(0);

/// How a device raises its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By a change of the line, once.
    Edge,
    /// By the line's state, until the driver quiets the device.
    Level,
}

/// A device's interrupt, as its driver sees it. Where the wiring is unknown, it stands for several.
#[derive(Debug)]
pub struct Line {
    /// One bit per interrupt that may be the device's.
    gsis: u32,
    /// The sum of their counts at the last look.
    seen: u32,
    /// [`RAISED_IN_ALL`] before the last look.
    seen_in_all: u32,
}

impl Line {
    /// Routes global system interrupt `gsi` to the boot CPU. `None` when there is no such interrupt.
    pub fn route(gsi: u32, trigger: Trigger) -> Option<Self> {
        (gsi < NR_GSI).then(|| Self::route_any(1 << gsi, trigger))
    }

    /// Routes all interrupts whose bits are set in `gsis`; one of them is the device's. An interrupt may be
    /// routed several times, with the same trigger.
    ///
    /// # Panics
    /// When there is no such interrupt as one of `gsis`.
    pub fn route_any(gsis: u32, trigger: Trigger) -> Self {
        assert!(gsis < 1 << NR_GSI, "interrupts {gsis:#x}, but there are {NR_GSI}");
        if trigger == Trigger::Level {
            LEVELS.fetch_or(gsis, Ordering::Relaxed);
        }
        let id = cpu::area(0).apic_id.load(Ordering::Relaxed);
        for gsi in bits(gsis) {
            write(entry(gsi) + 1, id << 24);
            set(gsi, OPEN);
        }
        let mut line = Self { gsis, seen: 0, seen_in_all: 0 };
        line.fired();
        line
    }

    /// Whether any of the line's interrupts came since the last call.
    pub fn fired(&mut self) -> bool {
        let in_all = RAISED_IN_ALL.load(Ordering::Acquire);
        if core::mem::replace(&mut self.seen_in_all, in_all) == in_all {
            return false;
        }
        let raised = self.raised();
        core::mem::replace(&mut self.seen, raised) != raised
    }

    /// Whether the next [`Self::fired`] will say that an interrupt came.
    pub fn has_fired(&self) -> bool {
        self.seen_in_all != RAISED_IN_ALL.load(Ordering::Acquire) && self.seen != self.raised()
    }

    fn raised(&self) -> u32 {
        let count = |gsi: u32| RAISED[gsi as usize].load(Ordering::Acquire);
        bits(self.gsis).map(count).fold(0, u32::wrapping_add)
    }

    /// Opens the line for the next interrupt. The driver calls it after it has quieted the device.
    pub fn rearm(&self) {
        for gsi in bits(PENDING.fetch_and(!self.gsis, Ordering::Relaxed) & self.gsis) {
            set(gsi, OPEN);
        }
    }
}

/// The indices of the bits that are set in `word`, ascending.
fn bits(word: u32) -> impl Iterator<Item = u32> {
    let mut rest = word;
    iter::from_fn(move || {
        let index = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (index < u32::BITS).then_some(index)
    })
}

/// Maps the registers. Called once, on the boot CPU.
///
/// # Errors
/// [`NoPageTable`].
pub fn init(tables: &mut dyn TableSource) -> Result<(), NoPageTable> {
    REGISTERS.store(paging::map_device(ADDRESS, SIZE, tables)?, Ordering::Release);
    Ok(())
}

/// Records interrupt `gsi`; called by the interrupt handler.
pub fn raise(gsi: u32) {
    if is_level(gsi) {
        set(gsi, MASKED);
        PENDING.fetch_or(1 << gsi, Ordering::Relaxed);
    }
    RAISED[gsi as usize].fetch_add(1, Ordering::Release);
    RAISED_IN_ALL.fetch_add(1, Ordering::Release);
}

/// First of the two registers of an interrupt.
const fn entry(gsi: u32) -> u32 {
    0x10 + 2 * gsi
}

fn is_level(gsi: u32) -> bool {
    LEVELS.load(Ordering::Relaxed) & (1 << gsi) != 0
}

/// Writes an interrupt's route, [`OPEN`] or [`MASKED`].
fn set(gsi: u32, mask: u32) {
    let level = if is_level(gsi) { LEVEL } else { 0 };
    write(entry(gsi), (u32::from(FIRST_VECTOR) + gsi) | level | mask);
}

fn write(register: u32, value: u32) {
    let base = REGISTERS.load(Ordering::Relaxed);
    // The interrupt handler accesses the registers too; it must not run between the two accesses.
    without_interrupts(|| {
        // SAFETY: the I/O APIC has a select register at 0 and a window at 0x10, and `init` mapped both.
        // Drivers and device interrupts run on the boot CPU only.
        unsafe {
            base.cast::<u32>().write_volatile(register);
            base.add(0x10).cast::<u32>().write_volatile(value);
        }
    });
}
