//! Answers that come in parts, late, without an end, or from another program.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Answer, CallError, Caller, MOST_BODY, NextLine};
use crate::http::Method;

/// Longest time that an answer may take here.
const LIMIT: Duration = Duration::from_secs(60);

/// A server that gives each client the parts of one answer, one at a time, and returns what the clients sent.
fn serve(name: &str, clients: usize, parts: &[&str]) -> (Caller, JoinHandle<Vec<String>>) {
    let path = std::env::temp_dir().join(format!("tidevm-caller-{}-{name}.sock", std::process::id()));
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).unwrap();
    let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
    let socket = path.clone();
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for _ in 0..clients {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 4096];
            let size = stream.read(&mut bytes).unwrap();
            asked.push(String::from_utf8(bytes[..size].to_vec()).unwrap());
            for part in &parts {
                // The client may have had enough.
                drop(stream.write_all(part.as_bytes()));
                std::thread::sleep(Duration::from_millis(2));
            }
            if parts.is_empty() {
                // Ends when the client goes.
                drop(stream.read(&mut bytes));
            }
        }
        std::fs::remove_file(socket).unwrap();
        asked
    });
    (Caller::new(&path), server)
}

fn get(name: &str, parts: &[&str]) -> Result<Answer, CallError> {
    let (caller, server) = serve(name, 1, parts);
    let answer = caller.call(Method::Get, "/version", None, LIMIT);
    server.join().unwrap();
    answer
}

#[test]
fn an_answer_in_parts_is_one_answer() {
    let parts = ["HTTP/1.1 200 OK\r\nContent-Le", "ngth: 7\r\n\r", "\n{\"a\"", ":1}more"];
    let answer = get("parts", &parts).unwrap();
    assert_eq!((answer.status, answer.json()), (200, json!({ "a": 1 })));
    let done = get("done", &["HTTP/1.1 204 No Content\r\n\r\n"]).unwrap();
    assert!(done.is_done() && done.body.is_empty());
    let fault = get("fault", &["HTTP/1.1 400 Bad\r\n\r\n{\"fault_message\":", "\"no\"}"]).unwrap();
    assert_eq!((fault.is_done(), fault.fault()), (false, "no".to_owned()));
}

#[test]
fn a_request_has_its_body() {
    let (caller, server) = serve("body", 1, &["HTTP/1.1 204 No Content\r\n\r\n"]);
    caller.call(Method::Patch, "/vm", Some(&json!({ "state": "Paused" })), LIMIT).unwrap();
    let asked = server.join().unwrap().remove(0);
    assert!(asked.starts_with("PATCH /vm HTTP/1.1\r\n"), "{asked}");
    assert!(asked.ends_with("Content-Length: 18\r\n\r\n{\"state\":\"Paused\"}"), "{asked}");
}

#[test]
fn what_is_no_answer_is_an_error() {
    assert!(matches!(get("silent-end", &["HTTP/1.1 200 OK\r\n"]), Err(CallError::Ended { .. })));
    let short = ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"];
    assert!(matches!(get("short", &short), Err(CallError::Ended { .. })));
    assert!(matches!(get("other", &["SSH-2.0-OpenSSH\r\n\r\n"]), Err(CallError::NotHttp { .. })));
    let large = ["HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"];
    assert!(matches!(get("large", &large), Err(CallError::NotHttp { .. })));
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20 << 10));
    assert!(matches!(get("endless", &[&endless]), Err(CallError::NotHttp { .. })));
    let (caller, server) = serve("late", 1, &[]);
    let late = caller.call(Method::Get, "/", None, Duration::from_millis(50));
    assert!(matches!(late, Err(CallError::Deadline { .. })), "{late:?}");
    server.join().unwrap();
    let gone = caller.call(Method::Get, "/", None, LIMIT);
    assert!(matches!(gone, Err(CallError::Connect { .. })), "{gone:?}");
}

/// The server sends something all the time, each part in time, and is not done.
#[test]
fn an_answer_that_trickles_is_late_as_a_whole() {
    let mut parts = vec!["HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"];
    parts.resize(500, "x");
    let (caller, server) = serve("trickle", 1, &parts);
    let late = caller.call(Method::Get, "/", None, Duration::from_millis(100));
    assert!(matches!(late, Err(CallError::Deadline { .. })), "{late:?}");
    server.join().unwrap();
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn lines_may_cross_chunks_and_reads() {
    let parts = [HEAD, "4\r\n{\"a\"\r", "\n5\r\n:1}\n{\r", "\n2", "\r\n}\n\r\n0\r\n", "\r\n"];
    let (caller, server) = serve("lines", 1, &parts);
    let mut lines = caller.lines("/events", LIMIT).unwrap().unwrap();
    let mut next = || lines.next(Some(Instant::now() + LIMIT)).unwrap();
    assert_eq!(next(), NextLine::Line("{\"a\":1}".to_owned()));
    assert_eq!(next(), NextLine::Line("{}".to_owned()));
    assert_eq!((next(), next()), (NextLine::End, NextLine::End));
    server.join().unwrap();
}

#[test]
fn lines_and_chunks_have_a_bound() {
    let error = |name: &str, parts: &[&str]| {
        let (caller, server) = serve(name, 1, parts);
        let mut lines = caller.lines("/events", LIMIT).unwrap().unwrap();
        let error = lines.next(Some(Instant::now() + LIMIT)).expect_err(name).to_string();
        drop(lines);
        server.join().unwrap();
        error
    };
    let chunk = |size: usize| format!("{size:x}\r\n{}\r\n", "x".repeat(size));
    let line = error("long-line", &[HEAD, &chunk(MOST_BODY), &chunk(1)]);
    assert!(line.contains("a line is too long"), "{line}");
    let size = format!("{:x}\r\n", MOST_BODY + 1);
    assert!(error("large-chunk", &[HEAD, &size]).contains("a chunk is too large"));
    assert!(error("no-chunk", &[HEAD, "x\r\n"]).contains("the size of a chunk is no number"));
}

#[test]
fn a_stream_that_rests_is_late_and_goes_on() {
    let (caller, server) = serve("rests", 1, &[HEAD, "3\r\n{}\n\r\n"]);
    let mut lines = caller.lines("/events", LIMIT).unwrap().unwrap();
    // The server sends the line after the head.
    let mut seen = Vec::new();
    while seen.last() != Some(&NextLine::End) {
        let next = lines.next(Some(Instant::now() + Duration::from_micros(200))).unwrap();
        if next != NextLine::Late {
            seen.push(next);
        }
    }
    assert_eq!(seen, [NextLine::Line("{}".to_owned()), NextLine::End], "a server that was killed has ended");
    server.join().unwrap();
    let (caller, server) = serve("refused", 2, &["HTTP/1.1 400 Bad\r\n\r\n{\"fault_message\":\"no\"}"]);
    let refused = caller.lines("/events", LIMIT).unwrap().unwrap_err();
    assert_eq!(refused.fault(), "no");
    server.join().unwrap();
}
