//! An observer that follows the VM: samples within steps, memory blocks after them, and sessions that end as before.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use tidevm_abi::{Op, Size};

use super::super::fake::{Event, FakeVm, Nature};
use super::super::{Booted, Ended, Observer, Sample, StepRun, Summary, run};
use crate::script::Script;

/// Everything that it is told, in order.
#[derive(Default)]
struct Follower {
    told: RefCell<Vec<Told>>,
    /// It cannot write samples.
    broken: bool,
}

#[derive(Clone, Debug)]
enum Told {
    Boot(Sample),
    Sample(Duration, Sample),
    Step(Box<StepRun>),
}

impl Observer for Follower {
    fn follows(&self) -> bool {
        true
    }

    fn sample(&mut self, at: Duration, sample: &Sample) -> io::Result<()> {
        self.told.get_mut().push(Told::Sample(at, sample.clone()));
        if self.broken { Err(io::Error::other("full")) } else { Ok(()) }
    }

    fn boot(&mut self, booted: &Booted) -> io::Result<()> {
        self.told.get_mut().push(Told::Boot(booted.sample.clone()));
        Ok(())
    }

    fn step(&mut self, run: &StepRun) -> io::Result<()> {
        self.told.get_mut().push(Told::Step(Box::new(run.clone())));
        Ok(())
    }

    fn end(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}

fn follow(vm: FakeVm, script: &str, broken: bool) -> (Vec<Told>, Summary) {
    let script = Script::parse("test", script).expect("a script");
    let mut follower = Follower { broken, ..Follower::default() };
    let summary = run(vm, &script, &mut follower).expect("it writes");
    (follower.told.into_inner(), summary)
}

fn samples(told: &[Told]) -> Vec<(Duration, u64, u64)> {
    let sample = |told: &Told| match told {
        Told::Sample(at, sample) => Some((*at, sample.devices[0].requested.0, sample.devices[0].plugged.0)),
        _ => None,
    };
    told.iter().filter_map(sample).collect()
}

#[test]
fn a_step_is_sampled_while_it_waits() {
    let (told, summary) = follow(FakeVm::new(Nature::default()), "plug 1G\nsleep 5s", false);
    assert_eq!(summary.ended, Ended::Done);
    let samples = samples(&told);
    // A second for each GiB. The target is seen at once, and what is plugged when it changes.
    let requested = samples.iter().position(|(_, requested, _)| *requested == 1 << 30).expect("the target");
    assert_eq!(samples[requested].2, 0, "{samples:?}");
    assert!(samples.iter().any(|(_, _, plugged)| *plugged == 1 << 30), "{samples:?}");
    let times: Vec<Duration> = samples.iter().map(|(at, ..)| *at).collect();
    let close = |pair: &[Duration]| pair[1] - pair[0] < Duration::from_millis(100);
    assert!(!times.windows(2).any(close), "{times:?}");
    assert!(samples.len() < 10, "nothing is told while nothing changes: {samples:?}");
}

/// A process that is stopped in such a look is not late for its deadline.
#[test]
fn a_look_within_a_wait_is_part_of_it() {
    let fake = FakeVm::new(Nature::default());
    let amid_waits = fake.amid_waits();
    follow(fake, "sleep 5s", false);
    // A look for each tenth of a second.
    assert!(amid_waits.get() >= 50, "{}", amid_waits.get());
}

#[test]
fn samples_come_between_the_steps_around_them() {
    let (told, _) =
        follow(FakeVm::new(Nature { slow: true, ..Nature::default() }), "plug 1G\nresize 0\nsleep 2s", false);
    let mut last = Duration::ZERO;
    for told in &told {
        let at = match told {
            Told::Boot(_) => continue,
            Told::Sample(at, _) => *at,
            Told::Step(run) => run.start + run.took,
        };
        assert!(at >= last, "{at:?} after {last:?}: {told:?}");
        last = at;
    }
}

#[test]
fn memory_blocks_are_listed_after_each_step() {
    let (told, summary) = follow(FakeVm::new(Nature::default()), "plug 1G\nblocks", false);
    assert_eq!(summary.ended, Ended::Done);
    let runs = |sample: &Sample| sample.blocks.as_ref().map(|blocks| (blocks.runs.len(), blocks.complete));
    let steps: Vec<&StepRun> = told
        .iter()
        .filter_map(|told| if let Told::Step(run) = told { Some(run.as_ref()) } else { None })
        .collect();
    assert_eq!(runs(&steps[0].sample), Some((2, true)));
    assert_eq!((steps[0].listed.is_none(), steps[1].listed.as_ref().map(Vec::len)), (true, Some(2)));
    assert!(told.iter().any(|told| matches!(told, Told::Boot(sample) if runs(sample) == Some((2, true)))));
}

/// The answers are waited for in parts, and so is their deadline.
#[test]
fn a_guest_that_does_not_answer_is_silent_for_a_follower_too() {
    for ignores in [(|op| matches!(op, Op::Check)) as fn(&Op) -> bool, |op| matches!(op, Op::Blocks { .. })] {
        let (told, summary) =
            follow(FakeVm::new(Nature { ignores, ..Nature::default() }), "sleep 1s\ncheck", false);
        let reason = "the guest's answer: not within 1m";
        assert_eq!(summary.ended, Ended::Failed { reason: Some(reason.to_owned()) });
        assert!(told.len() < 10, "{told:?}");
    }
}

#[test]
fn a_signal_ends_a_wait_in_parts() {
    let vm = FakeVm::new(Nature::default());
    vm.after(Duration::from_millis(2150), Event::Signal(15));
    let (_, summary) = follow(vm, "sleep 1m", false);
    assert_eq!((summary.ended, summary.total), (Ended::Signal { signal: 15 }, Duration::from_millis(2150)));
}

#[test]
fn an_observer_that_cannot_write_a_sample_is_told_the_step() {
    let (told, summary) = follow(FakeVm::new(Nature::default()), "plug 1G", true);
    assert_eq!(summary.ended, Ended::Done);
    assert!(matches!(told.last(), Some(Told::Step(run)) if run.sample.devices[0].plugged == Size(1 << 30)));
}
