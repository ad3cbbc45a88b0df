//! How often drivers asked a virtio-mem device for something, what the device answered, and how long that took.
//!
//! Mirrors the counters of [`crate::ExitCounts`] in form: the event loop alone writes them, other threads read them at any
//! time, and they are not ordered with anything else. So counting takes no lock. What the device itself counts is copied
//! from there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidevm_abi::Size;
use virtio_mem::device::Counts;
use virtio_mem::wire::RequestKind;

/// The requests, by their place in [`RequestCounts::by`].
pub const REQUEST_KINDS: [&str; 5] = ["plug", "unplug", "unplug_all", "state", "malformed"];

/// The answers, by their place in a row of [`RequestCounts::by`].
pub const ANSWERS: [&str; 4] = ["ack", "nack", "busy", "error"];

/// The upper bounds of the parts of a [`Latency`], in microseconds. The last part has none.
pub const LATENCY_BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000,
];

/// Requests to one device since the VM was first started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// By [`REQUEST_KINDS`], and there by [`ANSWERS`].
    pub by: [[u64; ANSWERS.len()]; REQUEST_KINDS.len()],
    /// From a request to plug to its answer.
    pub plug: Latency,
    /// From a request to unplug, or to unplug everything, to its answer.
    pub unplug: Latency,
    /// Chains that carried no request that could be answered, and queues that could not be used.
    pub refused_chains: u64,
    /// Memory that requests plugged.
    pub plugged: Size,
    /// Memory that requests unplugged. What a reset unplugs is not among it.
    pub unplugged: Size,
}

/// How long requests took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Requests that took at most so long as [`LATENCY_BOUNDS`] says and longer than the bound before.
    pub parts: [u64; LATENCY_BOUNDS.len() + 1],
    /// The time that all of them took.
    pub sum: Duration,
}

/// The live counters behind [`RequestCounts`].
#[derive(Debug, Default)]
pub(crate) struct RequestCounters {
    by: [[AtomicU64; ANSWERS.len()]; REQUEST_KINDS.len()],
    plug: LatencyCounters,
    unplug: LatencyCounters,
    refused_chains: AtomicU64,
    plugged: AtomicU64,
    unplugged: AtomicU64,
}

#[derive(Debug, Default)]
struct LatencyCounters {
    parts: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl RequestCounters {
    /// A request of `kind`, or what was none, was answered after `took`. `counts` is what the device has counted since.
    pub(crate) fn answered(&self, kind: Option<RequestKind>, took: Duration, counts: &Counts) {
        let cells = self.by.iter().flatten().zip(counts.requests.iter().flatten());
        cells.for_each(|(cell, &count)| cell.store(count, Ordering::Relaxed));
        self.plugged.store(counts.plugged, Ordering::Relaxed);
        self.unplugged.store(counts.unplugged, Ordering::Relaxed);
        match kind {
            Some(RequestKind::Plug) => self.plug.count(took),
            Some(RequestKind::Unplug | RequestKind::UnplugAll) => self.unplug.count(took),
            Some(RequestKind::State) | None => {}
        }
    }

    /// A chain carried nothing that could be answered, or the queue cannot be used.
    pub(crate) fn refuse_chain(&self) {
        self.refused_chains.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub(crate) fn read(&self) -> RequestCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RequestCounts {
            by: self.by.each_ref().map(|row| row.each_ref().map(load)),
            plug: self.plug.read(),
            unplug: self.unplug.read(),
            refused_chains: load(&self.refused_chains),
            plugged: Size(load(&self.plugged)),
            unplugged: Size(load(&self.unplugged)),
        }
    }
}

impl LatencyCounters {
    fn count(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let part = LATENCY_BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(LATENCY_BOUNDS.len());
        self.parts[part].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn read(&self) -> Latency {
        let parts = self.parts.each_ref().map(|part| part.load(Ordering::Relaxed));
        Latency { parts, sum: Duration::from_micros(self.micros.load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use virtio_mem::device::Counts;
    use virtio_mem::wire::RequestKind;

    use super::{LATENCY_BOUNDS, RequestCounters};

    #[test]
    fn what_moves_memory_is_counted_by_its_time() {
        let counters = RequestCounters::default();
        let answered = |kind, took| counters.answered(kind, took, &Counts::default());
        answered(Some(RequestKind::Plug), Duration::from_micros(100));
        answered(Some(RequestKind::Plug), Duration::from_micros(101));
        answered(Some(RequestKind::UnplugAll), Duration::from_secs(9));
        answered(Some(RequestKind::State), Duration::from_secs(9));
        answered(None, Duration::from_secs(9));
        let counts = counters.read();
        assert_eq!(counts.plug.parts[..3], [1, 1, 0], "a bound belongs to its part");
        assert_eq!(counts.plug.sum, Duration::from_micros(201));
        assert_eq!(counts.unplug.parts[LATENCY_BOUNDS.len()], 1, "beyond all bounds");
        assert_eq!(counts.unplug.parts.iter().sum::<u64>(), 1, "a request for a state moves nothing");
        assert!(LATENCY_BOUNDS.is_sorted());
    }
}
