//! Verdicts as text, JSON and HTML.

use serde_json::{Value as Json, json};
use tidevm_events::{Kvm, Start};

use super::*;
use crate::experiment::{html, json, text};

fn verdicts() -> [Verdict; 2] {
    let side =
        |on, setting, finding, numbers| Side { on, setting, finding, what: "a < b & \"c\"".into(), numbers };
    let number = |value| Number::new("pages", value);
    let why = || Value::Missing("<no> room".to_owned());
    let good = vec![
        side(
            false,
            "slow",
            Failure,
            vec![
                number(Value::Count(12)),
                Number::charted("1G", Value::Time(Duration::from_millis(1500))),
                number(why()),
            ],
        ),
        side(
            true,
            "fast",
            Success,
            vec![
                number(Value::Size(Size::gib(3))),
                Number::charted("1G", Value::Time(Duration::from_micros(17))),
                number(Value::Count(0)),
            ],
        ),
    ];
    let bad = vec![side(false, "slow", Success, Vec::new()), side(true, "fast", Success, Vec::new())];
    let took = Duration::from_millis(2500);
    let timeline = "<div class=\"plot\"></div>\n".to_owned();
    let drawing = Drawing { label: "good-one <off>".to_owned(), timeline };
    [
        Verdict { name: "good-one", about: "Is <this> so?", sides: good, took, drawings: vec![drawing] },
        Verdict { name: "bad-one", about: "Is that so?", sides: bad, took, drawings: Vec::new() },
    ]
}

#[test]
fn as_text() {
    let expected = "\
good-one  ok  2.5 s
  Is <this> so?
  off: slow  failure: a < b & \"c\"
  on: fast   success: a < b & \"c\"
         off: slow  on: fast
  pages         12        3G
  1G        1.50 s     17 us
  pages          -         0
  off: slow, no number for pages: <no> room

bad-one  FAIL  2.5 s
  Is that so?
  off: slow  success: a < b & \"c\"
  on: fast   success: a < b & \"c\"
    off: slow  on: fast

1 of 2 experiments show what they should
";
    assert_eq!(text::text(&verdicts()), expected);
}

#[test]
fn as_json() {
    let text = json::json(&verdicts());
    assert_eq!(text.lines().count(), 1);
    let data: Json = serde_json::from_str(&text).expect("JSON");
    assert_eq!(data["passed"], false);
    let good = &data["experiments"][0];
    assert_eq!(
        (&good["name"], &good["passed"], &good["seconds"]),
        (&json!("good-one"), &json!(true), &json!(2.5))
    );
    assert_eq!(
        good["sides"][0],
        json!({"mechanism": "off", "setting": "slow", "finding": "failure", "what": "a < b & \"c\"", "numbers": [
            {"name": "pages", "unit": "count", "value": 12, "why": null},
            {"name": "1G", "unit": "seconds", "value": 1.5, "why": null},
            {"name": "pages", "unit": null, "value": null, "why": "<no> room"},
        ]})
    );
    assert_eq!(
        good["sides"][1]["numbers"][0],
        json!({"name": "pages", "unit": "bytes", "value": 3_u64 << 30, "why": null})
    );
    assert_eq!(data["experiments"][1]["passed"], false);
}

fn start() -> Start {
    Start {
        version: "v9".to_owned(),
        commit: Some("c0ffee".to_owned()),
        host: Some("over there".to_owned()),
        kvm: Kvm::Svm,
        command_line: ["tidevm", "experiment", "all"].map(str::to_owned).into(),
        ..Start::default()
    }
}

#[test]
fn as_a_page() {
    let page = html::page(&start(), &verdicts());
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for raw in ["<this>", "a < b", "& \"c\"", "<no>"] {
        assert!(!page.contains(raw), "{raw} is not escaped");
    }
    for shown in ["Is &lt;this&gt; so?", "a &lt; b &amp; &quot;c&quot;", "&lt;no&gt; room", "1.50 s", "17 us"]
    {
        assert!(page.contains(shown), "no {shown}");
    }
    let session = "<summary>good-one &lt;off&gt; over time</summary>\n<div class=\"plot\"></div>\n</details>";
    assert!(page.contains(session), "{page}");
    for fact in
        ["<dd>v9, commit c0ffee</dd>", "<dd>over there", "AMD SVM", "<code>tidevm experiment all</code>"]
    {
        assert!(page.contains(fact), "no {fact}");
    }
    // The page fetches nothing from another place.
    for outside in ["http:", "https:", "src=", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!((page.matches("<svg").count(), page.matches("<rect").count()), (1, 2));
    for element in ["html", "body", "main", "section", "table", "tr", "td", "div", "figure", "svg", "ul"] {
        let opened =
            page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
    }
}

#[test]
fn lengths_of_bars_follow_the_numbers() {
    let widths = |values: [u64; 2]| {
        let mut verdict = verdicts()[1].clone();
        for (side, value) in verdict.sides.iter_mut().zip(values) {
            side.numbers = vec![Number::charted("pages", Value::Count(value))];
        }
        let page = html::page(&start(), &[verdict]);
        let rects = page.split("<rect ").skip(1);
        let width = |rect: &str| {
            let (_, rest) = rect.split_once("width=\"").expect("a width");
            rest.split('"').next().expect("its end").parse::<f64>().expect("a number")
        };
        let logarithmic = page.contains("logarithmic");
        (rects.map(width).collect::<Vec<_>>(), logarithmic)
    };
    assert_eq!(widths([50, 100]), (vec![250.0, 500.0], false));
    assert_eq!(widths([0, 7]), (vec![0.0, 500.0], false));
    let (lengths, logarithmic) = widths([1, 1_000_000]);
    assert!(logarithmic && lengths[0] > 3.0 && lengths[0] < lengths[1] / 10.0, "{lengths:?}");
}
