//! Which step comes next, decided anew each time from what is plugged, used and requested.
//!
//! Mirrors the order of Linux's `virtio_mem_sbm_plug_request` and `..._unplug_request`, and differs
//! on purpose: one PLUG spans as many memory blocks as it can, and because nothing but the state
//! decides, a target that moves in the middle needs no code of its own: blocks on the way in turn
//! around and leave, blocks on the way out are put back.
//!
//! In the order of precedence:
//!
//! | state | step |
//! | --- | --- |
//! | strays, and growing failed in this pass | unplug them |
//! | strays, more plugged than requested | take more of that memory block out of use, then unplug them |
//! | strays, otherwise | put them to use: `AddBlock`, `OnlineSubBlocks` |
//! | less plugged than requested | fill the lowest hole of an added memory block, else plug new memory blocks |
//! | more plugged than requested | `RemoveBlock` the highest that fits, else the highest single sub-block |
//! | an added memory block with nothing plugged | `RemoveBlock` |
//!
//! (A stray is a block that is plugged and that the guest does not use.)

use super::region::MemoryBlock;
use super::rest::Why;
use super::{Action, Driver};
use crate::blocks::BlockRange;
use crate::wire::RequestKind;

impl Driver {
    /// The next step, given that the state is certain and the configuration read.
    pub(super) fn plan(&mut self) -> Action {
        let (plugged, requested) = (self.region.plugged(), self.requested_blocks());
        let step = if let Some(index) = self.region.lowest_stray() {
            Some(self.settle(index, plugged.saturating_sub(requested)))
        } else if plugged < requested {
            if self.stop_growing { None } else { self.grow(requested - plugged) }
        } else if plugged > requested {
            self.shrink(plugged - requested)
        } else {
            self.drop_idle()
        };
        step.unwrap_or_else(|| Action::Rest(self.rest()))
    }

    /// Brings strays, the lowest of them in memory block `lowest`, in or out.
    fn settle(&mut self, lowest: usize, excess: u64) -> Action {
        let block = self.region.at(lowest);
        let strays = block.strays();
        if self.stop_growing {
            return self.unplug_strays(u64::MAX);
        }
        if excess > 0 {
            // One request for many sub-blocks rather than one for each.
            let here = u64::from(strays.count());
            let budget = excess.saturating_sub(self.region.strays() - here);
            if block.added && budget > here {
                if self.fits(&block, budget) {
                    return self.remove(lowest);
                }
                if let Some(sub_block) = self.removable(&block) {
                    return self.offline(lowest, sub_block);
                }
            }
            return self.unplug_strays(excess);
        }
        if block.added {
            let run = strays.lowest_run();
            let (addr, size) = self.span(lowest, run.start, run.end - run.start);
            return Action::OnlineSubBlocks { addr, size };
        }
        if !block.plugged.contains(self.region.geometry.memmap) {
            // Only a device that broke the rules leaves a memory block like this.
            return self.unplug_strays(u64::MAX);
        }
        let (addr, _) = self.span(lowest, 0, 0);
        Action::AddBlock { addr, plugged: block.plugged, fresh: block.fresh }
    }

    /// Unplugs the highest run of strays, at most `limit` blocks of it.
    fn unplug_strays(&self, limit: u64) -> Action {
        let range = self.region.highest_strays(limit.min(u64::from(u16::MAX)));
        self.send(RequestKind::Unplug, range.expect("strays are left"))
    }

    /// Plugs up to `need` blocks, if there is a usable place for them.
    fn grow(&mut self, need: u64) -> Option<Action> {
        let range = self.hole(need).or_else(|| self.vacancy(need))?;
        if self.region.reserve(range.end()).is_err() {
            self.fail_growing(Why::NoMemory);
            return None;
        }
        Some(self.send(RequestKind::Plug, range))
    }

    /// The lowest blocks that are missing in an added memory block.
    fn hole(&self, need: u64) -> Option<BlockRange> {
        if self.region.holes() == 0 {
            return None;
        }
        let geometry = &self.region.geometry;
        let usable = self.usable_blocks();
        let added = self.region.iter().filter(|(_, block)| block.added);
        let mut holes =
            added.map(|(index, block)| (index, geometry.below(index, usable).without(block.plugged)));
        let (index, missing) = holes.find(|(_, missing)| !missing.is_empty())?;
        let run = missing.lowest_run();
        let count = u64::from(run.end - run.start).min(need).min(u64::from(self.most_to_plug));
        Some(BlockRange { first: geometry.first_of(index) + u64::from(run.start), count })
    }

    /// The first blocks of the lowest run of memory blocks that are not added, as many as needed.
    fn vacancy(&self, need: u64) -> Option<BlockRange> {
        let geometry = &self.region.geometry;
        let mut blocks = self.region.iter();
        let index = blocks.find(|(_, block)| !block.added).map_or(self.region.len(), |(index, _)| index);
        let next_added = blocks.find(|(_, block)| block.added).map(|(index, _)| geometry.first_of(index));
        let first = geometry.first_of(index);
        let end = next_added.unwrap_or(u64::MAX).min(self.usable_blocks());
        let room = need.min(end.saturating_sub(first));
        let most = u64::from(self.most_to_plug);
        let per = u64::from(geometry.per_memory_block);
        // Cut short by the size of a request, it still ends with a whole memory block.
        let count = if room <= most || most < per { room.min(most) } else { most - most % per };
        (count > 0).then_some(BlockRange { first, count })
    }

    /// Takes memory out of use, at most `excess` blocks.
    fn shrink(&mut self, excess: u64) -> Option<Action> {
        if let Some((index, _)) = self.region.iter().rev().find(|(_, block)| self.fits(block, excess)) {
            return Some(self.remove(index));
        }
        let mut single = self.region.iter().rev();
        let (index, sub_block) = single.find_map(|(index, block)| Some((index, self.removable(block)?)))?;
        Some(self.offline(index, sub_block))
    }

    /// Removes memory blocks that serve nothing: only where the memmap lies elsewhere.
    fn drop_idle(&self) -> Option<Action> {
        if self.region.idle() == 0 {
            return None;
        }
        let (index, _) = self.region.iter().rev().find(|(_, block)| self.fits(block, 0))?;
        Some(self.remove(index))
    }

    /// Whether a memory block may go as a whole, and did not refuse to in this pass.
    fn fits(&self, block: &MemoryBlock, excess: u64) -> bool {
        block.added && !block.keep && u64::from(block.plugged.count()) <= excess
    }

    /// The highest sub-block of a memory block that may go, and did not refuse to in this pass.
    fn removable(&self, block: &MemoryBlock) -> Option<u32> {
        let candidates = block.online.without(block.busy).without(self.region.geometry.memmap);
        candidates.highest_run().end.checked_sub(1)
    }

    fn offline(&self, index: usize, sub_block: u32) -> Action {
        let (addr, size) = self.span(index, sub_block, 1);
        Action::OfflineSubBlocks { addr, size }
    }

    fn remove(&self, index: usize) -> Action {
        let (addr, _) = self.span(index, 0, 0);
        Action::RemoveBlock { addr }
    }

    /// Address and size of sub-blocks.
    fn span(&self, index: usize, sub_block: u32, count: u32) -> (u64, u64) {
        let geometry = &self.region.geometry;
        let first = geometry.first_of(index) + u64::from(sub_block);
        (geometry.addr(first), geometry.bytes(u64::from(count)))
    }
}
