//! The local APIC of each CPU: its timer, and the interrupts that CPUs send each other.
//!
//! Mirrors Linux `arch/x86/kernel/apic` in xAPIC mode. Timer interrupts use the TSC deadline where CPUID
//! offers it, and the APIC's own counter otherwise. It differs from Linux on purpose: the counter is measured when the
//! first timer is set and not at boot, which would last half a millisecond longer.
//!
//! Invariant: `LOCAL` is the mapping of the registers from [`init`] on, and every CPU sees its own local APIC
//! there.
#![expect(unsafe_code, reason = "accesses the local APIC's registers")]

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use x86_64::instructions::interrupts::without_interrupts;
use x86_64::registers::model_specific::Msr;

use crate::cpu;
use crate::cpu::time::{self, Instant};
use crate::mem::paging::{self, NoPageTable, TableSource};

/// Vector of the timer.
pub const TIMER: u8 = 0xf0;
/// Vector that gets a CPU out of its halt.
pub const WAKE: u8 = 0xf1;
/// Vector that asks a CPU to flush its TLB (see [`crate::cpu::tlb`]).
pub const FLUSH: u8 = 0xf2;
/// Vector of interrupts that are gone when the CPU looks; they need no acknowledgement.
pub const SPURIOUS: u8 = 0xff;

const LOCAL_APIC: u64 = 0xfee0_0000;
const REGISTERS_SIZE: u64 = 4 << 10;

mod register {
    pub const EOI: usize = 0xb0;
    pub const SPURIOUS: usize = 0xf0;
    pub const COMMAND_LOW: usize = 0x300;
    pub const COMMAND_HIGH: usize = 0x310;
    pub const TIMER: usize = 0x320;
    pub const INITIAL_COUNT: usize = 0x380;
    pub const CURRENT_COUNT: usize = 0x390;
    pub const DIVIDE: usize = 0x3e0;
}

const TIMER_TSC_DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;
const TSC_DEADLINE_MSR: u32 = 0x6e0;

static LOCAL: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// The timer takes TSC deadlines.
static HAS_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Ticks of the APIC timer per millisecond; 0 as long as no CPU has measured it.
static TIMER_KHZ: AtomicU32 = AtomicU32::new(0);

/// Maps the registers. Called once, on the boot CPU.
///
/// # Errors
/// [`NoPageTable`].
pub fn init(tables: &mut dyn TableSource) -> Result<(), NoPageTable> {
    LOCAL.store(paging::map_device(LOCAL_APIC, REGISTERS_SIZE, tables)?, Ordering::Release);
    Ok(())
}

/// Starts the local APIC of this CPU.
pub fn init_cpu() {
    write(register::SPURIOUS, 0x100 | u32::from(SPURIOUS));
    write(register::DIVIDE, DIVIDE_BY_1);
    if core::arch::x86_64::__cpuid(1).ecx & (1 << 24) != 0 {
        HAS_DEADLINE.store(true, Ordering::Relaxed);
        write(register::TIMER, TIMER_TSC_DEADLINE | u32::from(TIMER));
    } else {
        write(register::TIMER, u32::from(TIMER));
    }
}

/// Measures the timer of this CPU, which is set to nothing, against the time-stamp counter, for half a millisecond. All
/// CPUs have the same timer.
fn measure_khz() -> u32 {
    write(register::TIMER, MASKED);
    let (start, ticks) = (Instant::now().0, time::khz() / 2);
    write(register::INITIAL_COUNT, u32::MAX);
    while Instant::now().0 < start + ticks {
        core::hint::spin_loop();
    }
    let (counted, passed) = (u32::MAX - read(register::CURRENT_COUNT), Instant::now().0 - start);
    write(register::INITIAL_COUNT, 0);
    write(register::TIMER, u32::from(TIMER));
    let khz = u32::try_from(u64::from(counted) * time::khz() / passed).unwrap_or(u32::MAX);
    TIMER_KHZ.store(khz, Ordering::Relaxed);
    khz
}

/// Requests a timer interrupt on this CPU at `deadline`; it replaces an earlier request.
pub fn set_timer(deadline: Instant) {
    if HAS_DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: `init_cpu` chose this mode because CPUID offers the register.
        unsafe { Msr::new(TSC_DEADLINE_MSR).write(deadline.0.max(1)) };
        return;
    }
    let khz = match TIMER_KHZ.load(Ordering::Relaxed) {
        0 => measure_khz(),
        khz => khz,
    };
    let ticks = deadline.0.saturating_sub(Instant::now().0);
    let count = ticks.saturating_mul(u64::from(khz)) / time::khz();
    write(register::INITIAL_COUNT, u32::try_from(count.max(1)).unwrap_or(u32::MAX));
}

/// Makes CPU `index` go through its job loop once more.
pub fn wake(index: usize) {
    let area = cpu::area(index);
    if index == cpu::this() {
        area.wakeup.raise();
    } else if area.wakeup.ring(&area.passes) {
        send(index, u32::from(WAKE));
    }
}

/// Sends the vector [`FLUSH`] to CPU `index`.
pub fn request_flush(index: usize) {
    send(index, u32::from(FLUSH));
}

/// Sends INIT and start-up interrupts to CPU `index`; it starts in real mode at physical
/// address `page << 12`.
pub fn start_cpu(index: usize, page: u8) {
    const INIT: u32 = 0x4500;
    const START_UP: u32 = 0x4600;
    send(index, INIT);
    send(index, START_UP | u32::from(page));
}

/// Acknowledges the interrupt that this CPU handles.
pub fn acknowledge() {
    write(register::EOI, 0);
}

fn send(index: usize, command: u32) {
    // An interrupt handler that ran between the two halves could send an interrupt of its own.
    without_interrupts(|| {
        write(register::COMMAND_HIGH, cpu::area(index).apic_id.load(Ordering::Relaxed) << 24);
        write(register::COMMAND_LOW, command);
    });
}

fn write(register: usize, value: u32) {
    // SAFETY: `LOCAL` is the mapping of the local APIC's page (module invariant), and `register` one of its
    // registers.
    unsafe { LOCAL.load(Ordering::Relaxed).add(register).cast::<u32>().write_volatile(value) };
}

fn read(register: usize) -> u32 {
    // SAFETY: as in `write`.
    unsafe { LOCAL.load(Ordering::Relaxed).add(register).cast::<u32>().read_volatile() }
}
