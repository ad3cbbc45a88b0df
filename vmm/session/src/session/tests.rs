//! Sessions on a played VM: steps, deadlines, blocked resizes, resets and other kernels.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidevm_abi::{Answer, BadWord, Disagreement, Failure, MAX_PHYS_ADDR, Op, PmemMapped, ProbedWait, Size};

use super::deadline::{self, Work};
use super::fake::{BOOT_MEMORY, DEVICE_MEMORY, Event, FakeVm, Nature, REGION};
use super::{Booted, Ended, Observer, RESIZE_DEADLINE, StepFailure, StepRun, Summary, run, stay};
use crate::script::Script;

mod console;
mod follow;
mod reset;
mod save;
mod silent;
mod watch;

#[derive(Default)]
struct Recorder {
    boots: usize,
    steps: Vec<StepRun>,
    ends: usize,
    /// Writing fails from this number of steps on.
    breaks_after: Option<usize>,
}

impl Observer for Recorder {
    fn boot(&mut self, report: &Booted) -> io::Result<()> {
        assert!(report.ready.is_none_or(|ready| ready.cpus == 2));
        self.boots += 1;
        Ok(())
    }

    fn step(&mut self, report: &StepRun) -> io::Result<()> {
        assert_eq!((self.boots, self.ends), (1, 0), "steps come between the boot and the end");
        self.steps.push(report.clone());
        let broken = self.breaks_after.is_some_and(|steps| self.steps.len() >= steps);
        if broken { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn end(&mut self, _: &Summary) -> io::Result<()> {
        self.ends += 1;
        Ok(())
    }
}

struct Ran {
    summary: Summary,
    steps: Vec<StepRun>,
    /// The time that the guest was given to power off.
    end_limit: Duration,
}

impl Ran {
    fn status(&self) -> u8 {
        self.summary.ended.status()
    }

    /// The text of the failure of step `index`.
    #[track_caller]
    fn reason(&self, index: usize) -> String {
        self.failure(index).to_string()
    }

    #[track_caller]
    fn failure(&self, index: usize) -> &StepFailure {
        self.steps[index].result.as_ref().expect_err("a step that failed")
    }

    /// By step, the number of vCPUs that were looked at.
    fn looks(&self) -> Vec<usize> {
        self.steps.iter().map(|step| step.vcpus.len()).collect()
    }

    fn note(&self, index: usize) -> Option<&str> {
        match &self.steps[index].result {
            Ok(note) => note.as_deref(),
            Err(failure) => panic!("step {index}: {failure}"),
        }
    }
}

fn session_on(fake: FakeVm, script: &str) -> Ran {
    session_of(fake, &Script::parse("test", script).unwrap())
}

fn session_of(fake: FakeVm, script: &Script) -> Ran {
    let stops = fake.stops();
    let mut recorder = Recorder::default();
    let summary = run(fake, script, &mut recorder).unwrap();
    let stops = stops.take();
    assert_eq!((stops.len(), recorder.ends), (1, 1), "stopped and reported once, in any case");
    Ran { summary, steps: recorder.steps, end_limit: stops[0] }
}

fn session(nature: Nature, script: &str) -> Ran {
    session_on(FakeVm::new(nature), script)
}

fn good(script: &str) -> Ran {
    session(Nature::default(), script)
}

#[test]
fn a_good_session_is_done() {
    let ran = good(
        "plug 1G\nhog 128M movable scattered as data\nresize 256M\nverify data\nresize 0\nverify data\n\
         release data\ncheck\nexpect plugged == 0\ninject online\nstats",
    );
    assert_eq!(ran.summary.ended, Ended::Done);
    assert_eq!((ran.status(), ran.summary.steps, ran.summary.failed), (0, 11, 0));
    assert!(ran.summary.boot.is_some());
    assert_eq!(ran.note(1), None);
    assert_eq!(ran.note(3), Some("32768 pages intact"));
    assert_eq!(ran.note(6), Some("32768 pages given back"));
    let sample = &ran.steps[0].sample;
    assert_eq!((sample.devices[0].requested, sample.devices[0].plugged), (Size::gib(1), Size::gib(1)));
    assert_eq!(sample.guest.unwrap().blocks_online, 8);
    assert_eq!(ran.summary.plug.seconds_per_gib(), Some(1.0));
    assert_eq!(ran.summary.unplug.bytes, 1 << 30);
    assert_eq!(ran.summary.exits.mmio, 4);
}

#[test]
fn repeats_run_that_often_and_rows_come_from_their_lines() {
    let ran = good("repeat 3 {\n  plug 2M\n  repeat 2 { check }\n}");
    assert_eq!(ran.summary.steps, 9);
    assert_eq!(ran.steps[8].line, 3);
    assert_eq!(ran.steps[8].sample.devices[0].plugged, Size(6 << 20));
}

#[test]
fn a_loop_without_steps_costs_nothing() {
    // Long enough that a session that runs the rounds does not come to its end.
    let ran =
        good("repeat 4294967295 { repeat 4294967295 { } }\nrepeat 2 {\nrepeat 4294967295 { }\ncheck\n}");
    assert_eq!((ran.status(), ran.summary.steps), (0, 2));
}

#[test]
fn every_round_of_a_loop_looks_for_signals_and_for_the_end_of_the_guest() {
    // On a guest without an agent, these steps wait for nothing.
    for (event, status) in [(Event::Signal(15), 143), (Event::PowerOff, 1)] {
        let fake = FakeVm::new(Nature { foreign: true, ..Nature::default() });
        fake.after(Duration::ZERO, event);
        let ran = session_on(fake, "stats\nrepeat 1000 { stats }");
        assert_eq!((ran.status(), ran.summary.steps), (status, 1));
    }
}

#[test]
fn memory_blocks_are_listed_and_readded() {
    let ran = good("blocks\nreadd 128M at 0\nreadd 2G at 4G\ncheck");
    let listed = format!(
        "0x0-0x7ffffff: 1 of 128 MiB, online DMA32, boot memory; {REGION:#x}-{:#x}: 1 of 128 MiB, offline, \
         2 MiB plugged, 512 memmap pages elsewhere",
        REGION + (128 << 20) - 1
    );
    assert_eq!(ran.note(0), Some(listed.as_str()));
    assert!(ran.reason(1).contains("128M at 0 is not made of whole memory blocks"));
    assert!(ran.reason(2).contains("refused: memory blocks that hold their own memmap are removed one at"));
    assert_eq!((ran.status(), ran.summary.failed), (1, 2), "and the session goes on");
}

#[test]
fn a_target_beyond_the_region_is_refused_and_the_session_goes_on() {
    let ran = good("plug 1G\nplug 8G\nexpect plugged == 1G\nunplug 2G\ncheck");
    assert!(ran.reason(1).contains("refused: 9G does not fit into the region of 8G"));
    assert!(ran.reason(3).contains("cannot unplug 2G, only 1G is requested"));
    assert_eq!((ran.status(), ran.summary.failed, ran.summary.steps), (1, 2, 5));
    assert_eq!(ran.summary.ended, Ended::Failed { reason: None });
    assert!(good(&format!("plug {}", (u64::MAX - REGION) >> 21 << 21)).reason(0).contains("refused"));
}

#[test]
fn a_blocked_shrink_fails_at_once_and_says_what_is_in_the_way() {
    let ran = good("plug 1G\nhog 400K unmovable as pins\nresize 0\nverify pins\nrelease pins\nresize 0");
    let reason = ran.reason(2);
    assert_eq!(
        reason,
        "stopped at 200M, 200 MiB above the target: 100 pages cannot move: pfn 0x100000 (workload pins) and 99 more"
    );
    assert!(ran.steps[2].took < Duration::from_secs(2));
    assert_eq!(ran.note(3), Some("100 pages intact"));
    assert_eq!(ran.note(5), None, "what was said of the same target before is overtaken");
    assert_eq!((ran.status(), ran.summary.failed), (1, 1));
}

#[test]
fn what_blocks_a_target_still_blocks_it_when_it_is_set_again() {
    let ran = good("plug 1G\nhog 400K pinned as pins\nresize 0\nresize 0\nresize 0 within 9s");
    assert_eq!(ran.reason(3), ran.reason(2));
    assert!(ran.steps[3].took < Duration::from_secs(1), "the guest answers the new target");
    assert_eq!(ran.steps[4].took, Duration::from_secs(9));
    assert!(ran.reason(4).ends_with(&ran.reason(2)));
    assert_eq!(good("plug 1G\nresize 1G").steps[1].took, Duration::ZERO);
}

/// The driver has not looked at the last target yet, and its last report is about one of the same size.
#[test]
fn what_was_said_of_an_earlier_target_of_the_same_size_does_not_count() {
    for foreign in [false, true] {
        let nature = || Nature { foreign, ..Nature::default() };
        let ran = session(nature(), "plug 1G\nresize 0 within 5ms\nresize 1G");
        assert_eq!((ran.summary.failed, ran.summary.steps), (1, 3), "{foreign}");
        assert_eq!(ran.steps[2].took, Duration::from_millis(995), "the driver is still at work for 0");

        let script = "plug 2M\nresize 0\nresize 1G within 8ms\nresize 0 within 0s\nresize 0";
        let ran = session(nature(), script);
        let silent =
            |target| format!("stopped at 0, {target}: the guest is still at it, and has not said why");
        assert_eq!(ran.reason(2), format!("not within 8ms: {}", silent("1024 MiB below the target")));
        assert_eq!(ran.reason(3), format!("not within 0s: {}", silent("not settled at the target")));
        assert_eq!((ran.note(4), ran.steps[4].took), (None, Duration::from_millis(992)));
    }
}

#[test]
fn with_a_deadline_a_blocked_shrink_is_waited_out() {
    let script = "plug 1G\nhog 8K pinned as a\nhog 4K pinned as b\nresize 0 within 20s\ncheck";
    let ran = good(script);
    assert_eq!(ran.steps[3].took, Duration::from_secs(20));
    let reason = ran.reason(3);
    assert!(reason.starts_with("not within 20s: stopped at 6M, 6 MiB above"), "{reason}");
    assert!(reason.contains("pfn 0x100000 (workload a), pfn 0x100200 (workload b) and 1 more"), "{reason}");

    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::from_secs(10), Event::Unpin);
    let ran = session_on(fake, "plug 1G\nhog 8K pinned as a\nresize 0 within 20s");
    assert_eq!(ran.status(), 0);
    assert!(ran.steps[2].took > Duration::from_secs(5));
}

#[test]
fn a_silent_or_busy_guest_misses_the_deadline() {
    let ran = session(Nature { stuck: true, ..Nature::default() }, "plug 1G\nexpect requested == 1G");
    assert_eq!(ran.steps[0].took, RESIZE_DEADLINE + Duration::from_secs(5));
    assert!(ran.reason(0).contains("not within 65s: stopped at 0, 1024 MiB below the target: the guest"));
    assert_eq!((ran.status(), ran.summary.steps), (1, 2));
    assert_eq!((ran.looks(), ran.summary.vcpus.len()), (vec![1, 0], 0), "its vCPUs are looked at once");

    let ran = session(Nature { busy: true, ..Nature::default() }, "plug 1G within 3s");
    assert_eq!(ran.looks(), [0], "a guest that says why has answered");
    assert!(ran.reason(0).contains("not within 3s") && ran.reason(0).contains("BUSY"));
}

#[test]
fn other_kernels_are_resized_and_asked_nothing() {
    let nature = Nature { foreign: true, ..Nature::default() };
    let ran = session(nature, "plug 1G\nhog 1M movable as a\nstats\nresize 0");
    assert!(ran.summary.boot.is_none());
    assert!(ran.reason(1).contains("tidevm's own guest"), "{}", ran.reason(1));
    for (index, plugged) in [(0, 1 << 30), (2, 1 << 30), (3, 0)] {
        let step = &ran.steps[index];
        assert!(step.is_done(), "{step:?}");
        assert_eq!((step.sample.devices[0].plugged, step.sample.guest), (Size(plugged), None));
    }
    // The driver binds after three seconds.
    assert_eq!(ran.steps[0].took, Duration::from_secs(4));
    assert_eq!(ran.status(), 1);
}

#[test]
fn what_other_kernels_cannot_do_fails_and_says_why() {
    let script = "hog 1M movable as a\nverify a\nrelease a\nchurn 1 threads for 1s as c\nwait c\ncheck\n\
                  inject online\nexpect zone.Movable.free == 0\nplug 2M";
    let ran = session(Nature { foreign: true, ..Nature::default() }, script);
    let needs_agent = |index: &usize| ran.reason(*index).starts_with("this needs an agent in the guest");
    assert_eq!((0..8).filter(needs_agent).count(), 8);
    assert!(ran.steps[8].is_done(), "the session goes on");
}

/// Its driver comes after its agent, and reports nothing.
#[test]
fn linux_with_an_agent_is_asked_and_its_driver_is_waited_for() {
    let nature = || Nature { linux: true, ..Nature::default() };
    let ran = session(nature(), "plug 1G\nhog 1M movable as a\nverify a\nresize 0");
    assert_eq!((ran.status(), ran.summary.boot), (0, Some(Duration::from_millis(400))));
    // The driver binds 2.6 seconds after the agent's report, and needs one second per GiB.
    assert_eq!(ran.steps[0].took, Duration::from_millis(3600));
    assert!(ran.steps.iter().all(|step| step.sample.guest.is_some()), "the agent tells counters");
    let ran = session(Nature { mute: true, ..nature() }, "check");
    let Ended::Failed { reason: Some(reason) } = ran.summary.ended else { panic!("{:?}", ran.summary) };
    assert!(reason.contains("CONFIG_BLK_DEV_INITRD") && reason.contains("virtio_console"), "{reason}");
}

#[test]
fn an_agent_of_another_tidevm_is_told_by_its_version() {
    let fake = FakeVm::new(Nature { linux: true, mute: true, ..Nature::default() });
    fake.after(Duration::from_millis(100), Event::Speaks(7));
    let ran = session_on(fake, "check");
    let Ended::Failed { reason: Some(reason) } = ran.summary.ended else { panic!("{:?}", ran.summary) };
    assert!(reason.contains("version 7") && reason.contains("an agent of another tidevm"), "{reason}");
    assert_eq!(ran.summary.total, Duration::from_millis(100), "it is not waited for");
}

#[test]
fn a_disagreement_in_the_guest_ends_the_session() {
    let lies = |op: &Op| {
        let failure = Failure::Disagree(Disagreement::Total { meminfo: 9, managed: 8 });
        matches!(op, Op::Check).then_some(Answer::Failed(failure))
    };
    let ran = session(Nature { lies, ..Nature::default() }, "check\nstats");
    assert_eq!((ran.status(), ran.steps.len()), (1, 1));
    assert!(ran.reason(0).contains("meminfo says"), "{}", ran.reason(0));
}

#[test]
fn other_kernels_may_have_no_driver() {
    let nature = Nature { foreign: true, driverless: true, ..Nature::default() };
    let ran = session(nature, "plug 1G within 5s");
    assert!(ran.reason(0).starts_with("driver absent"));
    assert_eq!(ran.steps[0].took, Duration::from_secs(5));
}

/// The driver binds after three seconds, and needs one second per GiB.
#[test]
fn the_wait_for_a_driver_is_part_of_the_deadline() {
    let nature = || Nature { foreign: true, ..Nature::default() };
    let ran = session(nature(), "plug 4G within 6s");
    assert!(ran.reason(0).starts_with("not within 6s: stopped at 0, "), "{}", ran.reason(0));
    assert_eq!(ran.steps[0].took, Duration::from_secs(6));
    let ran = session(nature(), "plug 4G within 7s");
    assert_eq!((ran.note(0), ran.steps[0].took), (None, Duration::from_secs(7)));
}

#[test]
fn a_driver_that_goes_is_the_reason_of_the_deadline() {
    let fake = FakeVm::new(Nature { foreign: true, ..Nature::default() });
    fake.after(Duration::from_millis(3500), Event::Unbind);
    let ran = session_on(fake, "plug 1G within 10s");
    let expected = "not within 10s: stopped at 0, 1024 MiB below the target: driver absent: the guest drives no \
                    device 0";
    assert_eq!(ran.reason(0), expected);
}

#[test]
fn a_resize_goes_on_after_a_reset() {
    for foreign in [false, true] {
        let fake = FakeVm::new(Nature { foreign, ..Nature::default() });
        // In the middle of the second step.
        fake.after(Duration::from_millis(if foreign { 5500 } else { 2900 }), Event::Reset);
        let ran = session_on(fake, "plug 1G\nplug 2G\nexpect resets == 1\nresize 0");
        assert_eq!(ran.summary.ended, Ended::Done, "{foreign}");
        assert_eq!((ran.note(0), ran.note(1)), (None, Some("the guest was reset")));
        assert_eq!(ran.steps[1].sample.devices[0].plugged, Size(3 << 30));
        assert_eq!(ran.summary.resets, 1);
        assert_eq!(ran.summary.plug.bytes, 1 << 30, "a rate is only told of what one guest did");
    }
}

#[test]
fn a_step_that_fails_tells_of_a_reset_too() {
    let fake = FakeVm::new(Nature { foreign: true, driverless: true, ..Nature::default() });
    fake.after(Duration::from_secs(3), Event::Reset);
    let ran = session_on(fake, "sleep 2s\nexpect plugged == 1G within 2s");
    assert_eq!(ran.reason(1), "plugged is 0; the guest was reset");
    // For its own sample, the session waits until the guest has booted and asks again.
    for (script, at) in [("check", 405), ("sleep 1s", 1415)] {
        let fake = FakeVm::new(Nature { slow: true, ..Nature::default() });
        fake.after(Duration::from_millis(at), Event::Reset);
        let ran = session_on(fake, script);
        assert_eq!(ran.summary.ended, Ended::Done, "{script}");
        assert!(ran.steps[0].sample.guest.is_some());
    }
}

/// The guest resets while the session waits for the counters of the boot.
#[test]
fn a_reset_before_a_step_is_not_one_of_the_step() {
    let fake = FakeVm::new(Nature { slow: true, ..Nature::default() });
    fake.after(Duration::from_millis(405), Event::Reset);
    let ran = session_on(fake, "sleep 1s\nexpect plugged == 1G");
    assert_eq!((ran.note(0), ran.reason(1).as_str(), ran.summary.resets), (None, "plugged is 0", 1));
}

/// The answers are for programs, and people read the notes.
#[test]
fn a_step_tells_the_last_answer_that_it_was_given() {
    let ran = good("check\nplug 1G\nstats\nexpect blocks.online == 8\nblocks");
    let told: Vec<_> = ran.steps.iter().map(|step| step.answer).collect();
    let checked = Answer::Checked { pages: 60_000, deferred: 0 };
    assert_eq!(told[..4], [Some(checked), None, None, None]);
    assert!(matches!(told[4], Some(Answer::Blocks { next: None, .. })), "{:?}", told[4]);
}

#[test]
fn what_lived_in_the_guest_goes_with_a_reset() {
    let waiting = [
        ("hog 1G movable as a", "the guest was reset before it answered"),
        ("hog 4K movable as a\nsleep 10s\nverify a", "`a` is gone: the guest was reset"),
        ("churn 1 threads for 2s as a\nwait a", "the guest was reset before it answered"),
        ("churn 1 threads for 2s as a\nsleep 10s", "the guest was reset before it answered"),
    ];
    for (script, why) in waiting {
        let fake = FakeVm::new(Nature::default());
        fake.after(Duration::from_millis(1400), Event::Reset);
        let ran = session_on(fake, script);
        assert_eq!(ran.summary.ended, Ended::Failed { reason: Some(why.to_owned()) }, "{script}");
        assert_eq!(ran.status(), 1);
    }
}

#[test]
fn without_a_driver_nothing_is_asked_of_the_device() {
    let ran = session(Nature { driverless: true, ..Nature::default() }, "plug 1G\nexpect requested == 0");
    assert!(ran.reason(0).starts_with("driver absent"));
    assert_eq!((ran.status(), ran.summary.failed), (1, 1));
}

#[test]
fn an_expectation_that_fails_ends_the_session() {
    let ran = good("plug 1G\nexpect plugged == 2G\ncheck");
    assert_eq!(ran.reason(1), "plugged is 1G");
    assert_eq!((ran.status(), ran.summary.steps), (1, 2));
    assert_eq!(ran.summary.ended, Ended::Failed { reason: Some("plugged is 1G".to_owned()) });
    assert_eq!(good("expect zone.Movable.present > 0").reason(0), "zone.Movable.present is 0");
    let all = "expect plugged == 0\nexpect requested == 0\nexpect host.held == 0\nexpect migrated == 0\n\
               expect zone.DMA32.free == 60000\nexpect memmap.boot_pages == 0\nexpect pcp.drains == 0\n\
               expect memmap.altmap_pages < 1\nexpect blocks.online != 1";
    assert_eq!(good(all).status(), 0);
}

#[test]
fn numbers_of_the_guest_may_be_absurd() {
    let boasts = Nature { boasts: true, ..Nature::default() };
    let ran = session(boasts, "expect zone.Movable.free == 18446744073709551615");
    assert_eq!(ran.status(), 0, "{:?}", ran.steps);
}

/// Runs `script` on a guest whose answer to the last step's call is a lie, and expects that the session ends by
/// it.
#[track_caller]
fn assert_unfit(script: &str, lies: fn(&Op) -> Option<Answer>) {
    let ran = session(Nature { lies, ..Nature::default() }, script);
    let last = ran.steps.len() - 1;
    assert!(matches!(ran.failure(last), StepFailure::WrongAnswer(_)), "{script}: {:?}", ran.steps[last]);
    assert_eq!((last + 1, ran.status()), (script.lines().count(), 1), "{script}");
}

#[test]
fn a_guest_that_holds_more_pages_than_asked_sets_no_deadline() {
    let holds = |op: &Op| matches!(op, Op::Hog { .. }).then_some(Answer::Hogged { pages: 257 });
    assert_unfit("hog 1M movable as a", holds);
    let holds = |op: &Op| matches!(op, Op::Pmem(_)).then_some(Answer::Hogged { pages: u64::MAX });
    assert_unfit("pmem hold 16K of 0 as a", holds);
    // The deadline of a verify is the one of the pages that were asked for, even if the guest holds them all.
    let silent = |op: &Op| match op {
        Op::Hog { pages, .. } => Some(Answer::Hogged { pages: *pages }),
        Op::Verify { .. } => Some(Answer::Verified { pages: 256, corrupt: 257, first: None }),
        _ => None,
    };
    assert_unfit("hog 1M movable as a\nverify a", silent);
}

#[test]
fn numbers_that_cannot_be_are_answers_to_another_question() {
    let raced = |op: &Op| {
        matches!(op, Op::Race { .. }).then_some(Answer::Raced { cycles: 1, failures: 0, stranded: 0 })
    };
    assert_unfit("race 2 cycles", raced);
    let raced = |op: &Op| {
        matches!(op, Op::Race { .. }).then_some(Answer::Raced { cycles: 2, failures: 3, stranded: 0 })
    };
    assert_unfit("race 2 cycles", raced);
    let blocks = |op: &Op| {
        let Op::Blocks { from } = op else { return None };
        let Answer::Blocks { mut runs, next } = FakeVm::blocks(*from) else { return None };
        runs.iter_mut().flatten().for_each(|run| run.count = u64::MAX / 2);
        Some(Answer::Blocks { runs, next })
    };
    assert_unfit("blocks", blocks);
    // The first address that no CPU has is the end of the last memory block.
    let last = |op: &Op| {
        let Op::Blocks { from: 0 } = op else { return None };
        let Answer::Blocks { mut runs, .. } = FakeVm::blocks(0) else { return None };
        runs.iter_mut().flatten().for_each(|run| run.addr = MAX_PHYS_ADDR - run.size.0);
        Some(Answer::Blocks { runs, next: None })
    };
    assert!(session(Nature { lies: last, ..Nature::default() }, "blocks").steps[0].is_done());
    let beyond = |op: &Op| {
        let Op::Blocks { from: 0 } = op else { return None };
        let Answer::Blocks { mut runs, .. } = FakeVm::blocks(0) else { return None };
        runs.iter_mut().flatten().for_each(|run| run.addr = MAX_PHYS_ADDR);
        Some(Answer::Blocks { runs, next: None })
    };
    assert_unfit("blocks", beyond);
    let unmapped = |op: &Op| matches!(op, Op::Pmem(_)).then_some(Answer::PmemUnmapped { pages: u64::MAX });
    assert_unfit("pmem unmap 0", unmapped);
    let mapped = |op: &Op| {
        let mapped = PmemMapped { pages: u64::MAX, locked_pages: 0, locked_ns: 0, total_ns: 0, cpus: 1 };
        matches!(op, Op::Pmem(_)).then_some(Answer::PmemMapped(mapped))
    };
    assert_unfit("pmem map 0 altmap", mapped);
}

#[test]
fn a_list_of_memory_blocks_has_an_end_and_one_deadline() {
    /// Calls of the guest that answers the same again and again.
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let endless = |op: &Op| {
        let Op::Blocks { from } = op else { return None };
        let Answer::Blocks { runs, .. } = FakeVm::blocks(*from) else { return None };
        CALLS.fetch_add(1, Ordering::Relaxed);
        Some(Answer::Blocks { runs, next: Some(*from) })
    };
    let ran = session(Nature { lies: endless, ..Nature::default() }, "blocks\ncheck");
    assert_eq!((ran.failure(0), ran.summary.steps), (&StepFailure::EndlessBlocks, 1));
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    // The guest has two memory blocks, and takes 40 s for each.
    let ran = session(Nature { plodding: true, ..Nature::default() }, "blocks\ncheck");
    assert!(matches!(ran.failure(0), StepFailure::TooLate { .. }), "{:?}", ran.failure(0));
    assert_eq!(ran.steps[0].took, super::ANSWER_DEADLINE);
}

#[test]
fn a_corrupt_page_is_told_by_its_word() {
    let script = "hog 1M movable as a\ncorrupt a page 255\ncorrupt a memmap\nrelease a";
    let ran = session(Nature::default(), script);
    assert_eq!(ran.status(), 0, "{:?}", ran.steps);
    let told = "page 255 at pfn 0x9: word 511 is 0x11, and should be 0x10".to_owned();
    assert_eq!(ran.steps[1].result, Ok(Some(told)));
    // Half of the pages fitted.
    let ran = session(Nature { room: 128, ..Nature::default() }, &script.replace("hog", "hog up to"));
    assert_eq!((ran.reason(1), ran.status()), ("the workload has no such page".to_owned(), 1));
    let another = |op: &Op| {
        let word = BadWord { page: 4, pfn: 9, word: 0, expected: 1, found: 2 };
        matches!(op, Op::Corrupt { .. }).then_some(Answer::Corrupted(word))
    };
    assert_unfit("hog 1M movable as a\ncorrupt a page 5", another);
    let nothing = |op: &Op| matches!(op, Op::Corrupt { .. }).then_some(Answer::Done);
    assert_unfit("hog 1M movable as a\ncorrupt a", nothing);
}

#[test]
fn a_wait_that_is_none_is_told() {
    let lies = |op: &Op| {
        matches!(op, Op::Probe(_)).then_some(Answer::Failed(Failure::NotAwaited(ProbedWait::PageCopy)))
    };
    let ran = session(Nature { lies, ..Nature::default() }, "probe page-copy\ncheck");
    assert_eq!(ran.reason(0), "a page counted as copied before another CPU had copied it");
    assert_eq!((ran.steps.len(), ran.status()), (2, 1));
    assert_unfit("probe churn", lies);
}

#[test]
fn what_the_guest_did_wrong_is_counted() {
    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::from_secs(1), Event::Answer(0, Box::new(Answer::Failed(Failure::BadRecord))));
    fake.after(Duration::from_secs(1), Event::Stray);
    let ran = session_on(fake, "sleep 2s");
    assert_eq!((ran.summary.bad_records, ran.summary.stray_accesses), (1, 1));
}

#[test]
fn an_expectation_may_come_true_in_time() {
    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::from_secs(10), Event::Unpin);
    let script = "plug 1G\nhog 8K pinned as a\nresize 0\nexpect plugged == 0 within 1s";
    assert_eq!(session_on(fake, script).reason(3), "plugged is 4M");

    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::from_secs(10), Event::Unpin);
    let ran = session_on(fake, "plug 1G\nhog 8K pinned as a\nresize 0\nexpect plugged == 0 within 1m");
    assert_eq!(ran.note(3), None);
    assert!(ran.steps[3].took < Duration::from_secs(10));
}

/// The last look is at the deadline itself, and not before.
#[test]
fn an_expectation_has_all_of_its_time() {
    // The guest is ready after 400 ms, so the driver settles 1 s and 50 ms after the start of the expectation.
    for (within, holds) in [("1100ms", true), ("1050ms", true), ("1040ms", false)] {
        let fake = FakeVm::new(Nature::default());
        fake.after(Duration::from_millis(2450), Event::Unpin);
        let script =
            format!("plug 1G\nhog 8K pinned as a\nresize 0 within 0s\nexpect plugged == 0 within {within}");
        let ran = session_on(fake, &script);
        let took: Vec<_> = ran.steps.iter().map(|step| step.took).collect();
        assert_eq!(
            (ran.steps[3].is_done(), took[3] <= Duration::from_millis(1100)),
            (holds, true),
            "{within}: {took:?}"
        );
    }
}

#[test]
fn a_death_ends_the_session_with_its_report() {
    let ran = session(Nature { panics: true, ..Nature::default() }, "plug 1G\ncheck\nplug 1G");
    assert_eq!((ran.status(), ran.summary.steps), (4, 2));
    assert_eq!(ran.reason(1), "the guest panicked");
    assert_eq!(ran.steps[1].sample.guest, None);
    assert_eq!(ran.steps[1].sample.devices[0].plugged, Size(1 << 30), "the outside can still be seen");
    let Ended::Died(death) = &ran.summary.ended else { panic!("{:?}", ran.summary.ended) };
    assert!(death.text.contains("rip 0xdead"));
}

/// Whatever the session had made of its script.
#[test]
fn a_death_while_the_guest_is_stopped_is_a_death() {
    for script in ["check", "resize 16G", "expect plugged == 1G"] {
        let ran = session(Nature { dies_at_the_end: true, ..Nature::default() }, script);
        assert_eq!(ran.status(), 4, "{script}");
        let Ended::Died(death) = &ran.summary.ended else { panic!("{:?}", ran.summary.ended) };
        assert_eq!(death.text, "rip 0xe4d");
    }
    // The first death is the cause.
    let nature = Nature { panics: true, dies_at_the_end: true, ..Nature::default() };
    let ran = session(nature, "check");
    let Ended::Died(death) = &ran.summary.ended else { panic!("{:?}", ran.summary.ended) };
    assert_eq!(death.text, "rip 0xdead");
}

#[test]
fn a_signal_ends_the_session() {
    for (signal, status) in [(2, 130), (15, 143)] {
        let fake = FakeVm::new(Nature::default());
        fake.after(Duration::from_secs(5), Event::Signal(signal));
        let ran = session_on(fake, "churn 1 thread for 1m as c\nsleep 1m\ncheck");
        assert_eq!((ran.status(), ran.summary.steps), (status, 2));
        assert_eq!(ran.reason(1), format!("ended by signal {signal}"));
    }
}

#[test]
fn a_guest_that_leaves_early_is_a_failure() {
    let fake = FakeVm::new(Nature::default());
    fake.after(Duration::from_secs(5), Event::PowerOff);
    let ran = session_on(fake, "sleep 1m\ncheck");
    assert_eq!((ran.status(), ran.reason(0).as_str()), (1, "the guest powered off"));
    let ran = session(Nature { deaf: true, ..Nature::default() }, "check");
    assert_eq!(ran.status(), 1);
    let Ended::Failed { reason: Some(reason) } = &ran.summary.ended else { panic!() };
    assert!(reason.contains("did not power off"));
    assert_eq!((ran.looks(), ran.summary.vcpus.len()), (vec![0], 1));
}

#[test]
fn a_guest_that_never_starts_is_a_failure() {
    let ran = session(Nature { mute: true, ..Nature::default() }, "check");
    assert_eq!((ran.status(), ran.summary.steps, ran.summary.boot), (1, 0, None));
    assert_eq!(ran.summary.total, super::BOOT_DEADLINE + Duration::from_secs(8));
    let Ended::Failed { reason: Some(reason) } = ran.summary.ended else { panic!() };
    assert_eq!(reason, "the first report of a guest with 1536M of boot memory: not within 68s");
    assert_eq!(ran.summary.vcpus.len(), 1);
}

#[test]
fn the_total_time_contains_the_boot() {
    let fake = FakeVm::new(Nature::default());
    fake.age(Duration::from_secs(3));
    let ran = session_on(fake, "sleep 2s");
    assert_eq!(ran.summary.boot, Some(Duration::from_millis(400)));
    assert_eq!(ran.summary.total, Duration::from_secs(5));
}

#[test]
fn the_wait_for_a_driver_is_in_no_rate() {
    // The driver binds the device after 3 s, and plugs 1 GiB per second.
    let ran = session(Nature { foreign: true, ..Nature::default() }, "plug 2G\nunplug 1G");
    assert_eq!(ran.steps[0].took, Duration::from_secs(5));
    assert_eq!(ran.summary.plug.seconds_per_gib(), Some(1.0));
    assert_eq!(ran.summary.unplug.seconds_per_gib(), Some(1.0));
}

#[test]
fn a_deadline_grows_with_what_is_asked_for_and_not_with_what_the_guest_says() {
    let stuck = |script: &str| session(Nature { stuck: true, ..Nature::default() }, script).steps[0].took;
    assert_eq!(stuck("plug 1G"), RESIZE_DEADLINE + Duration::from_secs(5));
    assert_eq!(stuck("resize 8G"), RESIZE_DEADLINE + Duration::from_secs(40));
    assert_eq!(stuck("resize 0 within 1s"), Duration::from_secs(1));
    // A driver that never comes is waited for as long, whatever the size is: it is refused afterwards.
    let driverless = Nature { foreign: true, driverless: true, ..Nature::default() };
    assert_eq!(session(driverless, "resize 64T").steps[0].took, RESIZE_DEADLINE + Duration::from_secs(40));

    let fill = |size| deadline::answer(Work::Fill, size);
    let hogs = |op: &Op| matches!(op, Op::Hog { .. });
    let ignores = |script: &str, ignores: fn(&Op) -> bool| {
        let ran = session(Nature { ignores, room: 100, ..Nature::default() }, script);
        ran.steps.last().unwrap().took
    };
    assert_eq!(ignores("hog 1G movable as a", hogs), fill(Size::gib(1)));
    let all = Size(BOOT_MEMORY + DEVICE_MEMORY + REGION);
    assert_eq!(ignores("hog up to 15E movable as a", hogs), fill(all), "there is no more");
    let verify = "hog up to 1G movable as a\nverify a";
    let took = ignores(verify, |op| matches!(op, Op::Verify { .. }));
    assert_eq!(took, fill(Size::gib(1)), "the guest says that it holds 100 pages");
    let released = ignores("hog up to 1G movable as a\nrelease a", |op| matches!(op, Op::Release { .. }));
    assert_eq!(released, deadline::answer(Work::Move, Size::gib(1)));
    let readd = ignores("readd 2G at 4G", |op| matches!(op, Op::Readd { .. }));
    assert_eq!(readd, deadline::answer(Work::Move, Size::gib(2)));
    for script in ["pmem map 0", "pmem unmap 0"] {
        let took = ignores(script, |op| matches!(op, Op::Pmem(_)));
        assert_eq!(took, deadline::answer(Work::Initialise, Size(DEVICE_MEMORY)), "{script}");
    }
}

#[test]
fn churns_run_beside_other_steps_and_are_awaited() {
    let ran = good("churn 2 threads for 5s as c\nplug 1G\nwait c\ncheck");
    assert_eq!(ran.steps[1].took, Duration::from_secs(1));
    assert_eq!(ran.steps[2].took, Duration::from_secs(4));
    assert_eq!(ran.note(2), Some("5000 allocations, 0 found no memory"));

    let ran = good("churn 2 threads for 5s as c\nchurn 1 thread for 7s as d\nrelease d\ncheck");
    assert_eq!(ran.summary.steps, 5, "c is awaited at the end");
    assert_eq!((ran.steps[4].line, ran.steps[4].command.to_string().as_str()), (0, "wait c"));
    assert_eq!(ran.summary.total, Duration::from_millis(7410));
}

#[test]
fn a_hog_that_does_not_fit_fails_unless_it_says_up_to() {
    let room = |room| Nature { room, ..Nature::default() };
    let script =
        "hog up to 1M movable as a\nverify a\nhog up to 1M movable as b\nverify b\nrelease a\nrelease b";
    let ran = session(room(100), script);
    assert_eq!(ran.status(), 0);
    assert_eq!(ran.note(0), Some("100 of 256 pages fitted"));
    assert_eq!(ran.note(1), Some("100 pages intact"));
    assert_eq!(ran.note(3), Some("0 pages intact"));
    let none = session(room(0), "hog up to 1M pinned as a\nverify a\nrelease a");
    assert_eq!((none.status(), none.note(0)), (0, Some("0 of 256 pages fitted")));

    // All or nothing: the second one has the room that the first one did not take, under the same name.
    for hog in ["hog 1M movable", "pmem hold 1M of 0"] {
        let ran = session(room(100), &format!("{hog} as a\nhog 400K movable as b\nverify b"));
        let reason = "does not fit: there is room for at most 100 pages; `up to` holds what fits";
        assert_eq!((ran.reason(0).as_str(), ran.note(2)), (reason, Some("100 pages intact")), "{hog}");
        assert_eq!((ran.status(), ran.summary.steps, ran.summary.failed), (1, 3, 1), "{hog}");
    }
    let ran = session(room(0), "hog 1M pinned as a\nverify a\ncheck");
    assert_eq!(ran.reason(0), "the guest has no memory for it");
    assert_eq!((ran.reason(1), ran.summary.steps), ("nothing is called `a` here".to_owned(), 2));

    // A guest cannot have less than was asked for, nor say that all of it fits and does not.
    let less = |op: &Op| matches!(op, Op::Hog { .. }).then_some(Answer::Hogged { pages: 255 });
    assert_unfit("hog 1M movable as a", less);
    let fits =
        |op: &Op| matches!(op, Op::Hog { .. }).then_some(Answer::Failed(Failure::DoesNotFit { pages: 256 }));
    assert_unfit("hog 1M movable as a", fits);
    let some =
        |op: &Op| matches!(op, Op::Hog { .. }).then_some(Answer::Failed(Failure::DoesNotFit { pages: 1 }));
    assert_unfit("hog up to 1M movable as a", some);
}

#[test]
fn a_step_that_is_expected_to_fail_is_done_when_it_fails_for_that_reason() {
    let script = "plug 1G\nhog 8K pinned as a\nfails resize 0 because \"cannot move\"\n\
                  fails expect plugged == 0 because \"plugged is 4M\"\nfails plug 16G because \"refused\"\n\
                  fails readd 1G at 4G because \"one at a time\"\nrelease a\nresize 0";
    let ran = good(script);
    assert_eq!((ran.status(), ran.summary.failed, ran.summary.steps), (0, 0, 8), "{:?}", ran.steps);
    let note = ran.note(2).unwrap();
    assert!(note.starts_with("stopped at 4M, 4 MiB above the target: 2 pages cannot move: "), "{note}");
    assert_eq!(ran.note(3), Some("plugged is 4M"));

    let stuck = Nature { stuck: true, ..Nature::default() };
    let ran = session(stuck, "fails plug 1G within 2s because \"not within 2s\"\ncheck");
    assert_eq!((ran.status(), ran.summary.steps, ran.steps[0].vcpus.len()), (0, 2, 0));

    let corrupt = Nature { corrupt: 3, ..Nature::default() };
    let ran = session(corrupt, "hog 1M movable as a\nfails verify a because \"3 of 256\"\ncheck");
    assert_eq!((ran.status(), ran.summary.steps), (0, 3), "it would end the session otherwise");

    let room = Nature { room: 100, ..Nature::default() };
    let ran = session(
        room,
        "fails hog 1M movable as a because \"at most 100 pages\"\nhog 4K movable as a\nverify a",
    );
    assert_eq!((ran.status(), ran.summary.steps), (0, 3), "the name is free");
}

#[test]
fn a_step_that_does_not_fail_as_expected_ends_the_session() {
    let ran = good("fails plug 1G because \"refused\"\ncheck");
    assert_eq!((ran.failure(0), ran.status(), ran.summary.steps), (&StepFailure::DidNotFail, 1, 1));
    let ran = good("fails plug 16G because \"cannot move\"\ncheck");
    let reason =
        "it failed, but not because \"cannot move\": refused: 16G does not fit into the region of 8G";
    assert!(ran.reason(0).starts_with(reason), "{}", ran.reason(0));
    assert_eq!((ran.status(), ran.summary.steps), (1, 1));
}

#[test]
fn the_end_of_a_guest_is_no_failure_that_a_step_may_have() {
    let panics = Nature { panics: true, ..Nature::default() };
    assert_eq!(session(panics, "fails check because \"guest\"\nstats").status(), 4);
    let silent = Nature { ignores: |op| matches!(op, Op::Check), ..Nature::default() };
    let ran = session(silent, "fails check because \"not within\"\nstats");
    assert!(matches!(ran.failure(0), StepFailure::TooLate { .. }), "{:?}", ran.failure(0));
    assert_eq!((ran.status(), ran.summary.steps, ran.steps[0].vcpus.len()), (1, 1, 1));
    for (event, status) in [(Event::Signal(15), 143), (Event::PowerOff, 1)] {
        let fake = FakeVm::new(Nature::default());
        fake.after(Duration::from_secs(1), event);
        let ran = session_on(fake, "fails sleep 5s because \"e\"\nstats");
        assert_eq!((ran.status(), ran.summary.steps), (status, 1));
    }
}

#[test]
fn an_expectation_is_about_all_devices_unless_it_names_one() {
    let of_two = |script: &str| {
        let fake = FakeVm::new(Nature::default());
        fake.add_device(Size::gib(3));
        session_on(fake, script)
    };
    let ran = of_two(
        "plug 1G\nexpect plugged == 4G\nexpect plugged == 1G device 0\nexpect plugged == 3G device 1\n\
         expect requested == 4G\nexpect host.held == 512M\nexpect host.held == 384M device 1",
    );
    assert_eq!(ran.status(), 0, "{:?}", ran.steps);
    let ran = of_two("expect plugged == 0 device 2\ncheck");
    assert_eq!((ran.failure(0), ran.status(), ran.summary.steps), (&StepFailure::NoDevice(2), 1, 1));
    let ran =
        good("expect node.0.zone.DMA32.free == 60000\nexpect node.1.zone.DMA32.free == 0 within 1m\ncheck");
    assert_eq!(ran.reason(1), "the guest has no `node.1.zone.DMA32.free`");
    assert_eq!((ran.status(), ran.summary.steps, ran.steps[1].took), (1, 2, Duration::ZERO));
}

#[test]
fn wrong_or_missing_pages_end_the_session() {
    let ran = session(Nature { corrupt: 3, ..Nature::default() }, "hog 1M movable as a\nverify a\ncheck");
    assert_eq!((ran.status(), ran.summary.steps), (1, 2));
    assert_eq!(
        ran.reason(1),
        "3 of 256 pages of `a` are corrupt, the first is page 2 at pfn 0x9: word 511 is 0x11, and should be 0x10"
    );
    let ran = session(Nature { lose: 1, ..Nature::default() }, "hog 1M movable as a\nrelease a\ncheck");
    assert_eq!((ran.status(), ran.summary.steps), (1, 2));
    assert_eq!(ran.reason(1), "`a` held 256 pages, and now has 255");
}

#[test]
fn when_nobody_can_read_on_the_machine_is_stopped() {
    let fake = FakeVm::new(Nature::default());
    let stops = fake.stops();
    let mut recorder = Recorder { breaks_after: Some(1), ..Recorder::default() };
    let script = Script::parse("test", "check\ncheck").unwrap();
    let error = run(fake, &script, &mut recorder).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!((stops.take().len(), recorder.steps.len()), (1, 1));
    // Who can still be told is told of the end.
    assert_eq!(recorder.ends, 1);
}

#[test]
fn staying_ends_well_by_a_signal_or_by_the_guest() {
    for event in [Event::Signal(2), Event::PowerOff] {
        let fake = FakeVm::new(Nature::default());
        fake.after(Duration::from_secs(9000), event);
        let summary = stay(fake, &mut Recorder::default()).unwrap();
        assert_eq!(summary.ended, Ended::Done);
        assert!(summary.total >= Duration::from_secs(8999));
    }
    let fake = FakeVm::new(Nature { mute: true, ..Nature::default() });
    fake.after(Duration::from_secs(9000), Event::Signal(15));
    let summary = stay(fake, &mut Recorder::default()).unwrap();
    assert_eq!((summary.ended, summary.boot), (Ended::Done, None), "another guest may never report");
}

#[test]
fn device_memory_says_what_it_took_and_why_it_stays() {
    let script = "pmem
                  pmem map 0 altmap reserve 2M on 2 cpus
                  pmem hold 16K of 0 as cache
                  pmem unmap 0
                  verify cache
                  release cache
                  pmem unmap 0
                  pmem map 0
                  pmem unmap 3";
    let ran = session(Nature::default(), script);
    assert_eq!(ran.note(0), Some("pmem 0: 1G at 0x140000000, not mapped"));
    let mapped = "258048 pages to use after 70.000 ms on 2 CPUs; the hotplug lock was held for 1.500 ms, and 4096 \
                  struct pages written under it";
    assert_eq!(ran.note(1), Some(mapped));
    assert_eq!(ran.reason(3), "4 references to its pages are held, the first is pfn 0x140000 (cache)");
    assert_eq!(ran.note(4), Some("4 pages intact"));
    assert_eq!(ran.note(6), Some("262144 pages were usable"));
    assert!(ran.reason(7).contains("with `altmap` it needs none"), "{}", ran.reason(7));
    assert!(ran.reason(8).contains("--pmem size=SIZE makes it"), "{}", ran.reason(8));
    assert_eq!((ran.status(), ran.summary.steps), (1, 9), "a refusal does not end the session");
}
