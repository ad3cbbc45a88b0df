//! `tidevm ctl` at a real machine: what it prints, and its exit statuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use super::api::Api;
use super::endings::{end, until};
use super::typist::Typist;
use super::{Test, assert_status, program, tidevm};

pub const HOSTED: &[Test] = &[
    ("ctl_tells_what_is_no_command", ctl_tells_what_is_no_command),
    ("ctl_cannot_reach_a_machine_that_is_not_there", ctl_cannot_reach_a_machine_that_is_not_there),
];

pub const TESTS: &[Test] = &[
    ("ctl_resizes_a_running_machine", ctl_resizes_a_running_machine),
    ("ctl_draws_a_bar_at_a_terminal", ctl_draws_a_bar_at_a_terminal),
    ("ctl_follows_a_machine_to_its_end", ctl_follows_a_machine_to_its_end),
];

fn ctl(api: &Api, words: &[&str]) -> Output {
    let mut command = program();
    command.arg("ctl").arg("--api-sock").arg(&api.path).args(words);
    command.stdin(Stdio::null()).output().expect("the program runs")
}

/// The lines of `--json`.
fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn ctl_tells_what_is_no_command() {
    let wrong = |words: &[&str], part: &str| {
        let arguments = [&["ctl", "--api-sock", "no/such/socket"], words].concat();
        assert_status(&tidevm(&arguments), 2, part);
    };
    wrong(&["grow", "2G"], "`grow` is no command; the commands are: resize");
    wrong(&["resize", "größe"], "character 8: expected a size such as 2G");
    wrong(&["check"], "`check` is a command of scripts alone");
    wrong(&[], "COMMAND");
    assert_status(&tidevm(&["ctl", "status"]), 2, "--api-sock");
}

fn ctl_cannot_reach_a_machine_that_is_not_there() {
    let arguments = ["ctl", "--api-sock", "no/such/socket", "status"];
    assert_status(&tidevm(&arguments), 3, "cannot connect to no/such/socket: No such file or directory");
    // Another program listens there, and speaks another protocol.
    let path = std::env::temp_dir().join(format!("tidevm-ctl-other-{}.sock", std::process::id()));
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).expect("a socket");
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        drop(stream.read(&mut [0; 4096]));
        drop(stream.write_all(b"220 mail.example ESMTP\r\n\r\n"));
    });
    let output = tidevm(&["ctl", "--api-sock", path.to_str().expect("UTF-8"), "status"]);
    assert_status(&output, 3, "the answer is no HTTP");
    other.join().expect("it ends");
    std::fs::remove_file(path).expect("it is there");
}

fn ctl_resizes_a_running_machine() {
    let api = Api::run("ctl");
    let out = assert_status(&ctl(&api, &["plug", "256M"]), 0, "");
    assert!(out.lines().last().is_some_and(|line| line.starts_with("plug 256M: 256M plugged, ")), "{out}");
    assert!(!out.contains('\x1b'), "no bar without a terminal: {out}");
    assert_eq!(api.get("/hotplug/memory").body["plugged_size_mib"], json!(256), "it has waited");
    let out = assert_status(&ctl(&api, &["--json", "unplug", "128M", "within", "1m"]), 0, "");
    let told = lines(&out);
    let end = told.last().expect("an end");
    assert_eq!((&end["outcome"], &end["status"], &end["event"]), (&json!("done"), &json!(0), &json!("end")));
    assert_eq!(end["command"], json!("unplug 128M within 1m"));
    assert!(told.iter().any(|event| event["event"] == json!("done")), "{out}");

    assert_status(&ctl(&api, &["resize", "3M"]), 1, "refused: Memory hotplug update error: ");
    assert_status(&ctl(&api, &["plug", "1G"]), 1, "is invalid: it must be a multiple of block size");
    assert_status(&ctl(&api, &["unplug", "1G"]), 1, "cannot unplug 1G, only 128M is requested");
    assert_status(&ctl(&api, &["resize", "0", "device", "1"]), 1, "Device not found");
    let out = assert_status(&ctl(&api, &["status"]), 0, "");
    assert!(out.starts_with("anonymous-instance: Running\ndevice  plugged  requested"), "{out}");
    assert!(out.lines().any(|line| line.starts_with("0          128M       128M    1G")), "{out}");
    let out = assert_status(&ctl(&api, &["--json", "stats"]), 0, "");
    assert_eq!(lines(&out)[0]["guest"]["zones"]["Movable"]["present"], json!(32_768), "{out}");
    let out = assert_status(&ctl(&api, &["stats"]), 0, "");
    assert!(out.starts_with("zone ") && out.contains("\nblocks_online "), "{out}");

    // A guest that stands still reaches nothing.
    assert_status(&ctl(&api, &["pause"]), 0, "");
    assert_status(&ctl(&api, &["stats"]), 1, "the guest is not running");
    assert_status(&ctl(&api, &["stop"]), 1, "use resume first");
    let late = ctl(&api, &["resize", "512M", "within", "300ms"]);
    let reason = "resize 512M within 300ms: too late: not within 300ms: 128M plugged of 512M: the guest is still at it";
    assert_status(&late, 1, reason);
    // Another client sets another target.
    let mut waiting = program();
    waiting.arg("ctl").arg("--api-sock").arg(&api.path).args(["resize", "1G", "within", "2m"]);
    waiting.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let waiting = waiting.spawn().expect("it runs");
    until("its target", || api.get("/hotplug/memory").body["requested_size_mib"] == json!(1024));
    api.done("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 128}"#);
    let output = waiting.wait_with_output().expect("it ends");
    assert_status(&output, 1, "superseded: another client has requested 128M meanwhile");
    assert_status(&ctl(&api, &["resume"]), 0, "");
    assert_status(&ctl(&api, &["save", "state"]), 1, "refused: The requested operation is not supported");
}

fn ctl_draws_a_bar_at_a_terminal() {
    let api = Api::run("ctl-bar");
    let mut command = program();
    command.arg("ctl").arg("--api-sock").arg(&api.path).args(["resize", "256M"]);
    let mut typist = Typist::start(&mut command);
    typist.sees(".] 0 of 256M\x1b[K");
    typist.sees("\r\nresize 256M: 256M plugged, ");
    assert_eq!(end(&mut typist.child).code(), Some(0));
}

fn ctl_follows_a_machine_to_its_end() {
    let mut api = Api::run("ctl-watch");
    let follow = |words: &[&str]| {
        let mut command = program();
        command.arg("ctl").arg("--api-sock").arg(&api.path).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs")
    };
    let (mut watch, mut events) = (follow(&["watch"]), follow(&["--json", "events"]));
    let mut told =
        BufReader::new(watch.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    // The status comes when the events are listened to.
    assert_eq!(told.next().as_deref(), Some("anonymous-instance: Running"));
    assert_status(&ctl(&api, &["resize", "128M"]), 0, "");
    assert_status(&ctl(&api, &["stop"]), 0, "");
    assert_eq!(end(&mut api.child).code(), Some(0));
    let told: Vec<String> = told.collect();
    assert!(told.iter().any(|line| line == "device 0: 128M, at its target"), "{told:#?}");
    assert_eq!(told.last().map(String::as_str), Some("the guest powered off"));
    assert_eq!(end(&mut watch).code(), Some(0));
    let mut raw = String::new();
    events.stdout.take().expect("a pipe").read_to_string(&mut raw).expect("text");
    assert_eq!(lines(&raw).last().expect("events")["event"], json!("powered_off"), "the API's lines alone");
    assert_eq!(end(&mut events).code(), Some(0));
    assert_status(&ctl(&api, &["status"]), 3, "cannot connect");
}
