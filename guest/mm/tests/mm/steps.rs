//! The order of the steps of memory hotplug: what the machine sees at each call of an operation.
//!
//! The result of an operation does not show in which order its steps were made. Another CPU may see every
//! order, and the machine does at each of its calls. So these tests hold the whole list of calls, with the state
//! between them, against the order that is right.

use std::sync::{Arc, Mutex};

use tidevm_mm::{
    FaultStep, MemoryContent, Mm, NodeId, OnlineError, PAGEBLOCK_PAGES, PageblockSet, SectionNr,
    SectionState, ZoneType,
};
use tidevm_mm_sim::{PlatformCall, Sim, SimMachine};

use crate::workload::BLOCK;

const MOVABLE: usize = ZoneType::Movable as usize;

fn machine(memmap_on_memory: bool) -> &'static Mm<Sim> {
    SimMachine {
        options: SimMachine::OPTIONS.with_memmap_on_memory(memmap_on_memory),
        ..SimMachine::default()
    }
    .boot()
}

/// Runs `operation` and returns `look` at each call of it that `only` chooses.
pub fn watched<T: Send + 'static>(
    mm: &'static Mm<Sim>,
    only: impl Fn(PlatformCall) -> bool + Send + 'static,
    look: impl Fn() -> T + Send + 'static,
    operation: impl FnOnce(),
) -> Vec<(PlatformCall, T)> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    mm.platform().watch(move |call| {
        if only(call) {
            let state = look();
            into.lock().unwrap().push((call, state));
        }
    });
    operation();
    mm.platform().unwatch();
    let mut seen = seen.lock().unwrap();
    std::mem::take(&mut seen)
}

/// One memory block and its zone, as they are between two steps.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BlockAndZone {
    state: SectionState,
    /// Pageblocks of the memory block in the direct map, and pageblocks that count as plugged.
    mapped: u32,
    plugged: u32,
    /// Memmap pages in older memory, on memory.
    memmap: [u64; 2],
    /// Spanned, present and managed pages of the zone, in pageblocks.
    zone: [u64; 3],
    online: u64,
}

fn now(mm: &Mm<Sim>) -> BlockAndZone {
    let stats = mm.stats();
    let zone = stats.zones[MOVABLE];
    let is_mapped = |block: &u32| mm.platform().is_mapped(BLOCK.start().add(block * PAGEBLOCK_PAGES));
    BlockAndZone {
        state: mm.section_state(BLOCK),
        mapped: (0..64).filter(is_mapped).count() as u32,
        plugged: mm.plugged(BLOCK).pages() / PAGEBLOCK_PAGES,
        memmap: [stats.memmap_boot_pages, stats.memmap_altmap_pages],
        zone: [zone.spanned, zone.present, zone.managed].map(|pages| pages / u64::from(PAGEBLOCK_PAGES)),
        online: stats.blocks_online,
    }
}

/// Nothing is known of the memory block.
const NOTHING: BlockAndZone = BlockAndZone {
    state: SectionState::Absent,
    mapped: 0,
    plugged: 0,
    memmap: [0; 2],
    zone: [0; 3],
    online: 2,
};

/// Pageblocks 0 to 7 and 10 to 63.
fn plugged() -> PageblockSet {
    PageblockSet::range(0..8).union(PageblockSet::range(10..64))
}

fn run(blocks: std::ops::Range<u32>) -> tidevm_mm::PfnRange {
    BLOCK.pageblocks(&blocks)
}

/// The steps of the memory block itself: the drain of a round without pages to move is none.
fn all(call: PlatformCall) -> bool {
    !matches!(call, PlatformCall::CopyPages(_))
}

fn add(mm: &Mm<Sim>) {
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, plugged(), MemoryContent::Unknown).unwrap();
}

/// Memory is mapped, then its memmap; only then the section is Present. Going, it is Absent before the grace period,
/// and the memory is unmapped last.
#[test]
fn a_memory_block_is_added_and_removed_step_by_step() {
    for on in [true, false] {
        let mm = machine(on);
        let memmap = if on { [0, 512] } else { [512, 0] };
        let [first, both] = [8, 62].map(|mapped| BlockAndZone { mapped, ..NOTHING });
        let with_memmap = BlockAndZone { memmap, ..both };
        let added = BlockAndZone { state: SectionState::Present, plugged: 62, ..with_memmap };
        let fault = PlatformCall::Fault;
        let steps = watched(mm, all, || now(mm), || add(mm));
        assert_eq!(
            steps,
            [
                (fault(FaultStep::MapDirect), NOTHING),
                (PlatformCall::MapDirect(run(0..8)), NOTHING),
                (fault(FaultStep::PageTable), NOTHING),
                (fault(FaultStep::MapDirect), first),
                (PlatformCall::MapDirect(run(10..64)), first),
                (fault(FaultStep::PageTable), first),
                (fault(FaultStep::AllocMemmap), both),
                (fault(FaultStep::MapMemmap), with_memmap),
                (PlatformCall::MapMemmap(BLOCK), with_memmap),
                (fault(FaultStep::PageTable), with_memmap),
            ],
            "add, memmap on memory {on}"
        );
        assert_eq!(now(mm), added);

        let steps = watched(mm, all, || now(mm), || mm.hotplug().remove_memory(BLOCK).unwrap());
        let absent = BlockAndZone { state: SectionState::Absent, ..added };
        let without_memmap = BlockAndZone { memmap: [0; 2], ..absent };
        assert_eq!(
            steps,
            [
                (PlatformCall::Synchronize, absent),
                (PlatformCall::UnmapMemmap(BLOCK), absent),
                (PlatformCall::UnmapDirect(run(0..8)), without_memmap),
                (PlatformCall::UnmapDirect(run(10..64)), BlockAndZone { mapped: 54, ..without_memmap }),
            ],
            "remove, memmap on memory {on}"
        );
        assert_eq!(now(mm), NOTHING);
    }
}

/// Onlining is invisible to the allocator up to the last step that can fail. Offlining keeps everything but the
/// memmap's place in `present` until the pages are out.
#[test]
fn a_memory_block_goes_online_and_offline_step_by_step() {
    for on in [true, false] {
        let mm = machine(on);
        add(mm);
        let added = now(mm);
        let memmap = u64::from(on);
        let online = |mm: &Mm<Sim>| mm.hotplug().online(BLOCK, ZoneType::Movable);
        // With the memmap elsewhere, the span grows after the veto.
        let half = BlockAndZone { state: SectionState::Initialised, zone: [memmap, 0, 0], ..added };
        let steps = watched(mm, all, || now(mm), || online(mm).unwrap());
        assert_eq!(steps, [(PlatformCall::Fault(FaultStep::Online), half)], "memmap on memory {on}");
        let is_online =
            BlockAndZone { state: SectionState::Online, zone: [64, 64, 62 - memmap], online: 3, ..added };
        assert_eq!(now(mm), is_online);

        let steps = watched(mm, all, || now(mm), || mm.hotplug().offline(BLOCK).unwrap());
        let leaving = BlockAndZone { zone: [64, 64 - memmap, 62 - memmap], ..is_online };
        // Per-CPU lists are stopped first.
        let (first, rest) = steps.split_first().expect("it takes steps");
        assert_eq!(*first, (PlatformCall::Synchronize, leaving));
        assert_eq!(rest.len(), 62 - memmap as usize);
        assert!(
            rest.iter().all(|&step| step == (PlatformCall::Fault(FaultStep::Isolate), leaving)),
            "{steps:?}"
        );
        assert_eq!(now(mm), added);
        mm.platform().inject(FaultStep::Online, 0);
        assert_eq!(online(mm), Err(OnlineError::Vetoed));
        assert_eq!(now(mm), added);
    }
}

/// A pageblock is mapped before it counts as plugged and before its pages can be allocated. Going, its pages are
/// taken and it stops to count before it is unmapped.
#[test]
fn pageblocks_are_plugged_and_unplugged_step_by_step() {
    let mm = machine(true);
    add(mm);
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    let before = now(mm);
    let more = PageblockSet::range(8..9).union(PageblockSet::range(9..10));
    let steps = watched(mm, all, || now(mm), || mm.hotplug().online_pageblocks(BLOCK, more).unwrap());
    assert_eq!(
        steps,
        [
            (PlatformCall::Fault(FaultStep::MapDirect), before),
            (PlatformCall::MapDirect(run(8..10)), before),
            (PlatformCall::Fault(FaultStep::PageTable), before),
            (PlatformCall::Fault(FaultStep::Online), BlockAndZone { mapped: 64, ..before }),
        ]
    );
    let plugged = BlockAndZone { mapped: 64, plugged: 64, zone: [64, 64, 63], ..before };
    assert_eq!(now(mm), plugged);
    let steps = watched(mm, all, || now(mm), || mm.hotplug().offline_pageblocks(BLOCK, more).unwrap());
    assert_eq!(
        steps,
        [
            (PlatformCall::Synchronize, plugged),
            (PlatformCall::Fault(FaultStep::Isolate), plugged),
            (PlatformCall::Fault(FaultStep::Isolate), plugged),
            (PlatformCall::UnmapDirect(run(8..10)), BlockAndZone { mapped: 64, ..before }),
        ]
    );
    assert_eq!(now(mm), before);
}

/// Of several sections, all memory is mapped before the first memmap, and every section is Absent before the one
/// grace period.
#[test]
fn all_sections_of_a_memory_block_take_each_step_together() {
    let mm = machine(true);
    let states = move || [0, 1].map(|at| mm.section_state(SectionNr::new(BLOCK.get() + at)));
    let is_step = |call| !matches!(call, PlatformCall::Fault(_));
    let steps = watched(mm, is_step, states, || {
        mm.hotplug()
            .add_memory(NodeId::FIRST, BLOCK, [PageblockSet::ALL; 2], MemoryContent::Unknown)
            .unwrap();
    });
    let second = SectionNr::new(BLOCK.get() + 1);
    let absent = [SectionState::Absent; 2];
    let direct = [BLOCK, second].map(|nr| nr.frames());
    let mapping = direct.map(|range| (PlatformCall::MapDirect(range), absent));
    let memmaps = [BLOCK, second].map(|nr| (PlatformCall::MapMemmap(nr), absent));
    assert_eq!(steps, [mapping, memmaps].concat());
    let steps = watched(mm, is_step, states, || mm.hotplug().remove_memory(BLOCK).unwrap());
    let unmapping = direct.map(|range| (PlatformCall::UnmapDirect(range), absent));
    let memmaps = [BLOCK, second].map(|nr| (PlatformCall::UnmapMemmap(nr), absent));
    assert_eq!(steps, [vec![(PlatformCall::Synchronize, absent)], memmaps.into(), unmapping.into()].concat());
}
