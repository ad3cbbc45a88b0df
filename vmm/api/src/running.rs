//! A machine that runs: the calls that Firecracker allows after the start, and what it lacks.
//!
//! Invariant: nothing here waits. What takes time becomes a [`Waiter`].

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidevm_abi::{Answer, BlockRun, Op, Size};
use tidevm_machine::{ResizeError, State, VmHandle};
use tidevm_sizer::Sizer;

use crate::Identity;
use crate::backend::{Backend, Reply, Waiter};
use crate::body::{ActionType, VmState};
use crate::draft::{Draft, not_supported};
use crate::events::events;
use crate::http::Request;
use crate::memory::{self, Facts, converged};
use crate::metrics::{Metrics, Told, unix_ms};
use crate::requests::Requests;
use crate::response::Response;
use crate::route::{Action, MemoryQuery};

mod auto;
mod balloon;
mod scrape;
mod stats;

/// The fault of a call that comes too late.
const TOO_LATE: &str = "The requested operation is not supported after starting the microVM.";

/// Firecracker's text about a device that the machine does not have.
const NO_DEVICE: &str = "Internal VMM error: Failed perform action on device: Device not found";

/// Firecracker's text about a target that is not possible, in front of the reason.
const BAD_TARGET: &str = "Memory hotplug update error: Failed to create memory hotplug device:";

/// The time between two lines of the metrics file, as in Firecracker.
const METRICS_PERIOD: Duration = Duration::from_secs(60);

/// How long the vCPUs may take to leave the guest.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// The time between two looks whether they have.
const PAUSE_LOOK: Duration = Duration::from_millis(2);

/// How long the guest may take to tell its memory blocks.
const BLOCKS_LIMIT: Duration = Duration::from_secs(5);

/// Most answers of the guest about its memory blocks. It could go on for ever.
const MOST_RUNS: usize = 4096;

/// The host is not asked more often how much memory it holds: its answer takes time for a guest of many parts.
const HELD_PERIOD: Duration = Duration::from_millis(100);

/// Whether what the host `told` at a time is asked anew.
fn is_old<T>(told: Option<&(Instant, T)>, now: Instant) -> bool {
    told.is_none_or(|(at, _)| now.saturating_duration_since(*at) >= HELD_PERIOD)
}

/// A machine that runs.
#[derive(Debug)]
pub struct Running {
    vm: VmHandle,
    sizer: Sizer,
    draft: Draft,
    identity: Identity,
    metrics: Option<Metrics>,
    next_line: Instant,
    requests: Requests,
    /// The state that the last events led to.
    told: State,
    sequence: u64,
    held: Option<(Instant, Vec<Size>)>,
    boot_held: Option<(Instant, Size)>,
    sample: scrape::Sample,
}

impl Running {
    /// The machine behind `vm`, which was described by `draft` and is sized by `sizer`, if it is.
    #[must_use]
    pub fn new(
        vm: VmHandle,
        sizer: Sizer,
        draft: Draft,
        identity: Identity,
        metrics: Option<Metrics>,
        requests: Requests,
    ) -> Self {
        let told = vm.state();
        let next_line = Instant::now() + METRICS_PERIOD;
        let sample = scrape::Sample::default();
        Self {
            vm,
            sizer,
            draft,
            identity,
            metrics,
            next_line,
            requests,
            told,
            sequence: 0,
            held: None,
            boot_held: None,
            sample,
        }
    }

    fn instance(&self) -> Value {
        self.identity.instance(if self.vm.state().paused { "Paused" } else { "Running" })
    }

    /// The answer about memory.
    fn status(&mut self, query: &MemoryQuery, extra: &[(&str, Value)]) -> Response {
        self.refresh_held(Instant::now());
        let facts = Facts {
            reports: self.vm.reports(),
            slot_size_mib: self.draft.slot_size_mib(),
            held: self.held.as_ref().map(|(_, held)| held.as_slice()),
            requests: &self.vm.mem_requests(),
        };
        let Some(mut status) = memory::status(&self.vm.state(), query.region, &facts) else {
            return Response::fault(NO_DEVICE);
        };
        for (key, value) in extra {
            status[*key] = value.clone();
        }
        Response::json(&status)
    }

    fn refresh_held(&mut self, now: Instant) {
        if is_old(self.held.as_ref(), now) {
            self.held = self.vm.held_by_each().ok().map(|held| (now, held));
        }
    }

    /// What the host holds of boot memory.
    fn boot_held(&mut self, now: Instant) -> Option<Size> {
        if is_old(self.boot_held.as_ref(), now) {
            self.boot_held = self.vm.boot_memory_held().ok().map(|held| (now, held));
        }
        self.boot_held.map(|(_, held)| held)
    }

    /// Begins a wait, which may be over at once.
    fn begin(&mut self, mut waiter: Waiter, now: Instant) -> Reply {
        self.poll(&mut waiter, now, false).map_or(Reply::Later(waiter), Reply::Now)
    }

    fn get_memory(&mut self, query: MemoryQuery, now: Instant) -> Reply {
        if self.vm.state().mem.get(query.region.unwrap_or(0)).is_none() {
            return Reply::Now(Response::fault(NO_DEVICE));
        }
        let until = now + query.wait.unwrap_or_default();
        self.begin(Waiter::Converge { query, until, goal: None }, now)
    }

    fn resize(&mut self, size_mib: u32, query: MemoryQuery, now: Instant) -> Reply {
        let index = query.region.unwrap_or(0);
        let fault = |text: String| Reply::Now(Response::fault(&text));
        let requested = Size(u64::from(size_mib) << 20);
        match self.vm.state().mem.get(index) {
            None => return fault(NO_DEVICE.to_owned()),
            Some(mem) if !mem.driver && query.wait.is_none() => {
                return fault(format!("{BAD_TARGET} Device is not active"));
            }
            Some(_) => {}
        }
        match self.vm.resize(index, requested) {
            Ok(()) => {}
            Err(ResizeError::NoDevice { .. }) => return fault(NO_DEVICE.to_owned()),
            Err(ResizeError::Unaligned { .. } | ResizeError::TooLarge { .. }) => {
                return fault(format!(
                    "{BAD_TARGET} Size {} is invalid: it must be a multiple of block size and less than the total size",
                    requested.0
                ));
            }
        }
        let Some(wait) = query.wait else { return Reply::Now(Response::done()) };
        let targets = self.vm.state().mem[index].targets;
        self.begin(Waiter::Converge { query, until: now + wait, goal: Some((index, targets)) }, now)
    }

    /// Stops resizes where they are.
    fn cancel(&mut self, query: MemoryQuery) -> Response {
        let state = self.vm.state();
        if state.mem.get(query.region.unwrap_or(0)).is_none() {
            return Response::fault(NO_DEVICE);
        }
        let chosen = |index: &usize| query.region.is_none_or(|region| region == *index);
        for (index, mem) in state.mem.iter().enumerate().filter(|(index, _)| chosen(index)) {
            if mem.requested != mem.plugged
                && let Err(error) = self.vm.resize(index, mem.plugged)
            {
                return Response::fault(&format!("{BAD_TARGET} {error}"));
            }
        }
        Response::done()
    }

    fn act(&mut self, action: ActionType) -> Response {
        match action {
            ActionType::InstanceStart => Response::fault(TOO_LATE),
            ActionType::FlushMetrics => match self.write_metrics() {
                Ok(()) => Response::done(),
                Err(error) => Response::fault(&format!(
                    "Internal VMM error: Metrics error: Failed to write metrics: {error}"
                )),
            },
            ActionType::SendCtrlAltDel if !self.vm.has_agent() => {
                Response::fault(&not_supported("only a guest with an agent can be asked to power off"))
            }
            ActionType::SendCtrlAltDel => match self.vm.call(Op::PowerOff) {
                Ok(_) => Response::done(),
                Err(error) => Response::fault(&format!("Internal VMM error: {error}")),
            },
        }
    }

    fn write_metrics(&mut self) -> std::io::Result<()> {
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        metrics.flush(&self.vm.state(), Told::now(&self.requests, &self.vm.exits(), &self.vm.mem_requests()))
    }

    fn set_vm_state(&mut self, wish: VmState, now: Instant) -> Reply {
        if wish == VmState::Resumed {
            self.vm.resume();
            return Reply::Now(Response::done());
        }
        self.begin(Waiter::Pause { until: now + PAUSE_LIMIT, next: now }, now)
    }

    /// Whether the wait is over, and whether another target took its place.
    fn is_settled(&self, query: &MemoryQuery, goal: Option<(usize, u64)>) -> Option<bool> {
        let (state, reports) = (self.vm.state(), self.vm.reports());
        if let Some((index, targets)) = goal {
            let mem = state.mem.get(index)?;
            return if mem.targets == targets {
                // A device without a driver has converged by not being used. A client that waits waits for the driver.
                (mem.driver && converged(mem, reports)).then_some(false)
            } else {
                Some(true)
            };
        }
        let all = |region: usize| query.region.is_none_or(|only| only == region);
        let mut regions = state.mem.iter().enumerate().filter(|(index, _)| all(*index));
        regions.all(|(_, mem)| converged(mem, reports)).then_some(false)
    }

    /// Asks the guest for its memory blocks from `from` on.
    fn ask_blocks(&mut self, from: u64) -> Option<u32> {
        self.vm.try_call(Op::Blocks { from })
    }

    fn poll_blocks(&mut self, waiter: &mut Waiter, over: bool, now: Instant) -> Option<Response> {
        let Waiter::Blocks { query, call, runs, until } = waiter else { return None };
        let query = *query;
        let next = match self.vm.try_answer(*call) {
            Some(Ok(Answer::Blocks { runs: more, next })) if runs.len() < MOST_RUNS => {
                runs.extend(more.iter().flatten().copied());
                next
            }
            Some(_) => return Some(self.status(&query, &[("blocks", Value::Null)])),
            None if over || now >= *until => {
                self.vm.forget(*call);
                return Some(self.status(&query, &[("blocks", Value::Null)]));
            }
            None => return None,
        };
        let runs = std::mem::take(runs);
        let until = *until;
        match next.and_then(|from| self.ask_blocks(from)) {
            Some(call) => {
                *waiter = Waiter::Blocks { query, call, runs, until };
                None
            }
            None => Some(self.status(&query, &[("blocks", memory::blocks(&runs))])),
        }
    }
}

impl Backend for Running {
    fn answer(&mut self, action: Action, now: Instant) -> Reply {
        let response = match action {
            Action::GetInstance => Response::json(&self.instance()),
            Action::GetVersion => Response::json(&self.identity.version()),
            Action::GetMachineConfig => Response::json(self.draft.machine()),
            Action::GetVmConfig => Response::json(&self.draft.full()),
            Action::GetMemory(query) => return self.get_memory(query, now),
            Action::Resize(update, query) => return self.resize(update.requested_size_mib, query, now),
            Action::CancelResize(query) => self.cancel(query),
            Action::GetAuto => Response::json(&self.auto()),
            Action::SetAuto(config) => self.set_auto(config),
            Action::UpdateAuto(update) => self.update_auto(update),
            Action::StopAuto => self.stop_auto(),
            Action::GetBalloon => self.get_balloon(now),
            Action::GetBalloonStats => self.get_balloon_stats(),
            Action::UpdateBalloon(update) => self.update_balloon(update),
            Action::UpdateBalloonStats(update) => self.update_balloon_stats(update),
            Action::GetEvents => return Reply::Stream,
            Action::GetStats => return self.get_stats(now),
            Action::GetMetrics => self.get_metrics(now),
            Action::Act(action) => self.act(action),
            Action::SetVmState(wish) => return self.set_vm_state(wish, now),
            Action::CreateSnapshot(_) => {
                Response::fault(&not_supported("tidevm makes snapshots by its option --save"))
            }
            Action::NoSuchDevice(device) => {
                Response::fault(&not_supported(&format!("tidevm does not have {device}")))
            }
            Action::SetMachine(_)
            | Action::SetBootSource(_)
            | Action::SetMemory(_)
            | Action::SetBalloon(_)
            | Action::SetLogger(_)
            | Action::SetMetrics(_)
            | Action::LoadSnapshot(_) => Response::fault(TOO_LATE),
        };
        Reply::Now(response)
    }

    fn poll(&mut self, waiter: &mut Waiter, now: Instant, over: bool) -> Option<Response> {
        match waiter {
            Waiter::Converge { query, until, goal } => {
                let query = *query;
                let settled = self.is_settled(&query, *goal);
                if settled.is_none() && now < *until && !over && !self.vm.state().ended() {
                    return None;
                }
                if settled == Some(true) {
                    return Some(self.status(&query, &[("superseded", json!(true))]));
                }
                if !query.blocks {
                    return Some(self.status(&query, &[]));
                }
                let Some(call) = self.ask_blocks(0) else {
                    return Some(self.status(&query, &[("blocks", Value::Null)]));
                };
                *waiter =
                    Waiter::Blocks { query, call, runs: Vec::<BlockRun>::new(), until: now + BLOCKS_LIMIT };
                self.poll_blocks(waiter, over, now)
            }
            Waiter::Blocks { .. } => self.poll_blocks(waiter, over, now),
            Waiter::Stats { call, until } => self.poll_stats(*call, over || now >= *until),
            Waiter::Pause { until, next } => match self.vm.pause() {
                Ok(true) => Some(Response::done()),
                Ok(false) if now < *until && !over => {
                    *next = now + PAUSE_LOOK;
                    None
                }
                Ok(false) | Err(_) => {
                    self.vm.resume();
                    Some(Response::fault("Internal VMM error: Failed to pause the vCPUs."))
                }
            },
        }
    }

    fn forget(&mut self, waiter: &Waiter) {
        if let Waiter::Blocks { call, .. } | Waiter::Stats { call, .. } = waiter {
            self.vm.forget(*call);
        }
    }

    fn events(&mut self) -> Vec<String> {
        let state = self.vm.state();
        let mut events = events(&self.told, &state, self.vm.reports());
        self.told = state;
        for event in &mut events {
            self.sequence += 1;
            event["sequence"] = json!(self.sequence);
            event["unix_ms"] = json!(unix_ms());
        }
        events.iter().map(Value::to_string).collect()
    }

    fn count(&mut self, request: &Request, status: u16) {
        self.requests.count(request, status);
    }

    fn due(&self) -> Option<Instant> {
        self.metrics.as_ref().map(|_| self.next_line)
    }

    fn tick(&mut self, now: Instant) {
        if self.metrics.is_some() && now >= self.next_line {
            self.next_line = now + METRICS_PERIOD;
            if let Err(error) = self.write_metrics() {
                log::warn!("the metrics file: {error}");
            }
        }
    }
}
