//! The hardware of a PC as far as the kernel needs it: memory map, serial port, interrupts, and the virtio-mem device.
//!
//! The transport and the queue are those of `virtio-drivers`. The device interrupts by a line of the two old interrupt
//! controllers. Firmware has wired it; the kernel does not know which it is, so it opens all of them while it halts.
#![expect(unsafe_code, reason = "ports, the interrupt table, and memory that devices write to")]

use core::fmt::{self, Write};
use core::ptr::NonNull;

use tidevm_mm::{Gfp, Order, PAGE_SIZE};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use virtio_mem::wire::{self, Config};
use virtio_mem::{Idle, Request, Response};
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::instructions::port::Port;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::{LARGE_PAGE, MM, TinyKernel, map_large, order};

unsafe extern "C" {
    safe static image_start: u8;
    safe static image_end: u8;
    fn interrupt();
}

/// Where the kernel lies.
pub fn image() -> (u64, u64) {
    ((&raw const image_start) as u64, (&raw const image_end) as u64)
}

/// RAM: first byte and size of each range (Xen `hvm_start_info`, `hvm_memmap_table_entry`).
///
/// # Safety
/// `start_info` is the address that the boot ABI passed, and the memory there is as it was.
pub unsafe fn ram(start_info: u64) -> impl Iterator<Item = (u64, u64)> {
    const RAM: u32 = 1;
    // SAFETY: by the contract, and the VMM keeps its structures in the first GiB, which is mapped.
    let read = move |address: u64| unsafe { (address as *const u64).read_unaligned() };
    let (table, entries) = (read(start_info + 40), read(start_info + 48) as u32);
    let entries = (0..u64::from(entries)).map(move |index| table + 24 * index);
    entries.filter(move |&at| read(at + 16) as u32 == RAM).map(move |at| (read(at), read(at + 8)))
}

fn write(port: u16, value: u8) {
    // SAFETY: the ports written are those of the serial port and the interrupt controllers.
    unsafe { Port::new(port).write(value) }
}

pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| write(0x3f8, byte));
        Ok(())
    }
}

macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // Writing to the port cannot fail.
        _ = writeln!($crate::hardware::Serial, $($argument)*);
    }};
}
pub(crate) use println;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    loop {
        x86_64::instructions::hlt();
    }
}

/// Sends the lines of the interrupt controllers, all closed, to `interrupt` of `entry.s`.
pub fn init() {
    const FIRST_VECTOR: u8 = 32;
    static mut IDT: InterruptDescriptorTable = InterruptDescriptorTable::new();
    for (command, data, first, wiring) in [(0x20, 0x21, FIRST_VECTOR, 4), (0xa0, 0xa1, FIRST_VECTOR + 8, 2)] {
        write(command, 0x11);
        [first, wiring, 1, 0xff].into_iter().for_each(|value| write(data, value));
    }
    let idt = &raw mut IDT;
    // SAFETY: this runs once, and nothing else names the table. The handler keeps all registers and returns by `iretq`.
    unsafe {
        let idt = &mut *idt;
        for vector in FIRST_VECTOR..FIRST_VECTOR + 16 {
            idt[vector].set_handler_addr(VirtAddr::new(interrupt as *const () as u64));
        }
        idt.load();
    }
}

/// Halts until an interrupt comes: of a device, or of the timer too, which comes every 55 ms.
fn halt(with_timer: bool) {
    write(0xa1, 0);
    write(0x21, u8::from(!with_timer));
    interrupts::enable_and_hlt();
    interrupts::disable();
}

// SAFETY: memory for queues is a buddy block of its own, zeroed. All memory is mapped where it is, and so are registers.
unsafe impl Hal for TinyKernel {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let block =
            order(pages * PAGE_SIZE as usize).and_then(|order| MM.alloc_pages(order, Gfp::Kernel).ok());
        let start = block.map_or(0, |pfn| pfn.address().get());
        let Some(virt) = NonNull::new(start as *mut u8) else { return (0, NonNull::dangling()) };
        // SAFETY: the pages were just allocated.
        unsafe { virt.write_bytes(0, pages * PAGE_SIZE as usize) };
        (start, virt)
    }

    unsafe fn dma_dealloc(start: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        let order = order(pages * PAGE_SIZE as usize).unwrap_or(Order::MAX);
        MM.free_pages(tidevm_mm::PhysAddr::new(start).pfn(), order);
        0
    }

    unsafe fn mmio_phys_to_virt(start: PhysAddr, size: usize) -> NonNull<u8> {
        let first = start & !(LARGE_PAGE - 1);
        (first..start + size as u64).step_by(LARGE_PAGE as usize).for_each(|page| map_large(page, page));
        NonNull::new(start as *mut u8).expect("no device is at 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// PCI's configuration ports.
struct Ports;

impl Ports {
    fn data(function: DeviceFunction, register: u8) -> Port<u32> {
        let [bus, device, number] = [function.bus, function.device, function.function].map(u32::from);
        let address = 1 << 31 | bus << 16 | device << 11 | number << 8 | u32::from(register);
        // SAFETY: writing this port selects a register and does nothing else.
        unsafe { Port::new(0xcf8).write(address) };
        Port::new(0xcfc)
    }
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        // SAFETY: reading a configuration register changes nothing.
        unsafe { Self::data(function, register).read() }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        // SAFETY: the device has no other driver.
        unsafe { Self::data(function, register).write(value) }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// The virtio-mem device.
pub struct Device {
    transport: PciTransport,
    queue: VirtQueue<TinyKernel, 2>,
    /// The device has notified of a change that was not looked at.
    changed: bool,
}

/// The first virtio-mem device on bus 0, set up.
pub fn find() -> Option<Device> {
    let mut root = PciRoot::new(Ports);
    let is_memory = |(_, info): &(_, _)| virtio_device_type(info) == Some(DeviceType::Memory);
    let (function, _) = PciRoot::new(Ports).enumerate_bus(0).find(is_memory)?;
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    let mut transport = PciTransport::new::<TinyKernel, _>(&mut root, function).ok()?;
    transport.set_status(DeviceStatus::empty());
    let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(status);
    const VERSION_1: u64 = 1 << 32;
    let features = transport.read_device_features() & (VERSION_1 | 1 << wire::F_UNPLUGGED_INACCESSIBLE);
    transport.write_driver_features(features);
    transport.set_status(status | DeviceStatus::FEATURES_OK);
    let queue = VirtQueue::new(&mut transport, 0, false, false).ok()?;
    transport.finish_init();
    Some(Device { transport, queue, changed: false })
}

impl Device {
    /// The configuration space, under one generation.
    pub fn config(&self) -> (Config, u32) {
        loop {
            let before = self.transport.read_config_generation();
            let mut bytes = [0; wire::CONFIG_SIZE];
            for (offset, word) in bytes.chunks_exact_mut(4).enumerate() {
                let value =
                    self.transport.read_config_space::<u32>(4 * offset).expect("the space is that long");
                word.copy_from_slice(&value.to_le_bytes());
            }
            if self.transport.read_config_generation() == before {
                return (Config::from_bytes(&bytes), before);
            }
        }
    }

    /// Sends `request` and waits for the response.
    pub fn send(&mut self, request: Request) -> Response {
        let (request, mut response) = (request.to_bytes(), [0; wire::RESPONSE_SIZE]);
        // SAFETY: the buffers live until the device has used them, because this waits for it.
        let token = unsafe { self.queue.add(&[&request], &mut [&mut response]) }.expect("the queue is empty");
        self.transport.notify(0);
        loop {
            self.acknowledge();
            if self.queue.can_pop() {
                break;
            }
            halt(false);
        }
        // SAFETY: these are the buffers that were added.
        unsafe { self.queue.pop_used(token, &[&request], &mut [&mut response]) }.expect("it can be popped");
        Response::from_bytes(&response)
    }

    /// Lowers the device's line. What it was raised for comes before what is looked at next.
    fn acknowledge(&mut self) {
        self.changed |=
            self.transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
    }

    /// Halts until the configuration changes, and returns true; or as long as `idle` says, and returns false.
    pub fn sleep(&mut self, idle: Idle) -> bool {
        const TICK_MS: u32 = 55;
        let mut ticks = match idle {
            Idle::Retry { after_ms, .. } => Some(after_ms.div_ceil(TICK_MS)),
            _ => None,
        };
        loop {
            self.acknowledge();
            if core::mem::take(&mut self.changed) {
                return true;
            }
            if ticks == Some(0) {
                return false;
            }
            halt(ticks.is_some());
            ticks = ticks.map(|ticks| ticks - 1);
        }
    }
}
