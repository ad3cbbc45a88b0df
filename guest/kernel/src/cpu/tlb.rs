//! TLB flushes on all CPUs.
//!
//! Mirrors Linux `flush_tlb_all`. It differs on purpose: there is one address space, so every flush is of
//! everything, and concurrent flushes share one counter of tickets instead of a call queue.
//!
//! Invariant: a CPU that stores ticket `t` in `flushed` has flushed its TLB after it read `t` from `FLUSHES`.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::{self, lapic, wait};
use crate::mem::paging;

/// Number of flushes that were requested from other CPUs.
static FLUSHES: AtomicU64 = AtomicU64::new(0);

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
    let ticket = FLUSHES.fetch_add(1, Ordering::SeqCst) + 1;
    for index in (0..online).filter(|&index| index != me) {
        lapic::request_flush(index);
    }
    for index in (0..online).filter(|&index| index != me) {
        wait::until(MILLIS, format_args!("CPU {index} did not flush its TLB"), || {
            cpu::area(index).flushed.load(Ordering::Acquire) >= ticket
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
    // Read before the flush: a request that comes during the flush raises an interrupt of its own.
    let ticket = FLUSHES.load(Ordering::Acquire);
    flush();
    cpu::area(cpu::this()).flushed.fetch_max(ticket, Ordering::Release);
}
