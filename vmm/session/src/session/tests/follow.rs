//! Lines that come while a session runs.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tidevm_abi::Size;
use tidevm_machine::{Config, HotplugConfig};

use super::super::fake::{Event, FakeVm, Nature, REGION};
use super::super::{Ended, Line, Lines, Manner, follow};
use super::{Ran, Recorder};
use crate::script::{LiveScript, ScriptErrors};

/// Lines that are there when they are asked for.
struct Ready {
    lines: VecDeque<Line>,
    asked: bool,
    refused: Vec<String>,
}

impl Lines for Ready {
    fn ask(&mut self, _: &LiveScript) {
        assert!(!self.asked, "the line before it was not taken");
        self.asked = true;
    }

    fn take(&mut self) -> Option<Line> {
        assert!(self.asked, "a line that was not asked for");
        self.asked = false;
        Some(self.lines.pop_front().unwrap_or(Line::End))
    }

    fn refuse(&mut self, errors: &ScriptErrors) -> io::Result<()> {
        self.refused.push(errors.to_string());
        Ok(())
    }
}

/// Runs `script` line by line. Returns what was refused, too.
fn followed(fake: FakeVm, manner: Manner, script: &str) -> (Ran, Vec<String>) {
    let stops = fake.stops();
    let lines = script.lines().map(|line| match line {
        "^C" => Line::Abandoned,
        line => Line::Text(line.to_owned()),
    });
    let mut lines = Ready { lines: lines.collect(), asked: false, refused: Vec::new() };
    let config = Config { hotplug: vec![HotplugConfig::new(Size(REGION))], ..Config::default() };
    let mut recorder = Recorder::default();
    let live = LiveScript::new("test", config);
    let summary = follow(fake, live, &mut lines, manner, &mut recorder).unwrap();
    let end_limit = stops.borrow()[0];
    (Ran { summary, steps: recorder.steps, end_limit }, lines.refused)
}

fn good() -> FakeVm {
    FakeVm::new(Nature::default())
}

#[test]
fn lines_are_a_script() {
    let script = "plug 1G\nrepeat 2 {\n  plug 2M\n}\nchurn 1 threads for 2s as c\n";
    let (ran, refused) = followed(good(), Manner::Script, script);
    let lines: Vec<_> = ran.steps.iter().map(|step| (step.line, step.is_done())).collect();
    assert_eq!(lines, [(1, true), (3, true), (3, true), (5, true), (0, true)], "the churn is awaited");
    assert_eq!((ran.summary.ended, refused.len()), (Ended::Done, 0));
}

#[test]
fn a_wrong_line_ends_a_script_and_not_a_prompt() {
    let script = "plug 2M\nplug\nplug 2M\nverify nothing\nrepeat 2 {\nplug 3M\n}\nplug 2M";
    let (ran, _) = followed(good(), Manner::Script, script);
    assert_eq!((ran.steps.len(), ran.status()), (1, 2));
    let Ended::Misread(errors) = &ran.summary.ended else { panic!("{:?}", ran.summary.ended) };
    assert!(errors.to_string().starts_with("test:2:5: expected a size"), "{errors}");
    let (ran, refused) = followed(good(), Manner::Prompt, script);
    assert_eq!((ran.steps.len(), ran.status()), (3, 0));
    let begins = ["test:2:5: expected", "test:4:1: nothing is called `nothing`", "test:6:1: 3M is not"];
    assert_eq!(refused.len(), begins.len(), "{refused:#?}");
    for (text, begin) in refused.iter().zip(begins) {
        assert!(text.starts_with(begin), "{text}");
    }
}

#[test]
fn an_open_repeat_is_abandoned_and_one_without_an_end_is_wrong() {
    let (ran, refused) = followed(good(), Manner::Prompt, "repeat 2 {\nplug 2M\n^C\nplug 4M");
    assert_eq!((ran.steps.len(), refused.len(), ran.steps[0].line), (1, 0, 3));
    let (ran, _) = followed(good(), Manner::Script, "repeat 2 {\nplug 2M\n");
    assert_eq!((ran.steps.len(), ran.status()), (0, 2));
}

#[test]
fn a_prompt_goes_on_after_what_ends_a_script() {
    let nature = || Nature { corrupt: 1, ..Nature::default() };
    let script = "hog 1M movable as a\nverify a\nplug 2M";
    let (ran, _) = followed(FakeVm::new(nature()), Manner::Script, script);
    assert_eq!((ran.steps.len(), ran.status()), (2, 1));
    let (ran, _) = followed(FakeVm::new(nature()), Manner::Prompt, script);
    assert_eq!((ran.steps.len(), ran.status()), (3, 1));
    let panics = Nature { panics: true, ..Nature::default() };
    let (ran, _) = followed(FakeVm::new(panics), Manner::Prompt, "check\nplug 2M");
    assert_eq!((ran.steps.len(), ran.status()), (1, 4), "a guest that died is the end");
}

/// Names are those of the guest, not those that the lines would have made.
#[test]
fn a_name_is_free_again_when_its_workload_failed() {
    let nature = Nature {
        lies: |op| matches!(op, tidevm_abi::Op::Hog { handle: 0, .. }).then_some(tidevm_abi::Answer::Done),
        ..Nature::default()
    };
    let script = "hog 1M movable as a\nhog 1M movable as a\nhog 1M movable as a\nrelease a\nrelease a";
    let (ran, refused) = followed(FakeVm::new(nature), Manner::Prompt, script);
    let done: Vec<_> = ran.steps.iter().map(|step| (step.line, step.is_done())).collect();
    assert_eq!(done, [(1, false), (2, true), (4, true)]);
    assert!(
        refused[0].contains("in use since line 2") && refused[1].contains("nothing is called"),
        "{refused:?}"
    );
}

#[test]
fn an_interrupt_stops_a_resize_where_it_is() {
    let fake = good();
    // The guest is up after 400 ms; it would take two seconds for the resize.
    fake.after(Duration::from_millis(900), Event::Interrupt);
    let (ran, _) = followed(fake, Manner::Prompt, "repeat 3 {\nplug 2G\n}\nplug 4M");
    assert_eq!(ran.steps.len(), 2, "the other rounds are not run");
    assert_eq!(ran.reason(0), "cancelled");
    let device = ran.steps[0].sample.devices[0];
    assert_eq!(device.requested, device.plugged);
    assert!(ran.steps[1].is_done(), "{:?}", ran.steps[1]);
}

#[test]
fn an_interrupt_ends_waits() {
    for (script, lives) in
        [("sleep 10m", false), ("expect plugged == 2M within 10m", false), ("wait c", true)]
    {
        let fake = good();
        fake.after(Duration::from_secs(5), Event::Interrupt);
        let script = format!("churn 1 threads for 20s as c\n{script}\nwait c");
        let (ran, refused) = followed(fake, Manner::Prompt, &script);
        assert_eq!((ran.reason(1).as_str(), refused.len()), ("cancelled", 0), "{lives}");
        assert!(ran.steps[1].took < Duration::from_secs(5), "{script}");
        assert!(ran.steps[2].is_done(), "the churn went on: {:?}", ran.steps[2]);
    }
}
