//! `src/pgmap.rs`, `src/zone_device.rs`: readers of device pages meet a range that is mapped and unmapped.
//!
//! Must hold: a reader finds all pages of a range or none (S5.8, S5.15), a range in use is not unmapped, and no
//! reference is taken after the gate was closed.
//!
//! Numbers such as S5.8 are those of the claims in `docs/features.toml`.

use shuttle::thread;
use tidevm_mm::hosted::model::Variant;
use tidevm_mm::{
    DevAltmap, DevPageError, DevPagemap, MemunmapError, Mm, NodeId, Pfn, PfnRange, PgmapNr, SECTION_PAGES,
};
use tidevm_mm_sim::{Machine, Sim, SimMachine};

use crate::machine::{BLOCK, in_schedule, small, step_on};
use crate::schedules::{fails, holds};

/// Pageblocks of the range that are used as device pages. The rest is set aside.
const PAGEBLOCKS: u32 = 2;
const PAGES: u32 = PAGEBLOCKS * 512;
const USER: u32 = 7;

fn start(mm: &Mm<Sim>) -> PgmapNr {
    let altmap = DevAltmap { reserve: SECTION_PAGES - PAGES - 512, free: 512 };
    let map = DevPagemap::new(BLOCK.frames(), NodeId::FIRST).with_altmap(altmap);
    mm.hotplug().memremap_start(map).expect("there is room")
}

/// The first page and the last one.
fn ends() -> [Pfn; 2] {
    let end = BLOCK.frames().end().get();
    [Pfn::new(end - PAGES), Pfn::new(end - 1)]
}

fn initialise(mm: &Mm<Sim>, nr: PgmapNr) {
    while mm.platform().step(|| mm.memremap_init(nr)).expect("it exists") {}
}

/// Two CPUs initialise a range, and a third one looks at its pages.
fn publishing_meets_a_reader() {
    let machine = Machine::boot(&small());
    let nr = start(&machine);
    in_schedule(&machine, 0, |mm| {
        thread::scope(|scope| {
            scope.spawn(|| Sim::run_on(1, || initialise(mm, nr)));
            scope.spawn(|| {
                loop {
                    let [first, last] = step_on(mm, 2, || ends().map(|pfn| mm.dev_page(pfn)));
                    assert!(first.is_none() || last.is_some(), "a reader found a part of the range");
                    let used = step_on(mm, 2, || mm.get_dev_page(ends()[1], USER));
                    assert!(
                        last.is_none() || used == Ok(()),
                        "a page was found and cannot be used: {used:?}"
                    );
                    if used.is_ok() {
                        assert_eq!(step_on(mm, 2, || mm.put_dev_page(ends()[1], USER)), Ok(()));
                        break;
                    }
                    thread::yield_now();
                }
            });
            initialise(mm, nr);
        });
        assert!(mm.pgmap(nr).is_some_and(|pgmap| pgmap.live), "the range is initialised and not live");
        for page in ends() {
            assert!(mm.dev_page(page).is_some(), "{page:?} of a live range");
        }
    });
}

/// S5.8, S5.15.
#[test]
fn a_reader_finds_all_of_a_range_or_none() {
    holds(publishing_meets_a_reader);
}

/// S5: published too early, as in Linux.
#[test]
fn a_pgmap_that_is_published_before_its_sections_is_found_without_pages() {
    fails(Variant::PgmapFirst, &["has no page"], publishing_meets_a_reader);
}

/// One CPU unmaps a range. Another one looks at its pages, and a third one uses one of them.
#[test]
fn a_range_is_unmapped_after_its_last_reader_and_user() {
    holds(|| {
        let machine = Machine::boot(&small());
        let nr = start(&machine);
        while machine.memremap_init(nr) == Ok(true) {}
        in_schedule(&machine, 0, |mm| {
            let unmap = || step_on(mm, 0, || mm.hotplug().memunmap_pages(nr));
            // The first page, so that an error finds its user at once.
            let page = ends()[0];
            let result = thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let [first, last] = step_on(mm, 1, || ends().map(|pfn| mm.dev_page(pfn)));
                        assert!(first.is_some() || last.is_none(), "a reader found a part of the range");
                    }
                });
                scope.spawn(|| match step_on(mm, 2, || mm.get_dev_page(page, USER)) {
                    Ok(()) => {
                        let found = step_on(mm, 2, || mm.dev_page(page));
                        let user = found.and_then(|found| found.user).map(|user| user.tag);
                        assert_eq!(user, Some(USER), "a page in use is gone");
                        step_on(mm, 2, || mm.put_dev_page(page, USER)).expect("the reference is there");
                    }
                    Err(error) => assert_eq!(error, DevPageError::NotDevice),
                });
                loop {
                    match unmap() {
                        Err(MemunmapError::InUse { .. }) => thread::yield_now(),
                        result => break result,
                    }
                }
            });
            assert_eq!(result, Ok(PAGES));
            assert_eq!(mm.get_dev_page(page, USER), Err(DevPageError::NotDevice));
        });
    });
}

/// A range of frames that is unmapped can be mapped again while readers look.
#[test]
fn a_range_comes_again() {
    holds(|| {
        let machine = Machine::boot(&SimMachine { cpus: 2, ..small() });
        let nr = start(&machine);
        while machine.memremap_init(nr) == Ok(true) {}
        in_schedule(&machine, 0, |mm| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..4 {
                        step_on(mm, 1, || ends().map(|pfn| mm.dev_page(pfn)));
                    }
                });
                mm.hotplug().memunmap_pages(nr).expect("no page is in use");
                let again = start(mm);
                initialise(mm, again);
            });
            let range: PfnRange = BLOCK.frames();
            assert!(mm.dev_page(Pfn::new(range.end().get() - 1)).is_some());
        });
    });
}
