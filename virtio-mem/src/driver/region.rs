//! What the driver believes about its region: which blocks are plugged, and which of them the
//! guest uses.
//!
//! Mirrors the per-memory-block states of sub-block mode in Linux's `virtio_mem.c`, but as two
//! sets of blocks and a flag instead of nine named states: `plugged`, `online` and `added`.
//!
//! A memory block can be added when the blocks that hold its memmap, its reserve, are plugged. While
//! some of them are and nothing else, they are *parked*: nothing can be done with them but to plug the
//! rest or to unplug them, and no other use of them would gain the guest a page.
//!
//! Invariants: `online` is a part of `plugged`; nothing of a memory block that is not `added` is
//! online; the reserve is online from add to remove. The numbers and sums are those of the two sets,
//! because `update` follows each change of them. The last memory block is never vacant: the vector is
//! as long as the guest reaches into the region; the sets may be longer.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use super::geometry::Geometry;
use crate::blocks::{BlockBitmap, BlockRange};

/// One memory block of the guest. Its blocks themselves are in the region's sets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MemoryBlock {
    /// How many the device has plugged.
    pub(super) plugged: u64,
    /// How many the guest uses: they belong to the allocator or hold the memmap.
    pub(super) online: u64,
    /// Whether the guest knows the memory block.
    pub(super) added: bool,
    /// Whether the memmap's blocks were plugged by one request, and not used since.
    pub(super) fresh: bool,
    /// Whether removing the whole failed in this pass.
    pub(super) keep: bool,
    /// Whether all that is plugged is a part of the reserve.
    parked: bool,
}

impl MemoryBlock {
    /// Plugged and not used: on the way in or on the way out.
    pub(super) const fn strays(&self) -> u64 {
        if self.parked { 0 } else { self.plugged - self.online }
    }

    const fn parked(&self) -> u64 {
        if self.parked { self.plugged } else { 0 }
    }

    const fn is_vacant(&self) -> bool {
        !self.added && self.plugged == 0
    }

    /// The guest knows it, and has nothing of it.
    pub(super) const fn is_idle(&self) -> bool {
        self.added && self.plugged == 0
    }
}

/// The memory blocks of a region and their sums.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) geometry: Geometry,
    /// What the device has plugged.
    plugged: BlockBitmap,
    /// What the guest uses.
    online: BlockBitmap,
    /// What could not be taken offline in this pass.
    busy: BlockBitmap,
    blocks: Vec<MemoryBlock>,
    strays: u64,
    parked: u64,
    holes: u64,
    idle: usize,
    /// No memory block before the one with this block has strays.
    strays_from: u64,
}

impl Region {
    /// A region with nothing plugged.
    pub(super) fn new(geometry: Geometry) -> Region {
        let nothing = || BlockBitmap::new(0);
        let (plugged, online, busy) = (nothing(), nothing(), nothing());
        let blocks = Vec::new();
        let (strays, parked, holes, idle, strays_from) = (0, 0, 0, 0, 0);
        Region { geometry, plugged, online, busy, blocks, strays, parked, holes, idle, strays_from }
    }

    /// Blocks that are plugged.
    pub(super) const fn plugged(&self) -> u64 {
        self.plugged.count()
    }

    /// The runs of plugged blocks, ascending.
    pub(super) fn plugged_runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.plugged.runs()
    }

    /// Blocks that are plugged and not used, those that are parked left out.
    pub(super) const fn strays(&self) -> u64 {
        self.strays
    }

    /// Blocks that are parked.
    pub(super) const fn parked(&self) -> u64 {
        self.parked
    }

    /// Blocks of added memory blocks that are not plugged.
    pub(super) const fn holes(&self) -> u64 {
        self.holes
    }

    /// Added memory blocks of which nothing is plugged.
    pub(super) const fn idle(&self) -> usize {
        self.idle
    }

    /// Number of memory blocks from the region's start that are worth looking at.
    pub(super) const fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The memory block, a vacant one beyond the end.
    pub(super) fn at(&self, index: usize) -> MemoryBlock {
        self.blocks.get(index).copied().unwrap_or_default()
    }

    /// The memory blocks with their indices, ascending or, reversed, descending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &MemoryBlock)> {
        self.blocks.iter().enumerate()
    }

    /// Makes room for what plugging up to block `end` will have to remember, so that it cannot
    /// fail when the device has already plugged.
    pub(super) fn reserve(&mut self, end: u64) -> Result<(), TryReserveError> {
        let (last, _) = self.geometry.place(end.saturating_sub(1));
        self.blocks.try_reserve((last + 1).saturating_sub(self.blocks.len()))?;
        let len = self.geometry.memory_block(last).end();
        [&mut self.plugged, &mut self.online, &mut self.busy]
            .into_iter()
            .try_for_each(|set| set.try_grow(len))
    }

    /// Counts anew what is in the sets of one memory block, and then changes it.
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
        self.idle = self.idle - usize::from(old.is_idle()) + usize::from(new.is_idle());
        if new.strays() > 0 {
            self.strays_from = self.strays_from.min(range.first);
        }
        while self.blocks.last().is_some_and(MemoryBlock::is_vacant) {
            self.blocks.pop();
        }
    }

    /// The device has plugged `range`; if `fresh`, just now, so that nobody has used it.
    pub(super) fn plug(&mut self, range: BlockRange, fresh: bool) {
        self.plugged.set(range);
        for (index, piece) in self.geometry.pieces(range) {
            let reserve = self.geometry.reserve(index);
            let whole = reserve.count > 0 && piece.first == reserve.first && piece.count >= reserve.count;
            self.update(index, |block| block.fresh |= fresh && whole);
        }
    }

    /// The device has unplugged `range`, none of which is online.
    pub(super) fn unplug(&mut self, range: BlockRange) {
        self.plugged.clear(range);
        for (index, _) in self.geometry.pieces(range) {
            self.update(index, |_| {});
        }
    }

    /// The guest has begun to use `range`, of memory block `index`, which it knows from now on.
    pub(super) fn gain(&mut self, index: usize, range: BlockRange) {
        self.online.set(range);
        self.update(index, |block| block.added = true);
    }

    /// The guest has stopped using `range`, of memory block `index`.
    pub(super) fn lose(&mut self, index: usize, range: BlockRange) {
        self.online.clear(range);
        let memmap_blocks = self.geometry.memmap_blocks;
        // When the memmap is all that is left, the whole is worth another try.
        self.update(index, |block| block.keep &= block.online != memmap_blocks);
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

    /// What failed in the last pass may be tried again.
    pub(super) fn forget_failures(&mut self) {
        while let Some(range) = self.busy.next_run(0) {
            self.busy.clear(range);
        }
        self.blocks.iter_mut().for_each(|block| block.keep = false);
    }

    /// The lowest memory block with strays.
    pub(super) fn lowest_stray(&mut self) -> Option<usize> {
        if self.strays == 0 {
            return None;
        }
        let (from, _) = self.geometry.place(self.strays_from);
        let ahead = self.blocks[from..].iter().position(|block| block.strays() > 0);
        let index = from + ahead.expect("a memory block has the strays that were counted");
        self.strays_from = self.geometry.memory_block(index).first;
        Some(index)
    }

    /// The lowest run of strays in memory block `index`, which has some.
    pub(super) fn lowest_strays(&self, index: usize) -> BlockRange {
        let range = self.geometry.memory_block(index);
        let mut first = range.first;
        loop {
            first = self.plugged.next_set(first).expect("a stray is plugged");
            if !self.online.contains(first) {
                break;
            }
            first = self.online.next_clear(first);
        }
        let end = self.plugged.next_clear(first).min(range.end());
        let end = self.online.next_set(first).map_or(end, |online| end.min(online));
        BlockRange { first, count: end - first }
    }

    /// The highest run of strays or of parked blocks, over memory blocks, and of it the upper `limit`
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
        Some(BlockRange { first: last + 1 - count, count })
    }

    /// The lowest run of blocks below `usable` that are not plugged in memory block `index`.
    pub(super) fn lowest_hole(&self, index: usize, usable: u64) -> Option<BlockRange> {
        let range = self.geometry.memory_block(index);
        let first = self.plugged.next_clear(range.first);
        let end = range.end().min(usable);
        let end = self.plugged.next_set(first).map_or(end, |next| next.min(end));
        (first < end).then(|| BlockRange { first, count: end - first })
    }

    /// The first block at or after `from` that is not plugged, and the first one after it that is.
    pub(super) fn unplugged_from(&self, from: u64) -> (u64, Option<u64>) {
        let first = self.plugged.next_clear(from);
        (first, self.plugged.next_set(first))
    }

    /// The highest block of memory block `index` that may go by itself, and did not refuse to in this
    /// pass.
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
