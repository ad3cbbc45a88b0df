//! Ranges of memory blocks that are wholly plugged: added and put online at once, and taken away at once.
//!
//! Mirrors Linux `add_memory_resource` with `online_policy`, and `offline_and_remove_memory`. Under
//! [`InitPolicy::Lazy`] a range joins its zone as deferred boot memory does: it counts as present, managed and free,
//! and nothing of it is written, mapped or initialised before an allocation wants it (see `deferred`). It leaves the
//! same way as far as nothing has wanted it. So both take the same time for every size.
//!
//! Differs from Linux on purpose:
//! - Linux initialises every memory block when it is added.
//! - What was done stays done when a memory block fails, and the error says how far it went: the memory device's
//!   driver goes on from there.
//!
//! Where the memmap lies in older memory it is made at once, because a claim of deferred memory cannot allocate.
//!
//! Invariant: a memory block of the range is online in its zone, or as it was before the call.

use core::{fmt, mem};

use crate::added_block::MemoryBlock;
use crate::addr::{MEMMAP_PAGES, PfnRange, SectionNr, SectionRange};
use crate::deferred::{DeferredRange, Origin};
use crate::hotplug::Hotplug;
use crate::isolation::OfflineError;
use crate::memory_block::{AddError, MhpFlags, OnlineError};
use crate::node::{NodeId, ZoneId, ZoneType};
use crate::options::{InitPolicy, MemoryContent};
use crate::pageblock_set::PageblockSet;
use crate::platform::{FaultStep, Platform};
use crate::sparse::SectionState;
use crate::sync::Ordering::Relaxed;

/// Why a memory block was not added and put online: which of the two steps failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddAndOnlineError {
    /// It was not added.
    Add(AddError),
    /// It was added and did not go online. It is not added any more.
    Online(OnlineError),
}

impl fmt::Display for AddAndOnlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(error) => write!(f, "the memory block is not added: {error}"),
            Self::Online(error) => write!(f, "the memory block does not go online: {error}"),
        }
    }
}

impl core::error::Error for AddAndOnlineError {}

impl From<AddError> for AddAndOnlineError {
    fn from(error: AddError) -> Self {
        Self::Add(error)
    }
}

impl From<OnlineError> for AddAndOnlineError {
    fn from(error: OnlineError) -> Self {
        Self::Online(error)
    }
}

/// Only a part of a range was added and put online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedPart {
    /// The section after that part, which begins where the range does and may be empty.
    pub end: SectionNr,
    /// Why the memory block there was not.
    pub error: AddAndOnlineError,
}

impl fmt::Display for AddedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory is added and online up to {:#x} only: {}",
            self.end.start().address().get(),
            self.error
        )
    }
}

impl core::error::Error for AddedPart {}

/// Only a part of a range was taken offline and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedPart {
    /// The first section of that part, which ends where the range does and may be empty.
    pub first: SectionNr,
    /// Why the memory block below it was not. None when the caller wanted no more.
    pub error: Option<OfflineError>,
}

impl fmt::Display for RemovedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory is removed from {:#x} on only", self.first.start().address().get())?;
        match self.error {
            Some(error) => write!(f, ": {error}"),
            None => f.write_str(", because no more was wanted"),
        }
    }
}

impl core::error::Error for RemovedPart {}

impl<P: Platform> Hotplug<'_, P> {
    /// Adds the sections of `range`, wholly plugged, to `node` as memory blocks of `block_sections` sections each, and
    /// puts them into `zone`. After each memory block that is not deferred it asks `go_on` whether to go on; ending there
    /// is no error, and the result says where.
    ///
    /// # Errors
    /// [`AddedPart`].
    pub fn add_and_online_memory(
        &self,
        node: NodeId,
        range: SectionRange,
        block_sections: u32,
        zone: ZoneType,
        flags: impl Into<MhpFlags>,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<SectionNr, AddedPart> {
        let flags = flags.into();
        let failed = |end, error| AddedPart { end, error };
        let block = self.check_range(range, block_sections, zone);
        let block = block.map_err(|error| failed(range.first(), error))?;
        if self.may_defer(flags) {
            let zeroed = flags.content == MemoryContent::Zero;
            let origin = Origin::Plugged { block: block_sections, zeroed };
            let deferred = DeferredRange { sections: range, zone: node.zone(zone), origin };
            match self.defer(deferred) {
                Ok(true) => return Ok(range.end()),
                Ok(false) => {}
                Err(error) => return Err(failed(range.first(), error)),
            }
        }
        for first in range.sections().step_by(block_sections as usize) {
            self.add_and_online_block(node, first, block.all_pageblocks(), zone, flags)
                .map_err(|error| failed(first, error))?;
            let end = SectionNr::new(first.get() + block_sections);
            if end < range.end() && !go_on() {
                return Ok(end);
            }
        }
        Ok(range.end())
    }

    /// Adds one memory block, which may be plugged in part, as [`add_memory`](Self::add_memory) does, and puts it into
    /// `zone`. If that fails it is not added.
    ///
    /// # Errors
    /// See [`AddAndOnlineError`].
    pub fn add_and_online_block(
        &self,
        node: NodeId,
        first: SectionNr,
        plugged: &[PageblockSet],
        zone: ZoneType,
        flags: impl Into<MhpFlags>,
    ) -> Result<(), AddAndOnlineError> {
        self.add_memory(node, first, plugged, flags)?;
        self.online(first, zone).map_err(|error| {
            self.remove_memory(first).expect("a memory block that is not online can be removed");
            error.into()
        })
    }

    /// The first memory block of `range`, if the range is vacant and can be memory blocks of `block_sections` sections in a
    /// zone of type `zone`.
    fn check_range(
        &self,
        range: SectionRange,
        block_sections: u32,
        zone: ZoneType,
    ) -> Result<MemoryBlock, AddAndOnlineError> {
        let block = MemoryBlock::new(range.first(), block_sections as usize).ok_or(AddError::Misaligned)?;
        if range.is_empty() || !range.len().is_multiple_of(block_sections) {
            return Err(AddError::Misaligned.into());
        }
        self.check_vacant(range)?;
        let last = SectionNr::new(range.end().get() - 1);
        if !zone.may_have(range.first()) || !zone.may_have(last) {
            return Err(OnlineError::WrongZone.into());
        }
        Ok(block)
    }

    /// Whether memory that is added with `flags` is left for later.
    fn may_defer(&self, flags: MhpFlags) -> bool {
        let options = self.mm.options.get();
        let on_memory = flags.memmap_on_memory && options.memmap_on_memory;
        on_memory && options.grow && options.init == InitPolicy::Lazy
    }

    /// Makes vacant memory a part of its zone, and leaves it for later. `false`, with nothing changed, when there are too
    /// many deferred ranges.
    fn defer(&self, range: DeferredRange) -> Result<bool, AddAndOnlineError> {
        self.prepare(range.sections)?;
        let is_deferred = self.add_deferred(range);
        if is_deferred {
            self.update_limits();
        } else {
            self.mm.platform.release(range.sections);
        }
        Ok(is_deferred)
    }

    /// The steps that can fail.
    fn prepare(&self, sections: SectionRange) -> Result<(), AddAndOnlineError> {
        let platform = &self.mm.platform;
        if platform.fault(FaultStep::AllocMemmap) {
            return Err(AddError::NoMemory.into());
        }
        if platform.fault(FaultStep::MapDirect) || platform.fault(FaultStep::MapMemmap) {
            return Err(AddError::NoPageTable.into());
        }
        platform.prepare(sections).map_err(AddError::from)?;
        if platform.fault(FaultStep::Online) {
            platform.release(sections);
            return Err(OnlineError::Vetoed.into());
        }
        Ok(())
    }

    /// Counts memory and leaves it for later. `false`, with nothing changed, when there are too many deferred ranges.
    fn add_deferred(&self, range: DeferredRange) -> bool {
        // First, because a CPU may want it as soon as it is deferred.
        self.count_in(&range);
        let is_added = self.mm.deferred.add(range, &self.mm.irq_off());
        if !is_added {
            self.count_out(&range);
        }
        is_added
    }

    /// Counts memory that is about to be deferred: from the outside in.
    fn count_in(&self, range: &DeferredRange) {
        let frames = range.sections.frames();
        let zone = self.mm.zone(range.zone);
        self.mm.nodes.include(range.zone.node());
        zone.grow_span(frames, self.held());
        zone.add_present(frames.pages().into(), self.held());
        zone.add_managed(range.plugged_managed(), self.held());
        zone.add_deferred(range.plugged_managed());
        let memmap = u64::from(range.sections.len() * MEMMAP_PAGES);
        self.mm.counters.memmap_altmap_pages.fetch_add(memmap, Relaxed);
    }

    /// Undoes [`count_in`](Self::count_in) for memory that is not deferred any more.
    fn count_out(&self, range: &DeferredRange) {
        let frames = range.sections.frames();
        let memmap = u64::from(range.sections.len() * MEMMAP_PAGES);
        self.mm.counters.memmap_altmap_pages.fetch_sub(memmap, Relaxed);
        let zone = self.mm.zone(range.zone);
        zone.sub_deferred(range.plugged_managed());
        zone.sub_managed(range.plugged_managed(), self.held());
        zone.sub_present(frames.pages().into(), self.held());
        self.shrink_span(range.zone, frames);
    }

    /// Takes the memory blocks of `range` offline and removes them, from the highest down. Before each memory block that
    /// is not deferred, but the first, it asks `go_on` whether to go on.
    ///
    /// # Errors
    /// [`RemovedPart`].
    pub fn offline_and_remove_from_end(
        &self,
        range: SectionRange,
        go_on: impl FnMut() -> bool,
    ) -> Result<(), RemovedPart> {
        let result = self.remove_from_end(range, go_on);
        self.update_limits();
        result
    }

    /// The same, without what follows from the sizes of zones.
    fn remove_from_end(
        &self,
        range: SectionRange,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<(), RemovedPart> {
        let mut rest = range;
        let mut has_old_limits = false;
        while !rest.is_empty() {
            if let Some(deferred) = self.take_deferred_end(rest) {
                self.count_out(&deferred);
                self.mm.platform.release(deferred.sections);
                rest = rest.before(deferred.sections.first());
                has_old_limits = true;
                continue;
            }
            let stopped = |error| RemovedPart { first: rest.end(), error };
            if rest != range && !go_on() {
                return Err(stopped(None));
            }
            let last = SectionNr::new(rest.end().get() - 1);
            let block =
                MemoryBlock::with(&self.mm.sparse, last).filter(|block| range.contains(block.first()));
            let block = block.ok_or(stopped(Some(OfflineError::NotOnline)))?;
            if mem::take(&mut has_old_limits) {
                // What other zones keep back because of memory that has left would be missing for pages that move.
                self.update_limits();
            }
            self.offline(block.first()).map_err(|error| stopped(Some(error)))?;
            self.remove_block(block);
            rest = rest.before(block.first());
        }
        Ok(())
    }

    /// Draws the ends of `zone` in after the memory of the frames `gone` left it.
    pub(super) fn shrink_span(&self, zone: ZoneId, gone: PfnRange) {
        let off = self.mm.irq_off();
        let deferred = self.mm.deferred.freeze(&off);
        let ours = |nr: SectionNr| match self.mm.sparse.section(nr) {
            Some(section) if section.state() == SectionState::Online => section.zone() == zone,
            _ => deferred.ranges().find(nr).is_some_and(|range| range.zone == zone),
        };
        self.mm.zone(zone).shrink_span(gone, ours, self.held());
    }
}
