//! Which CPUs exist, and how all but the boot CPU are brought up: one after the other, by INIT-SIPI.
//!
//! Mirrors Linux `smp_init` with the classic start-up sequence. SIPI starts a CPU in real mode below 1 MiB;
//! the trampoline of `boot/entry.s` is copied there and takes the CPU to [`start`] on a stack of its own.
//!
//! Invariant: one CPU starts at a time, so the start-up words belong to that CPU.
#![expect(unsafe_code, reason = "places start-up code")]

use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;

use crate::boot::acpi;
use crate::boot::acpi::Entry;
use crate::console::println;
use crate::cpu::stack::{self, Stack};
use crate::cpu::{self, lapic, tlb, trap, wait};
use crate::job;
use crate::mem::paging::{self, TableSource, phys_to_virt};
use crate::mem::stacks;

/// Physical page of the trampoline; boot keeps the first MiB out of the allocator.
const TRAMPOLINE: u64 = 0x8000;
const MILLIS_TO_START: u64 = 2000;

/// The local APIC id that addresses all CPUs.
const BROADCAST: u8 = 0xff;

/// Records the local APIC ids of the CPUs, and returns the number of CPUs to run. With ACPI's root pointer
/// `rsdp` they are the CPUs that ACPI lists, at most `nr_cpus` of them; otherwise `nr_cpus` CPUs with ids
/// from 0. The boot CPU, which runs this, has index 0. CPUs that cannot be used are left out, with a line for
/// people. `other` is called with what ACPI says beside CPUs.
pub fn find_cpus(
    rsdp: Option<u64>,
    nr_cpus: Option<usize>,
    tables: &mut dyn TableSource,
    mut other: impl FnMut(Entry<'_>),
) -> usize {
    let most = nr_cpus.unwrap_or(cpu::MAX_CPUS).min(cpu::MAX_CPUS);
    let boot_cpu = (__cpuid(1).ebx >> 24) as u8;
    let mut ids = ArrayVec::<u8, { cpu::MAX_CPUS }>::from_iter([boot_cpu]);
    let mut left_out = 0;
    let mut found = |id| match u8::try_from(id) {
        // Firmware may list a CPU twice.
        Ok(id) if ids.contains(&id) => {}
        Ok(id) if id != BROADCAST && ids.len() < most => ids.push(id),
        _ => left_out += 1,
    };
    match rsdp {
        None => (0..nr_cpus.unwrap_or(1) as u32).for_each(found),
        Some(rsdp) => {
            let entry = |entry: Entry<'_>| match entry {
                Entry::Cpu(id) => found(id),
                entry => other(entry),
            };
            if let Err(error) = acpi::each_entry(rsdp, tables, entry) {
                println!("ACPI lists no CPUs: {error:?}");
            }
        }
    }
    if left_out > 0 {
        println!("CPUs that are not used: {left_out}; the limit is {most}, and ids are below 255");
    }
    for (index, &id) in ids.iter().enumerate() {
        cpu::area(index).apic_id.store(u32::from(id), Ordering::Relaxed);
    }
    ids.len()
}

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static boot_stack: u8;
    static boot_entry: u8;
}

/// Starts CPUs until `nr_cpus` run. `before_start` is called with the index of each CPU before it starts.
///
/// # Panics
/// When a CPU does not come up within 2 s, or there is no memory for its stacks.
pub fn bring_up(nr_cpus: usize, mut before_start: impl FnMut(usize)) {
    copy_trampoline();
    for index in cpu::online()..nr_cpus {
        before_start(index);
        stacks::map(index);
        let top = stack::top(index, Stack::Ordinary);
        start_up_word((&raw const boot_stack) as u64).store(top, Ordering::Relaxed);
        start_up_word((&raw const boot_entry) as u64).store(start as *const () as u64, Ordering::Release);
        lapic::start_cpu(index, (TRAMPOLINE >> 12) as u8);
        wait::until(MILLIS_TO_START, format_args!("CPU {index} did not start"), || cpu::online() > index);
    }
    paging::drop_identity_map();
    tlb::flush_all();
}

fn copy_trampoline() {
    let (start, end) = ((&raw const trampoline_start) as u64, (&raw const trampoline_end) as u64);
    for offset in 0..end - start {
        // SAFETY: the source is start-up code that is linked where it is loaded, and the target a page that
        // boot keeps out of the allocator; both lie in the first GiB of the direct map.
        unsafe { *phys_to_virt(TRAMPOLINE + offset) = *phys_to_virt(start + offset) };
    }
}

fn start_up_word(phys: u64) -> &'static AtomicU64 {
    // SAFETY: the two words of `boot/entry.s` are aligned to 8, live as long as the kernel, and no CPU
    // that is starting reads them before SIPI.
    unsafe { &*phys_to_virt(phys).cast::<AtomicU64>() }
}

/// First Rust code of every CPU but the boot CPU.
extern "C" fn start() -> ! {
    // One CPU starts at a time, and the CPUs that are online have the lower indices.
    cpu::init(cpu::online());
    trap::init_cpu();
    cpu::set_online();
    job::run()
}
