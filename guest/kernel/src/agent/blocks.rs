//! Memory blocks: how people see them, and a range of them removed and added back.
//!
//! Takes the place of Linux's `/sys/devices/system/memory`, and of its `offline_and_remove_memory` as drivers
//! that own a range call it.

use alloc::vec::Vec;

use tidevm_abi::{Answer, BLOCK_RUNS, BlockRun, Failure, Size};
use tidevm_mm::{
    MemoryBlockStats, MemoryContent, MhpFlags, PageblockSet, PhysAddr, Platform, SECTION_SIZE, SectionNr,
    SectionRange,
};

use crate::agent::translate;
use crate::cpu::time::Instant;
use crate::mem::MM;

/// The memory blocks from address `from` on, as many as fit into one answer.
pub fn blocks(from: u64) -> Answer {
    let mut runs = [None; BLOCK_RUNS];
    let mut used = 0;
    let mut next = None;
    if from < tidevm_abi::MAX_PHYS_ADDR {
        MM.hotplug().each_memory_block(SectionNr::of(PhysAddr::new(from)), |block| {
            let run = translate::block_run(&block);
            let last: Option<&mut BlockRun> = runs[..used].last_mut().and_then(Option::as_mut);
            match last.filter(|last| continues(last, &run)) {
                Some(last) => last.count += run.count,
                None if used == BLOCK_RUNS => {
                    next = Some(run.addr);
                    return false;
                }
                None => {
                    runs[used] = Some(run);
                    used += 1;
                }
            }
            true
        });
    }
    Answer::Blocks { runs, next }
}

/// Whether `run` begins where `before` ends, and is otherwise alike.
fn continues(before: &BlockRun, run: &BlockRun) -> bool {
    let expected = BlockRun { addr: before.addr + before.count * before.size.0, count: run.count, ..*before };
    *run == expected
}

/// Takes the memory blocks of `size` bytes at `addr` offline and removes them, all at once, and then adds
/// them back as they were. The virtio-mem driver does not see it.
///
/// # Errors
/// The range is not made of whole memory blocks, or they cannot be removed; they are online then.
pub fn readd(addr: u64, Size(size): Size) -> Result<Answer, Failure> {
    let end = addr.checked_add(size).filter(|&end| end <= tidevm_abi::MAX_PHYS_ADDR);
    if end.is_none() || !(addr | size).is_multiple_of(SECTION_SIZE) {
        return Err(Failure::NotBlocks);
    }
    let first = SectionNr::of(PhysAddr::new(addr));
    let range = SectionRange::new(first, (size / SECTION_SIZE) as u32).expect("the end is an address");
    let mut before: Vec<(MemoryBlockStats, Vec<PageblockSet>)> = Vec::new();
    MM.hotplug().each_memory_block(range.first(), |block| {
        let sections = block.first.get()..block.first.get() + block.sections;
        // Boot memory ends the walk: it cannot be removed, and the removal says so.
        let inside = !block.boot && sections.end <= range.end().get();
        if inside {
            before.push((block, sections.map(|nr| MM.plugged(SectionNr::new(nr))).collect()));
        }
        inside
    });
    MM.hotplug().offline_and_remove_memory(range).map_err(translate::not_removed)?;
    for (block, plugged) in before {
        let zone = block.zone.expect("a memory block that was offlined was online").zone_type();
        let flags = MhpFlags { content: MemoryContent::Unknown, memmap_on_memory: block.memmap_on_memory };
        retry(|| MM.hotplug().add_memory(block.node, block.first, &plugged, flags));
        retry(|| MM.hotplug().online(block.first, zone));
    }
    Ok(Answer::Done)
}

/// Repeats `step` until it succeeds: another user may have, for a moment, the page table or memmap pages that
/// were just freed.
///
/// # Panics
/// When it does not succeed within a second: the device still counts the memory block as plugged.
fn retry<E: core::fmt::Debug>(step: impl Fn() -> Result<(), E>) {
    const MILLIS: u64 = 1000;
    let deadline = Instant::in_millis(MILLIS);
    while let Err(error) = step() {
        assert!(
            !deadline.has_passed(),
            "a removed memory block is not added again within {MILLIS} ms: {error:?}"
        );
        MM.platform().relax();
    }
}
