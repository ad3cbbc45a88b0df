//! Guest memory without KVM, for tests.
//!
//! The memslots are stricter than KVM's: slots that overlap, and slots above boot memory that are not made of
//! whole memory blocks, are defects.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidevm_abi::{MEMORY_BLOCK_SIZE, Size};

use vm_memory::GuestAddress;

use super::Memory;
use super::host_calls::FailedCall;
use super::layout::HOLE_END;
use super::layout::Place;
use super::mapping::Mapping;
use super::range::{GuestRange, OffsetRange};
use super::slots::Slots;

/// Slots that a test can look at while a [`Memory`] owns them.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeSlots(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Number to address and size.
    slots: BTreeMap<u32, (u64, u64)>,
    next: u32,
    /// How many more calls succeed before one fails.
    add_budget: Option<u32>,
    remove_budget: Option<u32>,
    /// How long an addition takes.
    add_delay: Duration,
}

impl FakeSlots {
    /// After `successes` more additions, one fails. Later ones succeed.
    pub(crate) fn fail_add_after(&self, successes: u32) {
        self.with(|table| table.add_budget = Some(successes));
    }

    /// From now on nothing fails.
    pub(crate) fn never_fail(&self) {
        self.with(|table| (table.add_budget, table.remove_budget) = (None, None));
    }

    /// From now on each addition takes `time`.
    pub(crate) fn delay_adds(&self, time: Duration) {
        self.with(|table| table.add_delay = time);
    }

    /// After `successes` more removals, one fails. Later ones succeed.
    pub(crate) fn fail_remove_after(&self, successes: u32) {
        self.with(|table| table.remove_budget = Some(successes));
    }

    /// Address and size of the slots above boot memory, ascending.
    pub(crate) fn hotplug(&self, boot: u64) -> Vec<(u64, u64)> {
        let end = super::layout::ram(Size(boot)).map(|range| range.end().0).max().unwrap_or(0);
        let first = end.max(HOLE_END);
        let mut slots: Vec<_> = self
            .with(|table| table.slots.values().copied().filter(|&(address, _)| address >= first).collect());
        slots.sort_unstable();
        slots
    }

    /// Number of slots.
    pub(crate) fn count(&self) -> usize {
        self.with(|table| table.slots.len())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut crate::sync::lock(&self.0))
    }
}

/// Takes one from a budget. Returns whether this call has to fail.
fn fails(budget: &mut Option<u32>) -> bool {
    match budget {
        Some(0) => {
            *budget = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl Slots for FakeSlots {
    fn add_slot(
        &mut self,
        address: GuestAddress,
        mapping: &Arc<Mapping>,
        offsets: OffsetRange,
    ) -> io::Result<u32> {
        assert!(offsets.end() <= mapping.size());
        let (address, size) = (address.0, offsets.size());
        std::thread::sleep(self.with(|table| table.add_delay));
        self.with(|table| {
            if fails(&mut table.add_budget) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            for &(other, other_size) in table.slots.values() {
                let apart = address + size <= other || other + other_size <= address;
                assert!(apart, "slot {address:#x}+{size:#x} overlaps {other:#x}+{other_size:#x}");
            }
            if table.next > 1 {
                assert!((address | size).is_multiple_of(MEMORY_BLOCK_SIZE), "{address:#x}+{size:#x}");
            }
            let number = table.next;
            table.next += 1;
            table.slots.insert(number, (address, size));
            Ok(number)
        })
    }

    fn remove_slot(&mut self, slot: u32) -> io::Result<()> {
        self.with(|table| {
            if fails(&mut table.remove_budget) {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            assert!(table.slots.remove(&slot).is_some(), "slot {slot} removed twice");
            Ok(())
        })
    }
}

/// A range of guest-physical addresses.
pub(crate) fn at(addresses: Range<u64>) -> GuestRange {
    GuestRange::new(addresses).expect("a range that is not empty")
}

/// A range of offsets into a mapping.
pub(crate) fn offsets(offsets: Range<u64>) -> OffsetRange {
    OffsetRange::new(offsets).expect("a range that is not empty")
}

/// Boot memory of `boot` bytes and regions of `sizes`, without KVM.
pub(crate) fn memory(boot: u64, sizes: &[u64]) -> (Memory, FakeSlots) {
    memory_with_pmem(boot, sizes, &[])
}

/// The same with device memory.
pub(crate) fn memory_with_pmem(boot: u64, sizes: &[u64], pmem: &[u64]) -> (Memory, FakeSlots) {
    let slots = FakeSlots::default();
    let [sizes, pmem] = [sizes, pmem].map(|sizes| sizes.iter().copied().map(Size).collect::<Vec<_>>());
    let places: Vec<_> = sizes.into_iter().map(Place::from).collect();
    let memory = Memory::new(Size(boot), &places, &pmem, Box::new(slots.clone()));
    let memory = memory.expect("address space for a test");
    (memory, slots)
}

/// Unplugs, and does what the event loop does after it.
pub(crate) fn unplug(memory: &Memory, index: usize, range: GuestRange) -> Result<(), FailedCall> {
    let result = memory.unplug(index, range);
    memory.remove_empty_slots();
    result
}

/// The same with all of a region.
pub(crate) fn unplug_all(memory: &Memory, index: usize) -> Result<(), FailedCall> {
    let result = memory.unplug_all(index);
    memory.remove_empty_slots();
    result
}
