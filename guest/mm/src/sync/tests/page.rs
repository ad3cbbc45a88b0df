//! `page`: the state of a page, and the user of a page of device memory.

use crate::addr::{Order, SECTION_PAGES};
use crate::page::{DevUser, Holder, Kind, OwnerId};
use crate::page_alloc::Gfp;
use crate::sim::SimMachine;
use crate::sync::tests::{Data, fixed, in_every_execution};

/// `Page::set_state` and `Page::state`: a walk that sees the new order of a buddy block that is being split finds the
/// head of the next part.
#[test]
fn the_old_head_of_a_split_is_written_last() {
    let mm = SimMachine { sections: 2, memory: [(0, SECTION_PAGES)].into(), ..SimMachine::default() }.boot();
    let two = Order::new(1);
    let block = mm.alloc_pages(two, Gfp::Kernel).expect("there is room");
    in_every_execution(
        move || mm.split_page_to(block, two, Order::PAGE),
        move || {
            if mm.sparse.page(block).state().order() == Order::PAGE {
                let next = mm.sparse.page(block.add(1)).state();
                assert_eq!(next.kind(), Kind::Allocated, "{next:?} behind a head of one page");
            }
        },
    );
}

/// `PageRef::hold` and `PageRef::holder`: a walk that sees that a page's holder has a word sees the word.
#[test]
fn the_word_of_a_holder_is_written_before_the_state() {
    let mm = SimMachine { sections: 2, memory: [(0, SECTION_PAGES)].into(), ..SimMachine::default() }.boot();
    let page = mm.sparse.page(mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("there is room"));
    let holder = Holder::Owned { owner: OwnerId(3), index: 7 };
    in_every_execution(
        move || page.hold(Order::PAGE, holder),
        move || {
            let found = page.holder(page.state());
            assert!([Holder::Unclaimed, holder].contains(&found), "{found:?} is half a holder");
        },
    );
}

/// `Page::update_dev_user`: a CPU that finds a page free again sees the writes of its last user.
#[test]
fn the_next_user_of_a_device_page_sees_the_writes_of_the_last_one() {
    let mm = SimMachine { sections: 2, memory: [(0, SECTION_PAGES)].into(), ..SimMachine::default() }.boot();
    let page = mm.sparse.page(mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("there is room"));
    let user = |tag| Some(DevUser { tag, count: 1 });
    page.update_dev_user(|_| Ok::<_, ()>(user(1))).expect("it is free");
    let content = fixed(Data::new());
    in_every_execution(
        move || {
            content.write();
            page.update_dev_user(|_| Ok::<_, ()>(None)).expect("it is given back");
        },
        move || {
            let take = |now: Option<DevUser>| if now.is_none() { Ok(user(2)) } else { Err(()) };
            if page.update_dev_user(take).is_ok() {
                content.assert_written();
            }
        },
    );
}
