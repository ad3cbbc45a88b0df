//! The way back: device memory unmapped, and its part of `check`.

use core::sync::atomic::Ordering::Relaxed;

use crate::Mm;
use crate::addr::{MEMMAP_PAGES, Order, PAGEBLOCK_PAGES, Pfn, SectionNr};
use crate::altmap::VmemAltmap;
use crate::page::DevUser;
use crate::pageblock_set::PageblockSet;
use crate::pgmap::{Pgmap, PgmapNr, Stage};
use crate::platform::Platform;
use crate::sparse::SectionState;

/// Why device memory was not unmapped. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemunmapError {
    /// There is no such pgmap; it is counted in [`DeviceStats::invalid`](crate::DeviceStats::invalid).
    NotMapped,
    /// Its pages are still being initialised.
    Initialising,
    /// Some of its pages are in use.
    InUse {
        /// References to its pages.
        refs: u64,
        /// The first page with a user, and who that is, unless it was given back meanwhile.
        first: Option<(Pfn, DevUser)>,
    },
}

impl<P: Platform> Mm<P> {
    /// Unmaps the device memory of pgmap `nr`, which nobody uses, and its memmap, and gives back what
    /// that took. Returns the number of its pages.
    ///
    /// # Errors
    /// See [`MemunmapError`].
    pub fn memunmap_pages(&self, nr: PgmapNr) -> Result<u32, MemunmapError> {
        let _hotplug = self.lock_hotplug();
        let pgmap = self.pgmaps.get(nr);
        match pgmap.stage() {
            Stage::Free => {
                self.pgmaps.count_invalid();
                return Err(MemunmapError::NotMapped);
            }
            Stage::Initialising => return Err(MemunmapError::Initialising),
            Stage::Live => {}
        }
        pgmap.kill().map_err(|refs| MemunmapError::InUse { refs, first: self.first_user(pgmap) })?;
        for section in pgmap.sections() {
            self.sparse.set_state(section, SectionState::Absent);
            let entry = self.sparse.section(section).expect("it was mapped");
            entry.set_plugged(PageblockSet::NONE);
            entry.set_device(false);
        }
        let mut altmap = pgmap.altmap();
        self.unmap_memmaps(pgmap.sections(), &mut altmap);
        if let Some(altmap) = altmap {
            altmap.end();
        }
        pgmap.sections().for_each(|section| self.unmap_direct(section, PageblockSet::ALL));
        pgmap.release();
        Ok(pgmap.device_pages().pages())
    }

    /// The first page of `pgmap` that somebody uses.
    fn first_user(&self, pgmap: &Pgmap) -> Option<(Pfn, DevUser)> {
        let pages = pgmap.device_pages();
        let mut all = (pages.start.get()..pages.end.get()).map(Pfn::new);
        all.find_map(|pfn| self.sparse.page(pfn).dev_user().map(|user| (pfn, user)))
    }

    /// Takes the memmaps of `sections`, to which nothing leads any more, away, and gives their pages
    /// back to where they came from.
    pub(super) fn unmap_memmaps(
        &self,
        sections: impl Iterator<Item = SectionNr> + Clone,
        altmap: &mut Option<VmemAltmap>,
    ) {
        self.platform.synchronize();
        sections.clone().for_each(|nr| self.platform.unmap_memmap(nr));
        for nr in sections {
            let memmap = self.entry(nr).memmap().expect("device memory's memmap is large pages");
            self.free_device_memmap(memmap, altmap);
        }
    }

    /// Gives the pages of one section's memmap, which is not mapped, back.
    pub(super) fn free_device_memmap(&self, memmap: Pfn, altmap: &mut Option<VmemAltmap>) {
        let counter = match altmap {
            Some(altmap) => {
                altmap.free(Order::PAGEBLOCK);
                &self.counters.memmap_altmap_pages
            }
            None => {
                self.free_pages(memmap, Order::PAGEBLOCK);
                &self.counters.memmap_boot_pages
            }
        };
        let before = counter.fetch_sub(MEMMAP_PAGES.into(), Relaxed);
        assert!(before >= MEMMAP_PAGES.into(), "gives back {MEMMAP_PAGES} of {before} memmap pages");
    }

    /// Checks every pgmap. Returns the memmap pages of device memory: in other memory, and in itself.
    pub(crate) fn check_pgmaps(&self) -> (u64, u64) {
        let (mut boot, mut altmap) = (0, 0);
        for (nr, pgmap) in self.pgmaps.iter() {
            let memmap = u64::from(pgmap.memmap_pages());
            match pgmap.altmap() {
                Some(set_aside) => {
                    assert_eq!(u64::from(set_aside.allocated()), memmap, "memmap in the altmap of {nr:?}");
                    altmap += memmap;
                }
                None => boot += memmap,
            }
            let live = pgmap.refs() > 0;
            for section in pgmap.sections() {
                let entry = self.sparse.section(section).expect("it is mapped");
                assert!(entry.is_device(), "{section:?} of pgmap {nr:?} is something else");
                assert_eq!(entry.plugged(), PageblockSet::ALL, "{section:?} of pgmap {nr:?}");
                let state = entry.state();
                let ready = if live { SectionState::Initialised } else { SectionState::Present };
                // One that is just being published may be further.
                assert!(
                    state == ready || !live && state == SectionState::Initialised,
                    "{section:?}: {state:?}"
                );
            }
            if live {
                self.check_device_pages(nr, pgmap);
            }
        }
        (boot, altmap)
    }

    /// Checks the pages of a live pgmap: hosted builds look at all of them, others at one a pageblock.
    fn check_device_pages(&self, nr: PgmapNr, pgmap: &Pgmap) {
        let step = if cfg!(any(test, feature = "sim")) { 1 } else { PAGEBLOCK_PAGES as usize };
        let (refs, pages) = (pgmap.refs(), pgmap.device_pages());
        assert!(refs >= pages.pages().into(), "pgmap {nr:?}: {refs} references to {pages:?}");
        for pfn in (pages.start.get()..pages.end.get()).step_by(step).map(Pfn::new) {
            let page = self.sparse.page(pfn);
            assert_eq!(page.state(), pgmap.page_state(), "state of {pfn:?} of pgmap {nr:?}");
            assert_eq!(page.pgmap(), u32::from(nr.0), "pgmap of {pfn:?}");
        }
    }
}
