//! Commands at a made-up API: what its answers and events become, above all those that a real machine gives by chance.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde_json::{Value, json};
use tidevm_api::caller::Caller;

use super::Session;
use super::outcome::{End, Outcome};
use super::screen::Screen;
use super::wish::Wish;

/// An API that gives these answers, one to a connection, in this order, and tells which calls were made.
struct Fake {
    path: PathBuf,
    server: JoinHandle<Vec<String>>,
}

impl Fake {
    fn new(name: &str, answers: Vec<String>) -> Self {
        let path = std::env::temp_dir().join(format!("tidevm-fake-{name}-{}.sock", std::process::id()));
        drop(std::fs::remove_file(&path));
        let listener = UnixListener::bind(&path).unwrap();
        let serve = move || {
            let answer = |answer: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = Vec::new();
                let mut part = [0; 4096];
                while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
                    let size = stream.read(&mut part).unwrap();
                    bytes.extend_from_slice(&part[..size]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
                let text = String::from_utf8(bytes).unwrap();
                let (head, body) = text.split_once("\r\n\r\n").unwrap();
                let call = head.split(" HTTP/").next().unwrap_or_default();
                [call, body].join(" ").trim_end().to_owned()
            };
            answers.into_iter().map(answer).collect()
        };
        Self { path, server: thread::spawn(serve) }
    }

    /// Carries out a command. Returns its end, what it showed, and the calls that it made.
    fn carry_out(self, line: &str, json: bool) -> (End, String, Vec<String>) {
        let screen = Screen::new(Vec::new(), json, None);
        let mut session = Session { api: Caller::new(&self.path), screen, start: Instant::now() };
        let end = session.carry_out(&Wish::parse(&[line.to_owned()]).unwrap()).unwrap();
        let calls = self.server.join().unwrap();
        std::fs::remove_file(self.path).unwrap();
        (end, session.screen.into_text(), calls)
    }
}

fn answer(body: &Value) -> String {
    let body = body.to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn done() -> String {
    "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
}

/// A stream of events that the machine ends.
fn events(events: &[Value]) -> String {
    let chunk = |event: &Value| format!("{:x}\r\n{event}\n\r\n", event.to_string().len() + 1);
    let chunks: String = events.iter().map(chunk).collect();
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

fn region(generation: u64, plugged: u64, requested: u64) -> Value {
    json!({
        "region": 0, "generation": generation, "plugged_size_mib": plugged, "requested_size_mib": requested,
        "converged": plugged == requested,
    })
}

fn event(word: &str, generation: u64, plugged: u64) -> Value {
    json!({ "event": word, "region": 0, "generation": generation, "plugged_size_mib": plugged, "requested_size_mib": 256 })
}

fn death() -> Value {
    json!({ "event": "death", "reason": "triple fault" })
}

#[test]
fn a_guest_that_dies_ends_what_follows_it() {
    let running = || answer(&json!({ "id": "vm-1", "state": "Running" }));
    let watch = Fake::new("watch", vec![events(&[death()]), running(), answer(&Value::Null)]);
    let (end, text, _) = watch.carry_out("watch", false);
    assert_eq!((end.outcome, end.reason.as_deref()), (Outcome::Died, Some("triple fault")));
    assert!(text.ends_with("the guest died: triple fault\n"), "{text}");
    let stop = Fake::new("stop", vec![running(), events(&[death()]), done()]);
    let (end, _, calls) = stop.carry_out("stop", false);
    assert_eq!(end.outcome, Outcome::Died);
    let asked = r#"PUT /actions {"action_type":"SendCtrlAltDel"}"#;
    assert_eq!(
        calls,
        ["GET /", "GET /events", asked],
        "the events are listened to before the guest is asked"
    );
    assert_eq!((Outcome::Died.status(), Outcome::Ended.status(), Outcome::Done.status()), (4, 1, 0));
}

#[test]
fn a_resize_asks_again_after_lost_events_and_counts_its_own_target_alone() {
    let set = || vec![answer(&region(4, 0, 128)), String::new(), answer(&region(5, 0, 256))];
    let with = |stream: &[Value], more: Vec<String>| {
        let mut answers = set();
        answers[1] = events(stream);
        answers.extend(more);
        answers
    };
    let lost = with(&[json!({ "event": "lost", "lost": 3 })], vec![answer(&region(5, 256, 256))]);
    let (end, text, calls) = Fake::new("lost", lost).carry_out("plug 128M", false);
    assert_eq!(end, End::done());
    assert!(text.contains("plug 128M: 256M plugged, "), "{text}");
    let region_call = "GET /hotplug/memory?region=0";
    let patch = r#"PATCH /hotplug/memory?region=0&wait=0s {"requested_size_mib":256}"#;
    assert_eq!(
        calls,
        [region_call, "GET /events", patch, region_call],
        "128 MiB more than was asked for before"
    );
    let lost = with(&[json!({ "event": "lost", "lost": 3 })], vec![answer(&region(6, 0, 512))]);
    let (end, ..) = Fake::new("lost-target", lost).carry_out("resize 256M", false);
    assert_eq!(end.outcome, Outcome::Superseded);

    let old = with(&[event("done", 4, 128), event("progress", 5, 128), event("done", 5, 256)], Vec::new());
    let (end, text, _) = Fake::new("old", old).carry_out("resize 256M", true);
    assert_eq!(
        (end, text.lines().count()),
        (End::done(), 3),
        "an earlier target's end is told, and is not this one's"
    );

    let mut taken = with(&[], Vec::new());
    let mut other = region(6, 0, 512);
    other["superseded"] = json!(true);
    taken[2] = answer(&other);
    let (end, ..) = Fake::new("taken", taken).carry_out("resize 256M", false);
    assert_eq!(end.reason.as_deref(), Some("another client has requested 512M meanwhile"));
    let stopped = || with(&[event("failed", 5, 128), event("done", 5, 256)], Vec::new());
    let (end, ..) = Fake::new("stopped", stopped()).carry_out("resize 256M", false);
    assert_eq!(end.outcome, Outcome::Blocked);
    let (end, ..) = Fake::new("patient", stopped()).carry_out("resize 256M within 1m", false);
    assert_eq!(end.outcome, Outcome::Done, "a guest that stopped may go on until the deadline");
    let (end, ..) = Fake::new("gone", with(&[], Vec::new())).carry_out("resize 256M", false);
    assert_eq!((end.outcome, end.outcome.status()), (Outcome::Ended, 1));
}

#[test]
fn a_machine_without_memory_has_a_status() {
    let refused = r#"{"fault_message":"no"}"#;
    let refused = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{refused}", refused.len());
    let instance = json!({ "id": "vm-1", "state": "Not started" });
    let fake = Fake::new("status", vec![answer(&instance), refused]);
    let (end, text, _) = fake.carry_out("status", true);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (end, told),
        (End::done(), json!({ "event": "status", "instance": instance, "memory": null }))
    );
}
