//! S2.14 (`docs/features.toml`): a page that was overwritten while it was free is found when it is taken, on
//! every way out of the allocator. The panic names the state found and the state expected.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

use crate::addr::{Order, Pfn, SectionNr};
use crate::node::{NodeId, ZoneType};
use crate::options::{InitPolicy, MemoryContent, Options};
use crate::page::{Kind, Link, Page, PageState};
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
fn corruptions(kind: Kind, order: Order) -> [(&'static str, PageState); 4] {
    let other_order = Order::new(order.get() ^ 1);
    [
        ("never initialised", PageState::new(Kind::Uninit, Order::PAGE, NodeId::FIRST.zone(ZoneType::Dma32))),
        ("kind", PageState::new(Kind::Allocated, order, ZONE)),
        ("order", PageState::new(kind, other_order, ZONE)),
        ("zone", PageState::new(kind, order, NodeId::FIRST.zone(ZoneType::Normal))),
    ]
}

/// The message of the panic of `run`.
#[track_caller]
fn panic_of<T>(what: &str, run: impl FnOnce() -> T) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { panic!("{what}: not noticed") };
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| panic!("{what}: no text"))
}

fn head(mm: &Mm<Sim>, order: Order) -> (Pfn, &Page) {
    let pfn = mm.lock_zone(ZONE).first(order, crate::MigrateType::Movable).unwrap();
    (pfn, mm.sparse.page(pfn))
}

type Taking = (&'static str, fn(&Mm<Sim>));

/// Every operation that takes a buddy block off a free list.
const WAYS: [Taking; 4] = [
    ("refill of a per-CPU list", |mm| _ = mm.alloc_pages(Order::PAGE, Gfp::Movable)),
    ("a block of the order", |mm| _ = mm.alloc_pages(Order::PAGEBLOCK, Gfp::Movable)),
    ("isolation", |mm| _ = mm.hotplug().offline(BLOCK)),
    ("merging", |mm| {
        // The only buddy block of its order is the buddy of the memmap's: pretend that the memmap is freed.
        let (pfn, _) = head_of_any(mm);
        let pages = mm.sparse.pages(BLOCK).unwrap();
        let buddy = pfn.buddy(Order::PAGEBLOCK);
        let mut lists = mm.lock_zone(ZONE);
        lists.free_and_merge(pages, buddy, Order::PAGEBLOCK, crate::free_lists::Place::Head);
    }),
];

fn head_of_any(mm: &Mm<Sim>) -> (Pfn, &Page) {
    head(mm, Order::PAGEBLOCK)
}

#[test]
fn a_corrupt_free_block_is_found_however_it_is_taken() {
    for (way, take) in WAYS {
        for (what, state) in corruptions(Kind::Free, Order::PAGEBLOCK) {
            // These two go by the states of pages and not by lists, so they ignore a page that is not the
            // head of a free block.
            if ["isolation", "merging"].contains(&way) && what != "zone" {
                continue;
            }
            let mm = machine();
            let (pfn, page) = head_of_any(mm);
            page.set_state(state);
            let text = panic_of(way, || take(mm));
            let expected = PageState::new(Kind::Free, Order::PAGEBLOCK, ZONE);
            let names = |state: PageState| text.contains(&std::format!("{state:?}"));
            assert!(text.contains(&std::format!("{pfn:?}")), "{way}, {what}: {text}");
            assert!(names(state) && names(expected), "{way}, {what}: {text}");
        }
    }
}

#[test]
fn a_corrupt_link_of_a_free_block_is_found() {
    type Break = (&'static str, fn(&Page, Pfn));
    let breaks: [Break; 4] = [
        ("next to elsewhere", |page, pfn| page.set_next(Link::to(pfn.add(4096)))),
        ("no next", |page, _| page.set_next(Link::NONE)),
        ("previous to elsewhere", |page, pfn| page.set_prev(Link::to(pfn.add(4096)))),
        ("next to no page", |page, _| page.set_next(Link::to(Pfn::new(1 << 20 | 1 << 18)))),
    ];
    for (what, corrupt) in breaks {
        let mm = machine();
        let (pfn, page) = head(mm, Order::MAX);
        corrupt(page, pfn);
        let text = panic_of(what, || mm.alloc_pages(Order::MAX, Gfp::Movable));
        assert!(text.contains("on a free list") || text.contains("has no page"), "{what}: {text}");
    }
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
            let expected = PageState::new(Kind::Pcp, Order::PAGE, ZONE);
            assert!(
                text.contains(&std::format!("{state:?}")) && text.contains(&std::format!("{expected:?}")),
                "{way}, {what}: {text}"
            );
        }
        let mm = machine();
        let pfn = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
        mm.free_pages(pfn, Order::PAGE);
        mm.sparse.page(pfn).set_next(Link::to(pfn.add(4096)));
        // The page itself is valid, but the page that its link leads to is not.
        let text = panic_of("link of a per-CPU list", || (take(mm), take(mm)));
        assert!(text.contains("on a per-CPU list"), "{way}: {text}");
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
