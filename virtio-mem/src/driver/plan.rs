//! The plan: picks the next action from the device blocks that are plugged, used and requested.
//!
//! Mirrors the order of Linux's `virtio_mem_sbm_plug_request` and `virtio_mem_sbm_unplug_request`. Differs on
//! purpose: one PLUG covers as many memory blocks as it can. Only the present state decides, so a target that
//! changes in the middle needs no code of its own: device blocks on their way in are unplugged again, and device
//! blocks on their way out are put back to use.
//!
//! In the order of precedence:
//!
//! | state | action |
//! | --- | --- |
//! | strays, and growing failed in this pass | unplug the strays |
//! | strays, and more plugged than requested | take more of their memory block out of use, then unplug the strays |
//! | strays, otherwise | put the strays to use: `AddMemoryBlock`, `OnlineDeviceBlocks` |
//! | less plugged than requested | fill the lowest hole of an added memory block, else plug new memory blocks |
//! | more plugged than requested | unplug parked device blocks |
//! | the same, without parked device blocks | `RemoveMemoryBlock` of the highest that fits, else `OfflineDeviceBlocks` of the highest device block |
//! | an added memory block with nothing plugged | `RemoveMemoryBlock` |
//!
//! A stray is a device block that is plugged and that the
//! guest does not use. `region` explains parked device blocks.
//!
//! A memory block fits the excess if at most a part of its memmap would stay plugged. That part would be of no
//! use to the guest, and stays parked.

use super::idle::IdleReason;
use super::region::MemoryBlock;
use super::{Action, Driver};
use crate::blocks::BlockRange;
use crate::wire::RequestKind;

impl Driver {
    /// The next action. No device block is uncertain, and the configuration has been read.
    pub(super) fn plan(&mut self) -> Action {
        let (plugged, requested) = (self.region.plugged(), self.requested_blocks());
        let step = if let Some(index) = self.region.lowest_stray() {
            Some(self.settle(index, plugged.saturating_sub(requested)))
        } else if plugged < requested {
            if self.stop_growing { None } else { self.grow(requested - plugged) }
        } else if plugged > requested {
            self.shrink(plugged - requested)
        } else {
            self.remove_empty()
        };
        step.unwrap_or_else(|| Action::Idle(self.idle()))
    }

    /// Puts strays to use or unplugs them. The lowest stray is in memory block `lowest`.
    fn settle(&mut self, lowest: usize, excess: u64) -> Action {
        let block = self.region.at(lowest);
        if self.stop_growing {
            return self.unplug_strays(u64::MAX);
        }
        if excess > 0 {
            // First takes more device blocks of this memory block out of use, so that one request unplugs all of
            // them.
            let here = block.strays();
            let budget = excess.saturating_sub(self.region.strays() - here);
            if block.added && budget > here {
                if self.fits(&block, budget) {
                    return self.remove(lowest);
                }
                if let Some(device_block) = self.region.removable(lowest) {
                    return self.offline(device_block);
                }
            }
            return self.unplug_strays(excess);
        }
        let strays = self.region.lowest_strays(lowest);
        let (start, size) = self.span(strays);
        if block.added {
            return Action::OnlineDeviceBlocks { addr: start, size };
        }
        let reserve = self.region.geometry.reserve(lowest);
        let has_memmap = strays.first() == reserve.first() && strays.count() >= reserve.count();
        if reserve.count() > 0 && !has_memmap {
            // Only a device that violated the specification leaves a memory block without its memmap.
            return self.unplug_strays(u64::MAX);
        }
        let (addr, _) = self.span(reserve);
        Action::AddMemoryBlock { addr, start, size, fresh: block.fresh }
    }

    /// Unplugs the highest run of strays, at most `limit` device blocks of it.
    fn unplug_strays(&self, limit: u64) -> Action {
        let range = self.region.highest_strays(limit.min(u64::from(u16::MAX)));
        self.send(RequestKind::Unplug, range.expect("strays are left"))
    }

    /// Plugs up to `need` device blocks, if the usable region has room for them.
    fn grow(&mut self, need: u64) -> Option<Action> {
        let range = self.hole(need).or_else(|| self.vacancy(need))?;
        if self.region.reserve(range.end()).is_err() {
            self.fail_growing(IdleReason::NoMemory);
            return None;
        }
        Some(self.send(RequestKind::Plug, range))
    }

    /// The lowest unplugged device blocks of an added memory block.
    fn hole(&self, need: u64) -> Option<BlockRange> {
        if self.region.holes() == 0 {
            return None;
        }
        let usable = self.usable_blocks();
        let mut added = self.region.iter().filter(|(_, block)| block.added);
        let run = added.find_map(|(index, _)| self.region.lowest_hole(index, usable))?;
        let count = run.count().min(need).min(u64::from(self.most_to_plug));
        Some(BlockRange::new(run.first(), count))
    }

    /// Up to `need` device blocks at the start of the lowest run of memory blocks that are not added.
    fn vacancy(&self, need: u64) -> Option<BlockRange> {
        let geometry = &self.region.geometry;
        let mut blocks = self.region.iter();
        let index = blocks.find(|(_, block)| !block.added).map_or(self.region.len(), |(index, _)| index);
        // Starts after the device blocks that are parked there, and ends before the next plugged device block. That
        // one is parked, or begins the next memory block in use: holes of memory blocks in use were filled before.
        let (first, plugged) = self.region.unplugged_from(geometry.memory_block(index).first());
        let end = plugged.unwrap_or(u64::MAX).min(self.usable_blocks());
        let room = need.min(end.saturating_sub(first));
        let most = u64::from(self.most_to_plug);
        // A run that is cut to the size of a request ends with a whole memory block.
        let (_, too_many) = geometry.place(first + most);
        let whole = most.saturating_sub(too_many);
        let count = if room <= most || whole == 0 { room.min(most) } else { whole };
        (count > 0).then_some(BlockRange::new(first, count))
    }

    /// Takes at most `excess` device blocks out of use.
    fn shrink(&mut self, excess: u64) -> Option<Action> {
        if self.region.parked() > 0 {
            return Some(self.unplug_strays(excess));
        }
        if let Some((index, _)) = self.region.iter().rev().find(|(_, block)| self.fits(block, excess)) {
            return Some(self.remove(index));
        }
        let mut single = self.region.iter().rev().filter(|(_, block)| block.online > 0);
        let device_block = single.find_map(|(index, _)| self.region.removable(index))?;
        Some(self.offline(device_block))
    }

    /// Removes memory blocks without a plugged device block. They exist only where the memmap lies elsewhere.
    fn remove_empty(&self) -> Option<Action> {
        if self.region.empty() == 0 {
            return None;
        }
        let (index, _) =
            self.region.iter().rev().find(|(_, block)| block.is_empty() && !block.removal_failed)?;
        Some(self.remove(index))
    }

    /// Whether a memory block may be removed as a whole, and its removal has not failed in this pass.
    fn fits(&self, block: &MemoryBlock, excess: u64) -> bool {
        let useless = self.region.geometry.memmap_blocks.saturating_sub(1);
        block.added && !block.removal_failed && block.plugged <= excess + useless
    }

    fn offline(&self, device_block: u64) -> Action {
        let (addr, size) = self.span(BlockRange::new(device_block, 1));
        Action::OfflineDeviceBlocks { addr, size }
    }

    fn remove(&self, index: usize) -> Action {
        let (addr, _) = self.span(self.region.geometry.memory_block(index));
        Action::RemoveMemoryBlock { addr }
    }

    /// Address and size of device blocks.
    fn span(&self, range: BlockRange) -> (u64, u64) {
        let geometry = &self.region.geometry;
        (geometry.addr(range.first()), geometry.bytes(range.count()))
    }
}
