//! The order of the steps by which device memory comes and goes, as the machine sees it (see `steps`).

use tidevm_mm::{
    DevAltmap, DevPageError, DevPagemap, InitPolicy, MemoryContent, MemremapError, MemunmapError, Mm, NodeId,
    PageblockSet, Pfn, PfnRange, PgmapNr, SectionNr, SectionState, ZoneType,
};
use tidevm_mm_sim::{PlatformCall, Sim, SimMachine};

use crate::steps::watched;
use crate::workload::BLOCK;

const SECTIONS: u32 = 2;

fn nrs() -> [SectionNr; SECTIONS as usize] {
    [0, 1].map(|at| SectionNr::new(BLOCK.get() + at))
}

/// Device memory of two sections, without an altmap and with one.
fn maps() -> [DevPagemap; 2] {
    let range = PfnRange::new(BLOCK.start(), nrs().len() as u32 * BLOCK.frames().pages());
    let plain = DevPagemap::new(range, NodeId::FIRST);
    [plain, plain.with_altmap(DevAltmap { reserve: 512, free: 1024 })]
}

fn last(map: DevPagemap) -> Pfn {
    Pfn::new(map.range.end().get() - 1)
}

/// The range between two steps, as every CPU may see it at that moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RangeState {
    states: [SectionState; 2],
    /// Whether each section is in the direct map.
    mapped: [bool; 2],
    plugged: [bool; 2],
    /// Whether the table has the entry, and the references that it counts.
    entry: bool,
    refs: u64,
    /// Whether a look-up finds the last page.
    visible: bool,
}

fn now(mm: &Mm<Sim>, nr: PgmapNr, map: DevPagemap) -> RangeState {
    RangeState {
        states: nrs().map(|nr| mm.section_state(nr)),
        mapped: nrs().map(|nr| mm.platform().is_mapped(Pfn::new(nr.frames().end().get() - 1))),
        plugged: nrs().map(|nr| !mm.plugged(nr).is_empty()),
        entry: mm.pgmap(nr).is_some(),
        refs: mm.pgmap(nr).map_or(0, |info| info.refs),
        visible: mm.dev_page(last(map)).is_some(),
    }
}

/// The number that the next range gets.
fn next_number(mm: &Mm<Sim>, map: DevPagemap) -> PgmapNr {
    let nr = mm.memremap_pages(map).unwrap();
    mm.hotplug().memunmap_pages(nr).unwrap();
    nr
}

fn is_step(call: PlatformCall) -> bool {
    !matches!(call, PlatformCall::Fault(_))
}

const NOTHING: RangeState = RangeState {
    states: [SectionState::Absent; 2],
    mapped: [false; 2],
    plugged: [false; 2],
    entry: false,
    refs: 0,
    visible: false,
};

/// The range is mapped, then its memmaps. The sections are Present before other CPUs may claim pages, and Initialised
/// before the gate opens: the clock is read just before each of the two.
#[test]
fn device_memory_is_published_after_its_sections() {
    for map in maps() {
        let mm = SimMachine { sections: 36, ..SimMachine::default() }.boot();
        let nr = next_number(mm, map);
        let steps = watched(
            mm,
            is_step,
            move || now(mm, nr, map),
            || {
                assert_eq!(mm.hotplug().memremap_start(map), Ok(nr));
            },
        );
        let [first, second] = nrs();
        let half = RangeState { mapped: [true, false], ..NOTHING };
        let mapped = RangeState { mapped: [true; 2], ..NOTHING };
        let present = RangeState { states: [SectionState::Present; 2], plugged: [true; 2], ..mapped };
        assert_eq!(
            steps,
            [
                (PlatformCall::Clock, NOTHING),
                (PlatformCall::MapDirect(first.frames()), NOTHING),
                (PlatformCall::MapDirect(second.frames()), half),
                (PlatformCall::MapMemmap(first), mapped),
                (PlatformCall::MapMemmap(second), mapped),
                (PlatformCall::Clock, present),
            ],
            "{map:?}"
        );
        let claimable = RangeState { entry: true, ..present };
        assert_eq!(now(mm, nr, map), claimable);
        let steps = watched(
            mm,
            is_step,
            move || now(mm, nr, map),
            || {
                while mm.memremap_init(nr) == Ok(true) {}
            },
        );
        let initialised = RangeState { states: [SectionState::Initialised; 2], ..claimable };
        assert_eq!(steps, [(PlatformCall::Clock, initialised)], "{map:?}");
        let refs = u64::from(mm.pgmap(nr).unwrap().pages.pages());
        assert_eq!(now(mm, nr, map), RangeState { refs, visible: true, ..initialised });
    }
}

/// The gate closes, the sections become Absent, a grace period passes, the memmaps go, the memory goes, and only then
/// the entry is free.
#[test]
fn device_memory_is_torn_down_in_order() {
    for map in maps() {
        let mm = SimMachine { sections: 36, ..SimMachine::default() }.boot();
        let nr = mm.memremap_pages(map).unwrap();
        let live = now(mm, nr, map);
        let steps = watched(
            mm,
            is_step,
            move || now(mm, nr, map),
            || {
                mm.hotplug().memunmap_pages(nr).unwrap();
            },
        );
        let [first, second] = nrs();
        let closed = RangeState {
            states: [SectionState::Absent; 2],
            plugged: [false; 2],
            refs: 0,
            visible: false,
            ..live
        };
        assert_eq!(
            steps,
            [
                (PlatformCall::Synchronize, closed),
                (PlatformCall::UnmapMemmap(first), closed),
                (PlatformCall::UnmapMemmap(second), closed),
                (PlatformCall::UnmapDirect(first.frames()), closed),
                (PlatformCall::UnmapDirect(second.frames()), RangeState { mapped: [false, true], ..closed }),
            ],
            "{map:?}"
        );
        assert_eq!(now(mm, nr, map), NOTHING);
        // Nothing is left of its time as device memory.
        mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
        mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
        mm.check();
    }
}

/// Boot memory whose struct pages are not written yet is memory too, although its sections are Absent.
#[test]
fn deferred_boot_memory_cannot_become_device_memory() {
    let mm = SimMachine {
        memory: [(0, 4 * BLOCK.frames().pages())].into(),
        options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred),
        ..SimMachine::default()
    }
    .boot();
    let taken = SectionNr::new(3);
    assert_eq!(mm.section_state(taken), SectionState::Absent);
    let map = DevPagemap::new(taken.frames(), NodeId::FIRST);
    assert_eq!(mm.memremap_pages(map), Err(MemremapError::Conflict(taken)));
    mm.check();
}

/// A range in use keeps its sections, its memory and its entry: the refusal is the first step.
#[test]
fn device_memory_in_use_is_not_touched() {
    for map in maps() {
        let mm = SimMachine { sections: 36, ..SimMachine::default() }.boot();
        let nr = mm.memremap_pages(map).unwrap();
        mm.get_dev_page(last(map), 7).unwrap();
        let before = now(mm, nr, map);
        let steps = watched(
            mm,
            |_| true,
            || (),
            || {
                let refused = mm.hotplug().memunmap_pages(nr);
                assert!(matches!(refused, Err(MemunmapError::InUse { refs: 1, .. })), "{refused:?}");
            },
        );
        assert_eq!(steps, []);
        assert_eq!(now(mm, nr, map), before);
        mm.put_dev_page(last(map), 7).unwrap();
        assert_eq!(mm.put_dev_page(last(map), 7), Err(DevPageError::Count));
        mm.hotplug().memunmap_pages(nr).unwrap();
    }
}
