//! Requests under way: which may be sent while others are not answered.
//!
//! Linux's driver sends one request at a time and waits for it. Here UNPLUGs of several runs, and PLUGs into several
//! holes, go together: a guest whose memory is a checkerboard notifies the device once for many of them. Each answer is taken
//! by itself, in any order.
//!
//! Invariants:
//! - No two requests under way name the same device block, and all are of one kind. So no answer depends on the order in
//!   which the device serves them.
//! - No memmap is unplugged beside other device blocks of its memory block.
//! - Together they ask for no more than the target leaves. So a device that serves all of them passes the target with none.
//! - While the configuration is to be read, a pause is due or something is in doubt, no further request is sent. Nothing else
//!   happens before all are answered.

use super::Driver;
use crate::blocks::BlockRange;
use crate::wire::{Request, RequestKind};

/// Most requests that are under way.
pub(super) const MOST_IN_FLIGHT: usize = 32;

impl Driver {
    /// A request that can be sent beside those that were sent before and are not answered. `None` when there is none, or when
    /// no request is under way. Each request takes part in [`Driver::complete_request`].
    ///
    /// A caller that sends one request at a time has no need of this.
    pub fn next_request(&mut self) -> Option<Request> {
        let last = *self.in_flight.last()?;
        let is_in_doubt = self.uncertain.blocks.count() > 0;
        let is_waited_for = self.read_config || self.paused.is_some() || is_in_doubt;
        if self.in_flight.len() >= MOST_IN_FLIGHT || is_waited_for {
            return None;
        }
        let range = match last.kind {
            RequestKind::Unplug => self.unplug_beside(self.units(last)?),
            RequestKind::Plug if self.region.holes.count() > 0 => self.plug_beside(self.units(last)?),
            RequestKind::Plug | RequestKind::UnplugAll | RequestKind::State => None,
        }?;
        let request = self.request(last.kind, range);
        self.in_flight.push(request);
        Some(request)
    }

    /// The next run of strays below `last`, of which an UNPLUG is under way. A memmap waits until the rest of its memory block
    /// is unplugged.
    fn unplug_beside(&self, last: BlockRange) -> Option<BlockRange> {
        let geometry = &self.region.geometry;
        let excess = self.region.plugged().saturating_sub(self.requested_blocks());
        let most = if self.stop_growing { u64::MAX } else { excess.saturating_sub(self.under_way()) };
        let memory_block = geometry.memory_block(last.first());
        let memmap_end = geometry.reserve(memory_block).end();
        let mut run = self.region.strays.below(last.first())?;
        if run.end() <= memmap_end {
            run = self.region.strays.below(memory_block.first())?;
        } else if run.first() < memmap_end {
            run = BlockRange::new(memmap_end, run.end() - memmap_end);
        }
        let count = run.count().min(most).min(geometry.most_of_a_request());
        (count > 0).then(|| BlockRange::new(run.end() - count, count))
    }

    /// The next hole above `last`, which a PLUG under way fills.
    fn plug_beside(&self, last: BlockRange) -> Option<BlockRange> {
        let is_hole = self.region.holes.count_in(last) == last.count();
        let under_way = self.under_way();
        let need = self.requested_blocks().saturating_sub(self.region.plugged() + under_way);
        let most = self.most_to_plug.saturating_sub(under_way);
        let run = self.region.holes.at_or_above(last.end()).filter(|_| is_hole)?;
        let room = self.usable_blocks().saturating_sub(run.first());
        let count = run.count().min(need).min(most).min(room);
        (count > 0).then(|| BlockRange::new(run.first(), count))
    }

    /// Device blocks that requests under way name.
    fn under_way(&self) -> u64 {
        self.in_flight.iter().filter_map(|&request| self.units(request)).map(BlockRange::count).sum()
    }
}
