//! Migrate types: which pages may be allocated from which pageblock.
//!
//! Mirrors Linux `enum migratetype` and `include/linux/pageblock-flags.h`, in the newer form in which
//! isolation is a bit of its own, so that undoing it brings the former type back.
//!
//! Invariants: the flags of an online section change under the lock of the section's zone. A free buddy
//! block is on the list of its pageblock's type; if it covers two pageblocks, both have that type.

use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Which requests a free buddy block may serve; also the free list that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MigrateType {
    /// Pages that stay where they are.
    Unmovable = 0,
    /// Pages whose owners can give them up.
    Movable = 1,
    /// No request: the pages are about to be taken away.
    Isolate = 2,
}

impl MigrateType {
    /// Number of types.
    pub const COUNT: usize = 3;

    /// For tables with one entry per type.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Four bits for each of a section's 64 pageblocks: bit 0 is the type (0 unmovable, 1 movable),
/// bit 1 says that the pageblock is isolated, bits 2 and 3 are zero.
pub(crate) struct PageblockFlags([AtomicU64; 4]);

impl PageblockFlags {
    const MOVABLE: u64 = 1;
    const ISOLATE: u64 = 2;
    const ALL_MOVABLE: u64 = 0x1111_1111_1111_1111;

    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 4])
    }

    /// Makes every pageblock movable and not isolated.
    pub(crate) fn reset(&self) {
        for word in &self.0 {
            word.store(Self::ALL_MOVABLE, Relaxed);
        }
    }

    #[inline]
    fn bits(&self, pageblock: u32) -> u64 {
        self.0[pageblock as usize / 16 % 4].load(Relaxed) >> (pageblock % 16 * 4)
    }

    fn update(&self, pageblock: u32, clear: u64, set: u64) {
        let word = &self.0[pageblock as usize / 16 % 4];
        let shift = pageblock % 16 * 4;
        // A plain load and store: the zone lock excludes other writers.
        word.store(word.load(Relaxed) & !(clear << shift) | set << shift, Relaxed);
    }

    /// The list for free buddy blocks of pageblock `pageblock`.
    #[inline]
    pub(crate) fn migrate_type(&self, pageblock: u32) -> MigrateType {
        match self.bits(pageblock) & 3 {
            0 => MigrateType::Unmovable,
            1 => MigrateType::Movable,
            _ => MigrateType::Isolate,
        }
    }

    /// The same, or none if the pageblock is isolated.
    #[inline]
    pub(crate) fn open_type(&self, pageblock: u32) -> Option<MigrateType> {
        let bits = self.bits(pageblock);
        if bits & Self::ISOLATE != 0 {
            return None;
        }
        Some(if bits & Self::MOVABLE == 0 { MigrateType::Unmovable } else { MigrateType::Movable })
    }

    pub(crate) fn is_isolated(&self, pageblock: u32) -> bool {
        self.bits(pageblock) & Self::ISOLATE != 0
    }

    /// Sets the type below the isolation bit.
    pub(crate) fn set_type(&self, pageblock: u32, to: MigrateType) {
        match to {
            MigrateType::Unmovable => self.update(pageblock, Self::MOVABLE, 0),
            MigrateType::Movable => self.update(pageblock, 0, Self::MOVABLE),
            MigrateType::Isolate => panic!("isolation is set by set_isolated"),
        }
    }

    pub(crate) fn set_isolated(&self, pageblock: u32, isolated: bool) {
        self.update(pageblock, Self::ISOLATE, if isolated { Self::ISOLATE } else { 0 });
    }
}
