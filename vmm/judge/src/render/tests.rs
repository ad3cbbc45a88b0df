//! Tests of what is shown of a trial.

use serde_json::Value;

use super::{Counts, Form, NO_FAILURE};
use crate::rows::rows;
use crate::{Outcome, Verdict};

fn outcome(id: &str, verdict: Verdict) -> Outcome {
    let row = rows().find(|row| row.id == id).unwrap();
    Outcome { row, sent: "a \"thing\"".to_owned(), came: "# another".to_owned(), verdict }
}

#[test]
fn every_line_of_json_is_one_object() {
    let mut counts = Counts::default();
    let mut text = Form::Json.head("a 1");
    for (number, verdict) in (1..).zip([Verdict::Pass, Verdict::Fail]) {
        let outcome = outcome("D2", verdict);
        counts.add(&outcome);
        text += &Form::Json.outcome(number, &outcome);
    }
    text += &Form::Json.end(&counts);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0]["vmm"], "a 1");
    assert_eq!(lines[2]["verdict"], "FAIL");
    assert_eq!(lines[2]["sent"], "a \"thing\"");
    assert_eq!((&lines[3]["verdicts"]["PASS"], &lines[3]["breaches"]), (&1.into(), &1.into()));
}

#[test]
fn only_a_rule_that_binds_is_not_ok_to_a_reader_of_tap() {
    let line = |id, verdict| Form::Tap.outcome(7, &outcome(id, verdict)).lines().next().unwrap().to_owned();
    assert!(line("D2", Verdict::Pass).starts_with("ok 7 - D2: "));
    assert!(line("D2", Verdict::Skip).ends_with(" # SKIP \\# another"));
    assert!(
        line("D2", Verdict::Fail).starts_with("not ok 7 - D2: ") && !line("D2", Verdict::Fail).contains('#')
    );
    assert!(line("D10", Verdict::Wedged).contains(&format!(" # {NO_FAILURE} SHOULD NOT")));
    assert!(line("T31", Verdict::Reject).starts_with("ok 7"));
    let text = Form::Tap.outcome(1, &outcome("D2", Verdict::Fail));
    assert!(text.contains("\n  ---\n") && text.contains("  sent: \"a \\\"thing\\\"\"\n"), "{text}");
}

#[test]
fn the_table_is_aligned_and_tells_more_of_what_is_not_a_pass() {
    let head = Form::Table.head("a 1");
    let column = head.lines().last().unwrap().find("rule").unwrap();
    for (id, verdict, lines) in
        [("D2", Verdict::Pass, 1), ("T1", Verdict::Skip, 2), ("D10", Verdict::Fail, 3)]
    {
        let text = Form::Table.outcome(1, &outcome(id, verdict));
        assert_eq!(text.lines().count(), lines, "{text}");
        for line in text.lines() {
            let text = &line[column..];
            assert!(!text.starts_with(' ') && line[..column].ends_with(' '), "{line}");
        }
    }
}
