//! Outcomes: how the answers of the device and the results of the guest change the driver's view.
//!
//! Mirrors virtio 1.3, section 5.15.6.3 and following, and `virtio_mem_send_plug_request` and its siblings
//! in Linux's `virtio_mem.c`. Differs on purpose: after NACK the driver reads the configuration again. After ERROR
//! it asks for the state of the device blocks, where Linux's driver stops for good. The driver reads only the type
//! of a response, and the state in an acknowledged STATE.

use super::idle::IdleReason;
use super::region::Region;
use super::{Action, Driver, Outcome};
use crate::blocks::BlockRange;
use crate::wire::{Config, Request, RequestKind, Response, ResponseType};

impl Driver {
    /// Applies the outcome of `action`.
    pub(super) fn apply(&mut self, action: Action, outcome: Outcome) {
        match (action, outcome) {
            (Action::ReadConfig, Outcome::Config(config, generation)) => self.configure(config, generation),
            (Action::Send(request), Outcome::Response(response)) => self.answered(request, response),
            (Action::Send(request), Outcome::NoResponse) => self.unanswered(request),
            (Action::ReadConfig | Action::Send(_), Outcome::Failed(reason)) => self.pause(reason),
            (Action::AddMemoryBlocks { addr, size, .. }, outcome) => {
                let (done, failed) = parts(action, outcome, size);
                self.added(self.blocks(addr, size), self.region.geometry.blocks(done), failed);
            }
            (Action::RemoveMemoryBlocks { addr, size }, outcome) => {
                let (done, failed) = parts(action, outcome, size);
                self.removed(self.blocks(addr, size), self.region.geometry.blocks(done), failed);
            }
            (Action::OnlineDeviceBlocks { addr, size }, Outcome::Done) => {
                self.region.gain(self.blocks(addr, size));
                self.back_off.start_over();
            }
            (Action::OnlineDeviceBlocks { .. }, Outcome::Failed(reason)) => self.fail_growing(reason),
            (Action::OfflineDeviceBlocks { addr, size }, Outcome::Done) => {
                let range = self.blocks(addr, size);
                self.region.lose(range);
                self.back_off.start_over();
                // The pass that this action belongs to may be over.
                if !self.read_config {
                    self.region.offline_from = range.first();
                }
            }
            (Action::OfflineDeviceBlocks { addr, size }, Outcome::Failed(reason)) => {
                let range = self.blocks(addr, size);
                self.fail_shrinking(reason, |region| region.offline_from = range.first());
            }
            (action, outcome) => panic!("{outcome:?} does not complete {action:?}"),
        }
    }

    /// The guest has added the first `done` device blocks of `range`, and failed at the memory block after them if `failed`
    /// says so.
    fn added(&mut self, range: BlockRange, done: u64, failed: Option<IdleReason>) {
        let end = range.first() + done;
        if done > 0 {
            self.region.add(BlockRange::new(range.first(), done));
            self.back_off.start_over();
        }
        self.region.used(end);
        if let Some(reason) = failed {
            // A failed attempt may have written to the memmap too.
            self.region.used(self.region.geometry.memory_block(end).end());
            self.fail_growing(reason);
        }
    }

    /// The guest has removed the last `done` device blocks of `range`, and failed at the memory block before them if
    /// `failed` says so.
    fn removed(&mut self, range: BlockRange, done: u64, failed: Option<IdleReason>) {
        let first = range.end() - done;
        if done > 0 {
            self.region.remove(BlockRange::new(first, done));
            self.back_off.start_over();
        }
        if let Some(reason) = failed {
            let memory_block = self.region.geometry.memory_block(first - 1);
            self.fail_shrinking(reason, |region| region.removal_failed(memory_block));
        }
    }

    fn configure(&mut self, config: Config, generation: u32) {
        if self.region.geometry.check(&config).is_err() {
            return self.device_error();
        }
        let target = |config: &Config| (config.requested_size, config.usable_region_size);
        if target(&self.config) != target(&config) {
            self.new_pass();
            self.back_off.start_over();
            self.most_to_plug = self.region.geometry.most_of_a_request();
        }
        (self.config, self.generation) = (config, generation);
        self.settle_unusable();
        self.compare();
    }

    fn answered(&mut self, request: Request, response: Response) {
        match (request.kind, response.kind) {
            (RequestKind::State, _) => self.learn(response),
            (RequestKind::Plug, ResponseType::Ack) => {
                let units = self.units(request).expect("only units are plugged");
                self.region.plug(units, true);
                self.nacks = 0;
                self.most_to_plug = (self.most_to_plug * 2).min(self.region.geometry.most_of_a_request());
            }
            (RequestKind::Unplug, ResponseType::Ack) => {
                if self.region.plugged() > self.requested_blocks() {
                    self.back_off.start_over();
                }
                match self.units(request) {
                    Some(units) => self.region.unplug(units),
                    None => self.scraps.remove(self.range(request)),
                }
            }
            (RequestKind::UnplugAll, ResponseType::Ack) => {
                self.unplug_all = false;
                // The device may have shrunk the usable region.
                self.read_config = true;
                self.back_off.start_over();
            }
            (RequestKind::Plug, ResponseType::Nack) => {
                // Requests that were under way together are refused together.
                self.nacks += u32::from(!self.read_config);
                if self.nacks > 1 {
                    self.pause(IdleReason::HostBusy);
                }
                self.read_config = true;
            }
            (RequestKind::Plug, ResponseType::Busy) => {
                let geometry = &self.region.geometry;
                let half = u64::from(request.nb_blocks) / geometry.per_unit() / 2;
                self.most_to_plug = half.clamp(1, geometry.per_memory_block);
                self.pause(IdleReason::HostBusy);
            }
            (RequestKind::Unplug | RequestKind::UnplugAll, ResponseType::Nack | ResponseType::Busy) => {
                self.pause(IdleReason::HostBusy);
            }
            (RequestKind::Plug | RequestKind::Unplug, ResponseType::Error) => {
                self.device_errors += 1;
                self.doubt(self.range(request));
                self.read_config = true;
            }
            (RequestKind::UnplugAll, ResponseType::Error) => self.device_error(),
        }
    }

    fn unanswered(&mut self, request: Request) {
        if let RequestKind::Plug | RequestKind::Unplug = request.kind {
            self.doubt(self.range(request));
        }
        self.device_error();
    }

    /// The device violated the specification: the driver counts this and pauses.
    pub(super) fn device_error(&mut self) {
        self.device_errors += 1;
        self.pause(IdleReason::DeviceError);
    }

    /// Makes the driver pause before the next action.
    ///
    /// A failure while a new configuration waits to be read may be due to that configuration, so the driver
    /// tries again at once. This holds for the functions below too.
    pub(super) fn pause(&mut self, reason: IdleReason) {
        if !self.read_config {
            self.paused = Some(reason);
        }
    }

    pub(super) fn fail_growing(&mut self, reason: IdleReason) {
        self.most_to_plug = self.region.geometry.per_memory_block;
        if !self.read_config {
            self.stop_growing = true;
            self.failed = Some(reason);
        }
    }

    fn fail_shrinking(&mut self, reason: IdleReason, mark: impl FnOnce(&mut Region)) {
        if !self.read_config {
            mark(&mut self.region);
            self.failed = Some(reason);
        }
    }
}

/// How many of the `size` bytes of `action` were carried out, and why the next memory block was not.
fn parts(action: Action, outcome: Outcome, size: u64) -> (u64, Option<IdleReason>) {
    match outcome {
        Outcome::Done => (size, None),
        Outcome::Failed(reason) => (0, Some(reason)),
        Outcome::Part { done, failed } if done < size => (done, failed),
        outcome => panic!("{outcome:?} does not complete {action:?}"),
    }
}
