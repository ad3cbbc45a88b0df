//! Resets that the embedder asks for: [`Vm::reset`].

use std::sync::Arc;

use tidevm_abi::Report;

use super::reset::{await_resets, is_at_rest, resetting};
use super::*;
use crate::sync::lock;
use crate::vm::ResetRefused;

/// What the guest does is another thing: without reboot, its own reset is its death.
#[test]
fn the_embedder_resets_the_machine_also_without_reboot() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(Config { reboot: false, resets: true, cpus: 2, ..kernel.config() }).unwrap();
    drop(kernel);
    for count in 1..=2 {
        vm.shared.memory.plug(0, at(HOLE_END..HOLE_END + 2 * MIB)).unwrap();
        vm.shared.memory.view().write_obj(count, GuestAddress(HOLE_END)).unwrap();
        vm.reset().unwrap();
        await_resets(&vm, count);
        assert_eq!(vm.held(0).unwrap(), Size(0));
        assert!(is_at_rest(&vm, count), "{:?}", vm.state());
    }
    go(&vm);
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    assert_eq!(vm.state().resets, 2);
    let end = vm.stop(LIMIT);
    assert!(matches!(&end, End::Died(death) if death.kind == DeathKind::UnwantedReset), "{end:?}");
}

/// The guest asks while the embedder's reset is under way.
#[test]
fn a_reset_of_the_embedder_hides_none_of_the_guest() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(Config { reboot: false, resets: true, ..kernel.config() }).unwrap();
    let hardware = lock(&vm.hardware);
    vm.reset().unwrap();
    go(&vm);
    vm.wait(Duration::from_millis(200), "nothing", |_| None::<()>).unwrap_err();
    drop(hardware);
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    assert_eq!((vm.state().resets, vm.state().death.unwrap().kind), (0, DeathKind::UnwantedReset));
}

#[test]
fn a_machine_that_was_not_made_for_resets_refuses_them() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(Config { reboot: false, ..kernel.config() }).unwrap();
    assert_eq!(vm.reset(), Err(ResetRefused));
    assert!(is_at_rest(&vm, 0), "{:?}", vm.state());
    assert_eq!(vm.stop(LIMIT), FORCED);
}

#[test]
fn requests_of_the_embedder_before_a_reset_are_one_reset() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(kernel.config()).unwrap();
    let hardware = lock(&vm.hardware);
    vm.reset().unwrap();
    // The event loop has acknowledged the first request and waits for the lock.
    std::thread::sleep(Duration::from_millis(100));
    vm.reset().unwrap();
    drop(hardware);
    await_resets(&vm, 1);
    assert!(is_at_rest(&vm, 1), "{:?}", vm.state());
    vm.reset().unwrap();
    await_resets(&vm, 2);
    assert!(is_at_rest(&vm, 2), "{:?}", vm.state());
}

/// The end does not ask a guest for anything that is about to be reset, and takes the embedder's reset for none of the
/// guest.
#[test]
fn an_end_that_overtakes_the_embedders_reset_is_no_death() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(kernel.config()).unwrap();
    vm.shared.state.report(Report::Ready { cpus: 1, mem_devices: 1 });
    let hardware = Arc::clone(&vm.hardware);
    let busy = lock(&hardware);
    vm.reset().unwrap();
    std::thread::scope(|scope| {
        let end = scope.spawn(|| vm.stop(LIMIT));
        std::thread::sleep(Duration::from_millis(100));
        drop(busy);
        assert_eq!(end.join().unwrap(), FORCED);
    });
}
