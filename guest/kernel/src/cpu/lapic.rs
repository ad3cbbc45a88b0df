//! Interrupts: the IDT, and the local APIC with its timer and inter-processor interrupts.
//!
//! Handlers only set flags and flush TLBs; the work is done by the job loop. So memory management
//! never runs in interrupt context, and none of its locks need interrupts off.
#![expect(unsafe_code, reason = "installs interrupt entries and accesses the APICs' registers")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::registers::control::Cr2;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::cpu::time::{self, Instant};
use crate::cpu::{self, ioapic, panic};
use crate::mem::paging::{self, NoPageTable, TableSource};

global_asm!(
    include_str!("trap.s"),
    interrupt = sym interrupt,
    options(att_syntax)
);

/// First vector of device interrupts; GSI `n` has vector `DEVICES + n`.
pub const DEVICES: u8 = 0x30;
const TIMER: u8 = 0xf0;
const WAKE: u8 = 0xf1;
const FLUSH: u8 = 0xf2;
const SPURIOUS: u8 = 0xff;

/// Mask registers of the two 8259s.
const LEGACY_PIC_MASKS: [u16; 2] = [0x21, 0xa1];
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

/// Registers as `trap.s` leaves them.
#[repr(C)]
pub struct Frame {
    /// r15, r14, ..., rcx, rax, in the order of their addresses.
    pub registers: [u64; 15],
    /// Which interrupt.
    pub vector: u64,
    /// The CPU's error code, or zero.
    pub error: u64,
    /// Where it happened.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    /// The stack there.
    pub rsp: u64,
    ss: u64,
}

struct Idt(UnsafeCell<InterruptDescriptorTable>);
// SAFETY: written once by the boot CPU in `init`, before any other CPU runs; read-only afterwards.
unsafe impl Sync for Idt {}
static IDT: Idt = Idt(UnsafeCell::new(InterruptDescriptorTable::new()));

static LOCAL: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// Ticks of the APIC timer in a millisecond; 0 where the timer takes TSC deadlines.
static TIMER_KHZ: AtomicU32 = AtomicU32::new(0);
/// Number of TLB flushes asked of other CPUs.
static FLUSHES: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static interrupt_entries: u8;
}

/// Maps the APICs and fills the IDT. Once, on the boot CPU.
///
/// # Errors
/// [`NoPageTable`].
pub fn init(tables: &mut dyn TableSource) -> Result<(), NoPageTable> {
    LOCAL.store(paging::map_device(LOCAL_APIC, REGISTERS_SIZE, tables)?, Ordering::Release);
    ioapic::init(tables)?;
    // Firmware may have left the 8259s on, at vectors that belong to exceptions.
    for mask in LEGACY_PIC_MASKS {
        cpu::port_write(mask, 0xff);
    }
    let entries = (&raw const interrupt_entries) as u64;
    let entry = |vector: u64| VirtAddr::new(entries + 16 * vector);
    // SAFETY: only the boot CPU runs, so nobody else looks at the table; every entry leads to the
    // common path, which restores all it touches, and the stack index is one that `cpu` set up.
    unsafe {
        let idt = &mut *IDT.0.get();
        idt.divide_error.set_handler_addr(entry(0));
        idt.debug.set_handler_addr(entry(1));
        idt.non_maskable_interrupt.set_handler_addr(entry(2)).set_stack_index(cpu::FAULT_STACK);
        idt.breakpoint.set_handler_addr(entry(3));
        idt.overflow.set_handler_addr(entry(4));
        idt.bound_range_exceeded.set_handler_addr(entry(5));
        idt.invalid_opcode.set_handler_addr(entry(6));
        idt.device_not_available.set_handler_addr(entry(7));
        idt.double_fault.set_handler_addr(entry(8)).set_stack_index(cpu::FAULT_STACK);
        idt.invalid_tss.set_handler_addr(entry(10));
        idt.segment_not_present.set_handler_addr(entry(11));
        idt.stack_segment_fault.set_handler_addr(entry(12)).set_stack_index(cpu::FAULT_STACK);
        idt.general_protection_fault.set_handler_addr(entry(13));
        idt.page_fault.set_handler_addr(entry(14)).set_stack_index(cpu::FAULT_STACK);
        idt.x87_floating_point.set_handler_addr(entry(16));
        idt.alignment_check.set_handler_addr(entry(17));
        idt.machine_check.set_handler_addr(entry(18)).set_stack_index(cpu::FAULT_STACK);
        idt.simd_floating_point.set_handler_addr(entry(19));
        for vector in 32..=255_u8 {
            idt[vector].set_handler_addr(entry(u64::from(vector)));
        }
    }
    Ok(())
}

/// Loads the IDT and starts the local APIC of this CPU.
pub fn init_cpu() {
    // SAFETY: the table is a static that nobody writes any more.
    unsafe { (*IDT.0.get()).load_unsafe() };
    write(register::SPURIOUS, 0x100 | u32::from(SPURIOUS));
    write(register::DIVIDE, DIVIDE_BY_1);
    if core::arch::x86_64::__cpuid(1).ecx & (1 << 24) != 0 {
        write(register::TIMER, TIMER_TSC_DEADLINE | u32::from(TIMER));
        return;
    }
    if cpu::this() == 0 {
        TIMER_KHZ.store(timer_khz(), Ordering::Relaxed);
    }
    write(register::TIMER, u32::from(TIMER));
}

/// Measures the APIC timer against the time-stamp counter, for half a millisecond.
fn timer_khz() -> u32 {
    write(register::TIMER, MASKED);
    let (start, ticks) = (Instant::now().0, time::khz() / 2);
    write(register::INITIAL_COUNT, u32::MAX);
    while Instant::now().0 < start + ticks {
        core::hint::spin_loop();
    }
    let (counted, passed) = (u32::MAX - read(register::CURRENT_COUNT), Instant::now().0 - start);
    write(register::INITIAL_COUNT, 0);
    u32::try_from(u64::from(counted) * time::khz() / passed).unwrap_or(u32::MAX)
}

/// Asks for a timer interrupt on this CPU at `deadline`, in place of any earlier wish.
pub fn set_timer(deadline: Instant) {
    let khz = TIMER_KHZ.load(Ordering::Relaxed);
    if khz == 0 {
        // SAFETY: `init_cpu` chose this mode because CPUID offers the register.
        unsafe { Msr::new(TSC_DEADLINE_MSR).write(deadline.0.max(1)) };
        return;
    }
    let ticks = deadline.0.saturating_sub(Instant::now().0);
    let count = ticks.saturating_mul(u64::from(khz)) / time::khz();
    write(register::INITIAL_COUNT, u32::try_from(count.max(1)).unwrap_or(u32::MAX));
}

/// Makes CPU `index` go through its job loop once more.
pub fn wake(index: usize) {
    let area = cpu::area(index);
    // Pairs with the job loop, which sets `idle` and then looks at `pending`.
    area.pending.store(true, Ordering::SeqCst);
    if index != cpu::this() && area.idle.load(Ordering::SeqCst) {
        send(index, u32::from(WAKE));
    }
}

/// Flushes the TLBs of all CPUs and returns when they have.
///
/// # Panics
/// When a CPU does not answer within a minute: hosts that share their CPUs, or are suspended, leave
/// one of them waiting for long.
pub fn flush_all_tlbs() {
    paging::flush_tlb();
    let (me, online) = (cpu::this(), cpu::online());
    if online == 1 {
        return;
    }
    let ticket = FLUSHES.fetch_add(1, Ordering::SeqCst) + 1;
    for index in (0..online).filter(|&index| index != me) {
        send(index, u32::from(FLUSH));
    }
    let deadline = Instant::in_millis(60_000);
    for index in (0..online).filter(|&index| index != me) {
        while cpu::area(index).flushed.load(Ordering::Acquire) < ticket {
            assert!(!deadline.has_passed(), "CPU {index} did not flush its TLB within a minute");
            core::hint::spin_loop();
        }
    }
}

/// INIT and start-up interrupts to CPU `index`; it starts in real mode at physical address
/// `page << 12`.
pub fn start_cpu(index: usize, page: u8) {
    const INIT: u32 = 0x4500;
    const START_UP: u32 = 0x4600;
    send(index, INIT);
    send(index, START_UP | u32::from(page));
}

fn send(index: usize, command: u32) {
    // The two halves belong together; an interrupt between them could send one of its own.
    without_interrupts(|| {
        write(register::COMMAND_HIGH, cpu::area(index).apic_id.load(Ordering::Relaxed) << 24);
        write(register::COMMAND_LOW, command);
    });
}

fn write(register: usize, value: u32) {
    // SAFETY: `LOCAL` is the mapping of the local APIC's page, and `register` one of its registers.
    unsafe { LOCAL.load(Ordering::Relaxed).add(register).cast::<u32>().write_volatile(value) };
}

fn read(register: usize) -> u32 {
    // SAFETY: as in `write`.
    unsafe { LOCAL.load(Ordering::Relaxed).add(register).cast::<u32>().read_volatile() }
}

/// Called by `trap.s` for every interrupt and exception.
extern "C" fn interrupt(frame: &mut Frame) {
    let vector = frame.vector as u8;
    match vector {
        TIMER | WAKE => {}
        FLUSH => {
            // Read first: a flush that is asked for while this one runs gets an interrupt of its
            // own.
            let ticket = FLUSHES.load(Ordering::Acquire);
            paging::flush_tlb();
            cpu::area(cpu::this()).flushed.fetch_max(ticket, Ordering::Release);
        }
        SPURIOUS => return,
        _ if u32::from(vector.wrapping_sub(DEVICES)) < ioapic::NR_GSI => {
            ioapic::raise(u32::from(vector - DEVICES));
        }
        _ => panic::exception(frame, Cr2::read_raw()),
    }
    cpu::area(cpu::this()).pending.store(true, Ordering::Release);
    write(register::EOI, 0);
}
