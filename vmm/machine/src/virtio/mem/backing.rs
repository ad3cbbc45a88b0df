//! The memory of one region, as the [`Backing`] of its device: [`Memory`] carries requests out.
//!
//! Invariant: a guest that lets the host fail and succeed in turn fills no log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_mem::device::{Backing, Busy, PluggedRuns, Span};

use crate::memory::host_calls::FailedCall;
use crate::memory::range::GuestRange;
use crate::memory::{Memory, no_such_memory};
use crate::state::HostFault;

/// Most warnings about a host that refuses, in one [`WARNING_PERIOD`].
pub(super) const MAX_WARNINGS: u32 = 4;

const WARNING_PERIOD: Duration = Duration::from_secs(60);

/// The memory of one region, as the [`Backing`] of the device.
#[derive(Debug)]
pub struct RegionMemory {
    memory: Arc<Memory>,
    index: usize,
    /// The host refused, and nothing has succeeded since. Only the first refusal is logged, because a guest may ask
    /// without end.
    failed: bool,
    /// Start of a [`WARNING_PERIOD`] and the warnings in it. A guest may let requests fail and succeed in turn.
    warned: Option<(Instant, u32)>,
}

impl Backing for RegionMemory {
    fn plug(&mut self, span: Span) -> Result<(), Busy> {
        let result = addresses(span).and_then(|range| self.memory.plug(self.index, range));
        self.outcome("plug", span, result)
    }

    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        let result = addresses(span).and_then(|range| self.memory.unplug(self.index, range));
        self.outcome("unplug", span, result)
    }

    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        let result = self.memory.unplug_all(self.index);
        self.outcome("unplug", plugged.region(), result)
    }
}

/// The addresses of `span`.
fn addresses(span: Span) -> Result<GuestRange, FailedCall> {
    GuestRange::new(span.addr()..span.end()).ok_or_else(no_such_memory)
}

impl RegionMemory {
    /// The memory of region `index`.
    pub(super) const fn new(memory: Arc<Memory>, index: usize) -> Self {
        Self { memory, index, failed: false, warned: None }
    }

    /// Logs the host's error if it is the first of several.
    fn outcome(&mut self, what: &str, span: Span, result: Result<(), FailedCall>) -> Result<(), Busy> {
        let fault = result.as_ref().err().map(HostFault::from);
        let failed_before = std::mem::replace(&mut self.failed, fault.is_some());
        result.map_err(|error| {
            if !failed_before && self.may_warn() {
                let (start, end) = (span.addr(), span.end());
                log::warn!("cannot {what} {start:#x}..{end:#x}: {error}; silent until something succeeds");
            }
            fault.map_or_else(Busy::default, |HostFault { call, errno }| Busy::call(call, errno))
        })
    }

    /// Counts a warning, and returns whether it is one of the first in its period.
    fn may_warn(&mut self) -> bool {
        let period = self.warned.filter(|(since, _)| since.elapsed() < WARNING_PERIOD);
        let (since, count) = period.unwrap_or((Instant::now(), 0));
        self.warned = Some((since, count.saturating_add(1)));
        count < MAX_WARNINGS
    }
}
