//! Machines that are saved and restored, twice from the same snapshot: the guest goes on, with its content, its workloads and its
//! devices. All of them run with system-call filters, so these show which calls a save needs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tidevm_abi::{Answer, HogKind, Op};
use tidevm_machine::{BalloonConfig, Config, Destination, HotplugConfig, Settled, Size, Snapshot, VmHandle};
use tidevm_session::Remembered;
use tidevm_session::script::Script;
use tidevm_tests::{Session, Test, account, ask, locked_in, machine, run_script};

pub const TESTS: &[Test] = &[
    ("a_session_goes_on_from_its_snapshot_as_often_as_one_likes", a_session_goes_on_from_its_snapshot),
    ("a_machine_that_is_saved_under_load_loses_nothing", under_load),
    ("a_machine_that_is_saved_in_the_middle_of_a_resize_ends_it", in_the_middle_of_a_resize),
];

const REGION: u64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(120);

fn saved_to(config: Config, path: &Path) -> Config {
    Config { save: Some(Destination::make(path).unwrap()), ..config }
}

fn restored(path: &Path) -> Config {
    let snapshot = Snapshot::open(path).unwrap_or_else(|error| panic!("{error}"));
    let config = snapshot.config(Config {
        restore: Some(snapshot.clone()),
        console: machine(0).console,
        ..Config::default()
    });
    config.unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `script` in the machine that comes from the snapshot at `path`.
fn go_on(path: &Path, script: &str) -> Session {
    let config = restored(path);
    let remembered = Remembered::of(config.restore.as_ref().expect("a snapshot"));
    let script = Script::parse_after("test", script, &remembered).unwrap_or_else(|errors| panic!("{errors}"));
    run_script(config, &script)
}

/// The table of the session, from the boot to the end of the second machine, is that of one machine.
fn a_session_goes_on_from_its_snapshot() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("snapshot");
    let pmem = vec![Size(128 << 20)];
    let config =
        Config { cpus: 2, pmem, hotplug: vec![HotplugConfig::new(Size(REGION)); 2], ..machine(REGION) };
    let first = Script::parse(
        "test",
        "resize 256M
         plug 64M device 1
         hog 4M movable scattered full as data
         hog 1M unmovable as fixed
         pmem map 0
         pmem hold 1M of 0 as cache
         hog 2M movable as gone
         release gone",
    );
    let before = run_script(saved_to(config, &path), &first.unwrap());
    before.assert_done();
    assert_eq!(before.summary.saved.as_ref().map(|saved| saved.path.as_path()), Some(path.as_path()));
    let memory = fs::metadata(path.join("memory")).unwrap();
    assert!(memory.len() > 2 * REGION && memory.blocks() * 512 < 64 << 20, "{memory:?}");
    for _ in 0..2 {
        let after = go_on(
            &path,
            "verify data
             verify fixed
             verify cache
             check
             expect plugged == 256M device 0
             expect plugged == 64M device 1
             resize 512M
             hog 4M movable scattered as more
             check
             resize 128M
             resize 0 device 1
             verify data
             verify more
             verify fixed
             release cache
             pmem unmap 0
             release data
             release fixed
             release more
             resize 0
             check
             expect host.held == 0",
        );
        after.assert_done();
        assert_eq!(after.boot.ready, before.boot.ready, "the guest has not started again");
        let (zones, plugged) = (before.at_the_end().zones, before.at_the_end().plugged);
        let goes_on = account(&after.boot.sample);
        assert_eq!((goes_on.zones, goes_on.plugged), (zones, plugged));
        assert_eq!(after.summary.bad_records, 0);
    }
}

/// Two CPUs allocate and free pages, and one page after the other moves. The churn's answer comes in each machine.
fn under_load() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("snapshot");
    let balloon = Some(BalloonConfig { reporting: true, stats_interval: Some(Duration::from_millis(100)) });
    let config = Config { cpus: 2, balloon, ..machine(REGION) };
    let call = locked_in(saved_to(config, &path), Vec::new(), |vm| {
        vm.wait(LIMIT, "the guest", |state| state.ready).unwrap();
        vm.resize(0, Size(256 << 20)).unwrap();
        until_settled(&vm, Size(256 << 20));
        hog(&vm, 0);
        let churn = Op::Churn { handle: 1, threads: 2, millis: 4000 };
        let call = vm.call(churn).unwrap();
        drop(vm.wait(Duration::from_millis(700), "some load", |_| None::<()>));
        vm.save(b"").unwrap_or_else(|error| panic!("{error}"));
        assert!(!vm.state().paused, "it goes on");
        assert!(matches!(vm.answer(call, LIMIT, "the churn"), Ok(Answer::Churned { .. })));
        verify(&vm);
        drop(vm.stop(LIMIT));
        call
    });
    let call = call.unwrap();
    for _ in 0..2 {
        locked_in(restored(&path), Vec::new(), |vm| {
            let answer = vm.answer(call, LIMIT, "the churn of before");
            assert!(matches!(answer, Ok(Answer::Churned { .. })), "{answer:?}");
            verify(&vm);
            for mib in [512, 128, 256] {
                vm.resize(0, Size(mib << 20)).unwrap();
                until_settled(&vm, Size(mib << 20));
            }
            verify(&vm);
            assert!(matches!(ask(&vm, Op::Check), Answer::Checked { .. }));
            let told = vm.wait(LIMIT, "statistics", |state| {
                state.balloon.filter(|balloon| balloon.updates > 1 && balloon.reporting).map(drop)
            });
            assert_eq!(told, Ok(()));
            assert_eq!(vm.state().bad_records, 0);
            assert_eq!(vm.stop(LIMIT), tidevm_machine::End::PoweredOff);
        })
        .unwrap();
    }
}

/// Waits until the guest has settled at the target `size`.
fn until_settled(vm: &VmHandle, size: Size) {
    let settled = vm.wait(LIMIT, "the target", |state| state.mem[0].settled(size, true, false));
    assert_eq!(settled, Ok(Settled::AtTarget), "{:?}", vm.state().mem[0]);
}

fn hog(vm: &VmHandle, handle: u32) {
    let hog =
        Op::Hog { handle, kind: HogKind::Movable, pages: 1024, scattered: true, full: false, partial: false };
    assert_eq!(ask(vm, hog), Answer::Hogged { pages: 1024 });
}

fn verify(vm: &VmHandle) {
    let answer = ask(vm, Op::Verify { handle: 0 });
    assert!(matches!(answer, Answer::Verified { pages: 1024, corrupt: 0, .. }), "{answer:?}");
}

/// The target is set, and the driver is at work, or about to be, when the machine is saved.
fn in_the_middle_of_a_resize() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("snapshot");
    locked_in(saved_to(machine(REGION), &path), Vec::new(), |vm| {
        vm.wait(LIMIT, "the guest", |state| state.ready).unwrap();
        vm.resize(0, Size(512 << 20)).unwrap();
        until_settled(&vm, Size(512 << 20));
        hog(&vm, 0);
        vm.resize(0, Size(128 << 20)).unwrap();
        vm.save(b"").unwrap_or_else(|error| panic!("{error}"));
        until_settled(&vm, Size(128 << 20));
        drop(vm.stop(LIMIT));
    })
    .unwrap();
    for _ in 0..2 {
        locked_in(restored(&path), Vec::new(), |vm| {
            assert!(vm.state().mem[0].plugged > Size(128 << 20), "{:?}", vm.state().mem[0]);
            until_settled(&vm, Size(128 << 20));
            verify(&vm);
            assert!(matches!(ask(&vm, Op::Check), Answer::Checked { .. }));
            drop(vm.stop(LIMIT));
        })
        .unwrap();
    }
}
