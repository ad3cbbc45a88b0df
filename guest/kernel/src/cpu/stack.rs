//! Where the stacks of each CPU are, with an unmapped page under each of them.
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
//! `mem/stacks.rs` maps them and checks the guard pages.
#![expect(unsafe_code, reason = "reserves the boot CPU's stacks")]

use core::cell::UnsafeCell;
use core::fmt;

use tidevm_abi::MAX_CPUS;
use tidevm_mm::PAGE_SIZE;

use crate::mem::paging::STACKS;

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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ordinary, Self::Fault, Self::DoubleFault];

    /// Order of the buddy block behind it.
    pub const fn order(self) -> u8 {
        match self {
            Self::Ordinary => 4,
            Self::Fault | Self::DoubleFault => 1,
        }
    }

    /// Its bytes.
    pub const fn size(self) -> u64 {
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

/// The lowest address of a stack of CPU `index`. The page below it is the guard page.
pub fn bottom(index: usize, stack: Stack) -> u64 {
    area(index) + stack.bottom()
}

/// The end of a stack of CPU `index`, where the stack pointer begins.
pub fn top(index: usize, stack: Stack) -> u64 {
    area(index) + stack.top()
}

/// The guard pages of the boot CPU.
pub fn boot_guards() -> impl Iterator<Item = u64> {
    Stack::ALL.into_iter().map(|stack| bottom(0, stack) - PAGE_SIZE).filter(|&address| is_boot_guard(address))
}

/// Whether `address` is in a guard page of the boot CPU.
// A function of its own, because a test replaces it in the image (`tests/sessions/stacks.rs`).
#[inline(never)]
fn is_boot_guard(address: u64) -> bool {
    guard_of(0, address).is_some()
}

/// The CPU and its stack above the guard page that `address` is in.
pub fn guard_at(address: u64) -> Option<(usize, Stack)> {
    // The areas of the other CPUs are neighbours, so the address says which CPU it can be.
    let beyond_boot = address.checked_sub(STACKS).map(|offset| (offset / AREA_SIZE) as usize + 1);
    let other = beyond_boot.filter(|&index| index < MAX_CPUS);
    [Some(0), other].into_iter().flatten().find_map(|index| Some((index, guard_of(index, address)?)))
}

/// The stack of CPU `index` above the guard page that `address` is in.
fn guard_of(index: usize, address: u64) -> Option<Stack> {
    let offset = address.checked_sub(area(index))?;
    let is_below = |stack: &Stack| (stack.bottom() - PAGE_SIZE..stack.bottom()).contains(&offset);
    Stack::ALL.into_iter().find(is_below)
}
