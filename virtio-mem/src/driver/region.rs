//! The driver's view of its region: which device blocks are plugged, and which of them the guest uses.
//!
//! Mirrors the states that Linux's `virtio_mem.c` keeps per memory block (`VIRTIO_MEM_SBM_MB_*`). Differs on
//! purpose: four sets of device blocks take the place of nine named states, and what concerns a memory block follows from
//! them. The sets are kept as runs, so the cost of a step does not follow the size of the region.
//!
//! The device blocks that hold the memmap of a memory block are its *reserve*. A memory block is *added* exactly if
//! some of its device blocks are online. If only a part of its reserve is plugged, and no other device block, that
//! part is *parked*: the only uses of it are to plug the other part or to unplug it.
//!
//! Invariants:
//! - The four sets are disjoint. What is in none of them is unplugged, and its memory block is not added.
//! - The reserve is online from add to remove. Where the memmap lies elsewhere, one device block stays online as long.
//! - `holes` and `online` have every device block of the region in an added memory block, together with its strays.
//! - The guest has used no memmap that lies in `fresh`.

use alloc::collections::TryReserveError;

use super::flight::MOST_IN_FLIGHT;
use super::geometry::Geometry;
use super::runs::Runs;
use crate::blocks::BlockRange;

/// Most runs that one action adds to a set, beside those that change from one set to another. Requests that are sent together
/// add one each.
pub(super) const ROOM: usize = 8 + MOST_IN_FLIGHT;

/// The device blocks of a region.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) geometry: Geometry,
    /// The device blocks that the guest uses: they belong to the allocator or hold a memmap.
    pub(super) online: Runs,
    /// The device blocks that are plugged and not used: on their way in or on their way out.
    pub(super) strays: Runs,
    /// The parked device blocks.
    pub(super) parked: Runs,
    /// The unplugged device blocks in added memory blocks.
    pub(super) holes: Runs,
    /// The device blocks of the last PLUG that the guest has not used since.
    fresh: BlockRange,
    /// In this pass, whole memory blocks at or above this device block were removed, could not be removed, or had more
    /// device blocks than were to go.
    pub(super) removed_from: u64,
    /// In this pass, single device blocks at or above this one went offline or could not.
    pub(super) offline_from: u64,
}

impl Region {
    /// A region with nothing plugged.
    pub(super) fn new(geometry: Geometry) -> Region {
        let nothing = Runs::default;
        let (online, strays, parked, holes) = (nothing(), nothing(), nothing(), nothing());
        let fresh = BlockRange::new(0, 0);
        let (removed_from, offline_from) = (u64::MAX, u64::MAX);
        Region { geometry, online, strays, parked, holes, fresh, removed_from, offline_from }
    }

    /// Number of plugged device blocks.
    pub(super) const fn plugged(&self) -> u64 {
        self.online.count() + self.strays.count() + self.parked.count()
    }

    /// The runs of plugged device blocks, ascending.
    pub(super) fn plugged_runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let first = self.next_plugged(from)?;
            from = first;
            while let Some(run) = self.plugged_at(from) {
                from = run.end();
            }
            Some(BlockRange::new(first, from - first))
        })
    }

    /// The first plugged device block at or above `from`.
    pub(super) fn next_plugged(&self, from: u64) -> Option<u64> {
        [&self.online, &self.strays, &self.parked].into_iter().filter_map(|set| set.next(from)).min()
    }

    /// The run of plugged device blocks in one state that `block` belongs to, from `block` on.
    fn plugged_at(&self, block: u64) -> Option<BlockRange> {
        let mut runs =
            [&self.online, &self.strays, &self.parked].into_iter().filter_map(|set| set.at_or_above(block));
        runs.find(|run| run.first() == block)
    }

    /// The first unplugged device block at or above `from`.
    pub(super) fn next_unplugged(&self, mut from: u64) -> u64 {
        while let Some(run) = self.plugged_at(from) {
            from = run.end();
        }
        from
    }

    /// The units from `unit` on that are all plugged, or all unplugged.
    pub(super) fn alike_from(&self, unit: u64) -> BlockRange {
        let end = match self.plugged_at(unit) {
            Some(_) => self.next_unplugged(unit),
            None => self.next_plugged(unit).unwrap_or(u64::MAX),
        };
        BlockRange::new(unit, end.min(self.geometry.units) - unit)
    }

    /// `range` is plugged, whatever was believed.
    pub(super) fn found(&mut self, range: BlockRange) {
        let mut next = self.next_unplugged(range.first());
        while next < range.end() {
            let end = self.next_plugged(next).unwrap_or(u64::MAX).min(range.end());
            self.plug(BlockRange::new(next, end - next), false);
            next = self.next_unplugged(end);
        }
    }

    /// `range` is unplugged, whatever was believed. Device blocks that the guest uses stay as they are. Returns whether there
    /// are any.
    pub(super) fn missing(&mut self, range: BlockRange) -> bool {
        let mut next = range.first();
        while next < range.end() {
            let used =
                self.online.at_or_above(next).map(|run| run.overlap(range)).filter(|run| run.count() > 0);
            let used = used.unwrap_or(BlockRange::new(range.end(), 0));
            if next < used.first() {
                self.unplug(BlockRange::new(next, used.first() - next));
            }
            next = used.end();
        }
        self.online.count_in(range) > 0
    }

    /// The sets.
    pub(super) const fn sets(&self) -> [&Runs; 4] {
        [&self.online, &self.strays, &self.parked, &self.holes]
    }

    /// Reserves memory for the changes of one action, so that they cannot fail after it was carried out.
    pub(super) fn try_reserve(&mut self) -> Result<(), TryReserveError> {
        // The runs of one memory block may change from one set to another.
        let room = |runs: usize| runs.min(self.geometry.per_memory_block as usize) + ROOM;
        let (online, strays) = (room(self.online.len() + self.parked.len()), room(self.strays.len()));
        self.online.try_reserve(ROOM)?;
        self.strays.try_reserve(online)?;
        self.parked.try_reserve(strays)?;
        self.holes.try_reserve(strays)
    }

    /// Whether the guest has added a memory block.
    pub(super) fn is_added(&self, memory_block: BlockRange) -> bool {
        self.online.next(memory_block.first()).is_some_and(|block| block < memory_block.end())
    }

    /// How far the memory blocks from `first` on, the start of one, are like it, and whether they are fresh: one request
    /// plugged the whole reserve of each, and the guest has not used it since.
    pub(super) fn fresh_until(&self, first: u64) -> (bool, u64) {
        let Geometry { per_memory_block, memmap_blocks, .. } = self.geometry;
        let from = self.fresh.first().next_multiple_of(per_memory_block);
        // The last fresh reserve ends within `fresh`.
        let until = match self.fresh.end().checked_sub(memmap_blocks) {
            Some(last) if last >= from => last - last % per_memory_block + per_memory_block,
            _ => from,
        };
        match first {
            _ if memmap_blocks == 0 || from == until || until <= first => (false, u64::MAX),
            _ if first < from => (false, from),
            _ => (true, until),
        }
    }

    /// The guest may have used the device blocks below `end`.
    pub(super) fn used(&mut self, end: u64) {
        let first = self.fresh.end().min(end).max(self.fresh.first());
        self.fresh = BlockRange::new(first, self.fresh.end() - first);
    }

    /// The device has plugged `range`. `fresh` says that it did so just now, so the guest has not used it.
    pub(super) fn plug(&mut self, range: BlockRange, fresh: bool) {
        self.holes.remove(range);
        self.parked.remove(range);
        self.strays.insert(range);
        if fresh {
            self.fresh = range;
        }
        self.park(range);
    }

    /// The device has unplugged `range`. No device block of it is online.
    pub(super) fn unplug(&mut self, range: BlockRange) {
        self.strays.remove(range);
        self.parked.remove(range);
        // Only the memory blocks at the ends can be added: the others have no device block outside of the range.
        for memory_block in self.geometry.ends(range) {
            if self.is_added(memory_block) {
                self.holes.insert(memory_block.overlap(range));
            }
        }
        self.park(range);
    }

    /// Parks what is of no use in the memory blocks at the ends of `range`, and no longer parks what is. The memory blocks
    /// between them are plugged as a whole, or not at all.
    fn park(&mut self, range: BlockRange) {
        if self.geometry.memmap_blocks < 2 {
            return;
        }
        for memory_block in self.geometry.ends(range) {
            let reserve = self.geometry.reserve(memory_block);
            let plugged = |range| self.strays.count_in(range) + self.parked.count_in(range);
            let (all, of_reserve) = (plugged(memory_block), plugged(reserve));
            if all > of_reserve || of_reserve == reserve.count() {
                shift(&mut self.parked, &mut self.strays, memory_block);
            } else {
                shift(&mut self.strays, &mut self.parked, memory_block);
            }
        }
    }

    /// The guest has added `range`: whole memory blocks, or the plugged part of one.
    pub(super) fn add(&mut self, range: BlockRange) {
        self.gain(range);
        let memory_block = self.geometry.memory_block(range.first());
        if range.count() < memory_block.count() {
            self.holes.insert(memory_block);
            self.holes.remove(range);
            for stray in self.strays.within(memory_block) {
                self.holes.remove(stray);
            }
        }
    }

    /// The guest has begun to use `range`, which was not used before.
    pub(super) fn gain(&mut self, range: BlockRange) {
        self.strays.remove(range);
        self.online.insert(range);
        // What is online anew may go again.
        self.removed_from = self.removed_from.max(range.end());
        self.offline_from = self.offline_from.max(range.end());
    }

    /// The guest has stopped using `range`.
    pub(super) fn lose(&mut self, range: BlockRange) {
        self.online.remove(range);
        self.strays.insert(range);
    }

    /// The guest has removed the memory blocks in `range`.
    pub(super) fn remove(&mut self, range: BlockRange) {
        shift(&mut self.online, &mut self.strays, range);
        self.holes.remove(range);
    }

    /// The guest could not remove `memory_block`.
    pub(super) fn removal_failed(&mut self, memory_block: BlockRange) {
        if memory_block.first() < self.removed_from {
            self.removed_from = memory_block.first();
        } else {
            // The last that is left of a memory block whose other device blocks went offline.
            self.offline_from = memory_block.first();
        }
    }

    /// A new pass begins: what failed may be tried again.
    pub(super) const fn forget_failures(&mut self) {
        self.removed_from = u64::MAX;
        self.offline_from = u64::MAX;
    }
}

/// Moves the device blocks of `range` from one set to another.
fn shift(from: &mut Runs, to: &mut Runs, range: BlockRange) {
    let next = |from: &Runs| from.within(range).next();
    while let Some(run) = next(from) {
        from.remove(run);
        to.insert(run);
    }
}
