//! Reads the lines of `tidevm run --json`, and holds them against their schema.

use std::fs;
use std::io::BufRead;
use std::path::Path;

use serde_json::{Value, json};

/// Refuses keys that it does not list, other than the published one, whose readers have to bear later versions.
pub fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/session.schema.json");
    let text = fs::read_to_string(path).expect("the schema");
    let mut schema = serde_json::from_str(&text).expect("JSON");
    close(&mut schema);
    schema
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(close);
            let open = object.get("properties").is_some_and(Value::is_object);
            if open && !object.contains_key("additionalProperties") {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

/// The events of a whole session. Each fits the schema.
#[track_caller]
pub fn events(out: &str) -> Vec<Value> {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let event = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let faults: Vec<String> = validator.iter_errors(&event).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{faults:?}: {line}");
        event
    };
    let events: Vec<Value> = out.lines().map(event).collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(kinds.first(), Some(&"start"), "{out}");
    assert_eq!(kinds.iter().position(|kind| *kind == "end"), Some(kinds.len() - 1), "{out}");
    let times: Vec<f64> = events.iter().filter_map(|event| event["at_seconds"].as_f64()).collect();
    assert!(times.is_sorted(), "{times:?}");
    events
}

/// The events of a whole session without its samples, whose number depends on time.
#[track_caller]
pub fn told(out: &str) -> Vec<Value> {
    events(out).into_iter().filter(|event| event["event"] != "sample").collect()
}

/// Reads until the next event of this kind.
pub fn next(out: &mut impl BufRead, kind: &str) -> Value {
    loop {
        let mut line = String::new();
        assert!(out.read_line(&mut line).expect("text") > 0, "no `{kind}`");
        let event: Value = serde_json::from_str(&line).expect("JSON");
        if event["event"] == kind {
            return event;
        }
    }
}
