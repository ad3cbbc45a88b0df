//! The services that `virtio-drivers` needs from the kernel: memory for queues, and addresses of buffers and
//! registers.
#![expect(unsafe_code, reason = "implements the library's unsafe porting trait")]

use core::ptr::NonNull;

use tidevm_mm::{Gfp, Order};
use virtio_drivers::transport::mmio::{MmioError, MmioTransport, VirtIOHeader};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::mem::paging::{clear_page, phys_to_virt, virt_to_phys};
use crate::mem::{MM, platform};

/// The kernel, for `virtio-drivers`.
pub struct KernelHal;

fn order(pages: usize) -> Order {
    Order::new(pages.next_power_of_two().trailing_zeros() as u8)
}

// SAFETY: `dma_alloc` returns pages that the page allocator gave to this caller alone, cleared, through the
// direct map; buffers are shared in place, since devices access all of memory; registers are mapped on
// request, for good.
unsafe impl Hal for KernelHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // For the library, address 0 means that there is no memory.
        let Ok(pfn) = MM.alloc_pages(order(pages), Gfp::Kernel) else { return (0, NonNull::dangling()) };
        let phys = pfn.address().get();
        for page in 0..pages as u64 {
            clear_page(phys + page * tidevm_mm::PAGE_SIZE);
        }
        (phys, NonNull::new(phys_to_virt(phys)).expect("the direct map does not begin at 0"))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        MM.free_pages(tidevm_mm::PhysAddr::new(paddr).pfn(), order(pages));
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        registers(paddr, size as u64)
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        virt_to_phys(buffer.cast::<u8>().as_ptr() as u64)
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

fn registers(address: u64, size: u64) -> NonNull<u8> {
    let start = platform::map_device(address, size).expect("no memory for the page tables of registers");
    NonNull::new(start).expect("windows are in the upper half")
}

/// The transport of the virtio-mmio device with `size` bytes of registers at `address`.
///
/// # Errors
/// `virtio-drivers` does not recognise a device there.
pub fn mmio_transport(address: u64, size: u64) -> Result<MmioTransport<'static>, MmioError> {
    let header = registers(address, size).cast::<VirtIOHeader>();
    // SAFETY: the registers were just mapped for good, at the address that the command line names; boot makes
    // one transport per address.
    unsafe { MmioTransport::new(header, size as usize) }
}
