//! What an outcome means: the answers of the device (virtio 1.3, section 5.15.6.3 and following)
//! and the guest's successes and failures.
//!
//! Of a response only its type is looked at, and the state of an acknowledged STATE.

use super::region::Region;
use super::rest::Why;
use super::{Action, Driver, Outcome};
use crate::wire::{Config, Request, RequestKind, Response, ResponseType};

impl Driver {
    /// Takes in what came of `action`.
    pub(super) fn believe(&mut self, action: Action, outcome: Outcome) {
        if let Action::AddBlock { addr, .. } = action {
            // Even if it failed: it may have come to the memmap.
            self.region.update(self.memory_block(addr), |block| block.fresh = false);
        }
        match (action, outcome) {
            (Action::ReadConfig, Outcome::Config(config)) => self.configure(config),
            (Action::Send(request), Outcome::Response(response)) => self.answered(request, response),
            (Action::Send(request), Outcome::NoResponse) => self.unanswered(request),
            (Action::ReadConfig | Action::Send(_), Outcome::Failed(why)) => self.pause(why),
            (Action::AddBlock { .. } | Action::OnlineSubBlocks { .. }, Outcome::Failed(why)) => {
                self.fail_growing(why);
            }
            (Action::OfflineSubBlocks { addr, size }, Outcome::Failed(why)) => {
                let range = self.blocks(addr, size);
                self.fail_shrinking(why, |region| region.mark_busy(range));
            }
            (Action::RemoveBlock { addr }, Outcome::Failed(why)) => {
                let index = self.memory_block(addr);
                self.fail_shrinking(why, |region| region.update(index, |block| block.keep = true));
            }
            (
                Action::AddBlock { start: addr, size, .. } | Action::OnlineSubBlocks { addr, size },
                Outcome::Done,
            ) => {
                self.region.gain(self.memory_block(addr), self.blocks(addr, size));
                self.back_off.start_over();
            }
            (Action::OfflineSubBlocks { addr, size }, Outcome::Done) => {
                self.region.lose(self.memory_block(addr), self.blocks(addr, size));
                self.back_off.start_over();
            }
            (Action::RemoveBlock { addr }, Outcome::Done) => {
                self.region.remove(self.memory_block(addr));
                self.back_off.start_over();
            }
            (action, outcome) => panic!("{outcome:?} does not complete {action:?}"),
        }
    }

    fn configure(&mut self, config: Config) {
        if self.region.geometry.check(&config).is_err() {
            return self.device_error();
        }
        let target = |config: &Config| (config.requested_size, config.usable_region_size);
        if target(&self.config) != target(&config) {
            self.new_pass();
            self.back_off.start_over();
            self.most_to_plug = u16::MAX;
        }
        self.config = config;
        self.settle_unusable();
    }

    fn answered(&mut self, request: Request, response: Response) {
        match (request.kind, response.kind) {
            (RequestKind::State, _) => self.learn(response),
            (RequestKind::Plug, ResponseType::Ack) => {
                self.region.plug(self.range(request), true);
                self.nacks = 0;
                self.most_to_plug = self.most_to_plug.saturating_mul(2);
            }
            (RequestKind::Unplug, ResponseType::Ack) => {
                if self.region.plugged() > self.requested_blocks() {
                    self.back_off.start_over();
                }
                self.region.unplug(self.range(request));
            }
            (RequestKind::UnplugAll, ResponseType::Ack) => {
                self.unplug_all = false;
                // The usable region may have shrunk.
                self.read_config = true;
                self.back_off.start_over();
            }
            (RequestKind::Plug, ResponseType::Nack) => {
                self.nacks += 1;
                if self.nacks > 1 {
                    self.pause(Why::HostBusy);
                }
                self.read_config = true;
            }
            (RequestKind::Plug, ResponseType::Busy) => {
                let per_memory_block = self.region.geometry.per_memory_block as u16;
                self.most_to_plug = (request.nb_blocks / 2).clamp(1, per_memory_block);
                self.pause(Why::HostBusy);
            }
            (RequestKind::Unplug | RequestKind::UnplugAll, ResponseType::Nack | ResponseType::Busy) => {
                self.pause(Why::HostBusy);
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

    /// A device that breaks the rules is given time.
    pub(super) fn device_error(&mut self) {
        self.device_errors += 1;
        self.pause(Why::DeviceError);
    }

    /// Waits before going on. What failed while a new configuration was waiting to be read may
    /// have failed because of it, and is tried again at once; so below.
    pub(super) fn pause(&mut self, why: Why) {
        if !self.read_config {
            self.paused = Some(why);
        }
    }

    pub(super) fn fail_growing(&mut self, why: Why) {
        self.most_to_plug = self.region.geometry.per_memory_block as u16;
        if !self.read_config {
            self.stop_growing = true;
            self.failed = Some(why);
        }
    }

    fn fail_shrinking(&mut self, why: Why, mark: impl FnOnce(&mut Region)) {
        if !self.read_config {
            mark(&mut self.region);
            self.failed = Some(why);
        }
    }
}
