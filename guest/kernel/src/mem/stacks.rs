//! Memory for the stacks of all CPUs but the boot CPU, and a check of all stacks.
//!
//! Mirrors Linux `alloc_thread_stack_node` with `VMAP_STACK`. `cpu/stack.rs` has the addresses.
//!
//! Invariants: from [`paging::protect_kernel`] on, the guard pages of the boot CPU are unmapped. No page is ever
//! mapped at a guard page of another CPU. Stacks are never freed.

use tidevm_mm::{Gfp, Order, PAGE_SIZE};

use crate::cpu::stack::{self, Stack};
use crate::cpu::{self, panic};
use crate::mem::{MM, paging, platform};

/// Allocates and maps the stacks of CPU `index`, which is not the boot CPU.
pub fn map(index: usize) {
    for stack in Stack::ALL {
        let block = MM.alloc_pages(Order::new(stack.order()), Gfp::Kernel).ok();
        let mapped = block.is_some_and(|block| {
            let (bottom, start) = (stack::bottom(index, stack), block.address().get());
            pages(stack).all(|offset| platform::map_stack_page(bottom + offset, start + offset).is_ok())
        });
        if !mapped {
            panic::out_of_memory(format_args!("no memory for the stacks of CPU {index}"));
        }
    }
}

/// Offsets of the pages of `stack` from its lowest address.
fn pages(stack: Stack) -> impl Iterator<Item = u64> {
    (0..stack.size()).step_by(PAGE_SIZE as usize)
}

/// Checks that every page of every stack is mapped, and that no guard page is.
///
/// # Panics
/// When it is not so.
pub fn check() {
    for (index, stack) in (0..cpu::online()).flat_map(|index| Stack::ALL.map(|stack| (index, stack))) {
        let bottom = stack::bottom(index, stack);
        assert!(!paging::is_mapped(bottom - PAGE_SIZE), "CPU {index}: a page is mapped under {stack}");
        for offset in pages(stack) {
            assert!(paging::is_mapped(bottom + offset), "CPU {index}: a page of {stack} is not mapped");
        }
    }
}
