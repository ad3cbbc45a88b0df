//! One CPU: its segments, task state and area, and the instructions that Rust has no expression for.
//!
//! Mirrors Linux's per-CPU data and `cpu_init`. `%gs` leads to the area of the CPU; its base never changes
//! after [`init`]. The kernel never leaves ring 0, so there is no `swapgs`.
#![expect(unsafe_code, reason = "loads descriptor tables and executes privileged instructions")]

pub mod idt;
pub mod ioapic;
pub mod lapic;
pub mod msi;
pub mod panic;
pub mod power;
pub mod smp;
pub mod stack;
pub mod time;
pub mod tlb;
pub mod trap;
pub mod wait;
pub mod window;

use core::arch::asm;
use core::ptr::addr_of_mut;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use tidevm_mm::{Passes, ServedTickets, Wakeup};
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use self::stack::Stack;

/// Most CPUs that can be brought up.
pub const MAX_CPUS: usize = tidevm_abi::MAX_CPUS;

/// Interrupt stack of faults that may come from a broken stack.
pub const FAULT_STACK: u16 = 0;
/// Interrupt stack of double faults.
pub const DOUBLE_FAULT_STACK: u16 = 1;

/// The area of one CPU. Its address is the `%gs` base.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Index of this CPU; read as `%gs:0`.
    index: AtomicUsize,
    /// Whether a job may have something to do: raised by interrupts and by other CPUs.
    pub wakeup: Wakeup,
    /// Passes of the job loop.
    pub passes: Passes,
    /// The tickets of [`tlb`] that this CPU has served.
    pub flushed: ServedTickets,
    /// How often this CPU has flushed its TLB.
    pub flushes: AtomicU64,
    /// Rounds that this CPU has waited for others ([`wait`]).
    pub waited: AtomicU64,
    /// Id of its local APIC, below 256; set before the CPU is started.
    pub apic_id: AtomicU32,
}

static PER_CPU: [PerCpu; MAX_CPUS] = [const {
    PerCpu {
        index: AtomicUsize::new(0),
        wakeup: Wakeup::new(),
        passes: Passes::new(),
        flushed: ServedTickets::new(),
        flushes: AtomicU64::new(0),
        waited: AtomicU64::new(0),
        apic_id: AtomicU32::new(0),
    }
}; MAX_CPUS];

/// Number of CPUs that have reached their job loop or are about to.
static ONLINE: AtomicUsize = AtomicUsize::new(0);

struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

static mut TABLES: [Tables; MAX_CPUS] =
    [const { Tables { gdt: GlobalDescriptorTable::new(), tss: TaskStateSegment::new() } }; MAX_CPUS];

/// Sets up CPU `index`, which is the one that runs this, on stacks of its own.
pub fn init(index: usize) {
    assert!(index < MAX_CPUS, "CPU {index}, but there is room for {MAX_CPUS}");
    // SAFETY: entry `index` belongs to this CPU, and `init` runs once per CPU, before anything else refers to
    // the entry.
    let tables = unsafe { &mut *addr_of_mut!(TABLES[index]) };
    for (number, stack) in [(FAULT_STACK, Stack::Fault), (DOUBLE_FAULT_STACK, Stack::DoubleFault)] {
        tables.tss.interrupt_stack_table[usize::from(number)] = VirtAddr::new(stack::top(index, stack));
    }
    let code = tables.gdt.append(Descriptor::kernel_code_segment());
    let data = tables.gdt.append(Descriptor::kernel_data_segment());
    // SAFETY: the table is in a static and is not written again.
    let task = unsafe {
        let tss = &raw const tables.tss;
        tables.gdt.append(Descriptor::tss_segment_unchecked(tss))
    };
    // SAFETY: the selectors were just made in the table that is loaded, which is a static; the `%gs` base is
    // the address of this CPU's area, a static too.
    unsafe {
        tables.gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
        GsBase::write(VirtAddr::from_ptr(&raw const PER_CPU[index]));
    }
    PER_CPU[index].index.store(index, Ordering::Relaxed);
}

/// Counts this CPU as running.
pub fn set_online() {
    ONLINE.fetch_add(1, Ordering::Release);
}

/// Number of CPUs that run; their indices are `0..online()`.
pub fn online() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// Index of the CPU that runs this.
pub fn this() -> usize {
    let index;
    // SAFETY: `init` pointed `%gs` at this CPU's area, whose first word is the index.
    unsafe { asm!("mov {}, gs:0", out(reg) index, options(nostack, preserves_flags, readonly)) };
    index
}

/// The area of CPU `index`.
pub fn area(index: usize) -> &'static PerCpu {
    &PER_CPU[index]
}

/// Writes a byte to an I/O port.
pub fn port_write(port: u16, value: u8) {
    // SAFETY: the ports written are those of serial port, timer, exit device, interrupt masks and keyboard controller, and
    // ACPI's for the machine's end; no write changes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a byte from an I/O port.
pub fn port_read(port: u16) -> u8 {
    let value;
    // SAFETY: the ports read are those of serial port and timer; none changes memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    x86_64::instructions::interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}
