//! The guest's memory management as the driver sees it: memory blocks, their device blocks in use, and pages
//! that cannot be moved.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use virtio_mem::{Action, BlockBitmap, BlockRange, IdleReason, Outcome};

use super::random::Random;

/// A device block is named by its index in the region, a memory block by its address. An action that the driver
/// must never ask for fails the test.
pub struct Guest {
    region: u64,
    region_end: u64,
    block_size: u64,
    memory_block: u64,
    /// Number of device blocks at the start of a memory block that hold its memmap; 0 when the memmap lies
    /// elsewhere.
    memmap_blocks: u64,
    /// The added memory blocks, with their device blocks in use.
    added: BTreeMap<u64, BTreeSet<u64>>,
    /// The device blocks that were used since they were plugged.
    used: BTreeSet<u64>,
    /// The device blocks with a page that cannot be moved.
    pub pinned: BTreeSet<u64>,
    /// Percentage of actions that fail for no reason.
    pub fails: u64,
}

impl Guest {
    pub fn new(region: Range<u64>, block_size: u64, memory_block: u64, memmap_blocks: u64) -> Guest {
        let added = BTreeMap::new();
        let used = BTreeSet::new();
        let pinned = BTreeSet::new();
        let (region, region_end) = (region.start, region.end);
        Guest { region, region_end, block_size, memory_block, memmap_blocks, added, used, pinned, fails: 0 }
    }

    /// Forgets that unplugged device blocks were used. `plugged` is the device's set.
    pub fn forget_unplugged(&mut self, plugged: &BlockBitmap) {
        self.used.retain(|&block| plugged.count_in(BlockRange::new(block, 1)) > 0);
    }

    /// The added memory blocks, with their device blocks in use.
    pub const fn added(&self) -> &BTreeMap<u64, BTreeSet<u64>> {
        &self.added
    }

    /// Carries out `action`. `plugged` is the device's set. An action on several memory blocks may end after some of them.
    pub fn step(&mut self, action: Action, plugged: &BlockBitmap, random: &mut Random) -> Outcome {
        let (of_range, size) = match action {
            Action::AddMemoryBlocks { addr, size, .. } => (self.pieces(addr, size), size),
            Action::RemoveMemoryBlocks { addr, size } => {
                let mut pieces = self.pieces(addr, size);
                pieces.reverse();
                (pieces, size)
            }
            action => {
                let done = self.one(action, plugged, random);
                return done.map_or_else(Outcome::Failed, |()| Outcome::Done);
            }
        };
        let mut done = 0;
        for (addr, size) in of_range {
            // A notification comes while the guest is at work.
            if done > 0 && random.chance(self.fails) {
                return Outcome::Part { done, failed: None };
            }
            let piece = match action {
                Action::AddMemoryBlocks { fresh, .. } => Action::AddMemoryBlocks { addr, size, fresh },
                _ => Action::RemoveMemoryBlocks { addr, size },
            };
            if let Err(reason) = self.one(piece, plugged, random) {
                let part = Outcome::Part { done, failed: Some(reason) };
                return if done == 0 && random.chance(50) { Outcome::Failed(reason) } else { part };
            }
            done += size;
        }
        assert_eq!(done, size);
        Outcome::Done
    }

    /// The parts of a range by memory block.
    fn pieces(&self, addr: u64, size: u64) -> Vec<(u64, u64)> {
        assert!(size > 0, "nothing to do");
        let end = addr + size;
        let mut starts = vec![addr];
        starts.extend(
            (1..).map(|nr| self.memory_block(addr) + nr * self.memory_block).take_while(|&at| at < end),
        );
        let ends = starts.iter().skip(1).copied().chain([end]);
        starts.iter().zip(ends).map(|(&start, end)| (start, end - start)).collect()
    }

    /// Carries out `action`, which is on one memory block, or fails and changes nothing.
    fn one(&mut self, action: Action, plugged: &BlockBitmap, random: &mut Random) -> Result<(), IdleReason> {
        match action {
            Action::AddMemoryBlocks { addr: start, size, fresh } => {
                let addr = self.memory_block(start);
                let blocks = self.blocks(start, size);
                let memmap = self.memmap(addr);
                assert!(!self.added.contains_key(&addr), "is there already");
                assert!(!blocks.is_empty(), "has nothing plugged");
                assert!(blocks.is_superset(&memmap), "has no memmap");
                assert_plugged(&blocks, plugged);
                assert!(!fresh || !memmap.is_empty(), "has no memmap to be fresh");
                assert!(!fresh || memmap.is_disjoint(&self.used), "was used since it was plugged");
                self.used.extend(&blocks);
                self.fail(random, &[IdleReason::NoMemory])?;
                self.added.insert(addr, blocks);
            }
            Action::OnlineDeviceBlocks { addr, size } => {
                let blocks = self.blocks(addr, size);
                assert!(blocks.is_disjoint(&self.added[&self.memory_block(addr)]), "is in use already");
                assert_plugged(&blocks, plugged);
                self.fail(random, &[IdleReason::NoMemory])?;
                self.online(addr).extend(blocks);
            }
            Action::OfflineDeviceBlocks { addr, size } => {
                let blocks = self.blocks(addr, size);
                let memmap = self.memmap(self.memory_block(addr));
                assert!(blocks.is_subset(&self.added[&self.memory_block(addr)]), "is not in use");
                assert!(blocks.is_disjoint(&memmap), "holds the memmap");
                self.move_away(&blocks, random)?;
                self.online(addr).retain(|block| !blocks.contains(block));
            }
            Action::RemoveMemoryBlocks { addr, size } => {
                let end = (addr + self.memory_block).min(self.region_end);
                assert_eq!((addr % self.memory_block, addr + size), (0, end), "not a whole memory block");
                self.move_away(&self.added[&addr], random)?;
                self.added.remove(&addr);
            }
            action => panic!("{action:?} is not for the guest"),
        }
        Ok(())
    }

    fn move_away(&self, blocks: &BTreeSet<u64>, random: &mut Random) -> Result<(), IdleReason> {
        if !blocks.is_disjoint(&self.pinned) {
            return Err(IdleReason::Unmovable);
        }
        self.fail(random, &[IdleReason::Unmovable, IdleReason::NoRoom])
    }

    fn fail(&self, random: &mut Random, whys: &[IdleReason]) -> Result<(), IdleReason> {
        if random.chance(self.fails) { Err(random.pick(whys)) } else { Ok(()) }
    }

    fn online(&mut self, addr: u64) -> &mut BTreeSet<u64> {
        let memory_block = self.memory_block(addr);
        self.added.get_mut(&memory_block).expect("a memory block that is there")
    }

    const fn block(&self, addr: u64) -> u64 {
        (addr - self.region) / self.block_size
    }

    fn blocks(&self, addr: u64, size: u64) -> BTreeSet<u64> {
        assert!(
            size > 0 && self.memory_block(addr) == self.memory_block(addr + size - 1),
            "not in one memory block"
        );
        assert!((addr | size).is_multiple_of(self.block_size), "not whole blocks");
        (self.block(addr)..self.block(addr + size)).collect()
    }

    /// The memory block that holds `addr`.
    pub const fn memory_block(&self, addr: u64) -> u64 {
        addr - addr % self.memory_block
    }

    /// Number of device blocks per memory block.
    pub const fn per_memory_block(&self) -> u64 {
        self.memory_block / self.block_size
    }

    /// Number of device blocks at the start of a memory block that hold its memmap.
    pub const fn memmap_blocks(&self) -> u64 {
        self.memmap_blocks
    }

    /// The device blocks that hold the memmap of the memory block at `addr`.
    pub fn memmap(&self, addr: u64) -> BTreeSet<u64> {
        let first = self.block(addr);
        (first..first + self.memmap_blocks).collect()
    }
}

fn assert_plugged(blocks: &BTreeSet<u64>, plugged: &BlockBitmap) {
    for &first in blocks {
        assert_eq!(plugged.count_in(BlockRange::new(first, 1)), 1, "block {first} is not plugged");
    }
}
