//! Interrupts that come after each step of an operation at which they are on.

use std::cell::Cell;
use std::panic::catch_unwind;
use std::rc::Rc;
use std::string::String;

use crate::addr::{Order, SectionNr};
use crate::lock::{assert_irq_off, irqs_are_off};
use crate::node::{NodeId, ZoneType};
use crate::options::{InitPolicy, MemoryContent, Options};
use crate::page_alloc::Gfp;
use crate::pageblock_set::PageblockSet;
use crate::sim::{Sim, SimMachine};
use crate::{Mm, steps};

const BLOCK: SectionNr = SectionNr::new(32);

/// The handler allocates and frees pages of each kind.
fn handle(mm: &Mm<Sim>) {
    let orders = [Order::PAGE, Order::new(2), Order::PAGEBLOCK, Order::MAX];
    for (order, gfp) in orders.into_iter().flat_map(|order| [(order, Gfp::Kernel), (order, Gfp::Movable)]) {
        if let Ok(pfn) = mm.alloc_pages(order, gfp) {
            mm.free_pages(pfn, order);
        }
    }
}

/// Runs `operation`, with an interrupt after each step at which interrupts are on. Returns the number of interrupts.
fn interrupted(mm: &'static Mm<Sim>, operation: impl FnOnce()) -> u32 {
    let count = Rc::new(Cell::new(0));
    let interrupts = Rc::clone(&count);
    let look = move || {
        if !irqs_are_off() {
            interrupts.set(interrupts.get() + 1);
            let off = mm.irq_off();
            handle(mm);
            drop(off);
        }
    };
    steps::each(look, operation);
    assert!(!irqs_are_off(), "interrupts stay off");
    mm.check();
    count.get()
}

#[test]
fn an_operation_can_be_interrupted_at_each_step() {
    for init in [InitPolicy::Eager, InitPolicy::Lazy] {
        let options = Options { init, ..SimMachine::OPTIONS };
        let mm = SimMachine { options, ..SimMachine::default() }.boot();
        let came = interrupted(mm, || {
            let added =
                mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, MemoryContent::Unknown);
            added.expect("a new memory block");
            mm.hotplug().online(BLOCK, ZoneType::Movable).expect("it goes online");
        });
        // While a CPU is at its lists or holds a zone's lock, no step of it is interrupted.
        interrupted(mm, || {
            for order in [Order::PAGE, Order::new(4), Order::PAGEBLOCK, Order::MAX] {
                let gfps = [Gfp::Kernel, Gfp::Movable, Gfp::PageTable, Gfp::Memmap];
                let blocks = gfps.map(|gfp| mm.alloc_pages(order, gfp).expect("free pages"));
                blocks.into_iter().for_each(|pfn| mm.free_pages(pfn, order));
            }
        });
        let went = interrupted(mm, || {
            mm.hotplug().offline(BLOCK).expect("nothing is in use");
            mm.hotplug().remove_memory(BLOCK).expect("it is offline");
        });
        assert!(came > 3 && went > 3, "{init:?}: {came}, {went}");
    }
}

#[test]
fn a_list_that_is_used_with_interrupts_on_is_found() {
    let mm = SimMachine::default().build();
    let check =
        || catch_unwind(|| assert_irq_off("a list")).err().and_then(|panic| panic.downcast_ref().cloned());
    assert_eq!(check(), Some(String::from("a list is used with interrupts on")));
    let outer = mm.irq_off();
    drop(mm.irq_off());
    assert_eq!(check(), None);
    drop(outer);
    assert!(check().is_some());
}
