//! Memory blocks as people see them, and taken away and brought back as a range.
//!
//! Mirrors what Linux tells in `/sys/devices/system/memory`, and what its `offline_and_remove_memory`
//! does for drivers that own a range.

use alloc::vec::Vec;

use tidevm_abi::{Answer, BLOCK_RUNS, BlockRun, Failure, ZoneName};
use tidevm_mm::{
    BlockStats, MemoryContent, MhpFlags, OfflineAndRemoveError, OfflineError, PAGE_SIZE, PageblockSet,
    PhysAddr, Platform, RemoveError, SECTION_SIZE, SectionNr, SectionRange, ZoneType,
};

use crate::MM;
use crate::time::Instant;

/// The memory blocks from `from` on, as many as an answer can tell of.
pub fn blocks(from: u64) -> Answer {
    let mut runs = [None; BLOCK_RUNS];
    let mut used = 0;
    let mut next = None;
    if from < tidevm_abi::MAX_PHYS_ADDR {
        MM.hotplug().each_memory_block(SectionNr::of(PhysAddr::new(from)), |block| {
            let run = run_of(&block);
            let last: Option<&mut BlockRun> = runs[..used].last_mut().and_then(Option::as_mut);
            match last.filter(|last| continues(last, &run)) {
                Some(last) => last.count += 1,
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

/// Whether `run` lies behind `before` and is like it.
fn continues(before: &BlockRun, run: &BlockRun) -> bool {
    let expected = BlockRun { addr: before.addr + before.count * before.size, count: 1, ..*before };
    *run == expected
}

fn run_of(block: &BlockStats) -> BlockRun {
    let zone = block.zone.map(|zone| match zone.zone_type() {
        ZoneType::Dma32 => ZoneName::Dma32,
        ZoneType::Normal => ZoneName::Normal,
        ZoneType::Movable => ZoneName::Movable,
    });
    BlockRun {
        addr: block.first.start().address().get(),
        count: 1,
        size: u64::from(block.sections) * SECTION_SIZE,
        boot: block.boot,
        zone,
        node: block.node.get(),
        plugged: u64::from(block.plugged) * PAGE_SIZE,
        memmap_pages: block.memmap.into(),
        memmap_on_memory: block.memmap_on_memory,
    }
}

/// Takes the memory blocks of `size` bytes at `addr` offline and removes them, all at once, and then adds
/// them back as they were: nobody but `mm` sees them go.
pub fn readd(addr: u64, size: u64) -> Result<Answer, Failure> {
    let end = addr.checked_add(size).filter(|&end| end <= tidevm_abi::MAX_PHYS_ADDR);
    if end.is_none() || !(addr | size).is_multiple_of(SECTION_SIZE) {
        return Err(Failure::NotBlocks);
    }
    let first = SectionNr::of(PhysAddr::new(addr));
    let range = SectionRange::new(first, (size / SECTION_SIZE) as u32).expect("the end is an address");
    let mut before: Vec<(BlockStats, Vec<PageblockSet>)> = Vec::new();
    MM.hotplug().each_memory_block(range.first(), |block| {
        let sections = block.first.get()..block.first.get() + block.sections;
        let inside = sections.end <= range.end().get();
        if inside {
            before.push((block, sections.map(|nr| MM.plugged(SectionNr::new(nr))).collect()));
        }
        inside
    });
    MM.hotplug().offline_and_remove_memory(range).map_err(refusal)?;
    for (block, plugged) in before {
        let zone = block.zone.expect("it was online: it went offline").zone_type();
        let flags = MhpFlags { content: MemoryContent::Unknown, memmap_on_memory: block.memmap_on_memory };
        again(|| MM.hotplug().add_memory(block.node, block.first, &plugged, flags));
        again(|| MM.hotplug().online(block.first, zone));
    }
    Ok(Answer::Done)
}

/// Tries until it succeeds: a table or a memmap that was just freed may be somebody else's for a moment.
///
/// # Panics
/// When it does not: the device goes on to count the block as plugged.
fn again<E: core::fmt::Debug>(step: impl Fn() -> Result<(), E>) {
    const MILLIS: u64 = 1000;
    let deadline = Instant::in_millis(MILLIS);
    while let Err(error) = step() {
        assert!(!deadline.has_passed(), "what was removed does not come back within {MILLIS} ms: {error:?}");
        MM.platform().relax();
    }
}

fn refusal(error: OfflineAndRemoveError) -> Failure {
    match error {
        OfflineAndRemoveError::Remove(RemoveError::Granularity) => Failure::Granularity,
        OfflineAndRemoveError::Remove(RemoveError::Mixed) => Failure::Mixed,
        OfflineAndRemoveError::Remove(_) => Failure::NotBlocks,
        OfflineAndRemoveError::Offline(nr, error) => {
            let addr = nr.start().address().get();
            match error {
                OfflineError::Unmovable(stuck) | OfflineError::NoRoom(stuck) => {
                    Failure::Stuck { addr, pages: stuck.pages.into() }
                }
                OfflineError::Busy => Failure::Stuck { addr, pages: 0 },
                _ => Failure::NotBlocks,
            }
        }
    }
}
