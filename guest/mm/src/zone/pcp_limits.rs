//! How many pages a CPU may keep of a zone.
//!
//! Mirrors Linux `zone_batchsize` and `zone_highsize`. Differs from Linux on purpose: pageblocks on per-CPU lists have a
//! limit of their own, because Linux's `high` would keep hundreds of them or none; `high` has an upper end, because a list
//! is an array, and because memory that comes and goes should not lie on lists; and no limit is tuned later.
//!
//! Invariant: limits fit into one word, so one access reads or writes them all, and no order of steps can tear them: a
//! refill or a flush that mixes two publications is impossible, and no model or mutant can show one.

use super::{Watermark, Zone};
use crate::addr::PAGEBLOCK_PAGES;

/// Fewer are not kept: they would hardly save a lock.
const LEAST_LARGE: u64 = 4;
/// All CPUs together keep one in so many of a zone's pageblocks.
const LARGE_SHARE: u64 = 64;

/// The limits of a CPU's lists of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PcpLimits {
    /// The lists are flushed when they have so many single pages; 0 when they are stopped.
    pub(crate) high: u32,
    /// Single pages that a refill brings, and that a flush takes away.
    pub(crate) batch: u16,
    /// The lists are flushed when they have more pageblocks. A refill or a flush moves half of them.
    pub(crate) large: u16,
}

impl PcpLimits {
    /// Most single pages that a CPU keeps of a zone. Linux has no such number: with one CPU at 64 GiB, `high` is 24,969.
    pub(crate) const MOST_PAGES: u32 = 256;
    /// Most pageblocks that a CPU keeps of a zone.
    pub(crate) const MOST_PAGEBLOCKS: u16 = 8;

    /// Those of stopped lists: their CPUs leave them as they are.
    pub(crate) const OFF: Self = Self { high: 0, batch: 1, large: 0 };

    /// As one word: 0 for stopped lists, so that the lists of a CPU that is not there take no room in a kernel's file.
    #[inline]
    pub(crate) const fn packed(self) -> u64 {
        self.high as u64 | (self.batch as u64 - 1) << 32 | (self.large as u64) << 48
    }

    /// What [`packed`](Self::packed) made a word of.
    #[inline]
    pub(crate) const fn unpacked(word: u64) -> Self {
        Self { high: word as u32, batch: (word >> 32) as u16 + 1, large: (word >> 48) as u16 }
    }

    /// Pageblocks that a refill brings, and that a flush takes away.
    #[inline]
    pub(crate) const fn large_batch(self) -> u32 {
        (self.large as u32).div_ceil(2)
    }

    /// The limits of `zone`, where `nr_cpus` CPUs share the pages that it may keep on them. A zone without memory has
    /// the limits of stopped lists.
    pub(crate) fn of(zone: &Zone, nr_cpus: usize) -> Self {
        let (managed, nr_cpus) = (zone.managed(), nr_cpus.max(1) as u64);
        if !zone.is_populated() {
            return Self::OFF;
        }
        let pages = ((managed >> 10).min(256) / 4).max(1);
        let batch = (1u16 << (pages + pages / 2).ilog2()).max(2) - 1;
        let share = zone.watermark(Watermark::Low) / nr_cpus;
        let large = managed / u64::from(PAGEBLOCK_PAGES) / LARGE_SHARE / nr_cpus;
        Self {
            high: share.clamp(4 * u64::from(batch), Self::MOST_PAGES.into()) as u32,
            batch,
            large: if large < LEAST_LARGE { 0 } else { large.min(Self::MOST_PAGEBLOCKS.into()) as u16 },
        }
    }
}
