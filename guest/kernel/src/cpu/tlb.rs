//! TLB flushes on all CPUs.
//!
//! Mirrors Linux `flush_tlb_all`. It differs on purpose: there is one address space, so every flush is of
//! everything, and concurrent flushes share one counter of tickets instead of a call queue.
//!
//! Invariant: a CPU that stores ticket `t` in `flushed` has flushed its TLB after it read `t` from `FLUSHES`.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::time::Instant;
use crate::cpu::{self, lapic};
use crate::mem::paging;

/// Number of flushes that were requested from other CPUs.
static FLUSHES: AtomicU64 = AtomicU64::new(0);

/// Flushes the TLBs of all CPUs; returns when all are flushed.
///
/// # Panics
/// When a CPU does not answer within a minute: a host that shares its CPUs, or that is suspended, may keep a
/// CPU from running for long.
pub fn flush_all() {
    paging::flush_tlb();
    let (me, online) = (cpu::this(), cpu::online());
    if online == 1 {
        return;
    }
    let ticket = FLUSHES.fetch_add(1, Ordering::SeqCst) + 1;
    for index in (0..online).filter(|&index| index != me) {
        lapic::request_flush(index);
    }
    let deadline = Instant::in_millis(60_000);
    for index in (0..online).filter(|&index| index != me) {
        while cpu::area(index).flushed.load(Ordering::Acquire) < ticket {
            assert!(!deadline.has_passed(), "CPU {index} did not flush its TLB within a minute");
            core::hint::spin_loop();
        }
    }
}

/// Flushes this CPU's TLB for the requests so far; called by the interrupt handler.
pub fn serve() {
    // Read before the flush: a request that comes during the flush raises an interrupt of its own.
    let ticket = FLUSHES.load(Ordering::Acquire);
    paging::flush_tlb();
    cpu::area(cpu::this()).flushed.fetch_max(ticket, Ordering::Release);
}
