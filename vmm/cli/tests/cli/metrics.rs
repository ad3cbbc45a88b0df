//! The metrics of a real machine, as Prometheus reads them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use prometheus_parse::{Scrape, Value};
use serde_json::json;

use super::api::Api;
use super::endings::until;
use super::{Test, assert_status, program};

pub const TESTS: &[Test] = &[
    ("prometheus_reads_a_running_machine", prometheus_reads_a_running_machine),
    ("metrics_have_a_port_that_serves_nothing_else", metrics_have_a_port_that_serves_nothing_else),
];

/// The value of a sample, if it is told.
fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    Some(line.parse().expect("a number"))
}

/// What a reader of the format makes of the text: it understands each line, and each name has a help text, a type and a unit
/// by Prometheus' conventions.
fn read_all(text: &str) {
    let read = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).expect("text");
    let lines = || text.lines().filter(|line| !line.starts_with('#'));
    // The reader makes one sample of the buckets that have the same labels but for `le`.
    let plain = lines().filter(|line| !line.contains("_bucket{")).count();
    let histograms = lines().filter(|line| line.contains("le=\"+Inf\"")).count();
    assert_eq!(read.samples.len(), plain + histograms, "{text}");
    for sample in &read.samples {
        let name = sample.metric.as_str();
        let family = ["_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let family = if read.docs.contains_key(family) { family } else { name };
        assert!(read.docs.contains_key(family), "{name} has no help text");
        assert!(name.starts_with("tidevm_"), "{name}");
        match &sample.value {
            Value::Counter(_) => assert!(name.ends_with("_total"), "{name} is a counter"),
            Value::Gauge(_) => assert!(!name.ends_with("_total"), "{name} is a gauge"),
            Value::Histogram(parts) => {
                assert!(name.ends_with("_seconds"), "{name} has no unit");
                assert!(
                    parts.is_sorted_by(|one, next| one.less_than < next.less_than && one.count <= next.count)
                );
                assert_eq!(parts.last().map(|part| part.less_than), Some(f64::INFINITY), "{name}");
            }
            Value::Untyped(_) => assert_ne!(family, name, "{name} has no type"),
            Value::Summary(_) => panic!("{name} is a summary"),
        }
    }
    for unit in ["_mib", "_kib", "_pages_bytes", "_ms", "_us", "_millis"] {
        assert!(!read.docs.keys().any(|name| name.ends_with(unit)), "a name with the unit {unit}");
    }
}

/// What Prometheus' own tool says about the text. It says nothing about text without faults.
fn lint(text: &str) {
    read_all(text);
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut tool) = command.spawn() else {
        eprintln!("SKIP the lint of metrics: promtool of the package prometheus is not installed");
        return;
    };
    tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = tool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

fn prometheus_reads_a_running_machine() {
    let api = Api::run("metrics-text");
    api.done("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 256}"#);
    assert_eq!(api.get("/hotplug/memory?wait=2m").body["plugged_size_mib"], json!(256));
    let device = "{device=\"0\"}";
    let zone = "tidevm_guest_zone_present_bytes{zone=\"Movable\"}";
    // The guest's answer to one scrape is told by the next one.
    let mut text = String::new();
    until("the guest's counters", || {
        text = api.text("/metrics");
        value(&text, zone) == Some(f64::from(256 << 20))
    });
    lint(&text);
    assert_eq!(value(&text, &format!("tidevm_hotplug_plugged_bytes{device}")), Some(f64::from(256 << 20)));
    assert_eq!(value(&text, &format!("tidevm_hotplug_converged{device}")), Some(1.0));
    assert_eq!(value(&text, &format!("tidevm_hotplug_targets_total{device}")), Some(1.0));
    let held = value(&text, &format!("tidevm_hotplug_held_bytes{device}")).expect("a number");
    assert!(held <= f64::from(256 << 20), "{held}");
    let plugged = value(&text, "tidevm_virtio_mem_requests_total{device=\"0\",type=\"plug\",answer=\"ack\"}");
    assert!(plugged.is_some_and(|count| count >= 1.0), "{text}");
    let timed = value(&text, "tidevm_virtio_mem_request_duration_seconds_count{device=\"0\",type=\"plug\"}");
    assert_eq!(timed, plugged, "every request was timed");
    let resize = "tidevm_api_requests_total{method=\"PATCH\",path=\"/hotplug/memory\",code=\"204\"}";
    assert_eq!(value(&text, resize), Some(1.0));
    let mmio = value(&text, "tidevm_vcpu_exits_total{vcpu=\"0\",kind=\"mmio\"}");
    assert!(mmio.is_some_and(|count| count > 0.0), "{text}");
    // A guest that stands still is not waited for.
    api.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    let paused = api.text("/metrics");
    assert_eq!(value(&paused, "tidevm_guest_paused"), Some(1.0));
    lint(&paused);
}

/// A port that no process listens at.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn metrics_have_a_port_that_serves_nothing_else() {
    let port = free_port().to_string();
    let machine = ["run", "--memory", "128M", "--console", "off", "--metrics-listen", &port];
    let api = Api::start("metrics-port", &machine, &[]);
    let address = format!("127.0.0.1:{port}");
    until("the port", || TcpStream::connect(&address).is_ok());
    let call = |request: &str| {
        let mut stream = TcpStream::connect(&address).expect("it listens");
        write!(stream, "{request} HTTP/1.1\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers and closes");
        text
    };
    let metrics = call("GET /metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("\nContent-Type: text/plain; version=0.0.4"), "{metrics}");
    assert_eq!(value(&metrics, "tidevm_guest_paused"), Some(0.0));
    for other in ["GET /", "GET /events", "DELETE /hotplug/memory/resize", "PUT /actions"] {
        let refused = call(other);
        assert!(refused.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{other}: {refused}");
    }
    assert!(call("GET /vm/config").contains("Only GET /metrics is served here."));
    assert_eq!(api.get("/").body["state"], json!("Running"), "the socket serves everything");
    let taken = program()
        .args(["run", "--metrics-listen", &port, "--api-sock"])
        .arg(api.path.with_extension("second"))
        .output()
        .expect("it runs");
    assert_status(
        &taken,
        2,
        &format!("--metrics-listen 127.0.0.1:{port}: cannot listen: Address already in use"),
    );
    let alone = program().args(["run", "--metrics-listen", &port]).output().expect("it runs");
    assert_status(&alone, 2, "--api-sock");
}
