//! A kernel that boots in QEMU and grows: the smallest kernel around `tidevm-mm` and the driver of `virtio-mem`.
//!
//! It has one CPU, and a virtio-mem device on PCI. QEMU's command `qom-set` gives that device a target; the kernel follows
//! it in memory blocks of 128 MiB, and prints what it has. It does not migrate pages, so a memory block in which a page is in
//! use stays ([`Platform::MIGRATES`]).
//!
//! Everything is mapped where it is, in pages of 2 MiB, and memmaps lie in a window of their own. Page tables come from the
//! image, which has enough for [`SECTIONS`] sections.
//!
//! Invariants: interrupts are off but while the CPU halts. Memory is accessed only while it is plugged.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![expect(unsafe_code, reason = "page tables, ports, and memory that devices write to")]

extern crate alloc;

mod hardware;

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use tidevm_mm::{
    Gfp, Memblock, MemoryContent, Mm, NodeId, Options, Order, PAGE_SIZE, Page, PerCpuPages, Pfn, PfnRange,
    PhysAddr, PhysRange, Platform, SECTION_SIZE, Section, SectionNr, SectionRange, Sparse, ZoneType,
};
use virtio_mem::{Action, Driver, DriverConfig, IdleReason, Outcome};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86_64::registers::control::Cr3;

use hardware::{Device, println};

/// Memory lies below 64 GiB.
const SECTIONS: usize = 512;
const MEMMAPS: u64 = 0xffff_8000_0000_0000;
const MIB: u64 = 1 << 20;
const LARGE_PAGE: u64 = 2 * MIB;
/// One table per GiB of memory, two for memmaps, and one per GiB with registers of devices.
const TABLES: usize = 64 + 2 + 8;

struct TinyKernel;

static MM: Mm<TinyKernel> = Mm::new(
    TinyKernel,
    // SAFETY: the window has room for the memmaps of all sections, and `TinyKernel` alone maps something there.
    unsafe { Sparse::new(NonNull::new(MEMMAPS as *mut Page).expect("not at 0"), &SECTION_TABLE) },
    &PER_CPU,
);
static PER_CPU: [PerCpuPages; 1] = [PerCpuPages::new()];
static SECTION_TABLE: [Section; SECTIONS] = [const { Section::new() }; _];

/// A page table.
#[repr(align(4096))]
struct Table([AtomicU64; 512]);
static UNUSED: [Table; TABLES] = [const { Table([const { AtomicU64::new(0) }; _]) }; _];
static USED: AtomicUsize = AtomicUsize::new(0);

/// Makes `entry` the entry of the 2 MiB at `virt`.
fn map(virt: u64, entry: u64) {
    const PRESENT_WRITABLE: u64 = 3;
    let mut table = Cr3::read().0.start_address().as_u64();
    for shift in [39, 30, 21] {
        // SAFETY: page tables lie in the image, which is mapped where it is, and are used as such only.
        let slot = unsafe { &(*(table as *const Table)).0[(virt >> shift) as usize % 512] };
        if shift == 21 {
            slot.store(entry, Relaxed);
            break;
        }
        if slot.load(Relaxed) == 0 {
            let fresh = ptr::from_ref(&UNUSED[USED.fetch_add(1, Relaxed)]) as u64;
            slot.store(fresh | PRESENT_WRITABLE, Relaxed);
        }
        table = slot.load(Relaxed) & !(PAGE_SIZE - 1);
    }
    tlb::flush(VirtAddr::new_truncate(virt));
}

/// Makes the memory at `phys` the 2 MiB at `virt`.
fn map_large(virt: u64, phys: u64) {
    const PRESENT_WRITABLE_LARGE: u64 = 0x83;
    map(virt, phys | PRESENT_WRITABLE_LARGE);
}

fn memmap(section: SectionNr) -> u64 {
    MEMMAPS + u64::from(section.get()) * LARGE_PAGE
}

// SAFETY: a section's memmap has an entry of its own, which nothing else writes to. There is one CPU.
unsafe impl Platform for TinyKernel {
    fn this_cpu(&self) -> usize {
        0
    }

    fn map_prepared_memmap(&self, section: SectionNr, backing: Pfn) {
        map_large(memmap(section), backing.address().get());
    }

    fn unmap_memmap(&self, section: SectionNr) {
        map(memmap(section), 0);
    }

    fn map_prepared_direct(&self, range: PfnRange) {
        let large_pages = range.frames().step_by(Order::PAGEBLOCK.pages() as usize);
        large_pages.map(|pfn| pfn.address().get()).for_each(|address| map_large(address, address));
    }

    fn unmap_direct(&self, range: PfnRange) {
        let large_pages = range.frames().step_by(Order::PAGEBLOCK.pages() as usize);
        large_pages.for_each(|pfn| map(pfn.address().get(), 0));
    }

    fn synchronize(&self) {}
}

/// The order of a buddy block of `bytes` bytes, if one can be so large.
fn order(bytes: usize) -> Option<Order> {
    let pages = bytes.div_ceil(PAGE_SIZE as usize).next_power_of_two();
    (pages <= Order::MAX.pages() as usize).then(|| Order::new(pages.ilog2() as u8))
}

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: TinyKernel = TinyKernel;

// SAFETY: a buddy block belongs to its holder alone, and is aligned to its size. It is mapped where it is.
unsafe impl GlobalAlloc for TinyKernel {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let pages = order(layout.size().max(layout.align()))
            .and_then(|order| MM.alloc_pages(order, Gfp::Kernel).ok());
        pages.map_or(ptr::null_mut(), |pfn| pfn.address().get() as *mut u8)
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        let order = order(layout.size().max(layout.align())).expect("it was allocated");
        MM.free_pages(PhysAddr::new(start as u64).pfn(), order);
    }
}

core::arch::global_asm!(include_str!("entry.s"), kernel_start = sym kernel_start, options(att_syntax));

/// `entry.s` comes here, with the address that the PVH boot ABI passes.
extern "C" fn kernel_start(start_info: u64) -> ! {
    static mut MEMBLOCK: Memblock = Memblock::new();
    hardware::init();
    let memblock = &raw mut MEMBLOCK;
    // SAFETY: this runs once, and nothing else names it.
    let memblock = unsafe { &mut *memblock };
    // SAFETY: the address is that of the boot ABI, and nothing was written since.
    for (start, size) in unsafe { hardware::ram(start_info) } {
        memblock.add(PhysRange::new(PhysAddr::new(start), size)).expect("a short memory map");
    }
    for (start, end) in [(0, 1 << 20), hardware::image()] {
        memblock.reserve(PhysRange::new(PhysAddr::new(start), end - start)).expect("a short memory map");
    }
    MM.boot(memblock, Options::DEFAULT).expect("memory management does not start");
    follow(hardware::find().expect("a virtio-mem device on PCI"))
}

/// Follows the target of the device.
fn follow(mut device: Device) -> ! {
    let parts = DriverConfig::new(SECTION_SIZE, SECTION_SIZE).with_memmap_size(LARGE_PAGE);
    let (config, generation) = device.config();
    let mut driver = Driver::new(parts, config, generation).expect("a region that this kernel can use");
    println!("ready");
    loop {
        let outcome = match driver.next() {
            Action::ReadConfig => {
                let (config, generation) = device.config();
                Outcome::Config(config, generation)
            }
            Action::Send(request) => Outcome::Response(device.send(request)),
            Action::AddMemoryBlocks { addr, size, .. } => add(addr, size),
            Action::RemoveMemoryBlocks { addr, size } => remove(addr, size),
            Action::OnlineDeviceBlocks { .. } | Action::OfflineDeviceBlocks { .. } => {
                unreachable!("the smallest part is a memory block")
            }
            Action::Idle(idle) => {
                let (plugged, zones) = (driver.plugged_size() / MIB, MM.stats().zones);
                let free = zones.iter().map(|zone| zone.all_free()).sum::<u64>() * PAGE_SIZE / MIB;
                println!("{plugged} MiB plugged, {free} MiB free: {idle:?}");
                if device.sleep(idle) {
                    driver.config_changed()
                } else {
                    driver.retry()
                }
                continue;
            }
        };
        driver.complete(outcome);
    }
}

/// Adds memory blocks, and looks whether the memory is there.
fn add(addr: u64, size: u64) -> Outcome {
    let (node, range) = (NodeId::FIRST, sections(addr, size));
    let unknown = MemoryContent::Unknown;
    let added = MM.hotplug().add_and_online_memory(node, range, 1, ZoneType::Movable, unknown, || true);
    let Err(part) = added else {
        let page = MM.alloc_pages(Order::PAGE, Gfp::Movable).expect("memory has just come");
        // SAFETY: the page was allocated for this.
        unsafe { (page.address().get() as *mut u64).write_volatile(addr) };
        MM.free_pages(page, Order::PAGE);
        return Outcome::Done;
    };
    println!("{}", part.error);
    let done = u64::from(part.end.get() - range.first().get()) * SECTION_SIZE;
    Outcome::Part { done, failed: Some(IdleReason::NoMemory) }
}

/// Removes memory blocks, as far as none of their pages is in use.
fn remove(addr: u64, size: u64) -> Outcome {
    let range = sections(addr, size);
    let Err(part) = MM.hotplug().offline_and_remove_from_end(range, || true) else { return Outcome::Done };
    part.error.into_iter().for_each(|error| println!("{error}"));
    let done = u64::from(range.end().get() - part.first.get()) * SECTION_SIZE;
    Outcome::Part { done, failed: Some(IdleReason::Unmovable) }
}

fn sections(addr: u64, size: u64) -> SectionRange {
    let count = (size / SECTION_SIZE) as u32;
    SectionRange::new(SectionNr::of(PhysAddr::new(addr)), count).expect("the region is below 64 GiB")
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel; it runs on x86_64-unknown-none only");
    let _ = kernel_start as extern "C" fn(u64) -> !;
}
