//! `pgmap`: the gate of a range of device memory, and the stages of its life.

use crate::addr::{PAGEBLOCK_PAGES, Pfn, PfnRange, SECTION_PAGES};
use crate::altmap::VmemAltmap;
use crate::hotplug::HotplugHeld;
use crate::node::NodeId;
use crate::pgmap::{Described, Pgmap, PgmapNr, Pgmaps, Stage};
use crate::sync::tests::{Data, fixed, in_every_execution};

const NR: PgmapNr = PgmapNr(0);
const PAGES: u32 = 2 * PAGEBLOCK_PAGES;

/// A section, the last two pageblocks of which are device pages.
fn range() -> PfnRange {
    PfnRange::new(Pfn::new(SECTION_PAGES), SECTION_PAGES)
}

/// A device page.
fn page() -> Pfn {
    Pfn::new(2 * SECTION_PAGES - 1)
}

/// The lock, for calls that only ask for a proof of it.
const HELD: HotplugHeld = HotplugHeld::without_mm();

fn describe(pgmap: &Pgmap) -> Described<'_> {
    let aside = SECTION_PAGES - PAGES;
    let altmap = VmemAltmap::at(range().start(), aside);
    pgmap.describe(range(), NodeId::FIRST, 0, Some(altmap), &HELD)
}

/// A table whose first entry is described, and has begun.
fn begun() -> &'static Pgmaps {
    let pgmaps = fixed(Pgmaps::new());
    describe(pgmaps.get(NR)).begin(0, 0, 0);
    pgmaps
}

/// `begin` and `stage`.
#[test]
fn a_range_that_has_begun_is_described() {
    let pgmaps = fixed(Pgmaps::new());
    let pgmap = pgmaps.get(NR);
    in_every_execution(
        || {
            describe(pgmap).begin(3, 0, 0);
        },
        || {
            if pgmap.stage() == Stage::Initialising {
                assert_eq!(pgmap.range(), range());
                assert_eq!(pgmap.device_pages().pages(), PAGES);
            }
        },
    );
}

/// `count_finished`: the CPU that finishes last sees the pages that all others have written.
#[test]
fn the_last_chunk_sees_all_others() {
    let pgmap = begun().get(NR);
    let pages = fixed([const { Data::new() }; 2]);
    let initialise = |cpu: usize| {
        move || {
            let chunk = pgmap.claim(cpu).expect("there are two");
            let first = pgmap.device_pages().start();
            pages[((chunk.pages().start().get() - first.get()) / PAGEBLOCK_PAGES) as usize].write();
            if pgmap.count_finished(&chunk) {
                pages.iter().for_each(Data::assert_written);
            }
        }
    };
    in_every_execution(initialise(0), initialise(1));
}

/// `publish` and `refs`: the gate.
#[test]
fn a_range_is_found_with_its_pages() {
    let pgmaps = begun();
    let written = fixed(Data::new());
    in_every_execution(
        || {
            written.write();
            pgmaps.get(NR).publish(5);
        },
        || {
            if pgmaps.of(page()).is_some() {
                written.assert_written();
            }
        },
    );
}

/// `publish` and `try_get`.
#[test]
fn a_reference_is_taken_with_the_pages() {
    let pgmap = begun().get(NR);
    let written = fixed(Data::new());
    in_every_execution(
        || {
            written.write();
            pgmap.publish(5);
        },
        || {
            if pgmap.try_get() {
                written.assert_written();
            }
        },
    );
}

/// `publish` and `stage`: a range that says that it is live has its references and its times.
#[test]
fn a_range_that_is_live_has_its_references() {
    let pgmaps = begun();
    in_every_execution(
        || pgmaps.get(NR).publish(5),
        || {
            if let Some(info) = pgmaps.info(NR).filter(|info| info.live) {
                assert_eq!((info.refs, info.init_ns), (PAGES.into(), 5), "a live range");
            }
        },
    );
}

/// `put` and `kill`: a CPU that closes the gate sees the writes of the last user.
#[test]
fn the_gate_closes_behind_the_last_user() {
    let pgmap = begun().get(NR);
    pgmap.publish(5);
    assert!(pgmap.try_get());
    let used = fixed(Data::new());
    in_every_execution(
        || {
            used.write();
            pgmap.put();
        },
        || {
            if pgmap.kill(&HELD).is_ok() {
                used.assert_written();
            }
        },
    );
}

/// `kill` and `try_get`: one of both fails.
#[test]
fn no_reference_is_taken_behind_a_closed_gate() {
    let pgmap = begun().get(NR);
    pgmap.publish(5);
    let taken = fixed(Data::new());
    in_every_execution(
        || {
            if pgmap.try_get() {
                taken.write();
                pgmap.put();
            }
        },
        || {
            if let Ok(closed) = pgmap.kill(&HELD) {
                assert!(!pgmap.try_get(), "a reference behind a closed gate");
                assert_eq!(pgmap.refs(), 0);
                closed.release(&HELD);
            }
        },
    );
}
