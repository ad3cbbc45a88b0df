//! A machine that is configured: the calls that Firecracker allows before the start.

use std::time::Instant;

use tidevm_machine::Config;

use crate::backend::{Backend, Reply, Waiter};
use crate::body::{ActionType, MetricsConfig};
use crate::draft::{Draft, METRICS_TWICE, not_supported, set_log};
use crate::http::Request;
use crate::metrics::Metrics;
use crate::requests::Requests;
use crate::response::Response;
use crate::route::Action;
use crate::{Identity, LogTarget};

/// The fault of a call that comes too early.
const TOO_EARLY: &str = "The requested operation is not supported before starting the microVM.";

/// A machine that does not run yet.
#[derive(Debug)]
pub struct Preboot {
    /// What was configured.
    pub draft: Draft,
    /// Who answers.
    pub identity: Identity,
    /// The metrics file, if one was set.
    pub metrics: Option<Metrics>,
    /// Requests since the start.
    pub requests: Requests,
    /// The machine to start, once a client has said so.
    pub start: Option<Config>,
    base: Config,
    log: LogTarget,
}

impl Preboot {
    /// Nothing is configured yet; `base` has what Firecracker's interface does not name.
    #[must_use]
    pub fn new(draft: Draft, identity: Identity, base: Config, log: LogTarget) -> Self {
        let requests = Requests::default();
        Self { draft, identity, metrics: None, requests, start: None, base, log }
    }

    /// Opens what the draft of a `--config-file` names.
    ///
    /// # Errors
    /// The text of the fault.
    pub fn open_files(&mut self) -> Result<(), String> {
        self.draft.start_log(self.log)?;
        if let Some(config) = &self.draft.metrics {
            self.metrics = Some(Metrics::open(config, &self.identity.id)?);
        }
        Ok(())
    }

    fn set_metrics(&mut self, config: &MetricsConfig) -> Result<(), String> {
        if self.metrics.is_some() {
            return Err(METRICS_TWICE.to_owned());
        }
        self.metrics = Some(Metrics::open(config, &self.identity.id)?);
        Ok(())
    }

    fn set(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::SetMachine(update) => self.draft.set_machine(&update),
            Action::SetBootSource(boot) => self.draft.set_boot(boot),
            Action::SetMemory(memory) => self.draft.set_memory(memory),
            Action::SetBalloon(balloon) => self.draft.set_balloon(balloon),
            Action::SetMetrics(config) => self.set_metrics(&config),
            Action::SetLogger(config) => set_log(&config, self.log),
            Action::LoadSnapshot(_) if self.draft.touched => Err("Load snapshot error: Loading a microVM snapshot not \
                                                                  allowed after configuring boot-specific resources."
                .to_owned()),
            Action::LoadSnapshot(_) => Err(not_supported("tidevm loads snapshots by its option --restore")),
            Action::NoSuchDevice(device) => Err(not_supported(&format!("tidevm does not have {device}"))),
            _ => Err(TOO_EARLY.to_owned()),
        }
    }
}

impl Backend for Preboot {
    fn answer(&mut self, action: Action, _: Instant) -> Reply {
        Reply::Now(match action {
            Action::GetInstance => Response::json(&self.identity.instance("Not started")),
            Action::GetVersion => Response::json(&self.identity.version()),
            Action::GetMachineConfig => Response::json(self.draft.machine()),
            Action::GetVmConfig => Response::json(&self.draft.full()),
            Action::GetBalloon => match self.draft.balloon() {
                Some(balloon) => Response::json(&balloon),
                None => Response::fault("Balloon config error: No balloon device found."),
            },
            Action::Act(ActionType::InstanceStart) => match self.draft.config(&self.base) {
                Ok(config) => {
                    self.start = Some(config);
                    return Reply::Start;
                }
                Err(fault) => Response::fault(&fault),
            },
            action => self.set(action).map_or_else(|fault| Response::fault(&fault), |()| Response::done()),
        })
    }

    fn poll(&mut self, _: &mut Waiter, _: Instant, _: bool) -> Option<Response> {
        Some(Response::fault(TOO_EARLY))
    }

    fn forget(&mut self, _: &Waiter) {}

    fn events(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn count(&mut self, request: &Request, status: u16) {
        self.requests.count(request, status);
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _: Instant) {}
}
