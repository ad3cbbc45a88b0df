//! TLB flushes on all CPUs.
//!
//! Mirrors Linux `flush_tlb_all`. It differs on purpose: there is one address space, so every flush is of
//! everything.
//!
//! Invariant: a CPU serves tickets where it is interrupted, so the code that is interrupted is through with its old
//! translations or has not used them yet. What follows from that is said at [`FlushTickets`].

use core::sync::atomic::Ordering;

use tidevm_mm::FlushTickets;

use crate::cpu::{self, lapic, wait};
use crate::mem::paging;

static TICKETS: FlushTickets = FlushTickets::new();

/// Longest time until a CPU has flushed its TLB, in milliseconds.
const MILLIS: u64 = 60_000;

/// Flushes the TLBs of all CPUs; returns when all are flushed.
///
/// # Panics
/// When a CPU does not answer within a minute.
pub fn flush_all() {
    flush();
    let (me, online) = (cpu::this(), cpu::online());
    if online == 1 {
        return;
    }
    let ticket = TICKETS.request();
    for index in (0..online).filter(|&index| index != me) {
        lapic::request_flush(index);
    }
    for index in (0..online).filter(|&index| index != me) {
        wait::until(MILLIS, format_args!("CPU {index} did not flush its TLB"), || {
            cpu::area(index).flushed.has(ticket)
        });
    }
}

/// Flushes this CPU's TLB.
fn flush() {
    paging::flush_tlb();
    cpu::area(cpu::this()).flushes.fetch_add(1, Ordering::Relaxed);
}

/// Flushes this CPU's TLB for the requests so far; called by the interrupt handler.
pub fn serve() {
    cpu::area(cpu::this()).flushed.serve(&TICKETS, flush);
}
