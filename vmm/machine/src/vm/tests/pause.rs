//! Guests that stand still, and threads beside a VM.

use std::os::fd::AsRawFd;
use std::sync::mpsc::sync_channel;
use std::thread::{scope, sleep};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::super::{Beside, Companion, LookResult, NothingToPause, Purpose, VmHandle};
use super::{Config, Confinement, Duration, End, FORCED, Instant, Kernel, LIMIT, StartError, Vm, kvm, start};

/// out 0x80, al; jmp to the out
const WRITES: &[u8] = &[0xe6, 0x80, 0xeb, 0xfc];

/// A VM with threads beside it, locked in, in a thread of its own.
fn beside<T: Send>(
    config: Config,
    companions: Vec<Companion>,
    session: impl FnOnce(Vm) -> T + Send,
) -> Result<T, StartError> {
    let config = Config { confinement: Confinement::STRICT, ..config };
    config.confinement.prepare_heap();
    let run = || Vm::start_with(config, companions).map(session);
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// Waits until `found` holds.
fn until(what: &str, mut found: impl FnMut() -> bool) {
    let start = Instant::now();
    while !found() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(1));
    }
}

fn await_pause(vm: &VmHandle) {
    until("all vCPUs out of the guest", || vm.pause().unwrap());
}

#[test]
fn a_guest_that_stands_still_runs_no_code_until_it_is_resumed() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(WRITES);
    beside(Config { cpus: 2, ..kernel.config() }, Vec::new(), pause_and_resume).unwrap();
}

fn pause_and_resume(vm: Vm) {
    let writes = |vm: &Vm| vm.exits()[0].io;
    for _ in 0..3 {
        let before = writes(&vm);
        until("the guest runs", || writes(&vm) > before);
        await_pause(&vm);
        assert!(vm.state().paused);
        let (at_rest, time) = (writes(&vm), vm.now());
        sleep(Duration::from_millis(50));
        let seen: Vec<_> = vm.vcpus().into_iter().map(|report| report.seen).collect();
        assert!(
            seen.iter().all(|seen| matches!(seen, LookResult::State(_))),
            "it can be looked at: {seen:?}"
        );
        assert_eq!((writes(&vm), vm.now()), (at_rest, time), "no code runs, and no limit passes");
        vm.resume();
        assert!(!vm.state().paused);
    }
    let (start, time) = (vm.now(), Duration::from_millis(20));
    drop(vm.wait(time, "nothing", |_| None::<()>));
    assert!(vm.now() - start >= time, "limits pass again");
    assert_eq!(vm.stop(LIMIT), FORCED);
}

/// The other thread's pause could come between the two writes of a resume. Then the guest stood still, the state said
/// that it ran, and the limits of all waits passed.
#[test]
fn the_wish_to_stand_still_and_the_state_change_together() {
    let kernel = Kernel::new(WRITES);
    let vm = start(kernel.config()).unwrap();
    let pause = &vm.shared.pause;
    for _ in 0..3 {
        await_pause(&vm);
        scope(|threads| {
            // The lock of the state holds the resume between its two writes.
            vm.shared.state.change(|_| {
                threads.spawn(|| vm.resume());
                until("the first write of the resume", || !pause.is_wanted());
                threads.spawn(|| assert!(pause.begin()));
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(100) {
                    assert!(!pause.is_wanted(), "a pause began while the resume was half done");
                    sleep(Duration::from_millis(1));
                }
            });
        });
        assert_eq!((pause.is_wanted(), vm.state().paused), (true, true), "the pause came last");
        vm.resume();
        assert_eq!((pause.is_wanted(), vm.state().paused), (false, false));
    }
    assert_eq!(vm.stop(LIMIT), FORCED);
}

#[test]
fn a_guest_that_stands_still_is_reset_and_stands_still() {
    let kernel = Kernel::new(WRITES);
    let vm = start(Config { cpus: 2, resets: true, ..kernel.config() }).unwrap();
    let writes = |vm: &Vm| vm.exits()[0].io;
    until("the guest runs", || writes(&vm) > 0);
    await_pause(&vm);
    let at_rest = writes(&vm);
    for resets in 1..=2 {
        vm.reset().unwrap();
        until("the reset", || vm.state().resets == resets);
        await_pause(&vm);
        sleep(Duration::from_millis(50));
        assert_eq!((writes(&vm), vm.state().paused), (at_rest, true), "the new guest runs no code");
    }
    vm.resume();
    until("the new guest runs", || writes(&vm) > at_rest);
    assert_eq!(vm.stop(LIMIT), FORCED);
}

#[test]
fn a_vm_ends_whose_guest_stands_still() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(WRITES);
    let end = |vm: Vm| {
        let handle = vm.handle();
        await_pause(&handle);
        handle.shared.state.report(tidevm_abi::Report::Ready { cpus: 1, mem_devices: 0 });
        let limit = Duration::from_millis(100);
        assert!(matches!(vm.stop(limit), End::Forced { asked: true, .. }), "the limit of the end passes");
        assert_eq!(handle.pause(), Err(NothingToPause));
        assert!(!handle.state().paused);
    };
    beside(kernel.config(), Vec::new(), end).unwrap();
}

/// Waits for one of two events, and returns 0 or 1. `epoll` was made when that was allowed.
fn await_either(epoll: &Epoll, zero: &impl AsRawFd, one: &EventFd) -> u64 {
    for (fd, data) in [(zero.as_raw_fd(), 0), (one.as_raw_fd(), 1)] {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data)).unwrap();
    }
    let mut found = [EpollEvent::default()];
    assert_eq!(epoll.wait(15_000, &mut found).unwrap(), 1, "no event within 15 s");
    for fd in [zero.as_raw_fd(), one.as_raw_fd()] {
        epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default()).unwrap();
    }
    found[0].data()
}

#[test]
fn a_thread_beside_a_vm_sees_its_changes_and_ends_with_it() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(WRITES);
    let (tell, told) = sync_channel(9);
    let body = move |vm: VmHandle, beside: Beside| {
        let (changes, epoll) = (vm.subscribe().unwrap(), Epoll::new().unwrap());
        sleep(Duration::from_millis(50));
        tell.send(if vm.exits()[0].io == 0 { "first" } else { "late" }).unwrap();
        let over = beside.lock_in().unwrap();
        while await_either(&epoll, &changes, &over) == 0 {
            changes.clear();
            if vm.state().paused {
                tell.send("paused").unwrap();
            }
        }
        tell.send("over").unwrap();
    };
    let companion = Companion { name: "beside", purpose: Purpose::Serve, body: Box::new(body) };
    let session = |vm: Vm| {
        assert_eq!(told.recv_timeout(LIMIT), Ok("first"), "no guest code runs before it is locked in");
        await_pause(&vm);
        assert_eq!(told.recv_timeout(LIMIT), Ok("paused"));
        drop(vm);
        told
    };
    let told = beside(kernel.config(), vec![companion], session).unwrap();
    assert!(told.try_iter().any(|word| word == "over"), "the VM waits for it");
}

#[test]
fn a_vm_does_not_start_without_its_companion() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(WRITES);
    let companion =
        Companion { name: "beside", purpose: Purpose::Serve, body: Box::new(|_, beside| drop(beside)) };
    let error = beside(kernel.config(), vec![companion], drop).unwrap_err().to_string();
    assert!(error.contains("start a thread beside the VM"), "{error}");
}
