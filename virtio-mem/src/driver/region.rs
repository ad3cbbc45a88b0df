//! The driver's view of its region: which device blocks are plugged, and which of them the guest uses.
//!
//! Mirrors the states that Linux's `virtio_mem.c` keeps per memory block (`VIRTIO_MEM_SBM_MB_*`). Differs on
//! purpose: two sets of device blocks, `plugged` and `online`, and a flag `added` per memory block take the place
//! of nine named states.
//!
//! The device blocks that hold the memmap of a memory block are its *reserve*. A memory block can be added when
//! its reserve is plugged. If only a part of the reserve is plugged, and no other device block, that part is
//! *parked*: the only uses of it are to plug the other part or to unplug it.
//!
//! Invariants:
//! - `online` is a subset of `plugged`. A memory block that is not `added` has no online device block. The reserve
//!   is online from add to remove.
//! - The counts and sums follow from the two sets, because `update` runs after each change of a set.
//! - The last memory block in the vector is not vacant. The sets may be longer than the vector.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use super::geometry::Geometry;
use crate::blocks::{BlockBitmap, BlockRange};

/// One memory block of the guest: what follows from the region's sets, and flags.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MemoryBlock {
    /// Number of plugged device blocks.
    pub(super) plugged: u64,
    /// Number of device blocks that the guest uses: they belong to the allocator or hold the memmap.
    pub(super) online: u64,
    /// Whether the guest has added the memory block.
    pub(super) added: bool,
    /// Whether one request plugged the whole reserve, and the guest has not used it since.
    pub(super) fresh: bool,
    /// Whether removing the memory block failed in this pass.
    pub(super) removal_failed: bool,
    /// Whether the plugged device blocks are parked.
    parked: bool,
}

impl MemoryBlock {
    /// Number of device blocks that are plugged and not used: on their way in or on their way out.
    pub(super) const fn strays(&self) -> u64 {
        if self.parked { 0 } else { self.plugged - self.online }
    }

    const fn parked(&self) -> u64 {
        if self.parked { self.plugged } else { 0 }
    }

    const fn is_vacant(&self) -> bool {
        !self.added && self.plugged == 0
    }

    /// Added, without a plugged device block.
    pub(super) const fn is_empty(&self) -> bool {
        self.added && self.plugged == 0
    }
}

/// The memory blocks of a region and their sums.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) geometry: Geometry,
    /// The plugged device blocks.
    plugged: BlockBitmap,
    /// The device blocks that the guest uses.
    online: BlockBitmap,
    /// The device blocks that could not be taken offline in this pass.
    busy: BlockBitmap,
    blocks: Vec<MemoryBlock>,
    strays: u64,
    parked: u64,
    holes: u64,
    empty: usize,
    /// No memory block before the one of this device block has strays.
    strays_from: u64,
}

impl Region {
    /// A region with nothing plugged.
    pub(super) fn new(geometry: Geometry) -> Region {
        let nothing = || BlockBitmap::new(0);
        let (plugged, online, busy) = (nothing(), nothing(), nothing());
        let blocks = Vec::new();
        let (strays, parked, holes, empty, strays_from) = (0, 0, 0, 0, 0);
        Region { geometry, plugged, online, busy, blocks, strays, parked, holes, empty, strays_from }
    }

    /// Number of plugged device blocks.
    pub(super) const fn plugged(&self) -> u64 {
        self.plugged.count()
    }

    /// The runs of plugged device blocks, ascending.
    pub(super) fn plugged_runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.plugged.runs()
    }

    /// Number of device blocks that are plugged, not used and not parked.
    pub(super) const fn strays(&self) -> u64 {
        self.strays
    }

    /// Number of parked device blocks.
    pub(super) const fn parked(&self) -> u64 {
        self.parked
    }

    /// Number of unplugged device blocks in added memory blocks.
    pub(super) const fn holes(&self) -> u64 {
        self.holes
    }

    /// Number of added memory blocks without a plugged device block.
    pub(super) const fn empty(&self) -> usize {
        self.empty
    }

    /// Number of memory blocks from the region's start up to the last one that is not vacant.
    pub(super) const fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Memory block `index`; beyond the end a vacant one.
    pub(super) fn at(&self, index: usize) -> MemoryBlock {
        self.blocks.get(index).copied().unwrap_or_default()
    }

    /// The memory blocks with their indices, ascending or, reversed, descending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &MemoryBlock)> {
        self.blocks.iter().enumerate()
    }

    /// Reserves memory for recording device blocks up to `end` as plugged, so that recording cannot fail after the
    /// device has plugged them.
    pub(super) fn reserve(&mut self, end: u64) -> Result<(), TryReserveError> {
        let (last, _) = self.geometry.place(end.saturating_sub(1));
        self.blocks.try_reserve((last + 1).saturating_sub(self.blocks.len()))?;
        let len = self.geometry.memory_block(last).end();
        [&mut self.plugged, &mut self.online, &mut self.busy]
            .into_iter()
            .try_for_each(|set| set.try_grow(len))
    }

    /// Counts the device blocks of memory block `index` anew, applies `change`, and updates the sums.
    pub(super) fn update(&mut self, index: usize, change: impl FnOnce(&mut MemoryBlock)) {
        if index >= self.blocks.len() {
            self.blocks.resize(index + 1, MemoryBlock::default());
        }
        let old = self.blocks[index];
        let range = self.geometry.memory_block(index);
        let (plugged, online) = (self.plugged.count_in(range), self.online.count_in(range));
        let mut new = MemoryBlock { plugged, online, ..old };
        change(&mut new);
        let of_reserve = self.plugged.count_in(self.geometry.reserve(index));
        new.parked = !new.added && of_reserve == new.plugged && of_reserve < self.geometry.memmap_blocks;
        self.blocks[index] = new;
        self.strays = self.strays - old.strays() + new.strays();
        self.parked = self.parked - old.parked() + new.parked();
        self.holes = self.holes - self.holes_of(&old) + self.holes_of(&new);
        self.empty = self.empty - usize::from(old.is_empty()) + usize::from(new.is_empty());
        if new.strays() > 0 {
            self.strays_from = self.strays_from.min(range.first());
        }
        while self.blocks.last().is_some_and(MemoryBlock::is_vacant) {
            self.blocks.pop();
        }
    }

    /// The device has plugged `range`. `fresh` says that it did so just now, so the guest has not used it.
    pub(super) fn plug(&mut self, range: BlockRange, fresh: bool) {
        self.plugged.set(range);
        for (index, piece) in self.geometry.pieces(range) {
            let reserve = self.geometry.reserve(index);
            let whole =
                reserve.count() > 0 && piece.first() == reserve.first() && piece.count() >= reserve.count();
            self.update(index, |block| block.fresh |= fresh && whole);
        }
    }

    /// The device has unplugged `range`. No device block of it is online.
    pub(super) fn unplug(&mut self, range: BlockRange) {
        self.plugged.clear(range);
        for (index, _) in self.geometry.pieces(range) {
            self.update(index, |_| {});
        }
    }

    /// The guest has begun to use `range` in memory block `index`, which is added from now on.
    pub(super) fn gain(&mut self, index: usize, range: BlockRange) {
        self.online.set(range);
        self.update(index, |block| block.added = true);
    }

    /// The guest has stopped using `range` in memory block `index`.
    pub(super) fn lose(&mut self, index: usize, range: BlockRange) {
        self.online.clear(range);
        let memmap_blocks = self.geometry.memmap_blocks;
        // When only the memmap is left, removing the memory block is worth another try.
        self.update(index, |block| block.removal_failed &= block.online != memmap_blocks);
    }

    /// The guest has removed memory block `index`.
    pub(super) fn remove(&mut self, index: usize) {
        let range = self.geometry.memory_block(index);
        self.online.clear(range);
        self.busy.clear(range);
        self.update(index, |block| block.added = false);
    }

    /// The guest could not stop using `range`.
    pub(super) fn mark_busy(&mut self, range: BlockRange) {
        self.busy.set(range);
    }

    /// Forgets the failures of the last pass, so that the actions may be tried again.
    pub(super) fn forget_failures(&mut self) {
        while let Some(range) = self.busy.next_run(0) {
            self.busy.clear(range);
        }
        self.blocks.iter_mut().for_each(|block| block.removal_failed = false);
    }

    /// The lowest memory block with strays.
    pub(super) fn lowest_stray(&mut self) -> Option<usize> {
        if self.strays == 0 {
            return None;
        }
        let (from, _) = self.geometry.place(self.strays_from);
        let ahead = self.blocks[from..].iter().position(|block| block.strays() > 0);
        let index = from + ahead.expect("a memory block has the strays that were counted");
        self.strays_from = self.geometry.memory_block(index).first();
        Some(index)
    }

    /// The lowest run of strays in memory block `index`, which has at least one.
    pub(super) fn lowest_strays(&self, index: usize) -> BlockRange {
        let range = self.geometry.memory_block(index);
        let mut first = range.first();
        loop {
            first = self.plugged.next_set(first).expect("a stray is plugged");
            if !self.online.contains(first) {
                break;
            }
            first = self.online.next_clear(first);
        }
        let end = self.plugged.next_clear(first).min(range.end());
        let end = self.online.next_set(first).map_or(end, |online| end.min(online));
        BlockRange::new(first, end - first)
    }

    /// The last `limit` device blocks of the highest run of strays or parked device blocks. A run may span memory
    /// blocks.
    pub(super) fn highest_strays(&self, limit: u64) -> Option<BlockRange> {
        let mut end = u64::MAX;
        let last = loop {
            let last = self.plugged.last_set(end)?;
            if !self.online.contains(last) {
                break last;
            }
            end = self.online.last_clear(last)? + 1;
        };
        let after = |block: Option<u64>| block.map_or(0, |block| block + 1);
        let first = after(self.plugged.last_clear(last)).max(after(self.online.last_set(last)));
        let count = limit.min(last + 1 - first);
        Some(BlockRange::new(last + 1 - count, count))
    }

    /// The lowest run of unplugged device blocks below `usable` in memory block `index`.
    pub(super) fn lowest_hole(&self, index: usize, usable: u64) -> Option<BlockRange> {
        let range = self.geometry.memory_block(index);
        let first = self.plugged.next_clear(range.first());
        let end = range.end().min(usable);
        let end = self.plugged.next_set(first).map_or(end, |next| next.min(end));
        (first < end).then(|| BlockRange::new(first, end - first))
    }

    /// The first unplugged device block at or after `from`, and the first plugged device block after that one.
    pub(super) fn unplugged_from(&self, from: u64) -> (u64, Option<u64>) {
        let first = self.plugged.next_clear(from);
        (first, self.plugged.next_set(first))
    }

    /// The highest online device block of memory block `index` that is not in the reserve and has not failed to go
    /// offline in this pass.
    pub(super) fn removable(&self, index: usize) -> Option<u64> {
        let reserve = self.geometry.reserve(index).end();
        let mut end = self.geometry.memory_block(index).end();
        loop {
            let last = self.online.last_set(end).filter(|&last| last >= reserve)?;
            if !self.busy.contains(last) {
                return Some(last);
            }
            end = self.busy.last_clear(last)? + 1;
        }
    }

    fn holes_of(&self, block: &MemoryBlock) -> u64 {
        if block.added { self.geometry.per_memory_block - block.plugged } else { 0 }
    }
}
