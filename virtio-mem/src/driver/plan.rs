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
//! | more plugged than requested | unplug what is parked |
//! | the same, with nothing parked | `RemoveBlock` the highest that fits, else the highest single sub-block |
//! | an added memory block with nothing plugged | `RemoveBlock` |
//!
//! (A stray is a block that is plugged and that the guest does not use; see `region` for parked ones.)
//!
//! A memory block fits if what would be left of it is less than its memmap needs: such a rest would
//! gain the guest nothing, and stays parked.

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
        if self.stop_growing {
            return self.unplug_strays(u64::MAX);
        }
        if excess > 0 {
            // One request for many sub-blocks rather than one for each.
            let here = block.strays();
            let budget = excess.saturating_sub(self.region.strays() - here);
            if block.added && budget > here {
                if self.fits(&block, budget) {
                    return self.remove(lowest);
                }
                if let Some(sub_block) = self.region.removable(lowest) {
                    return self.offline(sub_block);
                }
            }
            return self.unplug_strays(excess);
        }
        let strays = self.region.lowest_strays(lowest);
        let (start, size) = self.span(strays);
        if block.added {
            return Action::OnlineSubBlocks { addr: start, size };
        }
        let reserve = self.region.geometry.reserve(lowest);
        let has_memmap = strays.first == reserve.first && strays.count >= reserve.count;
        if reserve.count > 0 && !has_memmap {
            // Only a device that broke the rules leaves a memory block like this.
            return self.unplug_strays(u64::MAX);
        }
        let (addr, _) = self.span(reserve);
        Action::AddBlock { addr, start, size, fresh: block.fresh }
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
        let usable = self.usable_blocks();
        let mut added = self.region.iter().filter(|(_, block)| block.added);
        let run = added.find_map(|(index, _)| self.region.lowest_hole(index, usable))?;
        let count = run.count.min(need).min(u64::from(self.most_to_plug));
        Some(BlockRange { first: run.first, count })
    }

    /// The first blocks of the lowest run of memory blocks that are not added, as many as needed.
    fn vacancy(&self, need: u64) -> Option<BlockRange> {
        let geometry = &self.region.geometry;
        let mut blocks = self.region.iter();
        let index = blocks.find(|(_, block)| !block.added).map_or(self.region.len(), |(index, _)| index);
        let next_added =
            blocks.find(|(_, block)| block.added).map(|(index, _)| geometry.memory_block(index).first);
        // Behind what is parked there, and up to what is parked further on.
        let (first, parked) = self.region.unplugged_from(geometry.memory_block(index).first);
        let end = next_added.unwrap_or(u64::MAX).min(parked.unwrap_or(u64::MAX)).min(self.usable_blocks());
        let room = need.min(end.saturating_sub(first));
        let most = u64::from(self.most_to_plug);
        // Cut short by the size of a request, it still ends with a whole memory block.
        let (_, too_many) = geometry.place(first + most);
        let whole = most.saturating_sub(too_many);
        let count = if room <= most || whole == 0 { room.min(most) } else { whole };
        (count > 0).then_some(BlockRange { first, count })
    }

    /// Takes memory out of use, at most `excess` blocks.
    fn shrink(&mut self, excess: u64) -> Option<Action> {
        if self.region.parked() > 0 {
            return Some(self.unplug_strays(excess));
        }
        if let Some((index, _)) = self.region.iter().rev().find(|(_, block)| self.fits(block, excess)) {
            return Some(self.remove(index));
        }
        let mut single = self.region.iter().rev().filter(|(_, block)| block.online > 0);
        let sub_block = single.find_map(|(index, _)| self.region.removable(index))?;
        Some(self.offline(sub_block))
    }

    /// Removes memory blocks that serve nothing: only where the memmap lies elsewhere.
    fn drop_idle(&self) -> Option<Action> {
        if self.region.idle() == 0 {
            return None;
        }
        let (index, _) = self.region.iter().rev().find(|(_, block)| block.is_idle() && !block.keep)?;
        Some(self.remove(index))
    }

    /// Whether a memory block may go as a whole, and did not refuse to in this pass.
    fn fits(&self, block: &MemoryBlock, excess: u64) -> bool {
        let useless = self.region.geometry.memmap_blocks.saturating_sub(1);
        block.added && !block.keep && block.plugged <= excess + useless
    }

    fn offline(&self, sub_block: u64) -> Action {
        let (addr, size) = self.span(BlockRange { first: sub_block, count: 1 });
        Action::OfflineSubBlocks { addr, size }
    }

    fn remove(&self, index: usize) -> Action {
        let (addr, _) = self.span(self.region.geometry.memory_block(index));
        Action::RemoveBlock { addr }
    }

    /// Address and size of blocks.
    fn span(&self, range: BlockRange) -> (u64, u64) {
        let geometry = &self.region.geometry;
        (geometry.addr(range.first), geometry.bytes(range.count))
    }
}
