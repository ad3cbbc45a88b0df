//! Guests that ask for a reset.

use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use tidevm_abi::{Report, Size};

use super::*;
use crate::bus::I8042_RESET;
use crate::state::{MemStatus, WaitError};
use crate::sync::lock;
use crate::vm::LookResult;
use crate::vm::events::RESET_PAUSE;
use crate::vm::shared::VmShared;

/// mov al, 0xfe; out 0x64, al; hlt
const RESET: [u8; 5] = [0xb0, I8042_RESET, 0xe6, 0x64, 0xf4];

/// Resets at every [`go`].
pub(super) fn resetting() -> Kernel {
    // WAIT in 32-bit code, where an absolute address needs no SIB byte.
    let mut code = vec![0xa1, 0x00, 0x00, 0x18, 0x00, 0x85, 0xc0, 0x74, 0xf7];
    code.extend(RESET);
    Kernel::new(&code)
}

pub(super) fn await_resets(vm: &Vm, count: u64) {
    vm.wait(LIMIT, "a reset", |state| (state.resets >= count).then_some(())).unwrap();
}

/// As a vCPU does whose guest resets the machine.
fn ask(shared: &VmShared) {
    shared.reset_due.store(true, Ordering::Release);
    shared.tell_of_reset();
}

/// Whether the VM had `resets` resets and has no more.
pub(super) fn is_at_rest(vm: &Vm, resets: u64) -> bool {
    std::thread::sleep(2 * RESET_PAUSE);
    vm.state().resets == resets && !vm.state().ended()
}

#[test]
fn a_guest_that_resets_starts_again_with_fresh_memory() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(Config { cpus: 2, ..kernel.config() }).unwrap();
    drop(kernel);
    for count in 1..=3 {
        let (started, room) = (vm.exits()[0].io, vm.shared.devices.serial.room());
        vm.shared.devices.serial.input(b"to the guest before the reset");
        go(&vm);
        await_resets(&vm, count);
        // If memory were not fresh, the guest would reset again at once.
        assert!(is_at_rest(&vm, count), "{:?}", vm.state());
        assert_eq!((vm.exits()[0].io, vm.shared.devices.serial.room()), (started + 1, room));
    }
    assert_eq!(vm.stop(LIMIT), FORCED);
}

#[test]
fn without_reboot_a_reset_is_a_death() {
    if !kvm() {
        return;
    }
    // mov dx, 0x3f8; mov al, '!'; out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee];
    code.extend(RESET);
    let kernel = Kernel::new(&code);
    let vm = start(Config { reboot: false, ..kernel.config() }).unwrap();
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    assert_eq!(vm.state().resets, 0);
    let report = "  last on the serial port:\n  | !".to_owned();
    assert_eq!(vm.stop(LIMIT), End::Died(Death { kind: DeathKind::UnwantedReset, text: report }));
}

#[test]
fn calls_end_with_the_guest_that_they_were_made_to() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(kernel.config()).unwrap();
    let call = vm.call(Op::Stats).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| vm.answer(call, LIMIT, "an answer"));
        std::thread::sleep(Duration::from_millis(50));
        go(&vm);
        assert_eq!(waiter.join().unwrap(), Err(WaitError::Reset));
    });
    // The restarted guest does not get the calls that were made to the guest before the reset.
    await_resets(&vm, 1);
    assert!(lock(&vm.shared.devices.control).call(tidevm_abi::Call { id: 9, op: Op::Stats }).is_ok());
    assert_eq!(lock(&vm.shared.devices.control).unread(), 1);
}

#[test]
fn several_vcpus_that_reset_reset_once() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(kernel.config()).unwrap();
    let hardware = lock(&vm.hardware);
    go(&vm);
    // The second request comes when the event loop has already acknowledged the first.
    std::thread::sleep(Duration::from_millis(100));
    ask(&vm.shared);
    drop(hardware);
    await_resets(&vm, 1);
    assert!(is_at_rest(&vm, 1), "{:?}", vm.state());
}

#[test]
fn a_guest_that_resets_without_end_is_stopped_at_once() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(&RESET);
    for resets in [0, 1, 5] {
        let started = Instant::now();
        let vm = start(kernel.config()).unwrap();
        await_resets(&vm, resets);
        let start = Instant::now();
        assert!(start - started >= RESET_PAUSE * resets.saturating_sub(1) as u32, "{:?}", start - started);
        assert_eq!(vm.stop(LIMIT), FORCED);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn tidevms_own_guest_is_up_again_and_follows_again() {
    const SIZE: u64 = 128 * MIB;
    const BOOT: Duration = Duration::from_secs(60);
    if !kvm() {
        return;
    }
    let hotplug = vec![HotplugConfig { requested: Size(SIZE), ..HotplugConfig::new(Size::gib(1)) }];
    let vm = start(Config { console: ConsoleMode::Off, hotplug, ..Config::default() }).unwrap();
    for resets in 0..=1 {
        let up = |state: &crate::state::State| {
            let there = state.ready.is_some()
                && state.mem[0].report.is_some_and(|report| report.plugged == Size(SIZE));
            (state.resets == resets && there).then(|| state.mem[0].plugged)
        };
        assert_eq!(vm.wait(BOOT, "the guest with its memory", up), Ok(Size(SIZE)));
        let call = vm.call(Op::Check).unwrap();
        assert!(matches!(vm.answer(call, BOOT, "an answer"), Ok(tidevm_abi::Answer::Checked { .. })));
        if resets == 0 {
            vm.reset().unwrap();
        }
    }
    assert_eq!(vm.state().bad_records, 0);
    assert_eq!(vm.stop(LIMIT), End::PoweredOff);
}

/// A pipe that takes nothing more, and the path of its end for writing.
fn full_pipe() -> ((PipeReader, PipeWriter), PathBuf) {
    let (reader, writer) = std::io::pipe().unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", writer.as_raw_fd()));
    let mut filler = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    while filler.write(&[b'.'; 4096]).is_ok() {}
    ((reader, writer), path)
}

/// A vCPU that waits for its console to be read is stopped like any other.
#[test]
fn a_console_that_nobody_reads_holds_up_neither_reset_nor_end() {
    if !kvm() {
        return;
    }
    // mov dx, 0x3f8; mov al, 10; out dx, al; jmp -3
    let kernel = Kernel::new(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'\n', 0xee, 0xeb, 0xfd]);
    let (_pipe, path) = full_pipe();
    let vm = start(Config { console: ConsoleMode::File(path), ..kernel.config() }).unwrap();
    // The pipe is full, so a write to it waits.
    let await_stuck = || {
        let start = Instant::now();
        while !vm.shared.devices.serial.is_writing() {
            assert!(start.elapsed() < LIMIT, "{:?}", vm.exits());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    await_stuck();
    vm.reset().unwrap();
    // A vCPU that stays in its write makes a death of the reset.
    await_resets(&vm, 1);
    await_stuck();
    let shared = Arc::downgrade(&vm.shared);
    assert_eq!(vm.stop(LIMIT), FORCED);
    assert!(shared.upgrade().is_none(), "a thread of the VM was left behind");
}

#[test]
fn a_guest_that_resets_instead_of_powering_off_is_not_waited_for() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let up = || {
        let vm = start(kernel.config()).unwrap();
        vm.shared.state.report(Report::Ready { cpus: 1, mem_devices: 1 });
        vm
    };
    match up().stop(Duration::from_millis(50)) {
        End::Forced { asked: true, vcpus } => {
            assert!(matches!(vcpus[0].seen, LookResult::State(_)), "{vcpus:?}")
        }
        other => panic!("{other:?}"),
    }
    let vm = up();
    let shared = Arc::clone(&vm.shared);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let end = scope.spawn(|| vm.stop(LIMIT));
        std::thread::sleep(Duration::from_millis(50));
        ask(&shared);
        let end = end.join().unwrap();
        assert!(matches!(&end, End::Died(death) if death.kind == DeathKind::ResetAtEnd), "{end:?}");
    });
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
}

/// The event loop does not come to the reset any more, because it waits for the lock that the end of the VM needs.
#[test]
fn a_reset_that_the_end_overtakes_is_seen() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    for (reboot, ready, wanted) in [
        (false, false, Some(DeathKind::UnwantedReset)),
        (true, true, Some(DeathKind::ResetAtEnd)),
        // A guest that is not up is not asked for anything, and may start again as often as it wants.
        (true, false, None),
    ] {
        let vm = start(Config { reboot, ..kernel.config() }).unwrap();
        if ready {
            vm.shared.state.report(Report::Ready { cpus: 1, mem_devices: 1 });
        }
        let (shared, hardware) = (Arc::clone(&vm.shared), Arc::clone(&vm.hardware));
        let busy = lock(&hardware);
        go(&vm);
        let start = Instant::now();
        while !shared.reset_due.load(Ordering::Acquire) {
            assert!(start.elapsed() < LIMIT);
            std::thread::yield_now();
        }
        std::thread::scope(|scope| {
            let end = scope.spawn(|| vm.stop(Duration::from_millis(50)));
            while !shared.over.load(Ordering::Acquire) {
                assert!(start.elapsed() < LIMIT);
                std::thread::yield_now();
            }
            drop(busy);
            let end = end.join().unwrap();
            let kind = if let End::Died(death) = &end { Some(death.kind) } else { None };
            assert_eq!(kind, wanted, "{end:?}");
        });
    }
}

/// A reset interrupts the driver on its way to the target. The restarted driver has the same target.
#[test]
fn a_reset_in_a_burst_of_plugs_starts_the_way_anew() {
    const TARGET: u64 = 4 << 30;
    const BOOT: Duration = Duration::from_secs(60);
    if !kvm() {
        return;
    }
    let vm = start(Config {
        console: ConsoleMode::Off,
        hotplug: vec![HotplugConfig::new(Size(TARGET))],
        ..Config::default()
    })
    .unwrap();
    vm.wait(BOOT, "the guest", |state| state.ready).unwrap();
    let at = |size, mem: &MemStatus| mem.report.is_some_and(|report| report.plugged == size);
    for resets in 1..=3 {
        vm.resize(0, Size(TARGET)).unwrap();
        // All is plugged at once, and is not online for a while.
        let under_way = |mem: &MemStatus| (mem.plugged > Size(0)).then(|| !at(Size(TARGET), mem));
        let under_way = vm.wait(BOOT, "memory", |state| under_way(&state.mem[0])).unwrap();
        vm.reset().unwrap();
        assert!(under_way, "it was there already");
        let at_reset =
            vm.wait(LIMIT, "a reset", |state| (state.resets == resets).then(|| state.clone())).unwrap();
        assert_eq!(
            (at_reset.mem[0].plugged, at_reset.mem[0].requested, at_reset.ready),
            (Size(0), Size(TARGET), None)
        );
        vm.wait(BOOT, "all of it", |state| {
            (state.ready.is_some() && at(Size(TARGET), &state.mem[0])).then_some(())
        })
        .unwrap();
        let call = vm.call(Op::Check).unwrap();
        assert!(matches!(vm.answer(call, BOOT, "an answer"), Ok(tidevm_abi::Answer::Checked { .. })));
        vm.resize(0, Size(0)).unwrap();
        vm.wait(BOOT, "nothing", |state| at(Size(0), &state.mem[0]).then_some(())).unwrap();
    }
    assert_eq!(vm.state().bad_records, 0);
    assert_eq!(vm.stop(LIMIT), End::PoweredOff);
}

/// Before the step the guest is up with its devices as they were; after it the guest is gone, its devices are as at
/// the start, and the reset is counted. A `resize 0` once met the devices of a reset whose memory was still held.
#[test]
fn a_reset_is_one_step_for_a_waiter() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(kernel.config()).unwrap();
    vm.shared.state.report(Report::Ready { cpus: 1, mem_devices: 1 });
    // Facts that a driver would have brought about. The memory makes the reset take a moment.
    vm.shared.memory.plug(0, at(HOLE_END..HOLE_END + 2 * MIB)).unwrap();
    let started = MemStatus { generation: 0, ..vm.state().mem[0].clone() };
    vm.shared.state.change(|state| {
        (state.mem[0].plugged, state.mem[0].driver, state.mem[0].seen) = (Size(2 * MIB), true, Some(0));
    });
    let call = vm.call(Op::Stats).unwrap();
    let before = vm.state();
    go(&vm);
    let after = vm.wait(LIMIT, "a change", |state| {
        let same = state.mem == before.mem && state.ready == before.ready && state.resets == 0;
        (!same).then(|| state.clone())
    });
    let after = after.unwrap();
    assert_eq!((after.resets, after.ready, &after.mem[0]), (1, None, &started));
    assert_eq!(vm.held(0).unwrap(), Size(0));
    assert_eq!(vm.answer(call, Duration::ZERO, "an answer"), Err(WaitError::Reset));
    assert_eq!(vm.stop(LIMIT), FORCED);
}

/// A reset gives back all memory that the guest used.
#[test]
fn resets_give_back_what_was_plugged() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(kernel.config()).unwrap();
    for resets in 1..=5 {
        for run in 0..50 {
            let start = HOLE_END + run * 8 * MIB;
            vm.shared.memory.plug(0, at(start..start + 2 * MIB)).unwrap();
            vm.shared.memory.view().write_obj(resets, GuestAddress(start)).unwrap();
        }
        assert_ne!(vm.held(0).unwrap(), Size(0));
        go(&vm);
        await_resets(&vm, resets);
        assert_eq!(vm.held(0).unwrap(), Size(0));
    }
    assert_eq!(vm.stop(LIMIT), FORCED);
}

/// Ending a VM does not wait for the lock that a reset holds, and a reset that sees the end does nothing.
#[test]
fn an_end_comes_before_a_reset_that_waits() {
    if !kvm() {
        return;
    }
    let kernel = resetting();
    let vm = start(kernel.config()).unwrap();
    let (shared, hardware) = (Arc::clone(&vm.shared), Arc::clone(&vm.hardware));
    let busy = lock(&hardware);
    go(&vm);
    let until = |done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < LIMIT);
            std::thread::yield_now();
        }
    };
    until(&|| vm.exits()[0].io == 1);
    std::thread::scope(|scope| {
        let end = scope.spawn(|| vm.stop(LIMIT));
        until(&|| shared.over.load(Ordering::Acquire));
        drop(busy);
        assert_eq!(end.join().unwrap(), FORCED);
    });
    assert_eq!(shared.state.snapshot().resets, 0);
}
