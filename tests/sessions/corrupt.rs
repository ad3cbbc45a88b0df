//! Corruption in a booted guest: `verify` finds a word that was changed, and `check` a struct page.
//!
//! Without these sessions a guest that compares nothing would pass all the others.

use tidevm_abi::{Answer, BadWord};
use tidevm_machine::{Config, DeathKind, Size};
use tidevm_session::{Ended, StepFailure};
use tidevm_tests::{Session, Test, machine, run, run_checked};

pub const TESTS: &[Test] = &[
    ("verify_finds_each_word_that_was_written", verify_finds_each_word_that_was_written),
    ("verify_finds_a_word_in_pages_that_moved", verify_finds_a_word_in_pages_that_moved),
    ("verify_finds_a_word_in_device_memory", verify_finds_a_word_in_device_memory),
    ("check_finds_a_struct_page_that_was_changed", check_finds_a_struct_page_that_was_changed),
];

/// The word that `corrupt` changed, and the one that `verify`, the last step, found. The session ended by that.
#[track_caller]
fn words(session: &Session) -> (BadWord, BadWord) {
    session.assert_alive();
    let changed = session.steps.iter().find_map(|step| match step.answer {
        Some(Answer::Corrupted(word)) => Some(word),
        _ => None,
    });
    let last = session.steps.last().expect("a step");
    match &last.result {
        Err(StepFailure::Corrupt { corrupt: 1, first: Some(found), .. }) => {
            assert_eq!(session.summary.ended.status(), 1);
            (changed.expect("a word that was changed"), *found)
        }
        other => panic!("`{}`: {other:?}", last.command),
    }
}

/// The first, middle and last word of a page; the words of a `full` hog; one page of several kinds.
fn verify_finds_each_word_that_was_written() {
    for (hog, page, word) in [
        ("movable scattered", 0, 0),
        ("pinned", 1, 256),
        ("unmovable", 62, 511),
        ("contiguous full", 63, 63),
        ("movable full", 5, 5),
    ] {
        let script =
            format!("plug 128M\nhog 256K {hog} as data\nverify data\ncorrupt data page {page}\nverify data");
        let session = run_checked(machine(128 << 20), &script);
        let (changed, found) = words(&session);
        assert_eq!((found.page, found.word, found), (page, word, changed), "{hog}");
        assert_eq!(found.expected ^ 1, found.found, "{hog}");
        let pfn = found.pfn;
        let text = format!(
            "1 of 64 pages of `data` is corrupt, the first is page {page} at pfn {pfn:#x}: word {word}"
        );
        assert!(session.failures()[0].1.starts_with(&text), "{:?}", session.failures());
    }
}

/// The page and its word are the same after a migration, in another frame. The second change undoes the first.
fn verify_finds_a_word_in_pages_that_moved() {
    let script = "plug 256M
                  hog 2M movable scattered as data
                  corrupt data page 301
                  resize 0
                  expect migrated > 0
                  verify data";
    let (changed, found) = words(&run_checked(machine(256 << 20), script));
    assert_eq!((found.page, found.word), (301, 256));
    assert_eq!((changed.word, changed.expected, changed.found), (found.word, found.expected, found.found));
    assert_ne!(changed.pfn, found.pfn, "{changed:?}");
    let script =
        "plug 128M\nhog 2M movable as data\ncorrupt data page 7\nresize 0\ncorrupt data page 7\nverify data";
    run_checked(machine(128 << 20), script).assert_done();
}

fn verify_finds_a_word_in_device_memory() {
    let config = Config { pmem: vec![Size::mib(128)], ..machine(128 << 20) };
    let script = "pmem map 0\npmem hold 64K of 0 as other\npmem hold 64K of 0 as data\nverify other
                  corrupt data page 15\nverify other\nverify data";
    let (changed, found) = words(&run_checked(config, script));
    assert_eq!((found.page, found.word, found), (15, 0, changed));
}

/// The owner of a page is one that is not registered. Whatever looks at the page next would call it.
fn check_finds_a_struct_page_that_was_changed() {
    let script = "plug 128M\nhog 64K movable as data\ncheck\ncorrupt data page 3 memmap\ncheck";
    // `check` is the subject here, so the script says where it stands.
    let session = run(machine(128 << 20), script);
    let Ended::Died(death) = &session.summary.ended else {
        panic!("`check` found nothing: {:?}", session.steps.last());
    };
    assert_eq!(death.kind, DeathKind::GuestPanic, "{death}");
    let last = session.steps.last().map(|step| step.command.to_string());
    assert_eq!((session.steps.len(), last.as_deref()), (5, Some("check")));
    let text = death.text.as_str();
    assert!(text.contains("panic on CPU") && text.contains("which is not registered"), "{text}");
}
