//! Whether a vCPU died of memory that is not plugged: where the addresses lead that it uses without an operand.
//!
//! KVM tells the address of a data access. It does not tell that an instruction fetch, a page table, the stack of an
//! exception or a descriptor table was out of reach: the guest then gets a page fault that it cannot handle, and dies
//! of a triple fault, or KVM gives up the emulation. So the text about a death follows these addresses through the
//! guest's page tables, as the CPU does (Intel SDM, volume 3, chapter 5), and names each that ends in memory that is
//! not plugged.
//!
//! After a triple fault on AMD's CPUs there is nothing to follow: KVM resets the vCPU's registers before it tells.

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{Memory, View};

const CR0_PAGING: u64 = 1 << 31;
const CR4_LARGE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_FIVE_LEVELS: u64 = 1 << 12;
const EFER_LONG: u64 = 1 << 10;

/// The bits of a page table entry that are an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bytes that a push takes at least in 64-bit mode.
const WORD: u64 = 8;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

/// Guest-physical memory, as far as this needs it.
pub trait Physical {
    /// Whether the address lies in a hotplug region, where nothing is plugged.
    fn is_unplugged(&self, address: u64) -> bool;

    /// A little-endian number of `width` bytes. [`None`] where there is no memory.
    fn read(&self, address: u64, width: usize) -> Option<u64>;
}

/// The memory of a VM, under the lock of its view.
pub struct VmMemory<'m> {
    /// The memory, for its regions.
    pub memory: &'m Memory,
    /// What is plugged.
    pub view: &'m View,
}

impl Physical for VmMemory<'_> {
    fn is_unplugged(&self, address: u64) -> bool {
        let address = GuestAddress(address);
        let in_region = self.memory.regions().iter().any(|region| region.contains(address));
        in_region && self.view.read_obj::<u8>(address).is_err()
    }

    fn read(&self, address: u64, width: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        self.view.read_slice(bytes.get_mut(..width)?, GuestAddress(address)).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// An address of a vCPU that leads to memory that is not plugged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplugged {
    /// What the vCPU has at the address, in words.
    pub what: &'static str,
    /// The linear address.
    pub linear: u64,
    /// The guest-physical address that is not plugged.
    pub physical: u64,
    /// A page table on the way to the address lies there, not the address itself.
    pub table: bool,
}

impl std::fmt::Display for Unplugged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, linear, physical, table } = self;
        let way = if *table { "a page table of " } else { "" };
        write!(f, "not plugged: {way}{what} {linear:#x} (guest-physical address {physical:#x})")
    }
}

/// What a vCPU has at `rip`.
const INSTRUCTION: &str = "the instruction at";

impl Unplugged {
    /// Whether the vCPU could not fetch its instruction.
    pub fn is_fetch(&self) -> bool {
        self.what == INSTRUCTION
    }
}

/// The addresses of a vCPU that lead to memory that is not plugged. The first one is that of the instruction, if it
/// is one of them.
pub fn find(rip: u64, rsp: u64, sregs: &kvm_sregs, memory: &impl Physical) -> Vec<Unplugged> {
    // An exception pushes below the stack pointer.
    let stack = sregs.ss.base.wrapping_add(rsp);
    let mut used = vec![
        (INSTRUCTION, sregs.cs.base.wrapping_add(rip), 0),
        ("the stack below", stack, WORD),
        ("the interrupt table at", sregs.idt.base, 0),
        ("the descriptor table at", sregs.gdt.base, 0),
    ];
    let more = [("the task state at", sregs.tr.base, 0), ("the last page fault's address", sregs.cr2, 0)];
    used.extend(more.into_iter().filter(|&(_, linear, _)| linear != 0));
    let paging = Paging::of(sregs);
    let unplugged = |(what, linear, below): (&'static str, u64, u64)| {
        let (physical, table) = match paging.lead(linear.wrapping_sub(below), memory) {
            Lead::To(address) => (address, false),
            Lead::Table(address) => (address, true),
            Lead::Nowhere => return None,
        };
        memory.is_unplugged(physical).then_some(Unplugged { what, linear, physical, table })
    };
    used.into_iter().filter_map(unplugged).collect()
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    To(u64),
    /// To a page table entry that cannot be read.
    Table(u64),
    /// It is not mapped.
    Nowhere,
}

/// The kind of a vCPU's page tables.
#[derive(Clone, Copy, Debug)]
struct Paging {
    root: u64,
    /// 0: linear addresses are physical ones.
    levels: u32,
    /// Bits of the address that a level translates.
    bits: u32,
    /// Bytes of an entry.
    width: usize,
    /// The highest level, from 0, whose entries can be large pages.
    large: u32,
    /// Bits of a linear address that count.
    linear: u64,
}

impl Paging {
    fn of(sregs: &kvm_sregs) -> Self {
        const LOW: u64 = u32::MAX as u64;
        let root = sregs.cr3 & ADDRESS;
        if sregs.cr0 & CR0_PAGING == 0 {
            return Self { root, levels: 0, bits: 0, width: 8, large: 0, linear: LOW };
        }
        if sregs.efer & EFER_LONG != 0 {
            let levels = if sregs.cr4 & CR4_FIVE_LEVELS == 0 { 4 } else { 5 };
            return Self { root, levels, bits: 9, width: 8, large: 2, linear: u64::MAX };
        }
        if sregs.cr4 & CR4_PAE != 0 {
            return Self { root: sregs.cr3 & LOW & !31, levels: 3, bits: 9, width: 8, large: 1, linear: LOW };
        }
        let large = u32::from(sregs.cr4 & CR4_LARGE != 0);
        Self { root: root & LOW, levels: 2, bits: 10, width: 4, large, linear: LOW }
    }

    fn lead(self, linear: u64, memory: &impl Physical) -> Lead {
        let linear = linear & self.linear;
        let mut table = self.root;
        for level in (0..self.levels).rev() {
            let shift = 12 + level * self.bits;
            let index = linear >> shift & ((1 << self.bits) - 1);
            let at = table + index * self.width as u64;
            let Some(entry) = memory.read(at, self.width) else { return Lead::Table(at) };
            if entry & PRESENT == 0 {
                return Lead::Nowhere;
            }
            if level == 0 || level <= self.large && entry & LARGE != 0 {
                let offset = (1 << shift) - 1;
                return Lead::To(entry & ADDRESS & !offset | linear & offset);
            }
            table = entry & ADDRESS;
        }
        Lead::To(linear)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kvm_bindings::kvm_sregs;

    use super::{Lead, Paging, Physical, find};

    /// Words at addresses; from [`REGION`] on nothing is plugged.
    struct Words(BTreeMap<u64, u64>);

    const REGION: u64 = 1 << 32;

    impl Physical for Words {
        fn is_unplugged(&self, address: u64) -> bool {
            address >= REGION
        }

        fn read(&self, address: u64, width: usize) -> Option<u64> {
            let word = self.0.get(&address).copied().unwrap_or(0);
            let mask = if width == 4 { u64::from(u32::MAX) } else { u64::MAX };
            (!self.is_unplugged(address)).then_some(word & mask)
        }
    }

    fn sregs(cr0: u64, cr4: u64, efer: u64) -> kvm_sregs {
        kvm_sregs { cr0, cr3: 0x1000, cr4, efer, ..kvm_sregs::default() }
    }

    #[test]
    fn every_kind_of_page_tables_is_followed() {
        const PG: u64 = 1 << 31;
        let lead = |sregs: &kvm_sregs, words: &[(u64, u64)], linear| {
            Paging::of(sregs).lead(linear, &Words(words.iter().copied().collect()))
        };
        assert_eq!(lead(&sregs(0, 0, 0), &[], 0x1234), Lead::To(0x1234), "no paging");
        let two = sregs(PG, 1 << 4, 0);
        assert_eq!(lead(&two, &[(0x1004, 0x2001), (0x2008, 0x5001)], 0x40_2034), Lead::To(0x5034));
        assert_eq!(lead(&two, &[(0x1004, 0x80_0081)], 0x40_2034), Lead::To(0x80_2034), "a page of 4 MiB");
        let three = sregs(PG, 1 << 5, 0);
        let words = [(0x1018, 0x2001), (0x2008, 0x3001), (0x3010, REGION | 0x7001)];
        assert_eq!(lead(&three, &words, 0xc020_2034), Lead::To(REGION | 0x7034));
        let four = sregs(PG, 1 << 5, 1 << 10);
        let words = [(0x1ff8, 0x2001), (0x2ff0, 0x3001), (0x3000, 0x20_0081)];
        assert_eq!(lead(&four, &words, 0xffff_ffff_8000_0034), Lead::To(0x20_0034), "a page of 2 MiB");
        let five = sregs(PG, 1 << 5 | 1 << 12, 1 << 10);
        let words = [(0x1000, 0x2001), (0x2000, 0x4000_0001), (0x4000_0008, 0x4000_0081)];
        assert_eq!(lead(&five, &words, 0x4000_0034), Lead::To(0x4000_0034), "a page of 1 GiB");
        assert_eq!(lead(&four, &[(0x1000, REGION | 1)], 0x8034), Lead::Table(REGION));
        assert_eq!(lead(&four, &[], 0), Lead::Nowhere);
    }

    /// The last word of plugged memory is a good stack, and so is one that nothing was pushed to.
    #[test]
    fn a_stack_that_ends_where_plugged_memory_ends_is_plugged() {
        let flat = sregs(0, 0, 0);
        let no_words = Words(BTreeMap::new());
        assert_eq!(find(0x1000, 0x2000, &flat, &no_words), []);
        let paged = sregs(1 << 31, 1 << 5, 1 << 10);
        // Two pages: one in memory, and the next one in the region.
        let tables =
            [(0x1000, 0x2001), (0x2000, 0x3001), (0x3000, 0x4001), (0x4008, 0x7001), (0x4010, REGION | 1)];
        let words = Words(tables.into_iter().collect());
        assert_eq!(find(0x1000, 0x2000, &paged, &words), []);
        let found = find(0x1000, 0x2008, &paged, &words);
        assert_eq!(
            found[0].to_string(),
            "not plugged: the stack below 0x2008 (guest-physical address 0x100000000)"
        );
        assert!(find(0x2000, 0x2000, &paged, &words)[0].is_fetch());
    }
}
