//! Sessions whose machine is saved in place of its end, and those that go on with it.

use std::time::Duration;

use tidevm_machine::Size;

use super::super::fake::{Event, FakeVm, Nature};
use super::super::{Ended, Summary, run, stay};
use super::Recorder;
use crate::Remembered;
use crate::script::Script;

const HOG: &str = "hog 1M movable as data\nhog 2M movable as other\nrelease other";

fn saved(nature: Nature, text: &str) -> (Summary, Remembered) {
    let vm = FakeVm::new(nature);
    let snapshot = vm.snapshot();
    let script = Script::parse("test", text).unwrap();
    let summary = run(vm, &script, &mut Recorder::default()).unwrap();
    let bytes = snapshot.borrow().clone();
    (summary, Remembered::from_bytes(&bytes))
}

#[test]
fn a_machine_is_saved_in_place_of_its_end_and_its_workloads_keep_their_names() {
    let (summary, remembered) = saved(Nature { saves: Some(true), ..Nature::default() }, HOG);
    assert_eq!(summary.ended, Ended::Done);
    assert_eq!(summary.saved.map(|saved| saved.content), Some(Size::mib(12)));
    let living: Vec<_> = remembered.living().map(|(name, pages)| (name.as_str(), pages)).collect();
    assert_eq!(living, [("data", Some(256))]);

    // `data` is known, `other` is not, and the handles that were used are not used again.
    let unknown = Script::parse_after("test", "verify other", &remembered).unwrap_err().to_string();
    assert!(unknown.contains("nothing is called `other`"), "{unknown}");
    let twice = Script::parse_after("test", "hog 1M movable as data", &remembered).unwrap_err().to_string();
    assert!(twice.contains("`data` is in use since before the snapshot"), "{twice}");
    let text = "verify data\nhog 1M movable as more\nverify more\nrelease data";
    let script = Script::parse_after("test", text, &remembered).unwrap();
    let vm = FakeVm::restored(Nature::default(), remembered.to_bytes(), 256);
    let summary = run(vm, &script, &mut Recorder::default()).unwrap();
    assert_eq!((summary.ended, summary.steps, summary.saved), (Ended::Done, 4, None));
}

#[test]
fn a_step_that_failed_on_the_way_does_not_keep_a_machine_from_being_saved() {
    let nature = Nature { saves: Some(true), room: 100, ..Nature::default() };
    let (summary, _) = saved(nature, "hog 1M movable as data");
    assert_eq!((summary.ended.status(), summary.failed), (1, 1));
    assert!(summary.saved.is_some());
}

#[test]
fn a_session_that_ended_early_saves_nothing() {
    let nature = Nature { saves: Some(true), corrupt: 1, ..Nature::default() };
    let (summary, _) = saved(nature, "hog 1M movable as data\nverify data");
    assert!(matches!(summary.ended, Ended::Failed { reason: Some(_) }), "{:?}", summary.ended);
    assert_eq!(summary.saved, None);
}

/// The guest is powered off all the same.
#[test]
fn a_save_that_fails_fails_the_session_with_its_reason() {
    let (summary, remembered) = saved(Nature { saves: Some(false), ..Nature::default() }, "stats");
    let Ended::Failed { reason: Some(reason) } = &summary.ended else { panic!("{:?}", summary.ended) };
    assert!(reason.starts_with("the machine was not saved: waited 5s"), "{reason}");
    assert_eq!((summary.saved, remembered), (None, Remembered::default()));
}

#[test]
fn a_session_without_steps_is_saved_when_a_signal_ends_it() {
    let vm = FakeVm::new(Nature { saves: Some(true), ..Nature::default() });
    vm.after(Duration::from_secs(3), Event::Signal(15));
    let summary = stay(vm, &mut Recorder::default()).unwrap();
    assert_eq!(summary.ended, Ended::Done);
    assert!(summary.saved.is_some());
}
