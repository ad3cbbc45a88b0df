//! The kernel's heap: small objects in one arena that boot reserved, and everything of a page or more
//! straight from the page allocator.
//!
//! Takes the place of Linux's slab and `kmalloc`.
//!
//! Invariant: the arena never grows, so a page that is freed always goes back to the page allocator, which
//! counts it.
#![expect(unsafe_code, reason = "implements the global allocator")]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;
use spin::Mutex;
use tidevm_mm::{Gfp, Order, PAGE_SIZE, PhysAddr};

use crate::mem::MM;
use crate::mem::paging::{phys_to_virt, virt_to_phys};

/// Bytes of the arena.
pub const ARENA_SIZE: u64 = 512 << 10;

struct KernelHeap {
    arena: Mutex<Heap>,
}

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: KernelHeap = KernelHeap { arena: Mutex::new(Heap::empty()) };

/// Gives the heap its arena: [`ARENA_SIZE`] bytes at physical address `arena`.
///
/// # Safety
/// The memory must be in the direct map and must belong to the heap for good. Called once.
pub unsafe fn init(arena: u64) {
    // SAFETY: by this function's contract.
    unsafe { HEAP.arena.lock().init(phys_to_virt(arena), ARENA_SIZE as usize) };
}

/// Order of the buddy block that holds `layout`; `None` when `layout` belongs into the arena. [`block_order`]
/// refuses orders that are too large.
fn order(layout: Layout) -> Option<u32> {
    let size = layout.size().max(layout.align()) as u64;
    (size >= PAGE_SIZE).then(|| size.div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros())
}

fn block_order(order: u32) -> Option<Order> {
    u8::try_from(order).ok().filter(|&order| order <= Order::MAX.get()).map(Order::new)
}

// SAFETY: a buddy block of 2^order pages is aligned to its size, which is at least the layout's size and
// alignment; the arena's allocator respects the layout itself.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match order(layout) {
            Some(order) => block_order(order)
                .and_then(|order| MM.alloc_pages(order, Gfp::Kernel).ok())
                .map_or(ptr::null_mut(), |pfn| phys_to_virt(pfn.address().get())),
            None => self.arena.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match order(layout) {
            Some(order) => {
                let order = block_order(order).expect("`alloc` gave no larger buddy block");
                MM.free_pages(PhysAddr::new(virt_to_phys(block as u64)).pfn(), order);
            }
            None => {
                let Some(block) = NonNull::new(block) else { return };
                // SAFETY: `alloc` got this allocation from the arena, for the same layout.
                unsafe { self.arena.lock().deallocate(block, layout) };
            }
        }
    }
}
