//! A check that memory is mapped when it is wanted, and not before.
//!
//! Takes the place of Linux's `CONFIG_DEBUG_WX`, which walks its page tables too, for rules of another kind. The other
//! invariants of memory management are checked by `Mm::check`, which knows no page tables.
//!
//! Invariant: of a deferred section neither its memory nor its memmap is mapped, but for what the start-up page tables map.
//! Of any other section the memmap is, and all pageblocks that are plugged.

use tidevm_mm::{BlockState, MemoryBlockStats, SectionNr};

use crate::mem::paging::{BOOT_MAPPED, is_mapped};
use crate::mem::{MM, platform};

/// Checks the page tables of all memory blocks.
///
/// # Panics
/// When a section is mapped that is deferred, or is not mapped that is not.
pub fn check() {
    MM.hotplug().each_memory_block(SectionNr::new(0), |block| {
        let first = block.first.get();
        (first..first + block.count * block.sections)
            .for_each(|nr| check_section(SectionNr::new(nr), &block));
        true
    });
}

fn check_section(nr: SectionNr, block: &MemoryBlockStats) {
    let memmap = is_mapped(platform::memmap(nr));
    if block.state == BlockState::Deferred {
        let first = nr.start();
        let memory = is_mapped(platform::direct(first)) && first.address().get() >= BOOT_MAPPED;
        // A CPU that has claimed it since took it out of its range before it mapped it.
        let is_early = (memory || memmap) && MM.is_deferred(nr.into());
        assert!(!is_early, "{nr:?} is deferred and mapped: memory {memory}, memmap {memmap}");
        return;
    }
    assert!(memmap, "the memmap of {nr:?} is not mapped");
    for pageblock in MM.plugged(nr).iter() {
        let first = nr.pageblocks(&(pageblock..pageblock + 1)).start();
        assert!(is_mapped(platform::direct(first)), "{first:?} is plugged and not mapped");
    }
}
