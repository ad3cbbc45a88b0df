//! The API of a running program, as its clients see it: real guests behind a real socket.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::endings::{end, kill, until};
use super::{Test, kernel, program, scratch};

pub const TESTS: &[Test] = &[
    ("firecrackers_calls_have_their_order_and_texts", firecrackers_calls_have_their_order_and_texts),
    ("a_machine_starts_from_a_file", a_machine_starts_from_a_file),
    ("a_machine_that_does_not_start_can_be_mended", a_machine_that_does_not_start_can_be_mended),
    ("memory_is_resized_awaited_and_cancelled", memory_is_resized_awaited_and_cancelled),
    ("a_target_needs_a_driver_or_a_client_that_waits", a_target_needs_a_driver_or_a_client_that_waits),
    ("events_tell_of_a_resize", events_tell_of_a_resize),
    ("a_guest_stands_still_by_the_api", a_guest_stands_still_by_the_api),
    ("a_hundred_slow_clients_hold_up_nothing", a_hundred_slow_clients_hold_up_nothing),
    ("a_socket_is_its_owners_and_goes_with_it", a_socket_is_its_owners_and_goes_with_it),
    ("a_script_and_the_api_share_a_machine", a_script_and_the_api_share_a_machine),
    ("metrics_are_written_when_asked_for", metrics_are_written_when_asked_for),
    ("firecrackers_options_name_the_log_and_the_metrics", firecrackers_options_name_the_log_and_the_metrics),
];

/// Longest time until an answer. A guest boots in some of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program with an API. Dropping it ends it.
pub struct Api {
    pub child: Child,
    pub path: PathBuf,
}

impl Drop for Api {
    fn drop(&mut self) {
        // Fails when it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An answer: its status, the headers, and its body as JSON.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    head: String,
    pub body: Value,
}

fn socket(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tidevm-{name}-{}.sock", std::process::id()));
    drop(fs::remove_file(&path));
    path
}

impl Api {
    /// Starts the program with `arguments` before `--api-sock`.
    pub fn start(name: &str, arguments: &[&str], more: &[&str]) -> Self {
        let path = socket(name);
        let mut command = program();
        command.args(arguments).arg("--api-sock").arg(&path).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the program runs");
        let api = Self { child, path };
        until("the socket", || UnixStream::connect(&api.path).is_ok());
        api
    }

    /// A guest with 1 GiB of hotplug memory, which is up.
    pub fn run(name: &str) -> Self {
        let machine = ["run", "--memory", "128M", "--hotplug", "size=1G", "--console", "off"];
        let api = Self::start(name, &machine, &[]);
        api.await_guest();
        api
    }

    /// Waits until the guest drives its memory.
    pub fn await_guest(&self) {
        until("the guest's driver", || self.get("/hotplug/memory").body["driver"] == json!(true));
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        let (head, body) = self.exchange(method, path, body);
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).expect("JSON") };
        Answer { status, head, body }
    }

    /// The body of an answer that is no JSON.
    pub fn text(&self, path: &str) -> String {
        let (head, body) = self.exchange("GET", path, "");
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Type: text/plain"),
            "{head}"
        );
        body
    }

    /// The head and the body of an answer.
    fn exchange(&self, method: &str, path: &str, body: &str) -> (String, String) {
        let mut stream = self.connect();
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        write!(stream, "{method} {path} HTTP/1.1\r\nConnection: close\r\n{length}\r\n{body}")
            .expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers and closes");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {text:?}"));
        (head.to_owned(), body.to_owned())
    }

    pub fn get(&self, path: &str) -> Answer {
        let answer = self.call("GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer
    }

    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: &str) {
        let answer = self.call(method, path, body);
        assert_eq!((answer.status, &answer.body), (204, &Value::Null), "{method} {path} {body}");
    }

    #[track_caller]
    pub fn fault(&self, method: &str, path: &str, body: &str, text: &str) {
        let answer = self.call(method, path, body);
        assert_eq!(
            (answer.status, answer.body),
            (400, json!({ "fault_message": text })),
            "{method} {path} {body}"
        );
    }

    /// Asks the guest to power off, and waits for the end.
    fn power_off(mut self) {
        self.done("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#);
        assert_eq!(end(&mut self.child).code(), Some(0));
        until("the socket is gone", || !self.path.exists());
    }
}

const EARLY: &str = "The requested operation is not supported before starting the microVM.";
const LATE: &str = "The requested operation is not supported after starting the microVM.";

fn firecrackers_calls_have_their_order_and_texts() {
    let api = Api::start("order", &[], &["--id", "vm-1"]);
    let instance = |state: &str| json!({ "id": "vm-1", "state": state, "vmm_version": env!("CARGO_PKG_VERSION"), "app_name": "tidevm" });
    assert_eq!(api.get("/").body, instance("Not started"));
    assert_eq!(api.get("/version").body["firecracker_version"], json!("1.14.0"));
    let none = "Start microvm error: Cannot start microvm without kernel configuration.";
    api.fault("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#, none);
    api.fault("GET", "/hotplug/memory", "", EARLY);
    api.fault("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 512}"#, EARLY);
    api.fault("PATCH", "/vm", r#"{"state": "Paused"}"#, EARLY);
    api.fault("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#, EARLY);
    api.fault("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#, EARLY);
    api.fault(
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path": "foo.bar"}"#,
        "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)",
    );
    api.done("PUT", "/boot-source", r#"{"kernel_image_path": "builtin"}"#);
    let deprecated =
        api.call("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128,"cpu_template":"None"}"#);
    assert_eq!(deprecated.status, 204);
    assert!(deprecated.head.contains("Deprecation: true"), "{}", deprecated.head);
    api.done("PATCH", "/machine-config", r#"{"vcpu_count": 2}"#);
    assert_eq!(api.get("/machine-config").body["vcpu_count"], json!(2));
    let hotplug = r#"{"total_size_mib": 1024, "block_size_mib": 128, "slot_size_mib": 1024}"#;
    api.done("PUT", "/hotplug/memory", hotplug);
    api.done("PUT", "/hotplug/memory", r#"{"total_size_mib": 1024}"#);
    let config = api.get("/vm/config").body;
    assert_eq!(config["memory-hotplug"]["slot_size_mib"], json!(128));
    api.fault(
        "PUT",
        "/snapshot/load",
        r#"{"snapshot_path": "a", "mem_backend": {"backend_path": "b", "backend_type": "File"}}"#,
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.",
    );

    api.done("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert_eq!(api.get("/").body, instance("Running"));
    assert_eq!(api.get("/vm/config").body, config, "the same after the start");
    api.fault("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#, LATE);
    api.fault("PUT", "/hotplug/memory", hotplug, LATE);
    api.fault("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 128}"#, LATE);
    api.fault("PATCH", "/machine-config", r#"{"vcpu_count": 1}"#, LATE);
    api.fault("PUT", "/boot-source", r#"{"kernel_image_path": "builtin"}"#, LATE);
    api.fault("PUT", "/logger", r#"{"level": "Info"}"#, LATE);
    api.fault("PUT", "/metrics", r#"{"metrics_path": "/dev/null"}"#, LATE);
    api.fault(
        "PUT",
        "/drives/rootfs",
        "{}",
        "The requested operation is not supported: tidevm does not have drives",
    );
    api.fault("GET", "/foo", "", "Invalid request method and/or path: GET foo.");
    api.await_guest();
    assert_eq!(api.get("/hotplug/memory").body["total_size_mib"], json!(1024));
    api.power_off();
}

fn a_machine_starts_from_a_file() {
    let file = json!({
        "boot-source": { "kernel_image_path": "builtin" },
        "drives": [],
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 128 },
        "memory-hotplug": { "total_size_mib": 256 },
    });
    let path = scratch("machine.json", &file.to_string());
    let path = path.to_str().expect("UTF-8");
    let api = Api::start("file", &["--config-file", path], &[]);
    assert_eq!(api.get("/").body["state"], json!("Running"));
    assert_eq!(api.get("/machine-config").body["vcpu_count"], json!(2));
    api.await_guest();
    api.power_off();
    let broken = scratch("broken.json", r#"{"boot-source": {}}"#);
    let output = program().arg("--config-file").arg(broken).arg("--no-api").output().expect("it runs");
    super::assert_status(&output, 2, "missing field `kernel_image_path`");
}

fn a_machine_that_does_not_start_can_be_mended() {
    let api = Api::start("mended", &[], &[]);
    let empty = scratch("empty-kernel", "");
    api.done("PUT", "/boot-source", &json!({ "kernel_image_path": empty }).to_string());
    let answer = api.call("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert_eq!(answer.status, 400);
    let text = answer.body["fault_message"].as_str().expect("a text");
    assert!(text.starts_with("Start microvm error: "), "{text}");
    let halt = kernel::write("halt-api", kernel::HALT);
    api.done("PUT", "/boot-source", &json!({ "kernel_image_path": halt.to_str() }).to_string());
    api.done("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert_eq!(api.get("/").body["state"], json!("Running"));
    api.fault(
        "PUT",
        "/actions",
        r#"{"action_type": "SendCtrlAltDel"}"#,
        "The requested operation is not supported: only a guest with an agent can be asked to power off",
    );
    let none = "Internal VMM error: Failed perform action on device: Device not found";
    api.fault("GET", "/hotplug/memory", "", none);
}

fn memory_is_resized_awaited_and_cancelled() {
    let api = Api::run("resize");
    let invalid = |bytes: u64| {
        format!(
            "Memory hotplug update error: Failed to create memory hotplug device: Size {bytes} is invalid: it must be \
             a multiple of block size and less than the total size"
        )
    };
    api.fault("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 3}"#, &invalid(3 << 20));
    api.fault(
        "PATCH",
        "/hotplug/memory",
        r#"{"requested_size_mib": 4294967295}"#,
        &invalid(u64::from(u32::MAX) << 20),
    );
    api.done("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 256}"#);
    let there = api.get("/hotplug/memory?wait=2m").body;
    assert_eq!((&there["plugged_size_mib"], &there["converged"]), (&json!(256), &json!(true)), "{there}");
    assert_eq!(there["reason"], Value::Null);
    assert_eq!(there["guest_usable"], json!(256 << 20));
    let less = api.call("PATCH", "/hotplug/memory?wait=2m", r#"{"requested_size_mib": 128}"#);
    assert_eq!(less.status, 200);
    assert_eq!((&less.body["plugged_size_mib"], &less.body["converged"]), (&json!(128), &json!(true)));
    let held = less.body["host_held"].as_u64().expect("a number of bytes");
    assert!(held <= 128 << 20, "the host got it back: {held}");
    let blocks = api.get("/hotplug/memory?blocks=1").body;
    let online = blocks["blocks"].as_array().expect("the guest's memory blocks");
    assert!(
        online.iter().any(|run| run["boot"] == json!(false) && run["plugged"] == json!(128 << 20)),
        "{blocks}"
    );

    // A guest that stands still makes no progress: the wait ends by the other target alone.
    api.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    let mut waiter = api.connect();
    let body = r#"{"requested_size_mib": 1024}"#;
    let head = "PATCH /hotplug/memory?wait=2m HTTP/1.1\r\nConnection: close\r\n";
    write!(waiter, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("it reads");
    until("the target", || api.get("/hotplug/memory").body["requested_size_mib"] == json!(1024));
    api.done("DELETE", "/hotplug/memory/resize", "");
    let mut text = String::new();
    waiter.read_to_string(&mut text).expect("an answer");
    assert!(text.contains("\"superseded\":true") && text.contains("\"converged\":false"), "{text}");
    api.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    let cancelled = api.get("/hotplug/memory?wait=2m").body;
    assert_eq!(
        (&cancelled["plugged_size_mib"], &cancelled["converged"]),
        (&json!(128), &json!(true)),
        "{cancelled}"
    );
    api.fault(
        "GET",
        "/hotplug/memory?region=1",
        "",
        "Internal VMM error: Failed perform action on device: Device not found",
    );
    api.power_off();
}

/// Two regions of a guest that drives neither.
fn a_target_needs_a_driver_or_a_client_that_waits() {
    let halt = kernel::write("halt-regions", kernel::HALT);
    let halt = halt.to_str().expect("UTF-8");
    let machine =
        ["run", "--kernel", halt, "--hotplug", "size=1G", "--hotplug", "size=1G", "--console", "off"];
    let api = Api::start("regions", &machine, &[]);
    let inactive =
        "Memory hotplug update error: Failed to create memory hotplug device: Device is not active";
    api.fault("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 512}"#, inactive);
    assert_eq!(api.get("/hotplug/memory").body["requested_size_mib"], json!(0), "nothing was set");
    let set = |region: usize, mib: u64| {
        let path = format!("/hotplug/memory?region={region}&wait=0s");
        let told = api.call("PATCH", &path, &json!({ "requested_size_mib": mib }).to_string());
        assert_eq!((told.status, &told.body["requested_size_mib"]), (200, &json!(mib)), "{told:?}");
        assert_eq!(told.body["reason"]["kind"], json!("no_driver"), "{told:?}");
    };
    let requested = || {
        let told = api.get("/hotplug/memory").body;
        let of = |region: usize| told["regions"][region]["requested_size_mib"].clone();
        (of(0), of(1), told["converged"].clone())
    };
    set(0, 512);
    set(1, 256);
    assert_eq!(requested(), (json!(512), json!(256), json!(false)));
    api.done("DELETE", "/hotplug/memory/resize?region=0", "");
    assert_eq!(requested(), (json!(0), json!(256), json!(false)), "one region is left to go on");
    api.done("DELETE", "/hotplug/memory/resize", "");
    assert_eq!(requested(), (json!(0), json!(0), json!(true)));
    // What is plugged is what is asked for, but no driver has answered: the client waits until another one sets a target.
    let mut waiter = api.connect();
    let body = r#"{"requested_size_mib": 0}"#;
    let head = "PATCH /hotplug/memory?wait=2m HTTP/1.1\r\nConnection: close\r\n";
    write!(waiter, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("it reads");
    let targets = || api.get("/hotplug/memory").body["generation"].clone();
    until("the target", || targets() == json!(3));
    set(0, 128);
    let mut text = String::new();
    waiter.read_to_string(&mut text).expect("an answer");
    assert!(text.contains("\"superseded\":true"), "{text}");
    // A wait ends in time, and with the machine.
    assert_eq!(api.get("/hotplug/memory?wait=10ms").body["converged"], json!(false));
    let mut last = api.connect();
    last.write_all(b"GET /hotplug/memory?wait=60m HTTP/1.1\r\n\r\n").expect("it reads");
    let mut api = api;
    assert_eq!(api.get("/").status, 200, "the wait has begun");
    kill("-TERM", &api.child);
    let mut text = String::new();
    last.read_to_string(&mut text).expect("an answer, and the end");
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text:?}");
    end(&mut api.child);
}

fn events_tell_of_a_resize() {
    let api = Api::run("events");
    let mut stream = api.connect();
    stream.write_all(b"GET /events HTTP/1.1\r\n\r\n").expect("it reads");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    assert!(
        lines.by_ref().take_while(|line| !line.is_empty()).any(|line| line == "Transfer-Encoding: chunked")
    );
    api.done("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 256}"#);
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok()).filter(Value::is_object);
    // The driver comes up before the guest says that it is ready.
    let mut events = events.filter(|event| event["event"] != json!("ready"));
    let (mut seen, mut number) = (Vec::new(), 0);
    while seen.last() != Some(&json!("done")) {
        let event = events.next().expect("an event");
        let sequence = event["sequence"].as_u64().expect("a number");
        assert!(sequence > number, "{event}");
        number = sequence;
        assert_eq!(event["requested_size_mib"], json!(256), "{event}");
        seen.push(event["event"].clone());
    }
    assert_eq!(seen[0], json!("requested"));
    assert!(seen.contains(&json!("progress")), "{seen:?}");
    api.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    assert_eq!(events.next().expect("an event")["event"], json!("paused"));
    api.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    assert_eq!(events.next().expect("an event")["event"], json!("resumed"));
    api.power_off();
    let last: Vec<_> = events.map(|event| event["event"].clone()).collect();
    assert_eq!(last, [json!("powered_off")], "the stream ends with the machine");
}

fn a_guest_stands_still_by_the_api() {
    let api = Api::run("pause");
    api.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    assert_eq!(api.get("/").body["state"], json!("Paused"));
    api.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    api.done("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 128}"#);
    let still = api.get("/hotplug/memory?wait=300ms").body;
    assert_eq!(
        (&still["plugged_size_mib"], &still["converged"]),
        (&json!(0), &json!(false)),
        "no guest code runs"
    );
    assert_eq!(still["reason"]["kind"], json!("driver_busy"));
    api.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    assert_eq!(api.get("/hotplug/memory?wait=2m").body["plugged_size_mib"], json!(128));
    api.fault(
        "PUT",
        "/snapshot/create",
        r#"{"snapshot_path": "a", "mem_file_path": "b"}"#,
        "The requested operation is not supported: tidevm makes snapshots by its option --save",
    );
    // A signal ends a machine that stands still.
    api.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    let mut api = api;
    kill("-TERM", &api.child);
    assert_eq!(end(&mut api.child).code(), Some(0));
}

fn a_hundred_slow_clients_hold_up_nothing() {
    let api = Api::run("slow");
    let mut slow = Vec::new();
    for number in 0..100 {
        let mut stream = api.connect();
        match number % 4 {
            // Half open; half of a head; half of a body; a reader of events that does not read.
            0 => {}
            1 => stream.write_all(b"GET /version HTT").expect("it reads"),
            2 => stream.write_all(b"PUT /actions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").expect("it reads"),
            _ => stream.write_all(b"GET /events HTTP/1.1\r\n\r\n").expect("it reads"),
        }
        slow.push(stream);
    }
    let there = api.call("PATCH", "/hotplug/memory?wait=2m", r#"{"requested_size_mib": 256}"#);
    assert_eq!(there.body["converged"], json!(true), "{there:?}");
    let back = api.call("PATCH", "/hotplug/memory?wait=2m", r#"{"requested_size_mib": 0}"#);
    assert_eq!(back.body["plugged_size_mib"], json!(0), "{back:?}");
    // Those that have begun a request are sent away, and those that have not may stay.
    let mut ended = [0; 1];
    assert_eq!(slow[1].read(&mut ended).expect("the connection ends"), 0, "half of a head is no request");
    assert_eq!(slow[2].read(&mut ended).expect("the connection ends"), 0, "half of a body is no request");
    slow[0].write_all(b"GET /version HTTP/1.1\r\n\r\n").expect("it reads");
    assert_eq!(slow[0].read(&mut ended).expect("an answer"), 1);
    // Far more clients than there is room for: those that do nothing make way.
    let many: Vec<_> = (0..300).map(|_| api.connect()).collect();
    assert_eq!(api.get("/version").status, 200);
    drop((many, slow));
    api.power_off();
}

fn a_socket_is_its_owners_and_goes_with_it() {
    let halt = kernel::write("halt-socket", kernel::HALT);
    let halt = halt.to_str().expect("UTF-8");
    let mut api = Api::start("owner", &["run", "--kernel", halt], &[]);
    let mode = fs::metadata(&api.path).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second =
        program().args(["run", "--kernel", halt, "--api-sock"]).arg(&api.path).output().expect("it runs");
    super::assert_status(&second, 2, "another process listens there");
    assert_eq!(api.get("/").body["state"], json!("Running"), "the first one is not disturbed");
    kill("-KILL", &api.child);
    end(&mut api.child);
    until("the socket is gone, after SIGKILL too", || !api.path.exists());
    // A socket that no process listens at is replaced.
    drop(std::os::unix::net::UnixListener::bind(&api.path).expect("a socket"));
    let path = api.path.clone();
    let again = replaced(&path, halt);
    drop(again);
    let file = scratch("no-socket", "");
    let output =
        program().args(["run", "--kernel", halt, "--api-sock"]).arg(&file).output().expect("it runs");
    super::assert_status(&output, 2, "the file is no socket");
}

/// A machine whose socket takes the place of a dead one.
fn replaced(path: &Path, halt: &str) -> Api {
    let mut command = program();
    command.args(["run", "--kernel", halt, "--api-sock"]).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let api = Api { child: command.spawn().expect("it runs"), path: path.to_owned() };
    let answers = || match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => false,
        Err(error) => panic!("{error}"),
    };
    until("an answer", answers);
    assert_eq!(api.get("/").body["state"], json!("Running"));
    api
}

fn a_script_and_the_api_share_a_machine() {
    let script = scratch("shared.script", "resize 128M\nsleep 2m\n");
    let script = script.to_str().expect("UTF-8");
    let machine = ["run", "--memory", "128M", "--hotplug", "size=1G", "--console", "off", "--script", script];
    let mut api = Api::start("shared", &machine, &[]);
    until("the script's memory", || api.get("/hotplug/memory").body["plugged_size_mib"] == json!(128));
    let there = api.call("PATCH", "/hotplug/memory?wait=2m", r#"{"requested_size_mib": 256}"#);
    assert_eq!(there.body["plugged_size_mib"], json!(256));
    kill("-TERM", &api.child);
    assert_eq!(end(&mut api.child).code(), Some(128 + libc::SIGTERM), "the script was ended");
}

fn metrics_are_written_when_asked_for() {
    let api = Api::start("metrics", &[], &[]);
    let file = scratch("metrics.json", "");
    let log = scratch("api.log", "");
    let body = json!({ "metrics_path": file, "emit_id": true, "properties": { "owner": "test" } });
    api.done("PUT", "/metrics", &body.to_string());
    api.fault(
        "PUT",
        "/metrics",
        &body.to_string(),
        "Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not \
         allowed.",
    );
    api.done("PUT", "/logger", &json!({ "log_path": log, "level": "Info" }).to_string());
    let halt = kernel::write("halt-metrics", kernel::HALT);
    api.done("PUT", "/boot-source", &json!({ "kernel_image_path": halt.to_str() }).to_string());
    api.done("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    api.done("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#);
    api.done("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#);
    let text = fs::read_to_string(&file).expect("the file");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(
        (&lines[0]["id"], &lines[0]["properties"]["owner"]),
        (&json!("anonymous-instance"), &json!("test"))
    );
    let put = |line: usize, name: &str| lines[line]["put_api_requests"][name].clone();
    for (name, first, second) in [
        ("metrics_count", 2, 0),
        ("metrics_fails", 1, 0),
        ("boot_source_count", 1, 0),
        ("logger_fails", 0, 0),
        ("actions_count", 1, 1),
        ("actions_fails", 0, 0),
        ("hotplug_memory_count", 0, 0),
    ] {
        let counted = (put(0, name), put(1, name));
        assert_eq!(counted, (json!(first), json!(second)), "{name}: since the line before");
    }
    assert_eq!(lines[1]["memory_hotplug"]["regions"], json!(0));
}

fn firecrackers_options_name_the_log_and_the_metrics() {
    let (log, metrics) = (scratch("spawn.log", ""), scratch("spawn-metrics.json", ""));
    let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (log_path, metrics_path) = (path(&log), path(&metrics));
    let options =
        ["--log-path", &log_path, "--level", "WARN", "--show-level", "--show-log-origin", "--module", "x"];
    let api = Api::start("spawn", &options, &["--metrics-path", &metrics_path]);
    let again = json!({ "metrics_path": metrics });
    let twice = "Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics \
                 not allowed.";
    api.fault("PUT", "/metrics", &again.to_string(), twice);
    api.done("PATCH", "/machine-config", r#"{"cpu_template": "None"}"#);
    let warning = "tidevm: PATCH /machine-config: cpu_template field is deprecated.\n";
    assert_eq!(fs::read_to_string(&log).expect("the log"), warning);
    let config = api.get("/vm/config").body;
    assert_eq!((&config["logger"], &config["metrics"]), (&Value::Null, &Value::Null), "as in Firecracker");
    let halt = kernel::write("halt-spawn", kernel::HALT);
    api.done("PUT", "/boot-source", &json!({ "kernel_image_path": halt.to_str() }).to_string());
    api.done("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    api.done("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#);
    assert_eq!(fs::read_to_string(&metrics).expect("the file").lines().count(), 1);

    let file = json!({
        "boot-source": { "kernel_image_path": halt },
        "drives": [],
        "logger": { "level": "Off" },
        "metrics": { "metrics_path": metrics },
    });
    let file = path(&scratch("spawn.json", &file.to_string()));
    let fails = |options: &[&str], text: &str| {
        let output = program().args(["--config-file", &file]).args(options).output().expect("it runs");
        super::assert_status(&output, 2, text);
    };
    fails(&["--no-api"], "--no-api: the thread of the API writes the metrics");
    fails(&["--no-api", "--metrics-path", "x"], "cannot be used with");
    let second = path(&socket("spawn-second"));
    fails(&["--api-sock", &second, "--metrics-path", "x"], twice);
    fails(&["--api-sock", &second, "--level", "loud"], "Invalid LevelFilter");
    fails(
        &["--api-sock", &second, "--log-path", "no/such/folder/log"],
        "Logger error: Failed to open target file",
    );
}
