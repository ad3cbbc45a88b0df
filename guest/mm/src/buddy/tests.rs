//! S2.14 (`docs/features.toml`): a page that was overwritten while it was free is found when it is taken, on
//! every way out of the allocator. The panic names the state found and the state expected.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

use crate::addr::{Order, Pfn, SectionNr};
use crate::free_area::PageblockLink;
use crate::node::{NodeId, ZoneType};
use crate::options::{InitPolicy, MemoryContent, Options};
use crate::page::{AreaWords, Kind, PageRef, PageState};
use crate::page_alloc::Gfp;
use crate::pageblock_set::PageblockSet;
use crate::sim::{Sim, SimMachine};
use crate::{Mm, ZoneId};

const BLOCK: SectionNr = SectionNr::new(32);
const ZONE: ZoneId = NodeId::FIRST.zone(ZoneType::Movable);

/// A machine with lazy initialisation: no other policy could mistake a bad page for a new one.
fn machine() -> &'static Mm<Sim> {
    let lazy = SimMachine {
        options: Options { init: InitPolicy::Lazy, content: MemoryContent::Zero, ..SimMachine::OPTIONS },
        ..SimMachine::default()
    };
    let mm = lazy.boot();
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Zero).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm
}

/// States that an overwritten page can have.
fn corruptions(kind: Kind, order: Order) -> [(&'static str, PageState); 3] {
    let other_order = Order::new(order.get() ^ 1);
    [
        ("never initialised", PageState::new(Kind::Uninit, Order::PAGE)),
        ("kind", PageState::new(Kind::Allocated, order)),
        ("order", PageState::new(kind, other_order)),
    ]
}

/// The message of the panic of `run`.
#[track_caller]
fn panic_of<T>(what: &str, run: impl FnOnce() -> T) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { panic!("{what}: not noticed") };
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| panic!("{what}: no text"))
}

fn head(mm: &Mm<Sim>, order: Order) -> (Pfn, PageRef<'_>) {
    let pfn = mm.lock_zone(ZONE, &mm.irq_off()).first(order, crate::MigrateType::Movable).unwrap();
    (pfn, mm.sparse.page(pfn))
}

type Taking = (&'static str, fn(&Mm<Sim>));

/// Every operation that takes a pageblock off a free list. The last two find it by its state, the others by the list.
const WAYS: [Taking; 4] = [
    ("refill of a per-CPU list", |mm| _ = mm.alloc_pages(Order::PAGE, Gfp::Movable)),
    ("a block of the order", |mm| _ = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable)),
    ("isolation", |mm| _ = mm.hotplug().offline(BLOCK)),
    ("merging", |mm| {
        // The only buddy block of its order is the buddy of the memmap's: pretend that the memmap is freed.
        let (pfn, _) = head_of_any(mm);
        let pages = mm.sparse.pages(BLOCK).unwrap();
        let buddy = pfn.buddy(Order::PAGEBLOCK);
        let off = mm.irq_off();
        let mut lists = mm.lock_zone(ZONE, &off);
        lists.free_and_merge(pages, buddy, Order::PAGEBLOCK, crate::free_lists::Place::Head);
    }),
];

fn head_of_any(mm: &Mm<Sim>) -> (Pfn, PageRef<'_>) {
    head(mm, Order::PAGEBLOCK)
}

#[test]
fn a_corrupt_free_block_is_found_however_it_is_taken() {
    for (way, take) in WAYS.into_iter().take(2) {
        for (what, state) in corruptions(Kind::Free, Order::PAGEBLOCK) {
            let mm = machine();
            let (pfn, page) = head_of_any(mm);
            page.set_state(state);
            let text = panic_of(way, || take(mm));
            let expected = PageState::new(Kind::Free, Order::PAGEBLOCK);
            let names = |state: PageState| text.contains(&std::format!("{state:?}"));
            assert!(text.contains(&std::format!("{pfn:?}")), "{way}, {what}: {text}");
            assert!(names(state) && names(expected), "{way}, {what}: {text}");
        }
    }
}

#[test]
fn a_corrupt_link_of_a_free_block_is_found() {
    type Break = (&'static str, fn(&AreaWords, Pfn));
    let breaks: [Break; 4] = [
        ("next to elsewhere", |area, pfn| area.set_after(PageblockLink::to(pfn.add(4096)))),
        ("no next", |area, _| area.set_after(PageblockLink::NONE)),
        ("previous to elsewhere", |area, pfn| area.set_before(PageblockLink::to(pfn.add(4096)))),
        ("next to no page", |area, _| area.set_after(PageblockLink::to(Pfn::new(1 << 20 | 1 << 18)))),
    ];
    for (what, corrupt) in breaks {
        let mm = machine();
        let (pfn, _) = head(mm, Order::MAX);
        corrupt(mm.sparse.page(pfn).words(), pfn);
        let text = panic_of(what, || mm.alloc_pages(Order::MAX, Gfp::Movable));
        assert!(text.contains("on the free list") || text.contains("has no page"), "{what}: {text}");
    }
    // Isolation and merging take a pageblock by its state, out of the middle of its list.
    for (way, take) in WAYS.into_iter().skip(2) {
        let mm = machine();
        let (pfn, _) = head_of_any(mm);
        mm.sparse.page(pfn).words().set_before(PageblockLink::to(pfn.add(4096)));
        let text = panic_of(way, || take(mm));
        assert!(text.contains("on the free list"), "{way}: {text}");
    }
}

/// A free page below the order of a pageblock: its state is a tail's, and its bit says that it is free.
#[test]
fn a_corrupt_free_page_is_found_however_it_is_taken() {
    let free = |mm: &Mm<Sim>| {
        let taken = [(); 8].map(|()| mm.alloc_pages(Order::new(3), Gfp::Movable).unwrap());
        taken.into_iter().for_each(|pfn| mm.free_pages(pfn, Order::new(3)));
        taken[0]
    };
    let ways: [Taking; 2] = [
        ("refill of a per-CPU list", |mm| _ = mm.alloc_pages(Order::PAGE, Gfp::Movable)),
        ("a block of the order", |mm| _ = mm.alloc_pages(Order::new(3), Gfp::Movable)),
    ];
    for (way, take) in ways {
        for (what, state) in corruptions(Kind::Free, Order::new(3)) {
            if what == "never initialised" {
                // Which is a tail too.
                continue;
            }
            let mm = machine();
            // The pages that were given back last are the lowest of their pageblock.
            _ = mm.alloc_pages(Order::new(3), Gfp::Movable).unwrap();
            let pfn = free(mm);
            mm.sparse.page(pfn).set_state(state);
            let text = panic_of(way, || take(mm));
            assert!(
                text.contains(&std::format!("{pfn:?}")) && text.contains(&std::format!("{state:?}")),
                "{way}, {what}: {text}"
            );
        }
    }
    let mm = machine();
    _ = mm.alloc_pages(Order::new(3), Gfp::Movable).unwrap();
    let pfn = free(mm);
    mm.sparse.area(pfn).take(pfn.in_pageblock(), Order::PAGE);
    let text = panic_of("a bit that is lost", || mm.check());
    assert!(text.contains("should begin a block"), "{text}");
}

#[test]
fn a_corrupt_page_on_a_per_cpu_list_is_found() {
    let takers: [Taking; 2] = [
        ("allocation", |mm| _ = mm.alloc_pages(Order::PAGE, Gfp::Movable)),
        ("flush", |mm| mm.drain_pcp(ZONE, mm.hotplug().held())),
    ];
    for (way, take) in takers {
        for (what, state) in corruptions(Kind::Pcp, Order::PAGE) {
            let mm = machine();
            let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
            mm.free_pages(pfn, Order::PAGE);
            mm.sparse.page(pfn).set_state(state);
            let text = panic_of(way, || take(mm));
            let expected = PageState::new(Kind::Pcp, Order::PAGE);
            assert!(
                text.contains(&std::format!("{state:?}")) && text.contains(&std::format!("{expected:?}")),
                "{way}, {what}: {text}"
            );
        }
    }
}

#[test]
fn a_corrupt_page_is_found_when_it_is_freed() {
    for (what, state) in corruptions(Kind::Allocated, Order::PAGE) {
        if what == "kind" {
            continue;
        }
        let mm = machine();
        let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
        mm.sparse.page(pfn).set_state(state);
        let text = panic_of(what, || mm.free_pages(pfn, Order::PAGE));
        assert!(text.contains(&std::format!("{state:?}")), "{what}: {text}");
    }
}

/// A page whose state was overwritten so that it looks allocated is found by its bit when it is freed.
#[test]
fn a_page_that_is_free_already_is_found_by_its_bit() {
    let (mm, order) = (machine(), Order::new(3));
    let [_kept, pfn] = [(); 2].map(|()| mm.alloc_pages(order, Gfp::Movable).unwrap());
    mm.free_pages(pfn, order);
    mm.sparse.page(pfn).set_state(PageState::new(Kind::Allocated, order));
    let text = panic_of("free", || mm.free_pages(pfn, order));
    assert!(text.contains("free pages are 0xff00, and should be 0x0"), "{text}");
}
