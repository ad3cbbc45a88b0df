//! Several memory blocks removed at once, and taken offline for it.
//!
//! Mirrors Linux `remove_memory_blocks_and_altmaps` and `offline_and_remove_memory`.
//!
//! | memory blocks of the range whose memmap lies on them | [`RemovalPolicy::Range`] | [`RemovalPolicy::PerBlock`] |
//! |---|---|---|
//! | none | removed | removed |
//! | all, one memory block | removed | removed |
//! | all, several memory blocks | [`RemoveError::Granularity`] | removed, each with its altmap |
//! | some | [`RemoveError::Granularity`] | [`RemoveError::Mixed`] |
//!
//! Linux 5.14 had `Range`: a removal knew one altmap, so several memory blocks left one by one. Linux has
//! `PerBlock` since 6.8.
//!
//! Differs from Linux on purpose: when a memory block of the range does not go offline, the ones that did go
//! back online in the zone that they were in.
//!
//! Invariant: a call removes all memory blocks of its range, or none of them.

use core::fmt;

use crate::addr::{SectionNr, SectionRange};
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;
use crate::isolation::OfflineError;
use crate::memory_block::RemoveError;
use crate::options::RemovalPolicy;
use crate::platform::Platform;

/// Why a range was not taken offline and removed. It is as it was then, but pages may have moved elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfflineAndRemoveError {
    /// The range may not be removed like this.
    Remove(RemoveError),
    /// This memory block did not go offline.
    Offline(SectionNr, OfflineError),
}

impl fmt::Display for OfflineAndRemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove(error) => write!(f, "the memory blocks cannot be removed together: {error}"),
            Self::Offline(first, error) => write!(
                f,
                "the memory block at {:#x} does not go offline: {error}",
                first.start().address().get()
            ),
        }
    }
}

impl core::error::Error for OfflineAndRemoveError {}

impl<P: Platform> Hotplug<'_, P> {
    /// Removes the memory blocks of `range`, which are offline: all of them or none.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub fn remove_memory_range(&self, range: SectionRange) -> Result<(), RemoveError> {
        self.check_removable(range)?;
        for block in self.mm.blocks_in(range) {
            self.block_to_remove(block.first())?;
        }
        self.mm.blocks_in(range).for_each(|block| self.remove_block(block));
        Ok(())
    }

    /// Takes the memory blocks of `range`, which are online, offline and removes them: all of them or none.
    ///
    /// # Errors
    /// See [`OfflineAndRemoveError`].
    pub fn offline_and_remove_memory(&self, range: SectionRange) -> Result<(), OfflineAndRemoveError> {
        self.check_removable(range).map_err(OfflineAndRemoveError::Remove)?;
        for (block, done) in self.mm.blocks_in(range).zip(0..) {
            if let Err(error) = self.offline(block.first()) {
                for block in self.mm.blocks_in(range).take(done) {
                    let zone = self.mm.sparse.entry(block.first()).zone();
                    self.online_block(block, zone, || false).expect("nothing vetoes the way back");
                }
                return Err(OfflineAndRemoveError::Offline(block.first(), error));
            }
        }
        self.mm.blocks_in(range).for_each(|block| self.remove_block(block));
        Ok(())
    }

    /// Whether `range` is made of whole memory blocks that were added, and may be removed at once.
    fn check_removable(&self, range: SectionRange) -> Result<(), RemoveError> {
        if !self.mm.is_boot_memory(range.first()) {
            self.settle(range);
        }
        let (mut sections, mut blocks, mut with_altmap) = (0, 0, 0);
        for block in self.mm.blocks_in(range) {
            sections += block.len();
            blocks += 1;
            let first = block.first();
            with_altmap += u32::from(VmemAltmap::of(first, self.mm.sparse.entry(first)).is_some());
        }
        if sections != range.len() || range.is_empty() {
            let boot = self.mm.is_boot_memory(range.first());
            return Err(if boot { RemoveError::Online } else { RemoveError::NotPresent });
        }
        match (self.mm.options.get().removal, with_altmap) {
            (_, 0) => Ok(()),
            (RemovalPolicy::Range, _) if blocks > 1 => Err(RemoveError::Granularity),
            (RemovalPolicy::PerBlock, _) if with_altmap < blocks => Err(RemoveError::Mixed),
            _ => Ok(()),
        }
    }
}
