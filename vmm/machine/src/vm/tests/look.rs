//! Guests that do not answer, looked at.

use super::*;
use crate::sync::lock;
use crate::vm::{Activity, LookResult, VcpuReport, VcpuState};

/// Looks at the vCPUs of `vm` until the state of the first one is as wanted.
fn look_until(vm: &Vm, wanted: impl Fn(&VcpuState) -> bool) -> (VcpuState, Vec<VcpuReport>) {
    let start = Instant::now();
    loop {
        let reports = vm.vcpus();
        if let LookResult::State(state) = &reports[0].seen
            && wanted(state)
        {
            return (*state.clone(), reports);
        }
        assert!(start.elapsed() < LIMIT, "{reports:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The address of instruction `offset` of a kernel of [`Kernel::new`].
fn instruction(offset: u64) -> u64 {
    0x10_0000 + 196 + offset
}

#[test]
fn a_guest_that_spins_or_halts_with_interrupts_off_is_seen() {
    if !kvm() {
        return;
    }
    // cli or sti; jmp -2 | hlt; jmp -3
    let spin = |flag| vec![flag, 0xeb, 0xfe];
    let halt = |flag| vec![flag, 0xf4, 0xeb, 0xfd];
    for (code, activity, interrupts, rip) in [
        (spin(0xfa), Activity::Running, false, instruction(1)),
        (halt(0xfa), Activity::Halted, false, instruction(2)),
        (halt(0xfb), Activity::Halted, true, instruction(2)),
    ] {
        let kernel = Kernel::new(&code);
        let vm = start(Config { cpus: 2, ..kernel.config() }).unwrap();
        let (state, reports) = look_until(&vm, |state| (state.activity, state.rip) == (activity, rip));
        assert_eq!(state.interrupts, interrupts);
        assert!(state.registers.contains(&("cr0", 0x11)), "{:x?}", state.registers);
        assert_eq!(
            (state.requested, state.in_service, state.exception, state.nmi),
            (vec![], vec![], None, false)
        );
        assert_eq!((reports.len(), reports[1].vcpu), (2, 1));
        let LookResult::State(second) = &reports[1].seen else { panic!("{reports:?}") };
        assert_eq!(second.activity, Activity::Waiting);
        let start = Instant::now();
        assert_eq!(vm.stop(LIMIT), FORCED);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn an_interrupt_that_waits_is_seen() {
    if !kvm() {
        return;
    }
    // The local APIC on, and vector 0x31 to itself: mov dword [0xfee000f0], 0x1ff; mov dword [0xfee00300], 0x44031
    let mut code = vec![0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00];
    code.extend([0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x31, 0x40, 0x04, 0x00]);
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp -3
    let kernel = Kernel::new(&code);
    let vm = start(kernel.config()).unwrap();
    let (state, reports) = look_until(&vm, |state| !state.requested.is_empty());
    assert_eq!((state.requested, state.interrupts), (vec![0x31], false));
    assert!(reports[0].to_string().contains("irr 31  isr -"), "{}", reports[0]);
}

#[test]
fn a_look_changes_nothing() {
    if !kvm() {
        return;
    }
    // mov eax, [GO]; test eax, eax; jz -9
    let mut code = vec![0xa1, 0x00, 0x00, 0x18, 0x00, 0x85, 0xc0, 0x74, 0xf7];
    code.extend(POWER_OFF);
    let kernel = Kernel::new(&code);
    let vm = start(kernel.config()).unwrap();
    for _ in 0..20 {
        look_until(&vm, |_| true);
    }
    go(&vm);
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    let start = Instant::now();
    while vm.vcpus()[0].seen != LookResult::Ended {
        assert!(start.elapsed() < LIMIT);
    }
    assert_eq!(vm.stop(LIMIT), End::PoweredOff);
}

#[test]
fn a_machine_that_is_reset_is_not_waited_for() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(&[0xf4, 0xeb, 0xfd]); // hlt; jmp -3
    let vm = start(kernel.config()).unwrap();
    let hardware = lock(&vm.hardware);
    assert_eq!(vm.vcpus(), [VcpuReport { vcpu: 0, seen: LookResult::Reset }]);
    drop(hardware);
}

/// Each of four threads sees the vCPU as often as it looks. Without turns, one of two looks at once is told of a reset
/// that nobody made.
#[test]
fn threads_that_look_at_once_take_turns() {
    if !kvm() {
        return;
    }
    let kernel = Kernel::new(&[0xf4, 0xeb, 0xfd]); // hlt; jmp -3
    let vm = start(kernel.config()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let reports = vm.vcpus();
                    assert!(matches!(reports[0].seen, LookResult::State(_)), "{reports:?}");
                }
            });
        }
    });
}

/// tidevm's own guest halts, with interrupts on, in a function that has a name.
#[test]
fn the_report_names_the_function() {
    if !kvm() {
        return;
    }
    let vm = start(Config { console: ConsoleMode::Off, cpus: 2, ..Config::default() }).unwrap();
    vm.wait(Duration::from_secs(60), "the guest", |state| state.ready).unwrap();
    let (state, _) = look_until(&vm, |state| state.activity == Activity::Halted);
    assert!(state.interrupts && state.symbol.is_some_and(|name| name.contains("::")), "{:?}", vm.vcpus());
    assert_eq!(vm.stop(LIMIT), End::PoweredOff);
}
