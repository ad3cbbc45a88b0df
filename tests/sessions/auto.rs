//! Machines that are sized by what their guests use, and guests that wait for memory.

use std::time::Duration;

use tidevm_abi::{Answer, HogKind, Op, Watch};
use tidevm_machine::{Config, Size, Vm, VmHandle};
use tidevm_session::script::Script;
use tidevm_session::{Ended, Record};
use tidevm_sizer::{Pace, Sizer, Status};
use tidevm_tests::{Test, ask, locked_in, machine, ready};

pub const TESTS: &[Test] = &[
    ("a_workload_waits_for_memory_that_comes", a_workload_waits_for_memory_that_comes),
    ("a_workload_waits_no_longer_than_it_may", a_workload_waits_no_longer_than_it_may),
    ("a_level_is_told_once", a_level_is_told_once),
    ("a_target_of_a_script_is_left_alone", a_target_of_a_script_is_left_alone),
    ("an_idle_guest_is_not_asked", an_idle_guest_is_not_asked),
];

const LIMIT: Duration = Duration::from_secs(60);

/// A machine of which about 5 MiB are left.
fn full() -> Config {
    Config { cmdline: Some("percpu_buf=115M".to_owned()), ..machine(256 << 20) }
}

fn hog(pages: u64, kind: HogKind) -> Op {
    Op::Hog { handle: 1, pages, partial: true, kind, scattered: false, full: false }
}

fn watch(vm: &VmHandle, patience: Duration) {
    let patience_millis = u32::try_from(patience.as_millis()).expect("a short time");
    let levels = Watch { below: Size(0), above: None, patience_millis, most: Size::gib(1) };
    assert!(matches!(ask(vm, Op::Watch(levels)), Answer::Pressure(pressure) if pressure.waiting == 0));
}

/// Without memory that comes the guest would wait for a minute.
fn a_workload_waits_for_memory_that_comes() {
    const PAGES: u64 = 16 << 8;
    let vm = ready(full());
    watch(&vm, LIMIT);
    let call = vm.call(hog(PAGES, HogKind::Movable)).expect("the guest reads");
    let waits = vm
        .wait(LIMIT, "a workload that waits", |state| state.pressure.filter(|pressure| pressure.waiting > 0));
    waits.unwrap_or_else(|error| panic!("{error}"));
    assert!(vm.try_answer(call).is_none(), "it waits");
    vm.resize(0, Size::mib(64)).expect("a size");
    let answer = vm.answer(call, LIMIT, "the hog").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answer, Answer::Hogged { pages: PAGES });
    let Answer::Stats(stats) = ask(&vm, Op::Stats) else { panic!("no counters") };
    assert!(stats.alloc_waited > 0 && stats.alloc_gave_up == 0 && stats.alloc_failed > 0, "{stats:?}");
    assert_eq!(ask(&vm, Op::Release { handle: 1 }), Answer::Released { pages: PAGES });
}

/// An allocation of the kernel does not wait, because memory that comes does not serve it.
fn a_workload_waits_no_longer_than_it_may() {
    let vm = ready(full());
    watch(&vm, Duration::from_millis(300));
    for (kind, waited) in [(HogKind::Movable, 1), (HogKind::Unmovable, 1), (HogKind::Pinned, 2)] {
        let answer = ask(&vm, hog(64 << 8, kind));
        let Answer::Hogged { pages } = answer else { panic!("{kind:?}: {answer:?}") };
        assert!(pages < 64 << 8, "{pages} pages");
        let Answer::Stats(stats) = ask(&vm, Op::Stats) else { panic!("no counters") };
        assert_eq!((stats.alloc_waited, stats.alloc_gave_up), (waited, waited), "{kind:?}");
        assert_eq!(ask(&vm, Op::Release { handle: 1 }), Answer::Released { pages });
    }
    // Without a watch nothing waits.
    assert!(matches!(ask(&vm, Op::Watch(Watch::NOTHING)), Answer::Pressure(_)));
    assert!(matches!(ask(&vm, hog(64 << 8, HogKind::Movable)), Answer::Hogged { .. }));
    let Answer::Stats(stats) = ask(&vm, Op::Stats) else { panic!("no counters") };
    assert_eq!(stats.alloc_waited, 2);
}

/// Memory goes below a level and above another, each twice. The guest tells each once for each watch.
fn a_level_is_told_once() {
    let vm = ready(full());
    let Answer::Pressure(now) = ask(&vm, Op::Watch(Watch::NOTHING)) else { panic!("no answer") };
    let level = Size(now.available.0 - (1 << 20));
    let swing = || {
        for _ in 0..2 {
            assert_eq!(ask(&vm, hog(2 << 8, HogKind::Movable)), Answer::Hogged { pages: 2 << 8 });
            assert_eq!(ask(&vm, Op::Release { handle: 1 }), Answer::Released { pages: 2 << 8 });
        }
        // Reports come in their order, so that all of them are here.
        assert!(matches!(ask(&vm, Op::Check), Answer::Checked { .. }));
        vm.state().pressures
    };
    assert_eq!(swing(), 0, "nothing is watched");
    let below = Watch { below: level, above: None, ..Watch::NOTHING };
    for told in 1..3 {
        ask(&vm, Op::Watch(below));
        assert_eq!(swing(), told);
        let last = vm.state().pressure.expect("it was told");
        assert!(last.short && last.available < level, "{last:?}");
    }
    let other = Op::Hog {
        handle: 2,
        pages: 2 << 8,
        partial: false,
        kind: HogKind::Movable,
        scattered: false,
        full: false,
    };
    ask(&vm, other);
    ask(&vm, Op::Watch(Watch { below: Size(0), above: Some(level), ..Watch::NOTHING }));
    assert_eq!(swing(), 2, "still below");
    assert_eq!(ask(&vm, Op::Release { handle: 2 }), Answer::Released { pages: 2 << 8 });
    assert_eq!(swing(), 3);
    let last = vm.state().pressure.expect("it was told");
    assert!(!last.short && last.available >= level, "{last:?}");
}

/// Runs `script` on a machine that is sized between 128 and 256 MiB, and does something to it in the end.
fn sized<T: Send>(script: &str, end: impl FnOnce(&Sizer, &VmHandle) -> T + Send) -> (Record, T) {
    let script = Script::parse("test", script).unwrap_or_else(|errors| panic!("{errors}"));
    let config = full();
    let wish: tidevm_sizer::Wish = "min=128M,max=256M".parse().expect("a wish");
    let bounds = wish.bounds(&config).expect("bounds");
    let pace = Pace {
        calm: Duration::from_millis(200),
        step: Duration::from_millis(50),
        longest: Duration::from_secs(10),
    };
    let sizer = Sizer::new(pace, Some(bounds)).expect("a descriptor");
    let session = |vm: Vm| {
        let handle = vm.handle();
        let record = tidevm_session::record(vm, &script);
        (record, end(&sizer, &handle))
    };
    locked_in(config, vec![sizer.beside()], session).unwrap_or_else(|error| panic!("{error}"))
}

fn status(sizer: &Sizer, vm: &VmHandle) -> Status {
    sizer.status(vm).expect("it is sized")
}

/// The guest lacks memory for a load, and has much too much later. The script's target stays all the same.
fn a_target_of_a_script_is_left_alone() {
    let script = "resize 16M\nhog up to 40M movable as a\nsleep 1s\nexpect requested == 16M\nrelease a\n\
                  resize 64M\nsleep 2s\nexpect plugged == 64M\nexpect alloc.waited == 0";
    let (record, status) = sized(script, status);
    assert_eq!(record.summary.ended, Ended::Done, "{:#?}", record.steps);
    assert_eq!((status.held, status.counts.holds), (true, 2));
    assert_eq!((status.target, status.range.1), (Size::mib(192), Size::mib(192)));
}

/// Two seconds are ten times as long as memory has to be unused before it goes.
fn an_idle_guest_is_not_asked() {
    let (record, status) = sized("sleep 2s\nsleep 2s", status);
    assert_eq!(record.summary.ended, Ended::Done);
    // The headroom at the start, and again when it is there.
    assert!(status.counts.questions <= 6, "{status:?}");
    assert_eq!((status.counts.shrinks, status.counts.pressures, status.held), (0, 0, false));
}
