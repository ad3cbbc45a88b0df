//! Ranges of memory blocks: added together, taken away together.
//!
//! Mirrors Linux `create_altmaps_and_memory_blocks`, `remove_memory_blocks_and_altmaps` and
//! `offline_and_remove_memory`. Where the memmap lies on the memory, a range that is added has one
//! altmap for each memory block of it, not one for all, so that each can leave by itself.
//!
//! # Removal
//! | memory blocks of the range whose memmap lies on them | `Range` | `PerBlock` |
//! |---|---|---|
//! | none | removed | removed |
//! | all, one block | removed | removed |
//! | all, several blocks | [`RemoveError::Granularity`] | removed, each with its altmap |
//! | some | [`RemoveError::Granularity`] | [`RemoveError::Mixed`] |
//!
//! `Range` is what Linux 5.14 did: it knew one altmap a removal, and a range that came as several blocks
//! had to leave as such. `PerBlock` is what it does since 6.8.
//!
//! Differs from Linux on purpose: adding rolls everything back, and a memory block that went offline for
//! a range that then stays comes back to the zone that it was in.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::SectionNr;
use crate::altmap::VmemAltmap;
use crate::hotplug::{AddError, MhpFlags, RemoveError};
use crate::isolation::OfflineError;
use crate::memory_block::{MAX_BLOCK_SECTIONS, MemoryBlock};
use crate::node::NodeId;
use crate::pageblock_set::PageblockSet;
use crate::platform::Platform;

/// What may be removed at a time when the memmap lies on the memory; chosen at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalPolicy {
    /// One memory block: the granularity of adding.
    Range,
    /// Any number, block by block.
    PerBlock,
}

/// Consecutive sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionRange {
    /// The first of them.
    pub first: SectionNr,
    /// How many.
    pub count: u32,
}

/// Why a range was not taken away. It is as it was then, but that pages may have moved elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfflineAndRemoveError {
    /// The range may not be removed like this.
    Remove(RemoveError),
    /// This memory block did not go offline.
    Offline(SectionNr, OfflineError),
}

impl<P: Platform> Mm<P> {
    /// Adds the sections of `range`, wholly plugged, to `node` as memory blocks of `block_sections` each: all of
    /// them or none. As [`add_memory`](Self::add_memory) for each.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_memory_range(
        &self,
        node: NodeId,
        range: SectionRange,
        block_sections: u32,
        flags: impl Into<MhpFlags>,
    ) -> Result<(), AddError> {
        const PLUGGED: [PageblockSet; MAX_BLOCK_SECTIONS as usize] = [PageblockSet::ALL; _];
        let plugged = PLUGGED.get(..block_sections as usize).ok_or(AddError::Misaligned)?;
        if range.count == 0 || plugged.is_empty() || !range.count.is_multiple_of(block_sections) {
            return Err(AddError::Misaligned);
        }
        let flags = flags.into();
        let end = range.first.get().checked_add(range.count).ok_or(AddError::OutOfRange)?;
        let _hotplug = self.lock_hotplug();
        for first in (range.first.get()..end).step_by(plugged.len()) {
            if let Err(error) = self.add_block(node, SectionNr::new(first), plugged, flags) {
                let done = SectionRange { first: range.first, count: first - range.first.get() };
                self.blocks_in(done).for_each(|block| self.remove_block(block));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes the memory blocks of `range`, which are offline, all of them or none.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub fn remove_memory_range(&self, range: SectionRange) -> Result<(), RemoveError> {
        let _hotplug = self.lock_hotplug();
        self.check_removable(range)?;
        for block in self.blocks_in(range) {
            self.block_to_remove(block.first())?;
        }
        self.blocks_in(range).for_each(|block| self.remove_block(block));
        Ok(())
    }

    /// Takes the memory blocks of `range`, which are online, offline and removes them, all of them or
    /// none.
    ///
    /// # Errors
    /// See [`OfflineAndRemoveError`].
    pub fn offline_and_remove_memory(&self, range: SectionRange) -> Result<(), OfflineAndRemoveError> {
        let _hotplug = self.lock_hotplug();
        self.check_removable(range).map_err(OfflineAndRemoveError::Remove)?;
        for (block, done) in self.blocks_in(range).zip(0..) {
            let offline = self.block_to_offline(block.first()).and_then(|block| self.offline_block(block));
            if let Err(error) = offline {
                for block in self.blocks_in(range).take(done) {
                    let zone = self.entry(block.first()).zone();
                    self.online_block(block, zone, || false).expect("nothing vetoes the way back");
                }
                return Err(OfflineAndRemoveError::Offline(block.first(), error));
            }
        }
        self.blocks_in(range).for_each(|block| self.remove_block(block));
        Ok(())
    }

    fn removal_policy(&self) -> RemovalPolicy {
        if self.remove_per_block.load(Relaxed) { RemovalPolicy::PerBlock } else { RemovalPolicy::Range }
    }

    /// Whether `range` is made of whole memory blocks that were added, and may be removed at once.
    fn check_removable(&self, range: SectionRange) -> Result<(), RemoveError> {
        let (mut sections, mut blocks, mut with_altmap) = (0, 0, 0);
        for block in self.blocks_in(range) {
            sections += block.len();
            blocks += 1;
            let first = block.first();
            with_altmap += u32::from(VmemAltmap::of(first, self.entry(first)).is_some());
        }
        if sections != range.count || range.count == 0 {
            let boot = self.is_boot_memory(range.first);
            return Err(if boot { RemoveError::Online } else { RemoveError::NotPresent });
        }
        match (self.removal_policy(), with_altmap) {
            (_, 0) => Ok(()),
            (RemovalPolicy::Range, _) if blocks > 1 => Err(RemoveError::Granularity),
            (RemovalPolicy::PerBlock, _) if with_altmap < blocks => Err(RemoveError::Mixed),
            _ => Ok(()),
        }
    }

    /// The memory blocks from the start of `range` on, up to the first gap, and at most to the first one
    /// that reaches its end.
    fn blocks_in(&self, range: SectionRange) -> impl Iterator<Item = MemoryBlock> {
        let mut at = 0;
        core::iter::from_fn(move || {
            if at >= range.count {
                return None;
            }
            let block = MemoryBlock::at(&self.sparse, SectionNr::new(range.first.get().checked_add(at)?))?;
            at += block.len();
            Some(block)
        })
    }
}
