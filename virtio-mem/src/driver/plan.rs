//! The plan: picks the next action from the device blocks that are plugged, used and requested.
//!
//! Mirrors the order of Linux's `virtio_mem_sbm_plug_request` and `virtio_mem_sbm_unplug_request`. Differs on
//! purpose: one PLUG and one UNPLUG cover as many memory blocks as they can, and so do the actions of the guest between
//! them. Only the present state decides, so a target that changes in the middle needs no code of its own: device blocks
//! on their way in are unplugged again, and device blocks on their way out are put back to use.
//!
//! In the order of precedence:
//!
//! | state | action |
//! | --- | --- |
//! | the driver is detaching | `RemoveMemoryBlocks`, and nothing else |
//! | device blocks that the guest cannot use | unplug them |
//! | more plugged than requested, and parked device blocks | unplug parked device blocks |
//! | strays, and growing failed in this pass | unplug the strays |
//! | strays, and more plugged than requested | when their memory block goes by device blocks, take more of it out of use; then unplug the strays |
//! | strays, otherwise | put the strays to use: `AddMemoryBlocks`, `OnlineDeviceBlocks` |
//! | less plugged than requested | fill the lowest hole of an added memory block, else plug new memory blocks |
//! | more plugged than requested | `RemoveMemoryBlocks` of the highest that fit, else `OfflineDeviceBlocks` of the highest device block |
//!
//! A stray is a device block that is plugged and that the
//! guest does not use. `region` explains parked device blocks.
//!
//! A memory block fits the excess if at most a part of its memmap would stay plugged. That part would be of no
//! use to the guest, and stays parked. The last device blocks of a memory block go with it: its memmap, or, where the
//! memmap lies elsewhere, the last one that is online. So no memory block stays added with nothing plugged.
//!
//! A pass goes through the region twice, from the top: for whole memory blocks, and then for single device blocks.
//! `Region::removed_from` and `Region::offline_from` say how far it came. A memory block that does not fit at one time
//! of a pass does not fit later: unplugging its own device blocks lowers the excess as much as its size, and other
//! unplugs lower only the excess. So a pass looks at each run once for each of the two.

use super::{Action, Driver, Idle, IdleReason};
use crate::blocks::BlockRange;
use crate::wire::RequestKind;

impl Driver {
    /// The next action. No device block is uncertain, and the configuration has been read.
    pub(super) fn plan(&mut self) -> Action {
        let (plugged, requested) = (self.region.plugged(), self.requested_blocks());
        let excess = plugged.saturating_sub(requested);
        if self.detaching {
            return self.give_up();
        }
        if let Some(scraps) = self.scraps.highest() {
            let count = scraps.count().min(u64::from(u16::MAX));
            let top = BlockRange::new(scraps.end() - count, count);
            return Action::Send(self.device_request(RequestKind::Unplug, top));
        }
        let step = if let Some(parked) = self.region.parked.highest().filter(|_| excess > 0) {
            Some(self.unplug_top(parked, excess))
        } else if let (Some(lowest), Some(highest)) =
            (self.region.strays.lowest(), self.region.strays.highest())
        {
            Some(self.settle(lowest, highest, excess))
        } else if plugged < requested {
            if self.stop_growing { None } else { self.grow(requested - plugged) }
        } else {
            self.shrink(excess)
        };
        step.unwrap_or_else(|| Action::Idle(self.idle()))
    }

    /// Takes all memory blocks out of use.
    fn give_up(&mut self) -> Action {
        let all = self.region.plugged();
        match self.whole(all) {
            Some(action) => action,
            None if self.region.online.count() == 0 => Action::Idle(Idle::Detached),
            None => {
                let reason = self.failed.unwrap_or(IdleReason::Unmovable);
                Action::Idle(self.back_off.idle(reason))
            }
        }
    }

    /// Puts strays to use or unplugs them. `lowest` and `highest` are the lowest and the highest run of strays.
    fn settle(&mut self, lowest: BlockRange, highest: BlockRange, excess: u64) -> Action {
        let memory_block = self.region.geometry.memory_block(lowest.first());
        if self.stop_growing {
            return self.unplug_top(highest, u64::MAX);
        }
        if excess > 0 {
            // First takes more device blocks of a memory block out of use, so that one request unplugs all of them.
            let rest = excess.saturating_sub(self.region.strays.count());
            let inside = memory_block.first() + 1..memory_block.end();
            let goes_by_device_blocks = rest > 0 && inside.contains(&self.region.offline_from);
            let more = if goes_by_device_blocks { self.single(rest, memory_block.first()) } else { None };
            return more.unwrap_or_else(|| self.unplug_top(highest, excess));
        }
        if self.region.is_added(memory_block) {
            let (addr, size) = self.span(lowest.overlap(memory_block));
            return Action::OnlineDeviceBlocks { addr, size };
        }
        let reserve = self.region.geometry.reserve(memory_block);
        if reserve.count() > 0 && lowest.overlap(reserve) != reserve {
            // Another kernel has plugged there, or a device has violated the specification.
            let here = self.region.strays.below(memory_block.end()).unwrap_or(lowest);
            return self.unplug_top(here.overlap(memory_block), u64::MAX);
        }
        let (fresh, until) = self.region.fresh_until(memory_block.first());
        let whole = self
            .whole_memory_blocks(BlockRange::new(lowest.first(), until.min(lowest.end()) - lowest.first()));
        let range = if whole.count() > 0 { whole } else { lowest.overlap(memory_block) };
        let (addr, size) = self.span(range);
        Action::AddMemoryBlocks { addr, size, fresh }
    }

    /// The whole memory blocks at the start of `range`.
    fn whole_memory_blocks(&self, range: BlockRange) -> BlockRange {
        let last = self.region.geometry.memory_block(range.end() - 1);
        let end = if last.end() == range.end() { last.end() } else { last.first() };
        let begins = self.region.geometry.memory_block(range.first()).first() == range.first();
        BlockRange::new(range.first(), if begins { end.saturating_sub(range.first()) } else { 0 })
    }

    /// Unplugs the last device blocks of `run`, at most `limit`.
    fn unplug_top(&self, run: BlockRange, limit: u64) -> Action {
        let count = run.count().min(limit).min(self.region.geometry.most_of_a_request());
        self.send(RequestKind::Unplug, BlockRange::new(run.end() - count, count))
    }

    /// Plugs up to `need` device blocks, if the usable region has room for them.
    fn grow(&self, need: u64) -> Option<Action> {
        let range = self.hole(need).or_else(|| self.vacancy(need))?;
        Some(self.send(RequestKind::Plug, range))
    }

    /// The lowest unplugged device blocks of added memory blocks.
    fn hole(&self, need: u64) -> Option<BlockRange> {
        let run = self.region.holes.lowest()?;
        let room = self.usable_blocks().saturating_sub(run.first());
        let count = run.count().min(need).min(room).min(self.most_to_plug);
        (count > 0).then_some(BlockRange::new(run.first(), count))
    }

    /// Up to `need` device blocks at the start of the lowest run of memory blocks that are not added. No hole is usable, and
    /// there are no strays.
    fn vacancy(&self, need: u64) -> Option<BlockRange> {
        let per_memory_block = self.region.geometry.per_memory_block;
        let added = self.region.online.lowest().filter(|run| run.first() == 0).map_or(0, BlockRange::end);
        // Starts after the device blocks that are parked there, and ends before the next plugged device block. That
        // one is parked, or begins the next memory block in use.
        let first = self.region.next_unplugged(added.next_multiple_of(per_memory_block));
        let end = self.region.next_plugged(first).unwrap_or(u64::MAX).min(self.usable_blocks());
        let room = need.min(end.saturating_sub(first));
        let most = self.most_to_plug;
        // A run that is cut to the size of a request ends with a whole memory block.
        let whole = most.saturating_sub((first + most) % per_memory_block);
        let count = if room <= most || whole == 0 { room.min(most) } else { whole };
        (count > 0).then_some(BlockRange::new(first, count))
    }

    /// Takes device blocks out of use: at most `excess` and a part of a memmap. There are no strays.
    fn shrink(&mut self, excess: u64) -> Option<Action> {
        if excess == 0 {
            return None;
        }
        self.whole(excess).or_else(|| self.single(excess, 0))
    }

    /// The highest memory blocks that fit `excess`, among those that were not looked at in this pass.
    fn whole(&mut self, excess: u64) -> Option<Action> {
        let geometry = self.region.geometry;
        loop {
            let run = self.region.online.below(self.region.removed_from)?;
            let top = geometry.memory_block(run.end() - 1);
            if run.overlap(top) != top {
                if self.fits(self.region.online.count_in(top), excess) {
                    return Some(self.remove(top));
                }
                self.region.removed_from = top.first();
            } else if self.fits(top.count(), excess) {
                // One UNPLUG gives all of them back. A guest for which that takes long ends the action early, so that
                // the host gets back what is there.
                let most = excess.min(geometry.most_of_a_request()).min(run.count());
                let count = (most - most % geometry.per_memory_block).max(top.count());
                let whole = top.count() == geometry.per_memory_block;
                return Some(self.remove(if whole {
                    BlockRange::new(top.end() - count, count)
                } else {
                    top
                }));
            } else {
                // Nor do the others of this run that are plugged as a whole.
                self.region.removed_from = run.first().next_multiple_of(geometry.per_memory_block);
            }
        }
    }

    /// The highest device block from `floor` on that may go offline by itself, among those that were not looked at in
    /// this pass. Its memory block, when nothing else of it is left and that fits `excess`.
    fn single(&mut self, excess: u64, floor: u64) -> Option<Action> {
        let geometry = self.region.geometry;
        loop {
            let from = self.region.offline_from;
            let last =
                self.region.online.below(from).map(|run| run.end() - 1).filter(|&last| last >= floor)?;
            let memory_block = geometry.memory_block(last);
            let reserve = geometry.reserve(memory_block);
            // Two runs tell whether more is online than what is kept.
            let runs = || self.region.online.within(memory_block).take(2);
            let nothing_else = |kept| runs().map(BlockRange::count).sum::<u64>() == kept;
            let kept = reserve.count().max(1);
            // Where the memmap lies elsewhere, all but the last may go.
            let is_kept = if reserve.count() > 0 { last < reserve.end() } else { nothing_else(kept) };
            if !is_kept {
                let (addr, size) = self.span(BlockRange::new(last, 1));
                return Some(Action::OfflineDeviceBlocks { addr, size });
            }
            // Removing the memory block may have failed because of what has gone since.
            if from < memory_block.end() && self.fits(kept, excess) && nothing_else(kept) {
                return Some(self.remove(memory_block));
            }
            self.region.offline_from = memory_block.first();
        }
    }

    /// Whether a memory block with `online` device blocks may be removed as a whole.
    const fn fits(&self, online: u64, excess: u64) -> bool {
        online <= excess + self.region.geometry.memmap_blocks.saturating_sub(1)
    }

    fn remove(&self, memory_blocks: BlockRange) -> Action {
        let (addr, size) = self.span(memory_blocks);
        Action::RemoveMemoryBlocks { addr, size }
    }

    /// Address and size of device blocks.
    const fn span(&self, range: BlockRange) -> (u64, u64) {
        let geometry = &self.region.geometry;
        (geometry.addr(range.first()), geometry.bytes(range.count()))
    }
}
