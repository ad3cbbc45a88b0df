//! Every step of every operation fails once. Afterwards everything must be as before, and work.

use tidevm_mm::{
    FaultStep, MemoryContent, Mm, NodeId, Order, PageblockSet, SectionNr, SectionState, ZoneStats, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, Tenant};

/// The visible state of a machine, without counters that only grow.
#[derive(Debug, PartialEq)]
pub struct State {
    zones: [ZoneStats; 3],
    memmap_pages: [u64; 2],
    sections: Vec<(SectionState, PageblockSet, Option<tidevm_mm::Pfn>)>,
    mapped: Vec<bool>,
    free_blocks: [[u32; Order::COUNT]; 3],
}

impl State {
    /// What there is of memory behind 4 GiB, and what is known of it, without what is in use elsewhere.
    pub fn of_region(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let zones = self.zones.map(|zone| (zone.spanned, zone.present, zone.managed));
        let region = BLOCK.get() as usize;
        (
            zones,
            self.memmap_pages,
            self.sections[region..].to_vec(),
            self.mapped[64 * region..].contains(&true),
        )
    }
}

fn state(mm: &Mm<Sim>) -> State {
    state_of(mm, 36)
}

/// The same for a machine with `sections` sections.
pub fn state_of(mm: &Mm<Sim>, sections: u32) -> State {
    for zone in ZoneType::ALL {
        drop(mm.zone_pcp_disable(NodeId::FIRST.zone(zone)));
    }
    mm.check();
    let stats = mm.stats();
    let sections = || (0..sections).map(SectionNr::new);
    State {
        zones: stats.zones,
        memmap_pages: [stats.memmap_boot_pages, stats.memmap_altmap_pages],
        sections: sections()
            .map(|nr| (mm.section_state(nr), mm.plugged(nr), mm.platform().memmap_of(nr)))
            .collect(),
        mapped: sections()
            .flat_map(|nr| (0..64).map(move |block| nr.start().add(block * 512)))
            .map(|pfn| mm.platform().is_mapped(pfn))
            .collect(),
        free_blocks: ZoneType::ALL
            .map(|zone| mm.free_blocks(NodeId::FIRST.zone(zone)).map(|types| types.iter().sum())),
    }
}

/// Runs `operation` once for every attempt of every step that it makes, with that attempt failing,
/// and finally without a failure.
fn fail_everywhere(mm: &'static Mm<Sim>, name: &str, operation: impl Fn() -> Result<(), String>) -> u32 {
    let mut failures = 0;
    let sim = mm.platform();
    for step in FaultStep::ALL {
        for attempt in 0.. {
            let before = state(mm);
            sim.inject(step, attempt);
            let attempts = sim.attempts(step);
            let result = operation();
            if sim.attempts(step) - attempts <= u64::from(attempt) {
                // The operation has fewer attempts, so it succeeded. Undo it.
                assert_eq!(result, Ok(()), "{name} without a failure");
                sim.inject_always(step, false);
                break;
            }
            result.expect_err(&format!("{name} with {step:?} {attempt} failing"));
            assert_eq!(state(mm), before, "after {name} failed at {step:?} {attempt}");
            failures += 1;
        }
        if step != FaultStep::Migrate {
            undo(mm, name);
        }
    }
    failures
}

/// Undoes each operation, for its next round.
fn undo(mm: &Mm<Sim>, name: &str) {
    match name {
        "add" => mm.hotplug().remove_memory(BLOCK).unwrap(),
        "online" => mm.hotplug().offline(BLOCK).unwrap(),
        "plug" => mm.hotplug().offline_pageblocks(BLOCK, gaps()).unwrap(),
        "unplug" => mm.hotplug().online_pageblocks(BLOCK, gaps()).unwrap(),
        "offline" => mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap(),
        _ => unreachable!("no operation {name}"),
    }
}

/// Runs of pageblocks with gaps between them.
fn gaps() -> PageblockSet {
    [3..7, 9..10, 40..64].map(PageblockSet::range).into_iter().fold(PageblockSet::NONE, PageblockSet::union)
}

fn text<E: std::fmt::Debug>(result: Result<(), E>) -> Result<(), String> {
    result.map_err(|error| format!("{error:?}"))
}

#[test]
fn every_step_rolls_back() {
    for memmap_on_memory in [true, false] {
        let mm = SimMachine {
            cpus: 2,
            options: SimMachine::OPTIONS.with_memmap_on_memory(memmap_on_memory),
            ..SimMachine::default()
        }
        .boot();
        let partly = PageblockSet::ALL.without(gaps());
        let mut failures = Vec::new();
        failures.push(fail_everywhere(mm, "add", || {
            text(mm.hotplug().add_memory(NodeId::FIRST, BLOCK, partly, MemoryContent::Unknown))
        }));
        failures.push(fail_everywhere(mm, "online", || text(mm.hotplug().online(BLOCK, ZoneType::Movable))));
        failures.push(fail_everywhere(mm, "plug", || text(mm.hotplug().online_pageblocks(BLOCK, gaps()))));
        let tenant = Tenant::new(mm, 1, 200);
        tenant.fill_all();
        failures.push(fail_everywhere(mm, "unplug", || text(mm.hotplug().offline_pageblocks(BLOCK, gaps()))));
        mm.hotplug().online_pageblocks(BLOCK, gaps()).unwrap();
        failures.push(fail_everywhere(mm, "offline", || text(mm.hotplug().offline(BLOCK))));
        // add: 3 runs and a table for each, memmap alloc and map and a table for it; online: 1; plug: 3 runs
        // and a table for each, and 1; unplug: 29 pageblocks; offline: 63 or 64 pageblocks.
        let all = if memmap_on_memory { 63 } else { 64 };
        assert_eq!(failures, [9, 1, 7, 29, all]);
        mm.hotplug().remove_memory(BLOCK).unwrap();
        tenant.verify_all();
        assert_eq!(tenant.release_all(), 200);
        state(mm);
    }
}

/// An added memory block whose onlining fails can be removed, and one whose offlining fails can be used.
#[test]
fn way_out_after_a_failure() {
    let mm = SimMachine::default().boot();
    let start = state(mm);
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.platform().inject(FaultStep::Online, 0);
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap_err();
    mm.hotplug().remove_memory(BLOCK).unwrap();
    assert_eq!(state(mm), start);
}
