//! What the driver believes about its region: which blocks are plugged, and which of them the
//! guest uses.
//!
//! Mirrors the per-memory-block states of sub-block mode in Linux's `virtio_mem.c`, but as two
//! sets of blocks and a flag instead of nine named states: `plugged`, `online` and `added`.
//!
//! Invariants: `online` is a part of `plugged`; nothing of a memory block that is not `added` is
//! online; the memmap's sub-block is online from add to remove. The sums are those of the memory
//! blocks, because `update` is the only place that changes one. The last memory block is never
//! vacant: the vector is as long as the guest reaches into the region.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use super::geometry::Geometry;
use crate::blocks::{BlockRange, SubBlocks};

/// One memory block of the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MemoryBlock {
    /// What the device has plugged.
    pub(super) plugged: SubBlocks,
    /// What the guest uses: it belongs to the allocator or holds the memmap.
    pub(super) online: SubBlocks,
    /// Whether the guest knows the memory block.
    pub(super) added: bool,
    /// Whether the memmap's block was plugged, and not used since.
    pub(super) fresh: bool,
    /// What could not be taken offline in this pass.
    pub(super) busy: SubBlocks,
    /// Whether removing the whole failed in this pass.
    pub(super) keep: bool,
}

impl MemoryBlock {
    /// Plugged and not used: on the way in or on the way out.
    pub(super) const fn strays(&self) -> SubBlocks {
        self.plugged.without(self.online)
    }

    const fn is_vacant(&self) -> bool {
        !self.added && self.plugged.is_empty()
    }

    const fn is_idle(&self) -> bool {
        self.added && self.plugged.is_empty()
    }
}

/// The memory blocks of a region and their sums.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) geometry: Geometry,
    blocks: Vec<MemoryBlock>,
    plugged: u64,
    strays: u64,
    holes: u64,
    idle: usize,
    /// No memory block below this has strays.
    strays_from: usize,
}

impl Region {
    /// A region with nothing plugged.
    pub(super) const fn new(geometry: Geometry) -> Region {
        Region { geometry, blocks: Vec::new(), plugged: 0, strays: 0, holes: 0, idle: 0, strays_from: 0 }
    }

    /// Blocks that are plugged.
    pub(super) const fn plugged(&self) -> u64 {
        self.plugged
    }

    /// Blocks that are plugged and not used.
    pub(super) const fn strays(&self) -> u64 {
        self.strays
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
        self.blocks.try_reserve((last + 1).saturating_sub(self.blocks.len()))
    }

    /// Changes one memory block and keeps the sums.
    pub(super) fn update(&mut self, index: usize, change: impl FnOnce(&mut MemoryBlock)) {
        if index >= self.blocks.len() {
            self.blocks.resize(index + 1, MemoryBlock::default());
        }
        let old = self.blocks[index];
        let mut new = old;
        change(&mut new);
        self.blocks[index] = new;
        self.plugged = self.plugged - u64::from(old.plugged.count()) + u64::from(new.plugged.count());
        self.strays = self.strays - u64::from(old.strays().count()) + u64::from(new.strays().count());
        self.holes = self.holes - self.holes_of(&old) + self.holes_of(&new);
        self.idle = self.idle - usize::from(old.is_idle()) + usize::from(new.is_idle());
        if !new.strays().is_empty() {
            self.strays_from = self.strays_from.min(index);
        }
        while self.blocks.last().is_some_and(MemoryBlock::is_vacant) {
            self.blocks.pop();
        }
    }

    /// The device has plugged `range`; if `fresh`, just now, so that nobody has used it.
    pub(super) fn plug(&mut self, range: BlockRange, fresh: bool) {
        let memmap = self.geometry.memmap;
        for (index, piece) in self.geometry.pieces(range) {
            self.update(index, |block| {
                block.plugged = block.plugged.with(piece);
                block.fresh |= fresh && !memmap.is_empty() && piece.contains(memmap);
            });
        }
    }

    /// The device has unplugged `range`, none of which is online.
    pub(super) fn unplug(&mut self, range: BlockRange) {
        for (index, piece) in self.geometry.pieces(range) {
            self.update(index, |block| block.plugged = block.plugged.without(piece));
        }
    }

    /// What failed in the last pass may be tried again.
    pub(super) fn forget_failures(&mut self) {
        for block in &mut self.blocks {
            block.busy = SubBlocks::NONE;
            block.keep = false;
        }
    }

    /// The lowest memory block with strays.
    pub(super) fn lowest_stray(&mut self) -> Option<usize> {
        if self.strays == 0 {
            return None;
        }
        let ahead = self.blocks[self.strays_from..].iter().position(|block| !block.strays().is_empty());
        self.strays_from += ahead.expect("a memory block has the strays that were counted");
        Some(self.strays_from)
    }

    /// The highest run of strays, over memory blocks, and of it the upper `limit` blocks.
    pub(super) fn highest_strays(&self, limit: u64) -> Option<BlockRange> {
        let highest = self.iter().rev().find(|(_, block)| !block.strays().is_empty());
        let (mut index, block) = highest?;
        let run = block.strays().highest_run();
        let end = self.geometry.first_of(index) + u64::from(run.end);
        let mut first = self.geometry.first_of(index) + u64::from(run.start);
        while first == self.geometry.first_of(index) && index > 0 && end - first < limit {
            index -= 1;
            let run = self.at(index).strays().highest_run();
            if run.end != self.geometry.per_memory_block {
                break;
            }
            first = self.geometry.first_of(index) + u64::from(run.start);
        }
        let count = limit.min(end - first);
        Some(BlockRange { first: end - count, count })
    }

    fn holes_of(&self, block: &MemoryBlock) -> u64 {
        if block.added { u64::from(self.geometry.per_memory_block - block.plugged.count()) } else { 0 }
    }
}
