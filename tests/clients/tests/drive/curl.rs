//! curl: the calls that the SDKs do not know, and the ways in which a shell makes them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Missing, PATIENCE, folder, program};

/// Whether there is a curl.
pub fn missing() -> Missing {
    let version = Command::new("curl").arg("--version").output();
    version.err().map(|error| format!("no curl: {error}"))
}

/// A program that listens. Dropping it ends it.
struct Machine {
    child: Child,
    folder: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails when it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Machine {
    fn curl(&self, path: &str, arguments: &[&str]) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "120", "--unix-socket"]);
        curl.arg(self.folder.join("api.sock")).args(arguments).arg(format!("http://localhost{path}"));
        curl
    }

    /// The status and the body of an answer.
    #[track_caller]
    fn call(&self, path: &str, arguments: &[&str]) -> (String, String) {
        let output =
            self.curl(path, arguments).args(["--write-out", "\n%{http_code}"]).output().expect("curl runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{path} {arguments:?}: {said}");
        let text = String::from_utf8(output.stdout).expect("text");
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.to_owned(), body.to_owned())
    }

    #[track_caller]
    fn done(&self, method: &str, path: &str, body: &Value) {
        let answer = self.call(path, &["--request", method, "--data", &body.to_string()]);
        assert_eq!(answer, ("204".to_owned(), String::new()), "{method} {path} {body}");
    }

    #[track_caller]
    fn json(&self, path: &str, arguments: &[&str]) -> Value {
        let (status, body) = self.call(path, arguments);
        assert_eq!(status, "200", "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

/// A machine from its configuration to its end.
pub fn does_the_rest() {
    let folder = folder("curl");
    let mut command = Command::new(program());
    command.arg("--api-sock").arg(folder.join("api.sock")).args(["--id", "curl-1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut machine = Machine { child: command.spawn().expect("the program runs"), folder };
    let start = Instant::now();
    while !machine.curl("/", &[]).output().expect("curl runs").status.success() {
        assert!(start.elapsed() < PATIENCE, "no socket within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    machine.done("PUT", "/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": 128 }));
    machine.done("PUT", "/boot-source", &json!({ "kernel_image_path": "builtin" }));
    machine.done("PUT", "/hotplug/memory", &json!({ "total_size_mib": 1024 }));
    machine.done("PUT", "/metrics", &json!({ "metrics_path": machine.folder.join("metrics") }));
    machine.done("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
    // Its lines are read at the end.
    let events = machine.curl("/events", &["--no-buffer"]).stdout(Stdio::piped()).spawn().expect("curl runs");

    let resize = [
        "--request",
        "PATCH",
        "--header",
        "Expect: 100-continue",
        "--data",
        r#"{"requested_size_mib": 256}"#,
    ];
    let there = machine.json("/hotplug/memory?wait=2m", &resize);
    assert_eq!((&there["plugged_size_mib"], &there["converged"]), (&json!(256), &json!(true)), "{there}");
    machine.done("PATCH", "/vm", &json!({ "state": "Paused" }));
    machine.done("PATCH", "/hotplug/memory", &json!({ "requested_size_mib": 512 }));
    let (status, _) = machine.call("/hotplug/memory/resize", &["--request", "DELETE"]);
    assert_eq!(status, "204");
    machine.done("PATCH", "/vm", &json!({ "state": "Resumed" }));
    let there = machine.json("/hotplug/memory?wait=2m&blocks=1", &[]);
    assert_eq!((&there["requested_size_mib"], &there["converged"]), (&json!(256), &json!(true)), "{there}");
    assert!(there["blocks"].as_array().is_some_and(|blocks| !blocks.is_empty()), "{there}");
    assert_eq!(machine.json("/stats", &[])["zones"]["Movable"]["present"], json!(65_536));
    let (status, metrics) = machine.call("/metrics", &[]);
    assert_eq!(status, "200");
    let counted = "tidevm_api_requests_total{method=\"DELETE\",path=\"/hotplug/memory\",code=\"204\"} 1";
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
    let (status, body) = machine.call("/none", &[]);
    assert_eq!(
        (status.as_str(), body.contains("Invalid request method and/or path: GET none.")),
        ("400", true)
    );
    machine.done("PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
    machine.done("PUT", "/actions", &json!({ "action_type": "SendCtrlAltDel" }));

    let output = events.wait_with_output().expect("curl ends with the machine");
    let lines = String::from_utf8(output.stdout).expect("text");
    let last: Value = serde_json::from_str(lines.lines().last().expect("events")).expect("JSON");
    assert_eq!(last["event"], json!("powered_off"), "{lines}");
    assert_eq!(machine.child.wait().expect("it ends").code(), Some(0));
    let metrics = fs::read_to_string(machine.folder.join("metrics")).expect("the file");
    assert_eq!(metrics.lines().count(), 1, "{metrics}");
    fs::remove_dir_all(&machine.folder).expect("it was there");
}
