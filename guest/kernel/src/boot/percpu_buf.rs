//! One large buffer per CPU, allocated while the CPUs are brought up: a user that wants much memory before
//! all boot memory is initialised.
//!
//! Mirrors the ring buffers of Linux's tracer (`trace_buf_size=`). The buffers are never freed.

use tidevm_abi::Size;
use tidevm_mm::{Gfp, Order};

use crate::cpu::panic::out_of_memory;
use crate::mem::MM;

/// Takes memory of `size` for CPU `index`.
///
/// # Panics
/// When there is not enough memory; the message names the CPU, the pages wanted and the pages free.
pub fn allocate(index: usize, size: Size) {
    let wanted = size.pages();
    if wanted == 0 {
        return;
    }
    let stats = MM.stats();
    // Memory that is not initialised yet counts as free: the allocations below have it initialised.
    let there: u64 = stats.zones.iter().map(|zone| zone.all_free() + zone.pcp).sum();
    assert!(wanted <= there, "percpu_buf: CPU {index} wants {wanted} pages, and {there} are free");
    let mut left = wanted;
    for order in (0..=Order::MAX.get()).rev().map(Order::new) {
        let block = u64::from(order.pages());
        while left >= block && MM.alloc_pages(order, Gfp::Kernel).is_ok() {
            left -= block;
        }
    }
    if left > 0 {
        out_of_memory(format_args!(
            "percpu_buf: out of memory on CPU {index}, {left} of {wanted} pages short; {there} were free"
        ));
    }
}
