//! Device memory: its sections, its pages and where its memmaps lie.
//!
//! Mirrors nothing of Linux, which does not check device memory as a whole.
//!
//! Invariants checked: the sections of a pgmap are wholly plugged device memory, Initialised once the pgmap is
//! live and Present before; a live pgmap has at least one reference per page; each of its pages names the
//! pgmap and is in the pgmap's state; the memmap fills the altmap exactly, or lies in allocated older memory.

use crate::Mm;
use crate::addr::PAGEBLOCK_PAGES;
use crate::check::blocks::Memmaps;
use crate::page::Kind;
use crate::pageblock_set::PageblockSet;
use crate::pgmap::{Pgmap, PgmapNr};
use crate::platform::Platform;
use crate::sparse::SectionState;

impl<P: Platform> Mm<P> {
    /// Checks every pgmap, and adds its memmap to `memmaps`.
    pub(super) fn check_pgmaps(&self, memmaps: &mut Memmaps) {
        for (nr, pgmap) in self.pgmaps.iter() {
            let memmap = u64::from(pgmap.memmap_pages());
            match pgmap.altmap() {
                Some(set_aside) => {
                    assert_eq!(u64::from(set_aside.allocated()), memmap, "memmap in the altmap of {nr:?}");
                    memmaps.altmap += memmap;
                }
                None => {
                    memmaps.boot += memmap;
                    memmaps.by_base_pages += self.check_older_memmaps(pgmap.sections());
                }
            }
            let live = pgmap.refs() > 0;
            for section in pgmap.sections() {
                let entry = self.sparse.entry(section);
                assert!(entry.is_device(), "{section:?} of pgmap {nr:?} is something else");
                assert_eq!(entry.plugged(), PageblockSet::ALL, "{section:?} of pgmap {nr:?}");
                assert_eq!(entry.node(), pgmap.node(), "node of {section:?}, of pgmap {nr:?}");
                let state = entry.state();
                let ready = if live { SectionState::Initialised } else { SectionState::Present };
                // A range that is being published at this moment may be Initialised before its pgmap is live.
                assert!(
                    state == ready || !live && state == SectionState::Initialised,
                    "{section:?}: {state:?}"
                );
            }
            if live {
                self.check_device_pages(nr, pgmap);
            }
        }
    }

    /// Checks the pages of a live pgmap: all of them in hosted builds, else one per pageblock.
    fn check_device_pages(&self, nr: PgmapNr, pgmap: &Pgmap) {
        let step = if cfg!(any(test, feature = "hosted")) { 1 } else { PAGEBLOCK_PAGES as usize };
        let (refs, pages) = (pgmap.refs(), pgmap.device_pages());
        assert!(refs >= pages.pages().into(), "pgmap {nr:?}: {refs} references to {pages:?}");
        for pfn in pages.frames().step_by(step) {
            let page = self.sparse.page(pfn);
            assert_eq!(page.state().kind(), Kind::Device, "state of {pfn:?} of pgmap {nr:?}");
            assert_eq!(page.pgmap(), u32::from(nr.0), "pgmap of {pfn:?}");
        }
    }
}
