//! What `virtio-drivers` asks of the machine: memory for queues, and addresses of buffers.
#![expect(unsafe_code, reason = "implements the library's unsafe porting trait")]

use core::ptr::NonNull;

use tidevm_mm::{Gfp, Order};
use virtio_drivers::transport::mmio::{MmioError, VirtIOHeader};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::Mmio;
use crate::MM;
use crate::paging::{clear_page, phys_to_virt, virt_to_phys};

/// The machine, for `virtio-drivers`.
pub struct Machine;

fn order(pages: usize) -> Order {
    Order::new(pages.next_power_of_two().trailing_zeros() as u8)
}

// SAFETY: `dma_alloc` returns pages that the page allocator gave to nobody else, cleared, through
// the direct map; buffers are shared in place, since devices see all of memory.
unsafe impl Hal for Machine {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // The library takes address 0 as "no memory".
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

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("only the PCI transport asks for this")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        virt_to_phys(buffer.cast::<u8>().as_ptr() as u64)
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// The transport of the device whose registers are mapped at `header`.
///
/// # Errors
/// When there is no device that `virtio-drivers` knows.
pub fn transport(header: NonNull<VirtIOHeader>, size: usize) -> Result<Mmio, MmioError> {
    // SAFETY: the caller mapped the registers for good, at the place that the command line named;
    // each place is looked at once.
    unsafe { Mmio::new(header, size) }
}
