//! Proves that `check` finds faults: each invariant is broken in turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

use crate::addr::{Order, PAGEBLOCK_PAGES, SECTION_PAGES, SectionNr};
use crate::node::{NodeId, ZoneType};
use crate::options::{InitPolicy, MemoryContent, Options};
use crate::page::{Holder, Kind, OwnerId, PageState};
use crate::page_alloc::Gfp;
use crate::pageblock::MigrateType;
use crate::pageblock_set::PageblockSet;
use crate::sim::{Sim, SimMachine};
use crate::sync::Ordering::Relaxed;
use crate::zone::PcpLimits;
use crate::{Mm, Pfn};

const BLOCK: SectionNr = SectionNr::new(32);

/// With a memory block that holds its memmap, one whose memmap lies in older memory, and deferred boot memory.
fn machine() -> &'static Mm<Sim> {
    let memory = [(0, 4 * SECTION_PAGES)].into();
    let mm = SimMachine {
        memory,
        options: Options { init: InitPolicy::Deferred, ..SimMachine::OPTIONS },
        ..SimMachine::default()
    }
    .boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm.options.change(|options| options.memmap_on_memory = false);
    mm.hotplug()
        .add_memory(NodeId::FIRST, SectionNr::new(33), PageblockSet::ALL, MemoryContent::Unknown)
        .unwrap();
    mm
}

/// The panic message of `check` on a machine in which `lie` broke an invariant.
fn found(lie: impl FnOnce(&'static Mm<Sim>)) -> String {
    let mm = machine();
    mm.check();
    lie(mm);
    let panic = catch_unwind(AssertUnwindSafe(|| mm.check())).expect_err("it found nothing");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[track_caller]
fn finds(expected: &str, lie: impl FnOnce(&'static Mm<Sim>)) {
    let found = found(lie);
    assert!(found.contains(expected), "{expected}: {found}");
}

fn allocated(mm: &Mm<Sim>) -> Pfn {
    mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap()
}

#[test]
fn limits() {
    let movable = NodeId::FIRST.zone(ZoneType::Movable);
    finds("limits of CPU 0", |mm| {
        mm.zones[movable.index()].set_pcp_limits(PcpLimits { high: 5, batch: 1, large: 0 })
    });
    finds("limits of lists", |mm| {
        let hotplug = mm.hotplug();
        mm.zones[movable.index()].grow_span(SectionNr::new(34).frames(), hotplug.held());
        mm.zones[movable.index()].add_present(4096, hotplug.held());
        mm.zones[movable.index()].add_managed(4096, hotplug.held());
        crate::zone::setup_watermarks(mm.zones().as_slice(), hotplug.held());
    });
    finds("watermarks as they were", |mm| {
        // As many pages are in use: no more are free than managed.
        (0..20).for_each(|_| _ = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap());
        mm.zones[movable.index()].sub_managed(20_000, mm.hotplug().held());
    });
    finds("zonelists as they were", |mm| {
        let normal = NodeId::FIRST.zone(ZoneType::Normal);
        mm.zones[normal.index()].grow_span(SectionNr::new(34).frames(), mm.hotplug().held());
        mm.zones[normal.index()].add_present(1, mm.hotplug().held());
    });
}

/// `check` looks at the lists of all CPUs together. Its need of stack must not grow with their number: 24 KiB are
/// enough for very many CPUs. Less than the kernel's stacks have, although this build does not
/// optimise.
#[test]
fn check_of_most_cpus_needs_no_more_stack_than_of_one() {
    const STACK: usize = 24 << 10;
    const CPUS: usize = 200;
    let mm = SimMachine { cpus: CPUS, ..SimMachine::default() }.boot();
    let pages: u64 = CPUS as u64;
    for cpu in 0..CPUS {
        Sim::run_on(cpu, || mm.free_pages(allocated(mm), Order::PAGE));
    }
    let zone = NodeId::FIRST.zone(ZoneType::Dma32);
    assert!(mm.pcp_pages(zone) >= pages, "each list has pages");
    std::thread::Builder::new().stack_size(STACK).spawn(|| mm.check()).unwrap().join().unwrap();
}

#[test]
fn memory_to_come() {
    finds("which no CPU has claimed", |mm| {
        mm.sparse.set_state(SectionNr::new(3), crate::SectionState::Present, mm.hotplug().held());
    });
}

#[test]
fn counters() {
    finds("memmap pages on memory", |mm| _ = mm.counters.memmap_altmap_pages.fetch_add(1, Relaxed));
    finds("memmap pages in older memory", |mm| _ = mm.counters.memmap_boot_pages.fetch_sub(1, Relaxed));
    finds("managed, sum of uses", |mm| mm.zones[2].add_managed(1, mm.hotplug().held()));
    finds("present, sum of sections", |mm| mm.zones[0].sub_present(1, mm.hotplug().held()));
    finds("span, reach of sections", |mm| {
        mm.zones[2].grow_span(SectionNr::new(33).frames(), mm.hotplug().held())
    });
    finds("isolated pageblocks", |mm| {
        let pfn = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable).unwrap();
        mm.sparse.section(pfn.section()).unwrap().pageblocks.set_isolated(pfn.pageblock(), true);
    });
    finds("free pages of", |mm| mm.sparse.section(BLOCK).unwrap().add_free(1));
}

#[test]
fn pages() {
    finds("which is not registered", |mm| mm.set_owner(allocated(mm), OwnerId(3), 0));
    finds("is no single page", |mm| {
        let block = mm.alloc_pages(Order::new(3), Gfp::Movable).unwrap();
        mm.sparse.page(block).hold(Order::new(3), Holder::Owned { owner: OwnerId(0), index: 0 });
    });
    finds("with the memmap of", |mm| {
        let memmap = mm.sparse.section(SectionNr::new(33)).unwrap().memmap().unwrap();
        mm.sparse.page(memmap).hold(Order::PAGEBLOCK, Holder::Kernel);
    });
    finds("type of the pageblock with memmap", |mm| {
        mm.sparse.section(BLOCK).unwrap().pageblocks.set_type(0, MigrateType::Movable);
    });
    finds("on a per-CPU list", |mm| {
        let page = allocated(mm);
        mm.free_pages(page, Order::PAGE);
        mm.sparse.page(page).set_state(PageState::new(Kind::Tail, Order::PAGE));
    });
    finds("should begin a block", |mm| {
        let tail = PageState::new(Kind::Tail, Order::PAGE);
        mm.sparse.page(allocated(mm)).set_state(tail);
    });
    finds("pages in state Pcp", |mm| {
        let listed = PageState::new(Kind::Pcp, Order::PAGE);
        mm.sparse.page(allocated(mm)).set_state(listed);
    });
}

/// `check` does not look again at tails that it has seen, unless a page of their pageblock was written.
#[test]
fn tails() {
    let kind = |kind| PageState::new(kind, Order::PAGE);
    // Of the second pageblock: its first page, and another one.
    for offset in [PAGEBLOCK_PAGES, PAGEBLOCK_PAGES + 188] {
        finds("behind", |mm| {
            let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
            mm.check();
            mm.sparse.page(block.add(offset)).set_state(kind(Kind::Free));
        });
        finds("behind", |mm| {
            let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
            mm.sparse.page(block.add(offset)).set_state(kind(Kind::Allocated));
            // The buddy block may be about to be split.
            mm.check();
            // Which writes to the first pageblock only.
            mm.free_pages(block, Order::MAX);
        });
    }
    // A head covers a pageblock that has a head of its own.
    finds("behind", |mm| {
        let block = mm.alloc_pages(Order::MAX, Gfp::Movable).unwrap();
        mm.split_page_to(block, Order::MAX, Order::PAGEBLOCK);
        mm.free_pages(block.add(PAGEBLOCK_PAGES), Order::PAGEBLOCK);
        mm.check();
        mm.sparse.page(block).set_state(PageState::new(Kind::Allocated, Order::MAX));
    });
}
