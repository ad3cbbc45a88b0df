//! Uncertain device blocks: STATE requests find out which of them are plugged.
//!
//! | cause | uncertain |
//! | --- | --- |
//! | ERROR or no answer to a request | its device blocks |
//! | memory was plugged before this driver existed | the usable region |
//! | `plugged_size` is not what the driver believes | the usable region |
//!
//! Linux's driver has no counterpart: it gives up for good after ERROR, unplugs what it finds plugged, and only logs a
//! `plugged_size` that is wrong. The search asks for as many device blocks as are alike in the driver's view. When the answer
//! is "mixed", it asks for the first half, until the answer is definite. Then it asks for the rest of what was mixed. So
//! a border between plugged and unplugged memory costs two requests for each halving, and what is as the driver believes
//! costs one request for each run.
//!
//! A device block that is plugged and belongs to no unit that is plugged as a whole is a *scrap*. The guest cannot use
//! it, and the driver unplugs it.
//!
//! Invariants: the only uncertain device blocks that the guest uses are those of a whole search. If the device says that
//! such a device block is not plugged, the driver cannot help it: it counts an error of the device, and its view stays, so that
//! the guest takes the memory out of use before the driver plugs there.

use alloc::collections::TryReserveError;

use super::Driver;
use super::idle::IdleReason;
use super::region::{ROOM, Region};
use super::runs::Runs;
use crate::blocks::BlockRange;
use crate::wire::{BlockState, Request, RequestKind, Response, ResponseType};

/// Device blocks for which the driver does not know whether they are plugged.
#[derive(Debug, Default)]
pub(super) struct Uncertain {
    /// They, by their index in the region of the device.
    pub(super) blocks: Runs,
    /// The device blocks from the lowest uncertain one to here were mixed, or are the rest of what was.
    mixed_to: u64,
    /// Number of device blocks of the next question, if it is less than all that are alike.
    ask: Option<u64>,
    /// All of the usable region is in doubt, and not what a request named.
    pub(super) is_search: bool,
}

impl Driver {
    /// Makes device blocks uncertain: those of a request.
    pub(super) fn doubt(&mut self, device_blocks: BlockRange) {
        self.uncertain.blocks.insert(device_blocks);
        (self.uncertain.mixed_to, self.uncertain.ask) = (0, None);
    }

    /// Makes the usable region uncertain.
    pub(super) fn doubt_all(&mut self) {
        let usable = self.region.geometry.usable_device_blocks(self.config.usable_region_size);
        self.doubt(BlockRange::new(0, usable));
        self.uncertain.is_search = usable > 0;
        // What the device has done to memory that it plugged last is in doubt too.
        self.region.used(u64::MAX);
    }

    /// Reserves memory for what the answers to requests may add.
    pub(super) fn reserve_doubts(&mut self) -> Result<(), TryReserveError> {
        self.uncertain.blocks.try_reserve(ROOM)?;
        self.scraps.try_reserve(ROOM)
    }

    /// Settles the device blocks beyond the usable region: they cannot be plugged, and the driver must not ask for
    /// them.
    pub(super) fn settle_unusable(&mut self) {
        let usable = self.region.geometry.usable_device_blocks(self.config.usable_region_size);
        let mut is_settled = false;
        while let Some(run) = self.uncertain.blocks.highest().filter(|run| run.end() > usable) {
            let first = usable.max(run.first());
            self.make_certain(BlockRange::new(first, run.end() - first), false);
            is_settled = true;
        }
        if is_settled {
            self.search_ended();
        }
    }

    /// The next STATE request, if device blocks are uncertain.
    pub(super) fn question(&self) -> Option<Request> {
        Some(self.device_request(RequestKind::State, self.asked()?))
    }

    /// The device blocks of the next question.
    fn asked(&self) -> Option<BlockRange> {
        let geometry = &self.region.geometry;
        let run = self.uncertain.blocks.lowest()?;
        let first = run.first();
        let most = self.uncertain.ask.unwrap_or_else(|| {
            let alike = match geometry.unit_of(first) {
                Some(unit) => geometry.device_blocks(self.region.alike_from(unit)).end(),
                None => u64::MAX,
            };
            let end = alike.min(geometry.end_of_kind(first));
            (end - first).min(geometry.most_of_a_request() * geometry.per_unit())
        });
        Some(BlockRange::new(first, run.count().min(most)))
    }

    /// Takes the answer to the last STATE request.
    pub(super) fn learn(&mut self, response: Response) {
        let Some(asked) = self.asked() else { return };
        let is_plugged = match (response.kind, response.state) {
            (ResponseType::Ack, BlockState::Mixed) if asked.count() > 1 => {
                self.uncertain.mixed_to = asked.end();
                self.uncertain.ask = Some(self.half(asked));
                return;
            }
            (ResponseType::Ack, BlockState::Plugged) => true,
            (ResponseType::Ack, BlockState::Unplugged) => false,
            (ResponseType::Busy | ResponseType::Nack, _) => return self.pause(IdleReason::HostBusy),
            (ResponseType::Error, _) | (ResponseType::Ack, BlockState::Mixed) => {
                self.give_up_inheritance();
                return self.device_error();
            }
        };
        self.make_certain(asked, is_plugged);
        let rest = self.uncertain.mixed_to.saturating_sub(asked.end());
        self.uncertain.ask = (rest > 0).then_some(rest);
        self.search_ended();
    }

    /// The first half of device blocks that are mixed. It ends with a unit, unless they are in one unit.
    fn half(&self, mixed: BlockRange) -> u64 {
        let geometry = &self.region.geometry;
        let half = mixed.count().div_ceil(2);
        let of_units = geometry
            .unit_of(mixed.first() + half)
            .map_or(mixed.first(), |unit| geometry.device_blocks(BlockRange::new(unit, 1)).first());
        of_units.checked_sub(mixed.first()).filter(|&count| count > 0).unwrap_or(half)
    }

    /// Nothing is uncertain any more, perhaps.
    fn search_ended(&mut self) {
        if self.uncertain.blocks.count() > 0 {
            return;
        }
        self.inherited = false;
        if core::mem::take(&mut self.uncertain.is_search) {
            // What is left of the difference is an error of the device, and no reason to search again.
            self.difference = self.config.plugged_size.wrapping_sub(self.plugged_size());
        } else {
            // The device may answer ERROR to the same request again.
            self.pause(IdleReason::DeviceError);
        }
    }

    /// Device blocks are certain: they are plugged, or they are not.
    fn make_certain(&mut self, device_blocks: BlockRange, is_plugged: bool) {
        let geometry = self.region.geometry;
        self.uncertain.blocks.remove(device_blocks);
        if is_plugged {
            self.scraps.insert(device_blocks);
        } else {
            self.scraps.remove(device_blocks);
        }
        let units = geometry.units_in(device_blocks);
        self.make_units_certain(units, is_plugged);
        // The units at the ends of which other device blocks were asked for by other questions, or were not.
        for block in [device_blocks.first(), device_blocks.end() - 1] {
            let unit = geometry.unit_of(block).map(|unit| BlockRange::new(unit, 1));
            if let Some(unit) = unit.filter(|unit| unit.overlap(units).count() == 0) {
                let found = self.scraps.count_in(geometry.device_blocks(unit));
                self.make_units_certain(unit, found == geometry.per_unit());
            }
        }
    }

    /// Units are plugged as a whole, or they are not.
    fn make_units_certain(&mut self, units: BlockRange, are_plugged: bool) {
        if units.count() == 0 {
            return;
        }
        if are_plugged {
            self.scraps.remove(self.region.geometry.device_blocks(units));
            self.region.found(units);
        } else if self.region.missing(units) {
            self.device_errors += 1;
        }
    }

    /// What an earlier kernel has plugged cannot be found out: all of it goes.
    fn give_up_inheritance(&mut self) {
        if core::mem::take(&mut self.inherited) {
            self.region = Region::new(self.region.geometry);
            (self.uncertain, self.scraps, self.room) = (Uncertain::default(), Runs::default(), 0);
            self.unplug_all = true;
        }
    }

    /// Compares the plugged size that the device gives with the driver's view, and searches if the difference is new. No
    /// request is under way.
    pub(super) fn compare(&mut self) {
        if self.unplug_all || self.uncertain.blocks.count() > 0 {
            return;
        }
        let difference = self.config.plugged_size.wrapping_sub(self.plugged_size());
        if core::mem::replace(&mut self.difference, difference) != difference {
            self.mismatches += 1;
            self.doubt_all();
        }
    }
}
