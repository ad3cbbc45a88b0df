//! Ranges of memory blocks: what a virtio-mem driver asks of memory management at once.
//!
//! Mirrors `virtio_mem_add_memory` and `virtio_mem_offline_and_remove_memory` of Linux's `virtio_mem.c`, and differs on
//! purpose: a range has several memory blocks. Between two of them the caller may stop, because a new target may
//! want something else, and because other jobs wait.
//!
//! Invariant: a memory block of the range is added and online, or it is not there.

use tidevm_abi::{self as abi, ResizeState};
use tidevm_mm::{MhpFlags, NodeId, PageblockSet, PhysAddr, SECTION_SIZE, SectionNr, SectionRange, ZoneType};

use crate::agent::translate;
use crate::cpu::time::Instant;
use crate::mem::{MM, stamps};

/// Bytes of a pageblock, the smallest part of a memory block that is plugged.
pub const PAGEBLOCK_SIZE: u64 = SECTION_SIZE / 64;
/// Most sections of a memory block.
const MAX_SECTIONS: usize = (abi::MAX_MEMORY_BLOCK_SIZE / SECTION_SIZE) as usize;

/// A range was carried out only in part.
#[derive(Debug)]
pub struct Stopped {
    /// Bytes that were carried out, in whole memory blocks.
    pub done: u64,
    /// Why the next memory block was not. `None` when the caller wanted to stop.
    pub failed: Option<ResizeState>,
}

/// A part of a memory block: one set of pageblocks per section, and the number of sections up to the last one
/// that is not empty.
pub struct Parts([PageblockSet; MAX_SECTIONS], usize);

impl Parts {
    /// `size` bytes from `offset` on; the offset counts from the start of the first section.
    pub fn new(offset: u64, size: u64) -> Self {
        let (first, end) = (offset / PAGEBLOCK_SIZE, (offset + size) / PAGEBLOCK_SIZE);
        let used = end.div_ceil(64) as usize;
        let mut sections = [PageblockSet::NONE; _];
        for (index, blocks) in (0_u64..).zip(&mut sections[..used]) {
            let at = |pageblock: u64| pageblock.saturating_sub(index * 64).min(64) as u32;
            *blocks = PageblockSet::range(at(first)..at(end));
        }
        Self(sections, used)
    }
}

impl AsRef<[PageblockSet]> for Parts {
    /// The sets up to the last one that is not empty.
    fn as_ref(&self) -> &[PageblockSet] {
        &self.0[..self.1]
    }
}

/// Adds memory blocks of `memory_block` bytes to `node` and onlines them, from the first on. The range, address and size,
/// begins with one and may end with the plugged part of one, or is the plugged part of one.
///
/// # Errors
/// [`Stopped`] at the first memory block that fails, which is not added then, or where `stop` says so.
pub fn add(
    node: NodeId,
    (addr, size): (u64, u64),
    memory_block: u64,
    flags: MhpFlags,
    stop: impl Fn() -> bool,
) -> Result<(), Stopped> {
    let began = Instant::now();
    let whole = if addr.is_multiple_of(memory_block) { size - size % memory_block } else { 0 };
    let mut result = add_whole(node, (addr, whole), memory_block, flags, &stop);
    if result.is_ok() && whole < size {
        result = if whole > 0 && stop() {
            Err(Stopped { done: whole, failed: None })
        } else {
            let added = add_part(node, (addr + whole, size - whole), memory_block, flags);
            added.map_err(|state| Stopped { done: whole, failed: Some(state) })
        };
    }
    stamps::added(began);
    result
}

/// Adds whole memory blocks.
fn add_whole(
    node: NodeId,
    (addr, size): (u64, u64),
    memory_block: u64,
    flags: MhpFlags,
    stop: &impl Fn() -> bool,
) -> Result<(), Stopped> {
    if size == 0 {
        return Ok(());
    }
    let (range, block) = (sections(addr, size), (memory_block / SECTION_SIZE) as u32);
    let added = MM.hotplug().add_and_online_memory(node, range, block, ZoneType::Movable, flags, || !stop());
    match added {
        Ok(end) if end == range.end() => Ok(()),
        Ok(end) => Err(Stopped { done: bytes(range.first(), end), failed: None }),
        Err(part) => {
            let failed = Some(translate::not_added_and_online(part.error));
            Err(Stopped { done: bytes(range.first(), part.end), failed })
        }
    }
}

/// Adds a memory block that is plugged in part.
fn add_part(
    node: NodeId,
    (addr, size): (u64, u64),
    memory_block: u64,
    flags: MhpFlags,
) -> Result<(), ResizeState> {
    let offset = addr % memory_block;
    let plugged = Parts::new(offset, size);
    let block = &plugged.0[..(memory_block / SECTION_SIZE) as usize];
    let section = SectionNr::of(PhysAddr::new(addr - offset));
    let added = MM.hotplug().add_and_online_block(node, section, block, ZoneType::Movable, flags);
    added.map_err(translate::not_added_and_online)
}

/// Offlines memory blocks of `memory_block` bytes and removes them, from the last on. The range, address and size, begins
/// with one, and may end with the plugged part of one.
///
/// # Errors
/// [`Stopped`] at the first memory block that fails, which stays online then, or where `stop` says so.
pub fn remove((addr, size): (u64, u64), memory_block: u64, stop: impl Fn() -> bool) -> Result<(), Stopped> {
    let range = sections(addr, size.next_multiple_of(memory_block));
    MM.hotplug().offline_and_remove_from_end(range, || !stop()).map_err(|part| {
        let done = size.saturating_sub(bytes(range.first(), part.first));
        Stopped { done, failed: part.error.map(translate::not_offline) }
    })
}

/// The sections of whole memory blocks.
fn sections(addr: u64, size: u64) -> SectionRange {
    let first = SectionNr::of(PhysAddr::new(addr));
    SectionRange::new(first, (size / SECTION_SIZE) as u32).expect("the region is below the end of memory")
}

/// Bytes from section `first` to section `end`.
fn bytes(first: SectionNr, end: SectionNr) -> u64 {
    u64::from(end.get() - first.get()) * SECTION_SIZE
}
