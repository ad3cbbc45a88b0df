//! Large buffers for every CPU while they are brought up, as of a tracer (Linux `trace_buf_size=`): what
//! asks for much memory before all of boot memory is initialised. The buffers are for good.

use tidevm_mm::{Gfp, Order, PAGE_SIZE};

use crate::MM;
use crate::panic::out_of_memory;

/// Takes `size` bytes for CPU `index`.
///
/// # Panics
/// When they do not fit: naming the CPU, what it wanted and what there was.
pub fn allocate(index: usize, size: u64) {
    let wanted = size.div_ceil(PAGE_SIZE);
    let stats = MM.stats();
    // What is not initialised yet counts: it will be by the time that it is needed.
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
