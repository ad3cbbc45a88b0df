//! The server without a VM: a backend that answers at once, later, or never.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{MOST_CLIENTS, REQUESTS_PER_TURN, Server, Stopped};
use crate::backend::{Backend, Reply, Waiter};
use crate::client::PATIENCE;
use crate::http::Request;
use crate::response::Response;
use crate::route::{Action, MemoryQuery};

const LIMIT: Duration = Duration::from_secs(60);

/// `GET /version` is answered at once, and `GET /hotplug/memory` when `open` has a word. `InstanceStart` ends the server.
struct Scripted {
    open: Receiver<()>,
    forgotten: Sender<()>,
}

impl Backend for Scripted {
    fn answer(&mut self, action: Action, now: Instant) -> Reply {
        match action {
            Action::GetVersion => Reply::Now(Response::json(&json!("x".repeat(100)))),
            Action::GetMemory(query) => Reply::Later(waiter(query, now)),
            Action::Act(_) => Reply::Start,
            _ => Reply::Now(Response::fault("no")),
        }
    }

    fn poll(&mut self, waiter: &mut Waiter, now: Instant, over: bool) -> Option<Response> {
        if let Waiter::Pause { next, .. } = waiter {
            *next = now + Duration::from_millis(1);
        }
        (over || self.open.try_recv().is_ok()).then(Response::done)
    }

    fn forget(&mut self, _: &Waiter) {
        self.forgotten.send(()).unwrap();
    }

    fn events(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn count(&mut self, _: &Request, _: u16) {}

    fn due(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _: Instant) {}
}

/// A waiter that is asked again every millisecond.
fn waiter(_: MemoryQuery, now: Instant) -> Waiter {
    Waiter::Pause { until: now + LIMIT, next: now }
}

struct Scene {
    path: std::path::PathBuf,
    open: Sender<()>,
    forgotten: Receiver<()>,
    server: Option<JoinHandle<Stopped>>,
}

impl Scene {
    fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    /// With a server that `change` has changed before it serves.
    fn with(name: &str, change: impl FnOnce(&mut Server)) -> Self {
        let path = std::env::temp_dir().join(format!("tidevm-api-{name}-{}.sock", std::process::id()));
        drop(std::fs::remove_file(&path));
        let mut server = Server::new(UnixListener::bind(&path).unwrap()).unwrap();
        change(&mut server);
        let ((open, is_open), (forgotten, is_forgotten)) = (channel(), channel());
        let serve = move || {
            let mut backend = Scripted { open: is_open, forgotten };
            let stopped = server.serve(&mut backend, None).unwrap();
            server.answer_start(&mut backend, &Response::done());
            stopped
        };
        Self { path, open, forgotten: is_forgotten, server: Some(thread::spawn(serve)) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn end(mut self) {
        let mut stream = self.connect();
        let body = r#"{"action_type":"InstanceStart"}"#;
        write!(stream, "PUT /actions HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        assert_eq!(self.server.take().unwrap().join().unwrap(), Stopped::Start);
        let mut text = [0; 12];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"HTTP/1.1 204", "the client that had it started is answered");
        std::fs::remove_file(&self.path).unwrap();
    }
}

const VERSION: &[u8] = b"GET /version HTTP/1.1\r\n\r\n";
const WAIT: &[u8] = b"GET /hotplug/memory HTTP/1.1\r\n\r\n";

fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&text).ends_with(end) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn requests_that_come_at_once_are_answered_in_order() {
    let scene = Scene::new("order");
    let mut stream = scene.connect();
    let two = [VERSION, b"GET /none HTTP/1.1\r\n\r\n", WAIT, VERSION].concat();
    stream.write_all(&two.repeat(10)).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..10 {
        scene.open.send(()).unwrap();
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let statuses: Vec<_> = text.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "400", "204", "200"].repeat(10));
    // More than one turn serves, and nothing comes behind them.
    let mut open = scene.connect();
    open.write_all(&VERSION.repeat(3 * REQUESTS_PER_TURN)).unwrap();
    for _ in 0..3 * REQUESTS_PER_TURN {
        read_until(&mut open, "x\"");
    }
    scene.end();
}

#[test]
fn a_client_that_waits_or_goes_holds_up_no_other() {
    let scene = Scene::new("waits");
    let mut waiting = scene.connect();
    waiting.write_all(WAIT).unwrap();
    let mut gone = scene.connect();
    gone.write_all(WAIT).unwrap();
    let mut other = scene.connect();
    other.write_all(VERSION).unwrap();
    read_until(&mut other, "\"");
    drop(gone);
    scene.forgotten.recv_timeout(LIMIT).expect("what a client that is gone waited for is forgotten");
    scene.open.send(()).unwrap();
    read_until(&mut waiting, "204 No Content");
    scene.end();
}

#[test]
fn a_client_is_told_to_go_on_and_what_is_wrong() {
    let scene = Scene::new("expect");
    let mut stream = scene.connect();
    let body = r#"{"state":"Paused"}"#;
    let head =
        format!("PATCH /vm HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    read_until(&mut stream, "{\"fault_message\":\"no\"}");
    stream.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("Connection: close") && text.contains("51201 is larger than the limit of 51200"));
    scene.end();
}

#[test]
fn more_clients_than_there_is_room_for_are_sent_away_unless_some_are_idle() {
    let scene = Scene::new("many");
    let busy: Vec<_> = (0..MOST_CLIENTS)
        .map(|_| {
            let mut stream = scene.connect();
            stream.write_all(WAIT).unwrap();
            stream
        })
        .collect();
    // Each of them was taken when the one after it is answered.
    let mut refused = scene.connect();
    let mut text = String::new();
    refused.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    for _ in 0..MOST_CLIENTS {
        scene.open.send(()).unwrap();
    }
    for mut stream in busy.iter().map(|stream| stream.try_clone().unwrap()) {
        read_until(&mut stream, "\r\n\r\n");
    }
    let mut welcome = scene.connect();
    welcome.write_all(VERSION).unwrap();
    read_until(&mut welcome, "200 OK");
    drop((busy, welcome));
    scene.end();
}

#[test]
fn the_client_that_has_been_idle_the_longest_makes_way() {
    let scene = Scene::new("idle");
    let mut idle: Vec<_> = (0..MOST_CLIENTS)
        .map(|_| {
            let mut stream = scene.connect();
            stream.write_all(VERSION).unwrap();
            read_until(&mut stream, "x\"");
            stream
        })
        .collect();
    let mut new = scene.connect();
    new.write_all(VERSION).unwrap();
    read_until(&mut new, "x\"");
    assert_eq!(idle[0].read(&mut [0]).unwrap(), 0, "the first one");
    let last = &mut idle[MOST_CLIENTS - 1];
    last.write_all(VERSION).unwrap();
    read_until(last, "x\"");
    drop(idle);
    scene.end();
}

#[test]
fn clients_for_metrics_get_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let scene = Scene::with("metrics", |server| server.serve_metrics(listener).unwrap());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(VERSION).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let bodies: Vec<_> = text.lines().filter(|line| line.starts_with('{')).collect();
    let only = "{\"fault_message\":\"Only GET /metrics is served here.\"}HTTP/1.1 400 Bad Request";
    // The second answer is the backend's.
    assert_eq!(bodies, [only, "{\"fault_message\":\"no\"}"], "{text}");
    scene.end();
}

#[test]
fn a_deprecated_field_is_told_with_the_answer() {
    let scene = Scene::new("deprecated");
    let mut stream = scene.connect();
    for (fields, told) in [(r#"{"cpu_template":"None"}"#, true), (r#"{"vcpu_count":1}"#, false)] {
        let head = format!("PATCH /machine-config HTTP/1.1\r\nContent-Length: {}\r\n\r\n", fields.len());
        stream.write_all((head + fields).as_bytes()).unwrap();
        let answer = read_until(&mut stream, "no\"}");
        assert_eq!(answer.contains("\r\nDeprecation: true\r\n"), told, "{answer}");
    }
    scene.end();
}

#[test]
fn a_client_that_leaves_half_a_request_has_to_go_in_time() {
    let path = std::env::temp_dir().join(format!("tidevm-api-late-{}.sock", std::process::id()));
    drop(std::fs::remove_file(&path));
    let mut server = Server::new(UnixListener::bind(&path).unwrap()).unwrap();
    let ((_open, open), (forgotten, _forgotten)) = (channel(), channel());
    let mut backend = Scripted { open, forgotten };
    let mut clients = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
    let now = Instant::now();
    for stream in &mut clients {
        stream.set_nonblocking(true).unwrap();
        server.accept(now);
    }
    clients[1].write_all(b"GET ").unwrap();
    for token in server.clients.keys().copied().collect::<Vec<_>>() {
        server.communicate(token, super::EventSet::IN, &mut backend, now);
        server.serve_requests(token, &mut backend, now);
    }
    assert_eq!(server.due(&backend, None, now), Some(now + PATIENCE));
    let is_open = |stream: &mut UnixStream| match stream.read(&mut [0]) {
        Ok(size) => size > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    server.drop_late(&mut backend, now + PATIENCE - Duration::from_millis(1));
    assert_eq!(clients.each_mut().map(is_open), [true, true]);
    server.drop_late(&mut backend, now + PATIENCE);
    assert_eq!(clients.each_mut().map(is_open), [true, false], "the one that owes nothing may stay");
    std::fs::remove_file(&path).unwrap();
}
