//! Linux that reboots, powers off, or temporarily has no driver.

use std::io;

use tidevm_machine::{Config, DeathKind, MemStatus, Size};
use tidevm_session::Ended;
use tidevm_session::json::lines;
use tidevm_tests::{Test, run};

use super::follow;
use super::guest::{Linux, MIB, config};

pub const TESTS: &[Test] = &[
    ("linux_reboots_with_memory_plugged", linux_reboots_with_memory_plugged),
    ("linux_keeps_time_and_powers_off", linux_keeps_time_and_powers_off),
    ("linux_that_panics_is_a_death_and_status_4", linux_that_panics_is_a_death_and_status_4),
    ("linux_without_a_driver_is_told_apart", linux_without_a_driver_is_told_apart),
    ("linux_lets_the_driver_go_and_takes_it_again", linux_lets_the_driver_go_and_takes_it_again),
    ("linux_lets_the_driver_go_with_memory_plugged", linux_lets_the_driver_go_with_memory_plugged),
    ("linux_lets_the_driver_go_half_way", linux_lets_the_driver_go_half_way),
];

/// The state of the device at reset number `resets`.
#[track_caller]
fn await_reset(linux: &Linux, resets: u64) -> MemStatus {
    let at_reset =
        linux.await_state("a reset", |state| (state.resets == resets).then(|| state.mem[0].clone()));
    assert_eq!((at_reset.plugged, at_reset.driver), (Size(0), false), "{}", linux.text());
    assert_eq!(linux.vm.held(0).unwrap(), Size(0));
    at_reset
}

fn linux_reboots_with_memory_plugged() {
    let linux = Linux::boot("at=768:reboot", |config| config.reboot = true);
    linux.vm.resize(0, Size(768 * MIB)).unwrap();
    for resets in 1..=3 {
        // Each reset after the first needs the kernel that booted again to follow the target again.
        assert_eq!(await_reset(&linux, resets).requested, tidevm_machine::Size(768 * MIB));
    }
    linux.vm.resize(0, Size(386 * MIB)).unwrap();
    follow(&linux, &[386, 0, 258]);
    let text = linux.text();
    for line in ["Linux version", "Brought up 1 node, 2 CPUs"] {
        assert_eq!(text.matches(line).count(), 4, "{line}:\n{text}");
    }
}

fn linux_keeps_time_and_powers_off() {
    let (console, config) = config("at=0:poweroff");
    let vm = tidevm_tests::start(config);
    let summary = tidevm_session::stay(vm, &mut lines(io::sink())).unwrap();
    let text = std::fs::read_to_string(&console).unwrap();
    std::fs::remove_file(&console).unwrap();
    assert_eq!((summary.ended, summary.resets), (Ended::Done, 0), "{text}");
    for line in ["kvm-clock: Using msrs", "Hypervisor detected: KVM", "reboot: Power down"] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
}

/// Without an initrd the kernel has no root file system, and panics. `panic=-1` has it reset at once.
fn linux_that_panics_is_a_death_and_status_4() {
    let (console, config) = config("");
    let vm = tidevm_tests::start(Config { initrd: None, ..config });
    let ended = tidevm_session::stay(vm, &mut lines(io::sink())).unwrap().ended;
    let text = std::fs::read_to_string(&console).unwrap();
    std::fs::remove_file(&console).unwrap();
    assert!(text.contains("Kernel panic - not syncing"), "{text}");
    let Ended::Died(death) = &ended else { panic!("{ended:?}\n{text}") };
    assert_eq!((death.kind, ended.status()), (DeathKind::UnwantedReset, 4), "{death}\n{text}");
}

fn linux_without_a_driver_is_told_apart() {
    let (console, config) = config("driver=none");
    let session = run(config, "hog 1M movable as a\nresize 256M within 10s");
    std::fs::remove_file(console).unwrap();
    let [(_, hog), (_, resize)] = &session.failures()[..] else { panic!("{:?}", session.failures()) };
    assert!(hog.contains("this needs an agent in the guest"), "{hog}");
    assert!(resize.contains("driver absent"), "{resize}");
}

fn linux_lets_the_driver_go_and_takes_it_again() {
    let linux = Linux::boot("at=0:wait at=0:unbind at=0:wait at=0:bind", |_| ());
    linux.await_state("no driver", |state| (!state.mem[0].driver).then_some(()));
    linux.vm.resize(0, Size(258 * MIB)).unwrap();
    // The first plug may come together with the driver, so the plugged size says nothing yet.
    let early = linux.await_state("the driver", |state| {
        let mem = &state.mem[0];
        (mem.driver || mem.plugged > tidevm_machine::Size(0)).then_some(!mem.driver)
    });
    assert!(!early, "no memory is plugged before there is a driver");
    follow(&linux, &[258, 0]);
}

/// Linux keeps the memory when its driver is unbound, and then refuses to bind a driver to the device again.
fn linux_lets_the_driver_go_with_memory_plugged() {
    let plan = "at=512:wait at=512:unbind at=512:wait at=512:bind at=512:wait at=512:reboot";
    let linux = Linux::boot(&format!("data=64 {plan}"), |config| config.reboot = true);
    linux.resize(0, 512);
    linux.await_state("no driver", |state| (!state.mem[0].driver).then_some(()));
    linux.vm.resize(0, Size(256 * MIB)).unwrap();
    linux.await_seen("its memory", |seen| seen.kib_more == 512 << 10 && seen.data == "intact");
    linux.await_text("guest cannot bind");
    linux.await_seen("its memory still", |seen| seen.kib_more == 512 << 10 && seen.data == "intact");
    assert_eq!(linux.vm.state().mem[0].plugged, tidevm_machine::Size(512 * MIB));
    await_reset(&linux, 1);
    follow(&linux, &[256, 0]);
}

/// One CPU is shared fairly by the shell that looks out for memory and the driver that plugs sixteen blocks: the shell
/// sees the first of them long before the last one is there, however slow the host is.
fn linux_lets_the_driver_go_half_way() {
    let linux = Linux::boot("at=0:unbind_early at=0:online", |config| config.cpus = 1);
    linux.await_text("looks out for memory");
    linux.vm.resize(0, Size(2048 * MIB)).unwrap();
    let plugged = linux.await_state("no driver", |state| {
        let mem = &state.mem[0];
        (!mem.driver && mem.plugged > tidevm_machine::Size(0)).then_some(mem.plugged)
    });
    assert!(plugged < tidevm_machine::Size(2048 * MIB), "it was there already");
    // Memory that was plugged during the unbind exists, but is not online.
    linux.await_size(plugged.0 / MIB);
    assert_eq!(linux.vm.state().mem[0].plugged, plugged);
    linux.assert_content();
}
