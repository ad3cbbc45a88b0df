//! Ranges of memory blocks: what a virtio-mem driver asks of memory management at once.
//!
//! Mirrors `virtio_mem_add_memory` and `virtio_mem_offline_and_remove_memory` of Linux's `virtio_mem.c`, and differs on
//! purpose: a range has several memory blocks. Between two of them the caller may stop, because a new target may
//! want something else, and because other jobs wait.
//!
//! Invariant: a memory block of the range is added and online, or it is not there.

use tidevm_abi::{self as abi, ResizeState};
use tidevm_mm::{MhpFlags, NodeId, PageblockSet, PhysAddr, SECTION_SIZE, SectionNr, ZoneType};

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
/// is made of whole ones, or is the plugged part of one.
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
    let mut done = 0;
    while done < size {
        if done > 0 && stop() {
            return Err(Stopped { done, failed: None });
        }
        let offset = (addr + done) % memory_block;
        let part = (size - done).min(memory_block - offset);
        let section = SectionNr::of(PhysAddr::new(addr + done - offset));
        let plugged = Parts::new(offset, part);
        let whole = &plugged.0[..(memory_block / SECTION_SIZE) as usize];
        let hotplug = MM.hotplug();
        let began = Instant::now();
        let added = hotplug.add_memory(node, section, whole, flags).map_err(translate::not_added);
        let online = added.and_then(|()| {
            hotplug.online(section, ZoneType::Movable).map_err(|error| {
                hotplug.remove_memory(section).expect("a memory block that is not online can be removed");
                translate::not_online(error)
            })
        });
        stamps::added(began);
        online.map_err(|state| Stopped { done, failed: Some(state) })?;
        done += part;
    }
    Ok(())
}

/// Offlines memory blocks of `memory_block` bytes and removes them, from the last on. The range, address and size, begins
/// with one.
///
/// # Errors
/// [`Stopped`] at the first memory block that fails, which stays online then, or where `stop` says so.
pub fn remove((addr, size): (u64, u64), memory_block: u64, stop: impl Fn() -> bool) -> Result<(), Stopped> {
    let mut left = size;
    while left > 0 {
        let done = size - left;
        if done > 0 && stop() {
            return Err(Stopped { done, failed: None });
        }
        let before = (left - 1) / memory_block * memory_block;
        let section = SectionNr::of(PhysAddr::new(addr + before));
        let hotplug = MM.hotplug();
        let offline = hotplug.offline(section).map_err(translate::not_offline);
        offline.map_err(|state| Stopped { done, failed: Some(state) })?;
        hotplug.remove_memory(section).expect("a memory block that is offline can be removed");
        left = before;
    }
    Ok(())
}
