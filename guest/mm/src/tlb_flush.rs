//! Tickets of TLB flushes: a CPU waits until every other CPU has dropped the translations that it took back.
//!
//! Mirrors Linux `flush_tlb_all`, and its generations of an address space (`tlb_gen`). Differs on purpose: there is one
//! address space, so every flush is of everything, and requests share one counter instead of a call queue.
//!
//! Invariants, which `sync/tests/tlb_flush.rs` proves in every execution that loom finds:
//! - A CPU that has served a ticket has flushed its TLB after it read the ticket. Translations that were taken back
//!   before the request are in no TLB then.
//! - What a CPU did by its old translations happens before the end of the wait for it.

use crate::sync::AtomicU64;
use crate::sync::Ordering::{Acquire, Release};

/// A request that every CPU flushes its TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushTicket(u64);

/// The requests of all CPUs.
///
/// ```
/// use tidevm_mm::{FlushTickets, ServedTickets};
///
/// static WANTED: FlushTickets = FlushTickets::new();
/// static SERVED: ServedTickets = ServedTickets::new();
///
/// // A CPU changes page tables, takes a ticket, and interrupts the others.
/// let ticket = WANTED.request();
/// assert!(!SERVED.has(ticket));
/// // In the interrupt handler of another CPU:
/// let mut flushes = 0;
/// SERVED.serve(&WANTED, || flushes += 1);
/// assert!(SERVED.has(ticket) && flushes == 1);
/// ```
pub struct FlushTickets {
    last: AtomicU64,
}

impl FlushTickets {
    /// No request.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: AtomicU64::new(0) }
    }

    /// A new request. The caller has taken translations back; it interrupts the other CPUs, and waits until each of them
    /// [has served](ServedTickets::has) the ticket.
    #[must_use]
    pub fn request(&self) -> FlushTicket {
        FlushTicket(self.last.fetch_add(1, Release) + 1)
    }
}

impl Default for FlushTickets {
    fn default() -> Self {
        Self::new()
    }
}

/// The requests that one CPU has served.
pub struct ServedTickets {
    last: AtomicU64,
}

impl ServedTickets {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: AtomicU64::new(0) }
    }

    /// This CPU flushes its TLB by `flush`, for the requests so far.
    pub fn serve(&self, tickets: &FlushTickets, flush: impl FnOnce()) {
        // Read before the flush: a request that comes during the flush raises an interrupt of its own.
        let last = tickets.last.load(Acquire);
        flush();
        self.last.fetch_max(last, Release);
    }

    /// Whether the CPU has flushed its TLB for `ticket`.
    #[must_use]
    pub fn has(&self, ticket: FlushTicket) -> bool {
        self.last.load(Acquire) >= ticket.0
    }
}

impl Default for ServedTickets {
    fn default() -> Self {
        Self::new()
    }
}
