//! The guest kernel: ring 0, no user space, and memory management for memory that comes and goes.
//!
//! This file is the order of boot. The folders: `boot` learns from the VMM and from firmware, `cpu` and `mem`
//! are the machine, `virtio` has the drivers, and `agent` carries out calls, which come in through `control`
//! or `shell`. `judge` takes the place of the last three where a device is to be judged.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![expect(unsafe_code, reason = "the entry point, and the heap's arena")]

extern crate alloc;

mod agent;
mod boot;
mod console;
mod control;
mod cpu;
mod faults;
mod job;
mod judge;
mod mailbox;
mod mem;
mod procfs;
mod shell;
mod virtio;

use tidevm_abi::Report;
use tidevm_mm::{InitPolicy, Memblock, MemoryContent};
use virtio_drivers::transport::{DeviceType, Transport};

use crate::agent::{pmem, workload};
use crate::boot::acpi::{self, Entry};
use crate::boot::cmdline::CommandLine;
use crate::boot::memory_map::{self, EarlyTables};
use crate::boot::numa::Numa;
use crate::boot::percpu_buf;
use crate::boot::pvh::BootInfo;
use crate::console::println;
use crate::control::Control;
use crate::cpu::{ioapic, lapic, power, smp, stack, time, trap};
use crate::mem::{MM, copy, deferred, heap, paging, stamps};
use crate::virtio::balloon::BalloonDriver;
use crate::virtio::mem::MemDriver;
use crate::virtio::{Device, pci};

core::arch::global_asm!(
    include_str!("boot/entry.s"),
    kernel_start = sym kernel_start,
    boot_area = sym stack::BOOT_AREA,
    stack_top = const stack::Stack::Ordinary.top(),
    options(att_syntax)
);

/// First Rust code of the boot CPU; `boot/entry.s` passes the address that the PVH boot ABI names.
extern "C" fn kernel_start(start_info: u64) -> ! {
    stamps::start();
    cpu::init(0);
    // SAFETY: this is the address that the VMM passed, nothing was written since, and the start-up page
    // tables map the first GiB.
    let info = unsafe { BootInfo::read(start_info) };
    let command_line = CommandLine::parse(info.cmdline());
    time::init(command_line.tsc_khz);
    let memblock = memory_map::read(&info);
    stamps::mapped();
    let nr_cpus = find_hardware(&info, &command_line, memblock);
    start_memory(&command_line, nr_cpus, memblock);
    pmem::find(info.pmem());

    trap::init_cpu();
    cpu::set_online();
    percpu_buf::allocate(0, command_line.percpu_buf);
    smp::bring_up(nr_cpus, |index| percpu_buf::allocate(index, command_line.percpu_buf));
    copy::start();
    if command_line.judge {
        judge::run(&command_line);
    }
    // Lazy initialisation leaves boot memory alone until it is wanted. It needs memory that is zero, and
    // allocations that have more of it initialised.
    let mm = &command_line.mm;
    if mm.init != InitPolicy::Lazy || mm.content != MemoryContent::Zero || !mm.grow {
        deferred::start(command_line.deferred_workers);
    }
    let bound = bind_devices(&command_line);
    stamps::ready();
    mailbox::report(Report::Ready { cpus: cpu::online() as u32, mem_devices: bound.mem_devices });
    shell::start(bound.control);
    job::run()
}

/// Protects the kernel's image, sets up interrupts, and finds CPUs, nodes, PCI's buses and the registers that end the
/// machine. Returns the number of CPUs to run.
fn find_hardware(info: &BootInfo, command_line: &CommandLine, memblock: &mut Memblock) -> usize {
    let tables = &mut EarlyTables(memblock);
    paging::protect_kernel(stack::boot_guards(), tables).expect("no memory for the kernel's page tables");
    lapic::init(tables).and_then(|()| ioapic::init(tables)).expect("no memory for the APICs' page tables");
    trap::init();
    // A VMM that gives neither the address of ACPI's tables nor the number of CPUs has tables that are to be found.
    let rsdp = info.rsdp().or_else(|| if command_line.nr_cpus.is_none() { acpi::find_root() } else { None });
    let mut numa = Numa::known();
    let mut ends = None;
    let nr_cpus = smp::find_cpus(rsdp, command_line.nr_cpus, tables, |entry| match entry {
        Entry::Buses(range) => pci::buses().may_be(range),
        Entry::RootBuses(roots) => pci::buses().set_roots(roots),
        Entry::Power(fadt, sleep_type) => ends = Some((fadt, sleep_type)),
        about_nodes => numa.note(about_nodes),
    });
    if let Some((fadt, sleep_type)) = ends {
        power::found(&fadt, sleep_type, tables);
    }
    numa.settle(&command_line.numa, memblock, nr_cpus);
    nr_cpus
}

/// Starts the heap and memory management.
fn start_memory(command_line: &CommandLine, nr_cpus: usize, memblock: &'static mut Memblock) {
    let arena = memory_map::alloc(memblock, heap::ARENA_SIZE).expect("no memory for the heap");
    // SAFETY: memblock just gave this memory, and it is mapped from the start.
    unsafe { heap::init(arena.get()) };
    let options = command_line.mm.with_nr_cpus(nr_cpus);
    MM.boot(memblock, options).expect("memory management does not start");
    stamps::first_allocation();
    MM.register_owner(workload::OWNER, &workload::Workloads);
}

/// Which devices have a driver.
#[derive(Default)]
struct Bound {
    /// The control channel.
    control: bool,
    /// How many virtio-mem devices.
    mem_devices: u32,
}

/// Binds all devices to their drivers.
fn bind_devices(command_line: &CommandLine) -> Bound {
    let mut bound = Bound::default();
    for device in command_line.devices.iter().flatten().filter_map(Device::find) {
        bound.bind(device, command_line);
    }
    if command_line.pci {
        pci::each_mem_device(|device| bound.bind(device, command_line));
    }
    bound
}

impl Bound {
    /// Binds a device to its driver, if there is one that can use it.
    fn bind<T: Transport + Send + 'static>(&mut self, device: Device<T>, command_line: &CommandLine) {
        match device.transport.device_type() {
            DeviceType::Console => match Control::new(device) {
                Some(control) => {
                    job::spawn(0, control);
                    self.control = true;
                }
                None => println!("the control channel cannot be used"),
            },
            DeviceType::Memory => match MemDriver::new(device, self.mem_devices as usize, command_line) {
                Ok(driver) => {
                    job::spawn(0, driver);
                    self.mem_devices += 1;
                }
                Err(reason) => println!("virtio-mem: {reason}"),
            },
            DeviceType::MemoryBalloon => match BalloonDriver::new(device) {
                Ok(driver) => job::spawn(0, driver),
                Err(reason) => println!("virtio-balloon: {reason}"),
            },
            kind => println!("no driver for a {kind:?} device"),
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is the guest kernel; it runs on x86_64-unknown-none only (see guest/image)");
    let _ = kernel_start as extern "C" fn(u64) -> !;
}
