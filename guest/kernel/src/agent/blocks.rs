//! Memory blocks: how people see them, and a range of them removed and added back.
//!
//! Takes the place of Linux's `/sys/devices/system/memory`, and of its `offline_and_remove_memory` as drivers
//! that own a range call it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use tidevm_abi::{Answer, BLOCK_RUNS, BlockRun, Failure, Size};
use tidevm_mm::{
    MemoryBlockStats, MemoryContent, MhpFlags, PageblockSet, PhysAddr, Platform, SECTION_SIZE, SectionNr,
    SectionRange,
};

use crate::agent::translate;
use crate::cpu::time::Instant;
use crate::job::{self, Job, Progress};
use crate::mailbox::{Reply, Requester};
use crate::mem::{MM, lending};

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

/// Starts the job that takes the memory blocks of `size` bytes at `addr` offline and removes them, all at once, and then
/// adds them back as they were. It answers `requester`. The virtio-mem driver does not see it.
///
/// # Errors
/// The range is not made of whole sections below the end of memory.
pub fn readd(requester: Requester, addr: u64, Size(size): Size) -> Result<(), Failure> {
    let end = addr.checked_add(size).filter(|&end| end <= tidevm_abi::MAX_PHYS_ADDR);
    if end.is_none() || !(addr | size).is_multiple_of(SECTION_SIZE) {
        return Err(Failure::NotBlocks);
    }
    let first = SectionNr::of(PhysAddr::new(addr));
    let range = SectionRange::new(first, (size / SECTION_SIZE) as u32).expect("the end is an address");
    job::spawn(0, Box::new(Readd { range, reply: Reply::to(requester) }));
    Ok(())
}

/// The job of [`readd`]. Memory that is lent to the host cannot go offline, and comes back soon: the job waits for it.
struct Readd {
    range: SectionRange,
    /// The last field: the answer comes when the job has given back its memory.
    reply: Reply,
}

impl Job for Readd {
    fn step(&mut self) -> Progress {
        if !lending::hold() {
            return Progress::Idle(Some(lending::look_again_at()));
        }
        self.reply.set(remove_and_add(self.range).map_or_else(Answer::Failed, |()| Answer::Done));
        Progress::Done
    }
}

/// # Errors
/// The range is not made of whole memory blocks, or they cannot be removed; they are online then.
fn remove_and_add(range: SectionRange) -> Result<(), Failure> {
    let mut before: Vec<(MemoryBlockStats, Vec<PageblockSet>)> = Vec::new();
    // Memory blocks are told one by one when none is deferred.
    MM.hotplug().settle(range);
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
        let flags = MhpFlags::new(MemoryContent::Unknown).with_memmap_on_memory(block.memmap_on_memory);
        retry(|| MM.hotplug().add_memory(block.node, block.first, &plugged, flags));
        retry(|| MM.hotplug().online(block.first, zone));
    }
    Ok(())
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
