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

/// Two bits for each of a section's 64 pageblocks.
pub(crate) struct PageblockFlags {
    /// Which are movable; the others are unmovable.
    movable: AtomicU64,
    /// Which are isolated.
    isolated: AtomicU64,
}

impl PageblockFlags {
    pub(crate) const fn new() -> Self {
        Self { movable: AtomicU64::new(0), isolated: AtomicU64::new(0) }
    }

    /// Makes every pageblock movable and not isolated.
    pub(crate) fn reset(&self) {
        self.movable.store(u64::MAX, Relaxed);
        self.isolated.store(0, Relaxed);
    }

    /// The list for free pages of pageblock `pageblock`.
    #[inline(always)]
    pub(crate) fn migrate_type(&self, pageblock: u32) -> MigrateType {
        self.open_type(pageblock).unwrap_or(MigrateType::Isolate)
    }

    /// The same, or none if the pageblock is isolated.
    #[inline(always)]
    pub(crate) fn open_type(&self, pageblock: u32) -> Option<MigrateType> {
        if self.is_isolated(pageblock) {
            return None;
        }
        let is_movable = self.movable.load(Relaxed) >> (pageblock % u64::BITS) & 1 != 0;
        Some(if is_movable { MigrateType::Movable } else { MigrateType::Unmovable })
    }

    #[inline(always)]
    pub(crate) fn is_isolated(&self, pageblock: u32) -> bool {
        self.isolated.load(Relaxed) >> (pageblock % u64::BITS) & 1 != 0
    }

    /// Sets the type below the isolation bit.
    pub(crate) fn set_type(&self, pageblock: u32, to: MigrateType) {
        assert!(to != MigrateType::Isolate, "isolation is set by set_isolated");
        set(&self.movable, pageblock, to == MigrateType::Movable);
    }

    pub(crate) fn set_isolated(&self, pageblock: u32, isolated: bool) {
        set(&self.isolated, pageblock, isolated);
    }
}

/// Sets or clears the bit of `pageblock`.
fn set(word: &AtomicU64, pageblock: u32, to: bool) {
    let bit = 1 << (pageblock % u64::BITS);
    let before = word.load(Relaxed);
    // A plain load and store: the zone lock excludes other writers.
    word.store(if to { before | bit } else { before & !bit }, Relaxed);
}
