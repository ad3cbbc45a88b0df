//! Device memory unmapped, with its memmap.
//!
//! Mirrors Linux `memunmap_pages`. Differs from Linux on purpose: a range in use is refused, and the error
//! names the first user.
//!
//! Invariant: the gate of the pgmap is closed before its sections become Absent, so no CPU takes a reference
//! to a page afterwards.

use core::fmt;

use crate::addr::Pfn;
use crate::altmap::VmemAltmap;
use crate::hotplug::Hotplug;
use crate::memmap::MemmapSource;
use crate::page::DevUser;
use crate::pageblock_set::PageblockSet;
use crate::pgmap::{Pgmap, PgmapNr, Stage};
use crate::platform::Platform;
use crate::sparse::SectionState;

/// Why device memory was not unmapped. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemunmapError {
    /// There is no such pgmap; it is counted in [`DeviceStats::invalid`](crate::DeviceStats::invalid).
    NotMapped,
    /// Its pages are still being initialised.
    Initialising,
    /// Some of its pages are in use.
    InUse {
        /// References to its pages.
        refs: u64,
        /// The first page with a user, and that user; none if the page was given back meanwhile.
        first: Option<(Pfn, DevUser)>,
    },
}

impl fmt::Display for MemunmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped => f.write_str("no device memory is mapped by this number"),
            Self::Initialising => f.write_str("its pages are still being initialised"),
            Self::InUse { refs, .. } => write!(f, "{refs} references to its pages are taken"),
        }
    }
}

impl core::error::Error for MemunmapError {}

impl<P: Platform> Hotplug<'_, P> {
    /// Unmaps the device memory of pgmap `nr`, which has no users, and its memmap, and gives the memmap's
    /// pages back. Returns the number of its pages.
    ///
    /// # Errors
    /// See [`MemunmapError`].
    pub fn memunmap_pages(&self, nr: PgmapNr) -> Result<u32, MemunmapError> {
        let pgmap = self.mm.pgmaps.get(nr);
        match pgmap.stage() {
            Stage::Free => {
                self.mm.pgmaps.count_invalid();
                return Err(MemunmapError::NotMapped);
            }
            Stage::Initialising => return Err(MemunmapError::Initialising),
            Stage::Live => {}
        }
        let in_use = |refs| MemunmapError::InUse { refs, first: self.first_user(pgmap) };
        let closed = pgmap.kill(self.held()).map_err(in_use)?;
        debug_assert_eq!(self.first_user(pgmap), None, "a page has a user behind a closed gate");
        for section in pgmap.sections() {
            self.mm.sparse.set_state(section, SectionState::Absent, &closed);
            let entry = self.mm.sparse.entry(section);
            entry.set_plugged(PageblockSet::NONE, &closed);
            entry.set_device(false, &closed);
        }
        let mut source = MemmapSource::new(pgmap.node(), pgmap.altmap());
        self.unmap_memmaps(pgmap.sections(), &mut source);
        source.altmap().into_iter().for_each(VmemAltmap::end);
        pgmap.sections().for_each(|section| self.unmap_direct(section, PageblockSet::ALL));
        closed.release(self.held());
        Ok(pgmap.device_pages().pages())
    }

    /// The first page of `pgmap` with a user.
    fn first_user(&self, pgmap: &Pgmap) -> Option<(Pfn, DevUser)> {
        let mut all = pgmap.device_pages().frames();
        all.find_map(|pfn| self.mm.sparse.page(pfn).dev_user().map(|user| (pfn, user)))
    }
}
