//! One hotplug region on the host: which of its bytes are open, and the memslots that lead to them.
//!
//! | a byte of the region | host page tables | memslot | discarded |
//! | --- | --- | --- | --- |
//! | plugged | open | yes | no |
//! | unplugged, but something else in its slot is plugged | closed | yes | yes |
//! | unplugged, as is everything in its memory block | closed | no, or an empty one that is still to be removed | yes |
//!
//! So unplugged memory is out of the guest's reach down to the device block, independent of the slots. Slots
//! come with memory: one for each run of memory blocks that a plug is the first to use. A slot is never split
//! or resized while something in it is plugged: KVM can do that only by removing the slot for a moment, while
//! the guest's CPUs run.
//!
//! Both operations do the steps that can fail first and the ones that cannot be taken back last, so that an
//! error means that nothing changed, contents included:
//! - plug: open, then add slots;
//! - unplug: close, then discard. From the close on the guest cannot reach the memory, so it cannot fault
//!   discarded memory in again.
//!
//! Slots that an unplug leaves empty are removed later, by [`RamRegion::remove_empty_slots`]: KVM waits for the guest's
//! CPUs meanwhile, often for longer than the rest of an unplug takes, and nobody has to wait with it. Until then, or if
//! KVM does not remove it, a slot stays, closed, and serves the next plug.
//!
//! [`RamRegion::unplug_all`] does the same with the whole region: one close and one discard, however many runs
//! the guest made.
//!
//! Taking back the close of a failed unplug can fail, too. Then the range is no longer in the open runs, so
//! that no window leads to closed memory. The device was told of an error and still counts the range as
//! plugged. A guest that uses the range dies; a guest that unplugs it again succeeds.
//!
//! Invariants: the open runs are open on the host; neither slots nor windows lead to any other open memory.
//! Slots are whole memory blocks, do not overlap, and cover the open runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidevm_abi::MEMORY_BLOCK_SIZE;

use super::host_calls::FailedCall;
use super::mapping::Mapping;
use super::range::{GuestRange, OffsetRange};
use super::runs::Runs;
use super::slots::Slots;

/// The host memory behind a hotplug region.
#[derive(Debug)]
pub struct RamRegion {
    range: GuestRange,
    mapping: Arc<Mapping>,
    open: Runs,
    /// Slots by their first offset.
    slots: BTreeMap<u64, Slot>,
    /// What was unplugged since empty slots were last removed.
    emptied: Runs,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offsets: OffsetRange,
    number: u32,
}

impl RamRegion {
    /// An empty region at `range`. `mapping` is closed and has the size of `range`.
    #[must_use]
    pub fn new(range: GuestRange, mapping: Arc<Mapping>) -> Self {
        Self { range, mapping, open: Runs::default(), slots: BTreeMap::new(), emptied: Runs::default() }
    }

    /// Where the guest sees the region.
    #[must_use]
    pub fn range(&self) -> GuestRange {
        self.range
    }

    /// The host memory behind the region.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The runs of open memory.
    #[must_use]
    pub fn open_runs(&self) -> &Runs {
        &self.open
    }

    /// Whether all of `range` is in one run of open memory.
    #[must_use]
    pub fn is_open(&self, range: GuestRange) -> bool {
        self.range.offsets_of(range).is_some_and(|offsets| self.open.contains(offsets))
    }

    /// Gives the memory behind `range`, which is open and stays so, back to the host.
    ///
    /// # Errors
    /// The range is not in the region (`EINVAL`), or the error of the host.
    pub fn give_back(&self, range: GuestRange) -> Result<(), FailedCall> {
        let offsets = self.range.offsets_of(range).ok_or_else(super::no_such_memory)?;
        self.mapping.discard(offsets)
    }

    /// Makes a range usable. All of it is closed now.
    ///
    /// # Errors
    /// The host's error; nothing changed.
    pub fn plug(&mut self, range: OffsetRange, slots: &mut dyn Slots) -> Result<(), FailedCall> {
        let result = self.mapping.open(range).and_then(|()| self.cover(range, slots));
        match result {
            Ok(()) => self.open.insert(range),
            // Closing merges VMAs back to what they were, which needs no resource that was not there before.
            // If it fails all the same, some memory stays open that no slot and no window leads to.
            Err(_) => {
                if let Err(error) = self.mapping.close(range) {
                    log::error!("cannot close memory whose plugging failed: {error}");
                }
            }
        }
        result
    }

    /// Makes a range unreachable and gives its memory back. All of it is open now, or was lost by an unplug
    /// that failed. No window leads there any more.
    ///
    /// # Errors
    /// The host's error. Nothing changed, contents included. If the host does not open the range again, it is no longer in [`RamRegion::open_runs`].
    pub fn unplug(&mut self, range: OffsetRange) -> Result<(), FailedCall> {
        let result = self.close_and_discard(range);
        if let Err(error) = result {
            if let Err(error) = self.mapping.open(range) {
                log::error!("cannot open memory whose unplugging failed; it is lost to the guest: {error}");
                self.open.remove(range);
            }
            return Err(error);
        }
        self.open.remove(range);
        self.emptied.insert(range);
        Ok(())
    }

    /// Makes the whole region unreachable and gives its memory back. No window leads here any more.
    ///
    /// # Errors
    /// The host's error. Nothing changed, contents included. Runs that the host does not open again are no
    /// longer in [`RamRegion::open_runs`].
    pub fn unplug_all(&mut self) -> Result<(), FailedCall> {
        let all = self.mapping.all();
        if let Err(error) = self.close_and_discard(all) {
            let runs: Vec<_> = self.open.iter().collect();
            let lost: Vec<_> = runs.into_iter().filter(|&run| self.mapping.open(run).is_err()).collect();
            if !lost.is_empty() {
                log::error!(
                    "cannot open {} runs whose unplugging failed; they are lost to the guest",
                    lost.len()
                );
            }
            lost.into_iter().for_each(|run| self.open.remove(run));
            return Err(error);
        }
        self.open = Runs::default();
        self.emptied.insert(all);
        Ok(())
    }

    /// Removes the slots that unplugs have left empty.
    pub fn remove_empty_slots(&mut self, slots: &mut dyn Slots) {
        for run in std::mem::take(&mut self.emptied).iter() {
            self.remove_empty(run, slots);
        }
    }

    /// Closes everything. The slots are gone already, with the machine of KVM in which they were made. No
    /// window leads here any more.
    ///
    /// # Errors
    /// The host's error; the memory may not have been given back.
    pub fn reset(&mut self) -> Result<(), FailedCall> {
        self.open = Runs::default();
        self.emptied = Runs::default();
        self.slots.clear();
        let all = self.mapping.all();
        self.mapping.close(all).and_then(|()| self.mapping.discard(all))
    }

    fn close_and_discard(&self, range: OffsetRange) -> Result<(), FailedCall> {
        self.mapping.close(range)?;
        self.mapping.discard(range)
    }

    /// Adds a slot for every run of memory blocks around `range` that has none.
    fn cover(&mut self, range: OffsetRange, slots: &mut dyn Slots) -> Result<(), FailedCall> {
        let mut added: Vec<Slot> = Vec::new();
        for offsets in self.uncovered(range) {
            let address = self.range.addresses_of(offsets).start();
            match slots.add(address, &self.mapping, offsets) {
                Ok(number) => added.push(Slot { offsets, number }),
                Err(error) => {
                    // A slot that cannot be removed is closed and empty, like one that an unplug leaves
                    // behind.
                    added.retain(|slot| slots.remove(slot.number).is_err());
                    self.keep(added);
                    return Err(error);
                }
            }
        }
        self.keep(added);
        Ok(())
    }

    fn keep(&mut self, slots: Vec<Slot>) {
        self.slots.extend(slots.into_iter().map(|slot| (slot.offsets.start(), slot)));
    }

    /// The runs of memory blocks around `range` that are in no slot, ascending.
    fn uncovered(&self, range: OffsetRange) -> Vec<OffsetRange> {
        let blocks = range.widened_to(MEMORY_BLOCK_SIZE);
        let mut runs = Runs::default();
        runs.insert(blocks);
        for slot in self.slots_in(blocks) {
            runs.remove(slot.offsets);
        }
        runs.iter().collect()
    }

    /// Removes the slots that overlap `range` and have nothing open.
    fn remove_empty(&mut self, range: OffsetRange, slots: &mut dyn Slots) {
        let empty: Vec<_> = self.slots_in(range).filter(|slot| !self.open.overlaps(slot.offsets)).collect();
        for slot in empty {
            match slots.remove(slot.number) {
                Ok(()) => drop(self.slots.remove(&slot.offsets.start())),
                Err(error) => log::warn!("KVM keeps the empty memslot {}: {error}", slot.number),
            }
        }
    }

    /// The slots that overlap `range`.
    fn slots_in(&self, range: OffsetRange) -> impl Iterator<Item = Slot> {
        let before_end = self.slots.range(..range.end()).rev().map(|(_, &slot)| slot);
        before_end.take_while(move |slot| slot.offsets.end() > range.start())
    }
}
