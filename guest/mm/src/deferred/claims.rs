//! What no CPU has claimed, and what it adds up to.
//!
//! Takes the place of the sums that Linux keeps per node (`node_present_pages`), for memory that is deferred.
//!
//! Invariant: the pages of deferred memory follow from its ranges, and those of boot memory from the memory map too.

use crate::addr::PfnRange;
use crate::deferred::{DeferredRange, DeferredRanges, Origin};
use crate::memblock::{Memblock, Run};
use crate::node::ZoneId;

/// Which memory blocks no CPU has claimed.
#[derive(Clone)]
pub(crate) struct Claims {
    /// The memory map at boot; `None` before boot.
    pub(super) memblock: Option<&'static Memblock>,
    pub(super) ranges: DeferredRanges,
}

impl Claims {
    /// Number of memory blocks of `zone` that no CPU has claimed.
    pub(crate) fn count(&self, zone: ZoneId) -> u32 {
        self.of(zone).map(DeferredRange::blocks).sum()
    }

    /// The ranges that no CPU has claimed, ascending.
    pub(crate) fn ranges(&self) -> &DeferredRanges {
        &self.ranges
    }

    /// The ranges of `zone` that no CPU has claimed.
    fn of(&self, zone: ZoneId) -> impl Iterator<Item = &DeferredRange> {
        self.ranges.iter().filter(move |range| range.zone == zone)
    }

    /// Present pages of `zone` in them: ranges of frames, ascending.
    pub(crate) fn present(&self, zone: ZoneId) -> impl Iterator<Item = PfnRange> {
        self.of(zone).flat_map(|range| {
            // Of boot memory, the RAM.
            let memblock = self.memblock.filter(|_| range.is_boot());
            let plugged = (!range.is_boot()).then(|| range.sections.frames());
            memblock.into_iter().flat_map(|memblock| memblock.ram_in(range.sections.frames())).chain(plugged)
        })
    }

    /// Pages of `zone` that will be free.
    pub(crate) fn free(&self, zone: ZoneId) -> u64 {
        let pages = |range: &DeferredRange| match range.origin {
            Origin::Boot { .. } => self.memblock.map_or(0, |memblock| run_of(range).free_pages(memblock)),
            Origin::Plugged { .. } => range.plugged_managed(),
        };
        self.of(zone).map(pages).sum()
    }
}

fn run_of(range: &DeferredRange) -> Run {
    Run { first: range.sections.first(), end: range.sections.end(), zone: range.zone }
}
