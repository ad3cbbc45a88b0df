//! How experiments judge results, played with made-up runs of both sides.

use std::time::Duration;

use tidevm_abi::{Answer, BootTimes, Failure as GuestFailure, Name, PmemMapped, ResizeState, Stats};
use tidevm_autosize::fleet::{DAY, Outcome, TOLERANCE};
use tidevm_machine::{DeathKind, Ready};
use tidevm_session::{Booted, DeviceSample, Sample, StepFailure, StepRun, Stopped, Summary};

use super::*;

mod pages;

/// Enough for the struct pages of 1024 GiB, twice.
const AVAILABLE: u64 = 32 << 30;

/// A lab whose sessions have given records, in the order of the calls.
struct Fake(Vec<Result<Record, Halt>>);

impl Lab for Fake {
    fn session(&mut self, _: &str, config: Config, script: &str) -> Result<Record, Halt> {
        config.validate().expect("a machine that can be");
        tidevm_session::script::Script::parse("fake", script)
            .expect("a script")
            .fit(&config)
            .expect("it fits");
        self.0.remove(0)
    }

    fn sized(
        &mut self,
        label: &str,
        config: Config,
        (wish, _): (Wish, Pace),
        script: &str,
    ) -> Result<(Record, Option<Status>), Halt> {
        wish.bounds(&config).expect("bounds of the machine");
        self.session(label, config, script).map(|record| (record, None))
    }

    fn available(&self) -> Option<u64> {
        Some(AVAILABLE)
    }
}

fn stats() -> Stats {
    let zone = |name| tidevm_abi::ZoneStats { name, spanned: 9, present: 9, managed: 9, free: 9, pcp: 0 };
    use tidevm_abi::ZoneName::{Dma32, Movable, Normal};
    let zones = [zone(Dma32), zone(Normal), zone(Movable)];
    let mut stats = Stats { zones, pcp_drains: 7, ..Stats::default() };
    stats.nodes.fill(tidevm_abi::NodeStats { zones, ..Default::default() });
    stats
}

fn sample() -> Sample {
    let device = DeviceSample::default();
    Sample { devices: vec![device], guest: Some(stats()), ..Sample::default() }
}

fn step(command: &str) -> StepRun {
    StepRun {
        line: 1,
        column: 1,
        name: None,
        command: command.parse().expect("a command"),
        start: Duration::from_millis(80),
        took: Duration::from_millis(5),
        result: Ok(None),
        answer: None,
        listed: None,
        sample: sample(),
        vcpus: Vec::new(),
    }
}

fn failed(command: &str, failure: StepFailure) -> StepRun {
    StepRun { result: Err(failure), ..step(command) }
}

/// A failure that no experiment looks for.
fn no_answer() -> StepFailure {
    StepFailure::TooLate { what: "the guest's answer".to_owned(), after: Duration::from_secs(60) }
}

/// A resize that stopped: `state` is the fact, and `why` the text for people.
fn stopped(state: Option<ResizeState>, why: &str) -> StepFailure {
    let (plugged, target, why) = (Size(9 << 30), Size(12 << 30), why.to_owned());
    StepFailure::Stopped(Box::new(Stopped { within: None, plugged, target, state, why }))
}

fn record(steps: Vec<StepRun>) -> Record {
    let ready = Ready { cpus: 8, mem_devices: 1, after: Duration::from_millis(80) };
    let summary = Summary { boot: Some(ready.after), ..Summary::default() };
    Record { boot: Some(Booted { at: ready.after, ready: Some(ready), sample: sample() }), steps, summary }
}

fn died(kind: DeathKind, report: &str) -> Record {
    let death = Death { kind, text: report.to_owned() };
    let summary = Summary { ended: Ended::Died(death), ..Summary::default() };
    Record { boot: None, steps: Vec::new(), summary }
}

fn find(name: &str) -> &'static Experiment {
    ALL.iter().find(|experiment| experiment.name == name).expect("an experiment")
}

/// Runs an experiment whose sessions have these records. Returns the findings, and whether it passes.
fn verdict(name: &str, records: Vec<Record>) -> (Vec<Finding>, bool) {
    let mut lab = Fake(records.into_iter().map(Ok).collect());
    let verdict = find(name).run(&mut lab).expect("an verdict");
    assert!(lab.0.is_empty(), "{name} asked for too few sessions");
    for side in &verdict.sides {
        assert!(!side.what.is_empty());
        assert_eq!(side.numbers.len(), verdict.sides[0].numbers.len());
    }
    (verdict.sides.iter().map(|side| side.finding).collect(), verdict.passed())
}

use Finding::{Failure, Neither, Success};

#[test]
fn both_sides_have_to_be_as_expected() {
    let side = |on, finding| Side { on, setting: "", finding, what: String::new(), numbers: Vec::new() };
    let passed = |sides: &[(bool, Finding)]| {
        let sides = sides.iter().map(|(on, finding)| side(*on, *finding)).collect();
        Verdict { name: "", about: "", sides, took: Duration::ZERO, drawings: Vec::new() }.passed()
    };
    assert!(passed(&[(false, Failure), (true, Success)]));
    assert!(passed(&[(false, Failure), (true, Success), (true, Success)]));
    for sides in [
        &[(false, Success), (true, Success)][..],
        &[(false, Neither), (true, Success)],
        &[(false, Failure), (true, Failure)],
        &[(false, Failure), (true, Neither)],
        &[(false, Failure), (true, Success), (true, Neither)],
        &[(false, Failure)],
        &[(true, Success)],
        &[],
    ] {
        assert!(!passed(sides), "{sides:?}");
    }
}

#[test]
fn early_oom_is_a_death_of_memory_and_of_nothing_else() {
    let console = "  | panic on CPU 0: percpu_buf: out of memory on CPU 1, 5 of 9 pages short";
    let oom = || died(DeathKind::OutOfMemory, console);
    let up = || record(vec![step("check")]);
    assert_eq!(verdict("early-oom", vec![oom(), up()]), (vec![Failure, Success], true));
    assert_eq!(verdict("early-oom", vec![up(), up()]), (vec![Success, Success], false));
    let triple_fault = died(DeathKind::TripleFault, "");
    assert_eq!(verdict("early-oom", vec![triple_fault, oom()]), (vec![Neither, Failure], false));
    let mut fewer = up();
    fewer.boot = None;
    assert_eq!(verdict("early-oom", vec![oom(), fewer]), (vec![Failure, Neither], false));
    // Another panic whose console has the words, and the right death whose console was lost.
    let other = died(DeathKind::GuestPanic, console);
    assert_eq!(verdict("early-oom", vec![other, up()]), (vec![Neither, Success], false));
    let silent = died(DeathKind::OutOfMemory, "");
    assert_eq!(verdict("early-oom", vec![silent, up()]), (vec![Failure, Success], true));
}

#[test]
fn memmap_oom_has_to_be_clean() {
    let steps = |plug: StepRun| {
        let others = ["check", "resize 0", "check", "verify app"].map(step);
        [step("hog 96M unmovable as app"), plug].into_iter().chain(others).collect::<Vec<_>>()
    };
    let no_memory = || stopped(Some(ResizeState::NoMemory), "the guest has no memory for it");
    let plug_failed = |failure| record(steps(failed("plug 12G", failure)));
    let refused = || plug_failed(no_memory());
    let grown = || {
        let mut plug = step("plug 12G");
        plug.sample.devices[0].plugged = Size::gib(12);
        record(steps(plug))
    };
    assert_eq!(verdict("memmap-oom", vec![refused(), grown()]), (vec![Failure, Success], true));
    assert_eq!(verdict("memmap-oom", vec![grown(), grown()]), (vec![Success, Success], false));
    // Pages that do not come back, another step that fails, and other failures. The text of most of them
    // speaks of memory.
    let mut leaky = refused();
    leaky.steps[5].sample.guest.as_mut().expect("a guest").zones[0].free -= 1;
    let mut broken = refused();
    broken.steps[4] = failed("check", no_answer());
    let busy = plug_failed(stopped(Some(ResizeState::HostBusy), "the device has no memory"));
    let unsaid = plug_failed(stopped(None, "there may be no memory"));
    let call = StepFailure::Refused { failure: GuestFailure::NoMemory, text: "no memory".to_owned() };
    let reset = plug_failed(StepFailure::WithReset(Box::new(no_memory())));
    let panicked = died(DeathKind::GuestPanic, "no memory");
    for record in [leaky, broken, busy, unsaid, plug_failed(call), reset, panicked] {
        assert_eq!(verdict("memmap-oom", vec![record, grown()]), (vec![Neither, Success], false));
    }
}

#[test]
fn offline_race_counts_pages() {
    let raced = |cycles, failures, stranded| {
        let race =
            StepRun { answer: Some(Answer::Raced { cycles, failures, stranded }), ..step("race 9 cycles") };
        record(vec![race, step("check")])
    };
    let on = || raced(20, 0, 0);
    assert_eq!(verdict("offline-race", vec![raced(20, 3, 17), on()]), (vec![Failure, Success], true));
    assert_eq!(verdict("offline-race", vec![on(), on()]), (vec![Success, Success], false));
    assert_eq!(verdict("offline-race", vec![raced(20, 3, 17), raced(20, 1, 1)]).0, [Failure, Failure]);
    // A cycle that fails for another reason, too few cycles, a failed check, and a guest that died.
    let mut broken = raced(20, 3, 17);
    broken.steps[1] = failed("check", no_answer());
    for off in [raced(20, 3, 0), raced(19, 3, 17), broken, died(DeathKind::GuestPanic, "")] {
        assert_eq!(verdict("offline-race", vec![off, on()]), (vec![Neither, Success], false));
    }
}

#[test]
fn device_memory_is_judged_by_who_writes_and_when() {
    let mapped = |locked_pages, cpus| {
        let mapped = PmemMapped { pages: 258_048, locked_pages, locked_ns: 5, total_ns: 7, cpus };
        let map = StepRun { answer: Some(Answer::PmemMapped(mapped)), ..step("pmem map 0 altmap") };
        record(vec![map, step("check")])
    };
    let none = || died(DeathKind::GuestPanic, "");
    let mut broken = mapped(9, 1);
    broken.steps[1] = failed("check", no_answer());
    assert_eq!(
        verdict("double-init", vec![mapped(262_144, 1), mapped(4096, 1)]),
        (vec![Failure, Success], true)
    );
    assert_eq!(
        verdict("double-init", vec![mapped(0, 1), mapped(262_144, 1)]),
        (vec![Success, Failure], false)
    );
    assert_eq!(verdict("double-init", vec![mapped(4097, 1), none()]), (vec![Neither, Neither], false));
    assert_eq!(verdict("parallel-init", vec![mapped(0, 1), mapped(0, 2)]), (vec![Failure, Success], true));
    assert_eq!(verdict("parallel-init", vec![mapped(0, 2), mapped(0, 1)]), (vec![Success, Failure], false));
    assert_eq!(verdict("parallel-init", vec![broken, none()]), (vec![Neither, Neither], false));
}

#[test]
fn same_granularity_changes_nothing_or_everything() {
    let steps = |readd: StepRun| {
        let before = ["plug 256M", "hog 4M movable scattered as data"].map(step);
        let after = ["check", "verify data", "release data", "resize 0", "check"].map(step);
        record(before.into_iter().chain([readd]).chain(after).collect())
    };
    let readd_failed = |failure: GuestFailure| {
        let text = "refused: they are removed one at a time".to_owned();
        steps(failed("readd 256M at 4G", StepFailure::Refused { failure, text }))
    };
    let refused = || readd_failed(GuestFailure::Granularity);
    let done = || steps(step("readd 256M at 4G"));
    assert_eq!(verdict("same-granularity", vec![refused(), done()]), (vec![Failure, Success], true));
    assert_eq!(verdict("same-granularity", vec![done(), done()]), (vec![Success, Success], false));
    let mut corrupt = refused();
    let name = Name::new("data").expect("a name");
    corrupt.steps[4] =
        failed("verify data", StepFailure::Corrupt { name, pages: 1024, corrupt: 1, first: None });
    let mut lost = refused();
    lost.steps[2].sample.guest.as_mut().expect("a guest").memmap_altmap_pages += 512;
    // Other failures, with the text of the right one.
    let stuck = readd_failed(GuestFailure::Stuck { addr: 4 << 30, pages: 1 });
    let mixed = readd_failed(GuestFailure::Mixed);
    for record in [corrupt, lost, stuck, mixed, died(DeathKind::GuestPanic, "")] {
        assert_eq!(verdict("same-granularity", vec![record, done()]), (vec![Neither, Success], false));
    }
}

/// Records of boots of 1, 8, 64 and 512 GiB, with so many sections written first.
fn boots(written: [u64; 4]) -> Vec<Record> {
    let boot = |memmaps_written| {
        let mut stats = step("stats");
        let times = BootTimes { mapped: 1, first_allocation: 2, initialised: Some(3), memmaps_written };
        stats.sample.guest.as_mut().expect("a guest").boot = times;
        record(vec![stats])
    };
    written.map(boot).into()
}

#[test]
fn boot_time_is_judged_by_what_is_written_first() {
    let (eager, deferred, lazy) = ([8, 64, 512, 4096], [1, 25, 25, 25], [0; 4]);
    let run = |sides: [[u64; 4]; 3]| verdict("boot-time", sides.map(boots).concat());
    assert_eq!(run([eager, deferred, lazy]), (vec![Failure, Success, Success], true));
    assert_eq!(run([lazy, deferred, lazy]), (vec![Success, Success, Success], false));
    assert_eq!(run([eager, eager, lazy]), (vec![Failure, Failure, Success], false));
    assert_eq!(run([eager, deferred, [0, 64, 0, 0]]), (vec![Failure, Success, Neither], false));
}

#[test]
fn sizes_that_take_too_long_are_left_out_and_it_is_said() {
    let mut slow = boots([8, 64, 512, 4096]);
    slow.truncate(2);
    let stats = slow[1].steps[0].sample.guest.as_mut().expect("a guest");
    stats.boot.initialised = Some(100_000_000);
    let records = slow.into_iter().chain(boots([1, 25, 25, 25])).chain(boots([0; 4]));
    let mut lab = Fake(records.map(Ok).collect());
    let verdict = find("boot-time").run(&mut lab).expect("an verdict");
    assert!(verdict.passed() && lab.0.is_empty());
    let missing = |value: &Value| matches!(value, Value::Missing(why) if why.contains("14 minutes"));
    assert_eq!(verdict.sides[0].numbers.iter().filter(|number| missing(&number.value)).count(), 4);
}

/// A host with 2 GiB of available memory.
struct Small(Fake);

impl Lab for Small {
    fn session(&mut self, label: &str, config: Config, script: &str) -> Result<Record, Halt> {
        self.0.session(label, config, script)
    }

    fn sized(
        &mut self,
        label: &str,
        config: Config,
        sizing: (Wish, Pace),
        script: &str,
    ) -> Result<(Record, Option<Status>), Halt> {
        self.0.sized(label, config, sizing, script)
    }

    fn available(&self) -> Option<u64> {
        Some(2 << 30)
    }
}

#[test]
fn sizes_whose_struct_pages_the_host_has_no_room_for_are_left_out() {
    // With the lazy policy, struct pages are not written, and need no memory.
    let sides = [([8, 64, 512, 0], 3), ([1, 25, 25, 0], 3), ([0; 4], 4)];
    let records = sides.into_iter().flat_map(|(written, count)| boots(written).into_iter().take(count));
    let mut lab = Small(Fake(records.map(Ok).collect()));
    let verdict = find("boot-time").run(&mut lab).expect("an verdict");
    assert!(verdict.passed() && lab.0.0.is_empty());
    let missing =
        |value: &Value| matches!(value, Value::Missing(why) if why.contains("struct pages need 8G"));
    let missing = |side: &Side| side.numbers.iter().filter(|number| missing(&number.value)).count();
    assert_eq!(verdict.sides.iter().map(missing).collect::<Vec<_>>(), [4, 4, 0]);
}

#[test]
fn a_host_that_cannot_and_a_signal_end_it() {
    let none = || StartError::NoKvm { error: std::io::ErrorKind::NotFound.into(), hint: String::new() };
    let result = find("early-oom").run(&mut Fake(vec![Err(Halt::Start(none()))]));
    assert!(matches!(result, Err(Halt::Start(StartError::NoKvm { .. }))));
    let result = find("boot-time").run(&mut Fake(vec![Err(Halt::Start(none()))]));
    assert!(matches!(result, Err(Halt::Start(_))), "no size of memory has to do with that");
    let result = find("boot-time").run(&mut Fake(vec![Err(Halt::Signal(2))]));
    assert!(matches!(result, Err(Halt::Signal(2))));
}

#[test]
fn a_fleet_has_to_be_worth_it_and_may_not_wait() {
    let fleets = |guests, waited_for_host| {
        let outcome = Outcome { guests, waited_for_host, ..Outcome::default() };
        fleet::sides(&[outcome; 4], Size::gib(1000)).iter().map(|side| side.finding).collect::<Vec<_>>()
    };
    assert_eq!(fleets(1250, 0), [Failure, Success]);
    assert_eq!(fleets(1249, 0), [Failure, Neither], "too few");
    let tolerated = 1250 * u64::from(DAY) * TOLERANCE / 1_000_000;
    assert_eq!(fleets(1250, tolerated), [Failure, Success]);
    assert_eq!(fleets(1250, tolerated + 1250 * 4), [Failure, Neither], "they wait too long");
}

#[test]
fn a_machine_that_is_sized_holds_its_loads_within_its_bounds_with_less_memory() {
    let hog = |size: u64, pages: u64| StepRun {
        answer: Some(Answer::Hogged { pages }),
        ..step(&format!("hog {size}M movable as a"))
    };
    let held = || record(vec![hog(2, 512), hog(20, 5120)]);
    let sizes = (Size::mib(128), Size::mib(256));
    let bounds = tidevm_sizer::Bounds::new(sizes, 10, sizes.0, Size::mib(128), Size::mib(2)).unwrap();
    let status = Status {
        bounds,
        held: false,
        target: sizes.0,
        why: None,
        size: sizes.0,
        range: (sizes.0, Size::mib(200)),
        pressure: None,
        counts: tidevm_sizer::Counts { grows: 2, shrinks: 3, ..Default::default() },
        time: Duration::from_secs(2),
        byte_seconds: 300 << 20,
    };
    let sized = |record: &Record, status: Option<&Status>| auto::sized_side(record, status).finding;
    assert_eq!(sized(&held(), Some(&status)), Success);
    let counts = |grows, shrinks, holds| Status {
        counts: tidevm_sizer::Counts { grows, shrinks, holds, ..Default::default() },
        ..status
    };
    let gave_up = tidevm_abi::Pressure { gave_up: 1, ..Default::default() };
    for wrong in [
        Status { range: (Size::mib(126), Size::mib(200)), ..status },
        Status { range: (Size::mib(128), Size::mib(258)), ..status },
        Status { byte_seconds: 512 << 20, ..status },
        Status { pressure: Some(gave_up), ..status },
        counts(0, 3, 0),
        counts(2, 0, 0),
        counts(2, 3, 1),
    ] {
        assert_eq!(sized(&held(), Some(&wrong)), Neither, "{wrong:?}");
    }
    let short = || record(vec![hog(2, 512), hog(20, 5119)]);
    assert_eq!(sized(&short(), Some(&status)), Neither);
    assert_eq!(sized(&held(), None), Neither);
    assert_eq!(auto::fixed_side(&short()).finding, Failure);
    assert_eq!(auto::fixed_side(&held()).finding, Neither, "the trace shows nothing");
    assert_eq!(auto::fixed_side(&record(Vec::new())).finding, Neither);
}
