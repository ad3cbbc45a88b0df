//! One hotplug region: which of its bytes are plugged, and what follows from that on the host.
//!
//! | a byte of the region | host page tables | memslot | discarded |
//! | --- | --- | --- | --- |
//! | plugged | open | yes | no |
//! | unplugged, but something else in its slot is plugged | closed | yes | yes |
//! | unplugged, and so is everything in its memory block | closed | no, or an empty one that could not be removed | yes |
//!
//! So unplugged memory is out of the guest's reach down to the device block, whatever the slots.
//! Slots come with memory: one for each run of memory blocks that a plug is the first to use. A
//! slot is never split or resized while something in it is plugged, because KVM can only do that
//! by removing it for a moment under the guest's running CPUs.
//!
//! Both operations do the steps that can fail first and the ones that cannot be taken back last,
//! so that an error means that nothing changed:
//! - plug: open, then add slots;
//! - unplug: close (from here on the guest cannot reach the memory, so it cannot fault it in
//!   again), then discard, then remove empty slots. A slot that KVM does not remove stays, closed,
//!   and serves the next plug.
//!
//! Taking back what an unplug closed is a step that can fail, too. Then the range counts as
//! unplugged here, so that nobody's window leads to closed memory; the device, which was told of an
//! error, goes on to count it as plugged. A guest that uses it dies of that, one that unplugs it
//! again succeeds.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tidevm_abi::MEMORY_BLOCK_SIZE;

use super::mapping::Mapping;
use super::runs::Runs;
use super::slots::Slots;

/// A hotplug region. Ranges are offsets in bytes from its start.
#[derive(Debug)]
pub struct RamRegion {
    start: u64,
    mapping: Arc<Mapping>,
    plugged: Runs,
    /// Slots by their first byte; their ranges are whole memory blocks and do not overlap.
    slots: BTreeMap<u64, Slot>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    end: u64,
    number: u32,
}

impl RamRegion {
    /// An empty region at guest-physical `start`; its size is that of `mapping`, which is closed.
    #[must_use]
    pub fn new(start: u64, mapping: Arc<Mapping>) -> Self {
        Self { start, mapping, plugged: Runs::default(), slots: BTreeMap::new() }
    }

    /// Guest-physical address of the first byte.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The host memory behind the region.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What is plugged.
    #[must_use]
    pub fn plugged(&self) -> &Runs {
        &self.plugged
    }

    /// Makes a range usable that is wholly unplugged.
    ///
    /// # Errors
    /// What the host says; nothing changed.
    pub fn plug(&mut self, range: Range<u64>, slots: &mut dyn Slots) -> io::Result<()> {
        let result = self.mapping.open(range.clone()).and_then(|()| self.cover(&range, slots));
        match result {
            Ok(()) => self.plugged.insert(range),
            // Closing merges VMAs back to what they were, which needs nothing that was not there. If
            // it fails all the same, memory is open to which nothing leads.
            Err(_) => {
                if let Err(error) = self.mapping.close(range) {
                    log::error!("cannot close memory whose plugging failed: {error}");
                }
            }
        }
        result
    }

    /// Makes a range unreachable that is wholly plugged, or was not opened again when it should have
    /// been, and gives its memory back. No window leads there any more.
    ///
    /// # Errors
    /// What the host says; nothing changed but, maybe, the contents of the range. It is no longer in
    /// [`RamRegion::plugged`] if the host does not open it again.
    pub fn unplug(&mut self, range: Range<u64>, slots: &mut dyn Slots) -> io::Result<()> {
        let result = self.mapping.close(range.clone()).and_then(|()| self.mapping.discard(range.clone()));
        if let Err(error) = result {
            if let Err(error) = self.mapping.open(range.clone()) {
                log::error!("cannot open memory whose unplugging failed; it is lost to the guest: {error}");
                self.plugged.remove(range);
            }
            return Err(error);
        }
        self.plugged.remove(range.clone());
        self.remove_empty(&range, slots);
        Ok(())
    }

    /// Unplugs everything, with the slots already gone: so did the machine that they were made in. No
    /// window leads here any more.
    ///
    /// # Errors
    /// What the host says; its memory may not have come back.
    pub fn reset(&mut self) -> io::Result<()> {
        self.plugged = Runs::default();
        self.slots.clear();
        let all = 0..self.mapping.size();
        self.mapping.close(all.clone()).and_then(|()| self.mapping.discard(all))
    }

    /// Adds a slot for every run of memory blocks of `range` that has none.
    fn cover(&mut self, range: &Range<u64>, slots: &mut dyn Slots) -> io::Result<()> {
        let mut added = Vec::new();
        for run in self.uncovered(range) {
            match slots.add(self.start + run.start, &self.mapping, run.start, run.end - run.start) {
                Ok(number) => added.push((run, number)),
                Err(error) => {
                    for (run, number) in added {
                        if slots.remove(number).is_err() {
                            // Closed and empty, as one that could not be removed by an unplug.
                            self.slots.insert(run.start, Slot { end: run.end, number });
                        }
                    }
                    return Err(error);
                }
            }
        }
        self.slots.extend(added.into_iter().map(|(run, number)| (run.start, Slot { end: run.end, number })));
        Ok(())
    }

    /// The runs of memory blocks of `range` that are in no slot, ascending.
    fn uncovered(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let blocks =
            range.start - range.start % MEMORY_BLOCK_SIZE..range.end.next_multiple_of(MEMORY_BLOCK_SIZE);
        let mut runs = Runs::default();
        runs.insert(blocks.clone());
        for (start, slot) in self.slots_in(&blocks) {
            runs.remove(start..slot.end);
        }
        runs.iter().collect()
    }

    /// Removes the slots that overlap `range` and in which nothing is plugged.
    fn remove_empty(&mut self, range: &Range<u64>, slots: &mut dyn Slots) {
        let empty: Vec<_> = self
            .slots_in(range)
            .filter(|&(start, slot)| !self.plugged.overlaps(&(start..slot.end)))
            .collect();
        for (start, slot) in empty {
            match slots.remove(slot.number) {
                Ok(()) => drop(self.slots.remove(&start)),
                Err(error) => log::warn!("KVM keeps the empty memslot {}: {error}", slot.number),
            }
        }
    }

    /// The slots that overlap `range`.
    fn slots_in(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, Slot)> {
        let start = range.start;
        self.slots
            .range(..range.end)
            .rev()
            .map(|(&first, &slot)| (first, slot))
            .take_while(move |(_, slot)| slot.end > start)
    }
}
