//! How often drivers asked a virtio-mem device for something, what the device answered, and how long that took.
//!
//! Mirrors the counters of [`crate::ExitCounts`] in form: the event loop alone writes them, other threads read them at any
//! time, and they are not ordered with anything else. So counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_mem::wire::{BadRequest, RequestKind, ResponseType};

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
}

#[derive(Debug, Default)]
struct LatencyCounters {
    parts: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl RequestCounters {
    /// Counts a request of `kind`, which was answered with `answer` after `took`.
    pub(crate) fn count(&self, kind: Result<RequestKind, BadRequest>, answer: ResponseType, took: Duration) {
        let row = match kind {
            Ok(RequestKind::Plug) => 0,
            Ok(RequestKind::Unplug) => 1,
            Ok(RequestKind::UnplugAll) => 2,
            Ok(RequestKind::State) => 3,
            Err(_) => 4,
        };
        let column = match answer {
            ResponseType::Ack => 0,
            ResponseType::Nack => 1,
            ResponseType::Busy => 2,
            ResponseType::Error => 3,
        };
        self.by[row][column].fetch_add(1, Ordering::Relaxed);
        match kind {
            Ok(RequestKind::Plug) => self.plug.count(took),
            Ok(RequestKind::Unplug | RequestKind::UnplugAll) => self.unplug.count(took),
            Ok(RequestKind::State) | Err(_) => {}
        }
    }

    /// The counts now.
    pub(crate) fn read(&self) -> RequestCounts {
        let by = self.by.each_ref().map(|row| row.each_ref().map(|count| count.load(Ordering::Relaxed)));
        RequestCounts { by, plug: self.plug.read(), unplug: self.unplug.read() }
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

    use virtio_mem::wire::{BadRequest, RequestKind, ResponseType};

    use super::{ANSWERS, LATENCY_BOUNDS, REQUEST_KINDS, RequestCounters};

    #[test]
    fn a_request_is_counted_by_its_type_its_answer_and_its_time() {
        let counters = RequestCounters::default();
        counters.count(Ok(RequestKind::Plug), ResponseType::Ack, Duration::from_micros(100));
        counters.count(Ok(RequestKind::Plug), ResponseType::Busy, Duration::from_micros(101));
        counters.count(Ok(RequestKind::UnplugAll), ResponseType::Ack, Duration::from_secs(9));
        counters.count(Ok(RequestKind::State), ResponseType::Ack, Duration::from_secs(9));
        counters.count(Err(BadRequest::UnknownType(7)), ResponseType::Error, Duration::ZERO);
        let counts = counters.read();
        let at = |kind: &str, answer: &str| {
            let row = REQUEST_KINDS.iter().position(|name| *name == kind).unwrap();
            counts.by[row][ANSWERS.iter().position(|name| *name == answer).unwrap()]
        };
        assert_eq!((at("plug", "ack"), at("plug", "busy"), at("plug", "nack")), (1, 1, 0));
        assert_eq!((at("unplug_all", "ack"), at("state", "ack"), at("malformed", "error")), (1, 1, 1));
        assert_eq!(counts.plug.parts[..3], [1, 1, 0], "a bound belongs to its part");
        assert_eq!(counts.plug.sum, Duration::from_micros(201));
        assert_eq!(counts.unplug.parts[LATENCY_BOUNDS.len()], 1, "beyond all bounds");
        assert_eq!(counts.unplug.parts.iter().sum::<u64>(), 1, "a request for a state moves nothing");
        assert!(LATENCY_BOUNDS.is_sorted());
    }
}
