//! The guest kernel: ring 0, no user space, memory management that is made for memory that comes
//! and goes. This file is the order of boot.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![expect(unsafe_code, reason = "the entry point, and statics that are set up once at boot")]

extern crate alloc;

mod acpi;
mod agent;
mod blocks;
mod boot;
mod churn;
mod cmdline;
mod console;
mod content;
mod control;
mod copy;
mod cpu;
mod deferred;
mod heap;
mod hog;
mod ioapic;
mod irq;
mod job;
mod numa;
mod paging;
mod panic;
mod pci;
mod percpu_buf;
mod platform;
mod pmem;
mod procfs;
mod race;
mod shell;
mod smp;
mod stamps;
mod time;
mod virtio;
mod workload;

use alloc::alloc::{Layout, alloc};

use core::ptr::NonNull;

use tidevm_abi::Report;
use tidevm_mm::{
    InitPolicy, Memblock, MemoryContent, Mm, PAGE_SIZE, Page, PerCpuPages, PhysAddr, PhysRange, Section,
    Sparse,
};
use virtio_drivers::transport::{DeviceType, Transport};

use crate::boot::BootInfo;
use crate::cmdline::Options;
use crate::console::println;
use crate::control::Control;
use crate::numa::Numa;
use crate::paging::{TableSource, VMEMMAP};
use crate::platform::Machine;
use crate::virtio::Device;
use crate::virtio::mem::MemDriver;

/// Sections of the physical address space that the guest can use: 2 TiB.
const SECTIONS: usize = (tidevm_abi::MAX_PHYS_ADDR / tidevm_abi::MEMORY_BLOCK_SIZE) as usize;
/// What the start-up page tables map.
const FIRST_GIB: u64 = 1 << 30;
const LOW_MEMORY: u64 = 1 << 20;

static SECTION_TABLE: [Section; SECTIONS] = [const { Section::new() }; SECTIONS];

/// The memory management.
static MM: Mm<Machine> = Mm::new(
    Machine,
    // SAFETY: the vmemmap window has room for the `Page` of every frame below 2 TiB, and only
    // `Machine` maps anything there.
    unsafe { Sparse::new(NonNull::new(VMEMMAP as *mut Page).expect("not at 0"), &SECTION_TABLE) },
    &PER_CPU,
);
static PER_CPU: [PerCpuPages; cpu::MAX_CPUS] = [const { PerCpuPages::new() }; cpu::MAX_CPUS];

/// Stack of the boot CPU.
#[repr(C, align(16))]
struct Stack([u8; smp::STACK_SIZE]);
static mut BOOT_STACK: Stack = Stack([0; smp::STACK_SIZE]);

/// What boot knows of memory; `mm` keeps it.
static mut MEMBLOCK: Memblock = Memblock::new();

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
}

/// Page tables while there is only memblock.
struct EarlyTables<'m>(&'m mut Memblock);

impl TableSource for EarlyTables<'_> {
    fn alloc(&mut self) -> Option<u64> {
        let table = self.0.alloc(PAGE_SIZE, PAGE_SIZE)?.get();
        paging::clear_page(table);
        Some(table)
    }

    fn free(&mut self, _table: u64) {
        unreachable!("nothing is unmapped before the page allocator runs")
    }
}

/// First Rust code of the boot CPU; `boot.s` passes the address that the PVH boot ABI names.
extern "C" fn kernel_start(start_info: u64) -> ! {
    stamps::start();
    cpu::init(0, (&raw const BOOT_STACK) as u64 + smp::STACK_SIZE as u64);
    // SAFETY: this is the address that the VMM passed, nothing was written since, and the start-up
    // page tables map the first GiB.
    let info = unsafe { BootInfo::read(start_info) };
    let options = cmdline::parse(info.cmdline());
    time::init(options.tsc_khz);
    // SAFETY: this runs once, and nothing else names the static.
    let memblock: &'static mut Memblock = unsafe { (&raw mut MEMBLOCK).as_mut() }.expect("a static");
    map_memory(&info, memblock);
    stamps::mapped();
    let tables = &mut EarlyTables(memblock);
    paging::protect_kernel(tables).expect("no memory for the kernel's page tables");
    irq::init(tables).expect("no memory for the APICs' page tables");
    let mut numa = Numa::new();
    let nr_cpus = smp::find_cpus(info.rsdp(), options.nr_cpus, tables, &mut numa);
    // For the first ones, which are mapped before any page can be allocated.
    paging::prepare_vmemmap(VMEMMAP, VMEMMAP + 1, tables).expect("no memory for the memmap's page tables");
    numa.settle(&options.numa, memblock, nr_cpus);
    let arena = memblock.alloc(heap::ARENA_SIZE, PAGE_SIZE).expect("no memory for the heap");
    // SAFETY: memblock just gave this memory, and it is mapped.
    unsafe { heap::init(arena.get()) };
    let mm_options = tidevm_mm::Options {
        nr_cpus,
        memmap_on_memory: options.memmap_on_memory,
        pcp: options.pcp,
        removal: options.removal,
        init: options.init,
        grow: options.grow,
        content: if options.zeroed { MemoryContent::Zero } else { MemoryContent::Unknown },
        device_init: options.device_init,
    };
    MM.boot(memblock, mm_options).expect("memory management does not start");
    stamps::first_allocation();
    MM.register_owner(workload::OWNER, &workload::Workloads);
    pmem::find(info.pmem());

    irq::init_cpu();
    cpu::set_online();
    percpu_buf::allocate(0, options.percpu_buf);
    smp::bring_up(nr_cpus, |index| {
        percpu_buf::allocate(index, options.percpu_buf);
        new_stack()
    });
    copy::start();
    // Where memory is zero, what is left is initialised when it is wanted, and not before.
    if options.init != InitPolicy::Lazy || !options.zeroed || !options.grow {
        deferred::start(options.one_worker);
    }
    let mem_devices = bind_devices(&options);
    control::report(Report::Ready { cpus: cpu::online() as u32, mem_devices });
    shell::start();
    job::run()
}

/// Binds all devices to their drivers, and returns how many virtio-mem devices have one.
fn bind_devices(options: &Options) -> u32 {
    let mut mem_devices = 0;
    for device in options.devices.iter().flatten().filter_map(Device::find) {
        mem_devices += u32::from(bind(device, options));
    }
    if options.pci {
        pci::each_mem_device(|device| mem_devices += u32::from(bind(device, options)));
    }
    mem_devices
}

/// Maps all of memory, and tells `memblock` what there is and what of it is in use.
fn map_memory(info: &BootInfo, memblock: &mut Memblock) {
    const FULL: &str = "the memory map has too many entries";
    let taken = [
        PhysRange::new(PhysAddr::new(0), LOW_MEMORY),
        PhysRange::between(
            // The linker places these at physical and at kernel addresses, as they stand here.
            PhysAddr::new((&raw const __image_start) as u64),
            PhysAddr::new(paging::virt_to_phys((&raw const __image_end) as u64)),
        )
        .expect("the image ends behind its start"),
    ];
    // Tables come from the first GiB, which is mapped, until all memory is.
    let mut low = Memblock::new();
    for &(start, end) in info.ram() {
        let low_end = end.min(FIRST_GIB);
        if start < low_end {
            low.add(PhysRange::new(PhysAddr::new(start), low_end - start)).expect(FULL);
        }
        memblock.add(PhysRange::new(PhysAddr::new(start), end - start)).expect(FULL);
    }
    for range in taken {
        low.reserve(range).expect(FULL);
    }
    if let Some((start, end)) = info.module() {
        let module = PhysRange::new(PhysAddr::new(start), end - start);
        low.reserve(module).and_then(|()| memblock.reserve(module)).expect(FULL);
    }
    for &(start, end) in info.ram() {
        paging::map_boot_memory(start, end, &mut EarlyTables(&mut low))
            .expect("no memory for the direct map's page tables");
    }
    for range in low.reserved() {
        memblock.reserve(range).expect(FULL);
    }
}

/// Binds a device to its driver. Whether it is a virtio-mem device that now has one.
fn bind<T: Transport + Send + 'static>(device: Device<T>, options: &Options) -> bool {
    let kind = device.transport.device_type();
    match kind {
        DeviceType::Console => {
            match Control::new(device) {
                Some(control) => job::spawn(0, control),
                None => println!("the control channel cannot be used"),
            }
            false
        }
        DeviceType::Memory => match MemDriver::new(device, options) {
            Ok(driver) => {
                job::spawn(0, driver);
                true
            }
            Err(reason) => {
                println!("virtio-mem: {reason}");
                false
            }
        },
        _ => {
            println!("no driver for a {kind:?} device");
            false
        }
    }
}

/// Top of a new CPU's stack.
fn new_stack() -> u64 {
    let layout = Layout::from_size_align(smp::STACK_SIZE, 16).expect("16 is a power of two");
    // SAFETY: the size is not zero. The stack is for good.
    let stack = unsafe { alloc(layout) };
    assert!(!stack.is_null(), "no memory for a stack");
    stack as u64 + smp::STACK_SIZE as u64
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is the guest kernel; it runs on x86_64-unknown-none only (see guest/image)");
    let _ = kernel_start as extern "C" fn(u64) -> !;
    let _ = &raw const BOOT_STACK;
}
