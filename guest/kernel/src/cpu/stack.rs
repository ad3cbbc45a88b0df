//! The stacks of each CPU, and the unmapped page under each of them.
//!
//! Mirrors Linux `VMAP_STACK` and the guard pages of `cea_exception_stacks`. An overflow is a page fault on the
//! guard page. The handler has a stack of its own, so it can report the overflow. The compiler touches every page
//! of a large frame in turn (inline stack probes), so no frame steps over the guard page.
//!
//! | pages | of a CPU's area, from its lowest address |
//! | --- | --- |
//! | 1 + 16 | guard page, ordinary stack |
//! | 1 + 2 | guard page, stack of faults that may come from a broken stack |
//! | 1 + 2 | guard page, stack of double faults |
//!
//! The boot CPU's area is in the kernel's image, because it is in use before there are page tables to edit. The
//! areas of the other CPUs are neighbours in a window of the address space ([`STACKS`]).
//!
//! Invariants: from [`paging::protect_kernel`] on the guard pages of the boot CPU are unmapped, and no page is ever
//! mapped at another guard page. [`check`] verifies it. Stacks are never freed.
#![expect(unsafe_code, reason = "reserves the boot CPU's stacks")]

use core::cell::UnsafeCell;
use core::fmt;

use tidevm_mm::{Gfp, Order, PAGE_SIZE, Pfn};

use crate::cpu::{self, MAX_CPUS, panic};
use crate::mem::paging::{self, STACKS};
use crate::mem::{MM, platform};

/// A stack that a CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// The one that it runs on.
    Ordinary,
    /// For faults that may come from a broken stack.
    Fault,
    /// For a fault that the CPU meets while it enters the handler of another one.
    DoubleFault,
}

impl Stack {
    const ALL: [Self; 3] = [Self::Ordinary, Self::Fault, Self::DoubleFault];

    /// Order of the buddy block behind it.
    const fn order(self) -> u8 {
        match self {
            Self::Ordinary => 4,
            Self::Fault | Self::DoubleFault => 1,
        }
    }

    const fn size(self) -> u64 {
        PAGE_SIZE << self.order()
    }

    /// Offset of its lowest address in the area; the guard page ends there.
    const fn bottom(self) -> u64 {
        match self {
            Self::Ordinary => PAGE_SIZE,
            Self::Fault => Self::Ordinary.top() + PAGE_SIZE,
            Self::DoubleFault => Self::Fault.top() + PAGE_SIZE,
        }
    }

    /// Offset of its end in the area.
    pub const fn top(self) -> u64 {
        self.bottom() + self.size()
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ordinary => "its stack",
            Self::Fault => "its fault stack",
            Self::DoubleFault => "its double-fault stack",
        })
    }
}

/// Bytes of an area.
const AREA_SIZE: u64 = Stack::DoubleFault.top();

/// The area of the boot CPU.
#[repr(C, align(4096))]
pub struct BootArea(UnsafeCell<[u8; AREA_SIZE as usize]>);
// SAFETY: no code refers to the bytes; only the boot CPU's stack pointer leads there.
unsafe impl Sync for BootArea {}
/// The boot CPU's stacks; `boot/entry.s` starts on the first.
pub static BOOT_AREA: BootArea = BootArea(UnsafeCell::new([0; AREA_SIZE as usize]));

/// Address of the area of CPU `index`.
fn area(index: usize) -> u64 {
    match index {
        0 => (&raw const BOOT_AREA) as u64,
        _ => STACKS + (index as u64 - 1) * AREA_SIZE,
    }
}

/// The end of a stack of CPU `index`, where the stack pointer begins.
pub fn top(index: usize, stack: Stack) -> u64 {
    area(index) + stack.top()
}

/// Allocates and maps the stacks of CPU `index`, which is not the boot CPU.
pub fn map(index: usize) {
    for stack in Stack::ALL {
        let block: Option<Pfn> = MM.alloc_pages(Order::new(stack.order()), Gfp::Kernel).ok();
        let mapped = block.is_some_and(|block| {
            let bottom = area(index) + stack.bottom();
            let mut offsets = (0..stack.size()).step_by(PAGE_SIZE as usize);
            let start = block.address().get();
            offsets.all(|offset| platform::map_stack_page(bottom + offset, start + offset).is_ok())
        });
        if !mapped {
            panic::out_of_memory(format_args!("no memory for the stacks of CPU {index}"));
        }
    }
}

/// Whether `address` is in a guard page of the boot CPU.
pub fn is_boot_guard(address: u64) -> bool {
    matches!(guard_at(address), Some((0, _)))
}

/// The CPU and its stack above the guard page that `address` is in.
pub fn guard_at(address: u64) -> Option<(usize, Stack)> {
    (0..MAX_CPUS).find_map(|index| {
        let offset = address.checked_sub(area(index))?;
        let below = |stack: &Stack| (stack.bottom() - PAGE_SIZE..stack.bottom()).contains(&offset);
        Some((index, Stack::ALL.into_iter().find(below)?))
    })
}

/// Checks that every page of every stack is mapped, and that no guard page is.
///
/// # Panics
/// When it is not so.
pub fn check() {
    for (index, stack) in (0..cpu::online()).flat_map(|index| Stack::ALL.map(|stack| (index, stack))) {
        let bottom = area(index) + stack.bottom();
        assert!(!paging::is_mapped(bottom - PAGE_SIZE), "CPU {index}: a page is mapped under {stack}");
        for offset in (0..stack.size()).step_by(PAGE_SIZE as usize) {
            assert!(paging::is_mapped(bottom + offset), "CPU {index}: a page of {stack} is not mapped");
        }
    }
}
