//! The memory hotplug lock is held at every step of an operation.
//!
//! The numbers of pitfalls are those of `docs/pitfalls.md`.

use crate::addr::{PAGEBLOCK_PAGES, SectionNr};
use crate::node::{NodeId, ZoneType};
use crate::options::MemoryContent;
use crate::pageblock_set::PageblockSet;
use crate::sim::{Sim, SimMachine};
use crate::{Mm, Options, steps};

const BLOCK: SectionNr = SectionNr::new(32);

/// Its name, the least number of its steps, and itself.
type Operation = (&'static str, u32, fn(&Mm<Sim>));

fn some() -> PageblockSet {
    PageblockSet::range(40..44)
}

/// At every change of the state of a page or of a section, of the memory block's own pages and of page tables, no other CPU
/// gets the lock. Afterwards any CPU does.
#[test]
fn pitfall_8_the_lock_is_held_for_all_of_it() {
    // Steps are at least a page table for each mapping, the states of the section, and the struct pages of the
    // memory.
    let operations: [Operation; 7] = [
        ("add", 3, |mm| {
            let all = PageblockSet::ALL;
            mm.hotplug().add_memory(NodeId::FIRST, BLOCK, all, MemoryContent::Unknown).unwrap();
        }),
        ("online", 2 + 32, |mm| mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap()),
        ("unplug", 4, |mm| mm.hotplug().offline_pageblocks(BLOCK, some()).unwrap()),
        ("plug", 4, |mm| mm.hotplug().online_pageblocks(BLOCK, some()).unwrap()),
        ("contiguous range", 4 * PAGEBLOCK_PAGES, |mm| {
            mm.hotplug().alloc_contig_range(BLOCK, some()).unwrap();
            // Not part of the operation, and not under the lock.
            steps::pause(|| mm.free_contig_range(BLOCK.pageblocks(&(40..44))));
        }),
        ("offline", 1 + 32, |mm| mm.hotplug().offline(BLOCK).unwrap()),
        ("remove", 3, |mm| mm.hotplug().remove_memory(BLOCK).unwrap()),
    ];
    for memmap_on_memory in [true, false] {
        let options = Options { memmap_on_memory, ..SimMachine::OPTIONS };
        let mm = SimMachine { options, page_tables: true, ..SimMachine::default() }.boot();
        let is_held = || mm.hotplug.try_lock().is_none();
        for (what, least, operation) in operations {
            assert!(!is_held(), "before {what}");
            let look = move || assert!(mm.hotplug.try_lock().is_none(), "{what}: a step without the lock");
            let steps = steps::each(look, || operation(mm));
            assert!(steps >= least, "{what}: {steps} steps");
            assert!(!is_held(), "after {what}");
        }
        mm.check();
    }
}
