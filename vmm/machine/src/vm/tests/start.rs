//! What a start takes of boot memory.

use super::{Kernel, kvm, start};

/// A kernel of one page: what lies in boot memory when the guest halts is what the start wrote, in small pages.
#[test]
fn a_start_takes_a_few_small_pages_of_boot_memory() {
    if !kvm() {
        return;
    }
    // cli; hlt
    let kernel = Kernel::new(&[0xfa, 0xf4]);
    let vm = start(kernel.config()).unwrap();
    let held = vm.boot_memory_held().unwrap();
    assert!((1..=64 << 10).contains(&held.0), "{held}");
    drop(vm);
}
