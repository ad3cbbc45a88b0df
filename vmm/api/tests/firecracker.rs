//! What Firecracker's own tests assert of the calls that tidevm has: each request of theirs, and whether it is accepted.
//!
//! Mirrors the unit tests of `src/firecracker/src/api_server` and `src/vmm/src/vmm_config`, and
//! `tests/integration_tests/functional/test_api.py`, at version 1.14 and after. What they assert of a machine that runs is
//! asserted of one by `firecrackers_calls_have_their_order_and_texts` of the program's tests. Where tidevm differs,
//! `docs/api.md` says so, and the case is in [`REFUSED_HERE`].

use tidevm_api::Draft;
use tidevm_api::body::MemoryConfig;
use tidevm_api::http::{Method, Next, Parser, Request};
use tidevm_api::route::{Action, route};

use Method::{Delete, Get, Patch, Put};

/// Accepted.
const OK: Option<&str> = None;

/// Refused, with whatever text.
const REFUSED: Option<&str> = Some("");

/// Refused, because the body is no JSON of this kind.
const BAD_JSON: Option<&str> = Some("An error occurred when deserializing the json body of a request: ");

/// A call, its body, and a part of the fault.
type Case = (Method, &'static str, &'static str, Option<&'static str>);

/// What the bodies ask for, by the unit tests of each call.
const BODIES: &[Case] = &[
    // request/actions.rs, api_server/mod.rs
    (Put, "/actions", "invalid_body", BAD_JSON),
    (Put, "/actions", r#"{"action_type": "InstanceStart"}"#, OK),
    (Put, "/actions", r#"{"action_type": "SendCtrlAltDel"}"#, OK),
    (Put, "/actions", r#"{"action_type": "FlushMetrics"}"#, OK),
    (
        Put,
        "/actions",
        r#"{"action_type": "Invalid", "payload": "string"}"#,
        Some("unknown variant `Invalid`"),
    ),
    (Put, "/actions", r#"{"action_type": "InstanceStart", "payload": "x"}"#, Some("unknown field `payload`")),
    // request/boot_source.rs
    (Put, "/boot-source", "invalid_payload", BAD_JSON),
    (
        Put,
        "/boot-source",
        r#"{"kernel_image_path": "/foo/bar", "initrd_path": "/bar/foo", "boot_args": "foobar"}"#,
        OK,
    ),
    (Put, "/boot-source", r#"{"boot_args": "foobar"}"#, Some("missing field `kernel_image_path`")),
    // request/hotplug/memory.rs
    (Put, "/hotplug/memory", "invalid_payload", BAD_JSON),
    (
        Put,
        "/hotplug/memory",
        r#"{"total_size_mib": "bar"}"#,
        Some("invalid type: string \"bar\", expected u32"),
    ),
    (Put, "/hotplug/memory", r#"{"total_size_mib": 2048}"#, OK),
    (Put, "/hotplug/memory", r#"{"total_size_mib": 2048, "block_size_mib": 64, "slot_size_mib": 64}"#, OK),
    (
        Put,
        "/hotplug/memory",
        r#"{"total_size_mib": 17592186044416}"#,
        Some("invalid value: integer `17592186044416`"),
    ),
    (
        Put,
        "/hotplug/memory",
        r#"{"total_size_mib": 2048, "block_size_mib": 4294967296}"#,
        Some("expected u32"),
    ),
    (
        Put,
        "/hotplug/memory",
        r#"{"total_size_mib": 2048, "slot_size_mib": 4294967296}"#,
        Some("expected u32"),
    ),
    (Put, "/hotplug/memory", r#"{"total_size_mib": -1}"#, Some("invalid value: integer `-1`, expected u32")),
    (Put, "/hotplug/memory", r#"{"block_size_mib": 2}"#, Some("missing field `total_size_mib`")),
    (Put, "/hotplug/memory", r#"{"total_size_mib": 2048, "total_size_mib": 1}"#, Some("duplicate field")),
    (Get, "/hotplug/memory", "", OK),
    (Patch, "/hotplug/memory", "invalid_payload", BAD_JSON),
    (Patch, "/hotplug/memory", r#"{"requested_size_mib": "bar"}"#, Some("invalid type: string \"bar\"")),
    (Patch, "/hotplug/memory", r#"{"requested_size_mib": 4294967296}"#, Some("expected u32")),
    (Patch, "/hotplug/memory", r#"{"requested_size_mib": 4294967295}"#, OK),
    (Patch, "/hotplug/memory", r#"{"requested_size_mib": 1, "x": 1}"#, Some("unknown field `x`, expected")),
    (Patch, "/hotplug/memory", "{}", Some("missing field `requested_size_mib`")),
    // request/logger.rs
    (
        Put,
        "/logger",
        r#"{"log_path": "log", "level": "Warning", "show_level": false, "show_log_origin": false}"#,
        OK,
    ),
    (
        Put,
        "/logger",
        r#"{"log_path": "log", "level": "DEBUG", "show_level": false, "show_log_origin": false}"#,
        OK,
    ),
    (
        Put,
        "/logger",
        r#"{"invalid_field": "log", "level": "Warning"}"#,
        Some("unknown field `invalid_field`"),
    ),
    // request/metrics.rs
    (Put, "/metrics", r#"{"metrics_path": "metrics"}"#, OK),
    (Put, "/metrics", r#"{"invalid_field": "metrics"}"#, Some("missing field `metrics_path`")),
    (Put, "/metrics", r#"{"metrics_path": "metrics", "emit_id": true}"#, OK),
    (
        Put,
        "/metrics",
        r#"{"metrics_path": "m", "properties": {"customer_id": "1", "bundle_id": "fn-abc"}}"#,
        OK,
    ),
    // request/machine_configuration.rs
    (Get, "/machine-config", "", OK),
    (Put, "/machine-config", "invalid_payload", BAD_JSON),
    (Put, "/machine-config", r#"{"mem_size_mib": 1024}"#, Some("missing field `vcpu_count`")),
    (Put, "/machine-config", r#"{"vcpu_count": 8}"#, Some("missing field `mem_size_mib`")),
    (Put, "/machine-config", r#"{"vcpu_count": 8, "mem_size_mib": 1024, "huge_pages": "None"}"#, OK),
    (Put, "/machine-config", r#"{"vcpu_count": 8, "mem_size_mib": 1024, "huge_pages": "Transparent"}"#, OK),
    (Put, "/machine-config", r#"{"vcpu_count": 8, "mem_size_mib": 1024, "huge_pages": "2M"}"#, OK),
    (Put, "/machine-config", r#"{"vcpu_count": 8, "mem_size_mib": 1024, "cpu_template": "None"}"#, OK),
    (
        Put,
        "/machine-config",
        r#"{"vcpu_count": 8, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": true}"#,
        OK,
    ),
    (Put, "/machine-config", r#"{"vcpu_count": 8, "mem_size_mib": 1024, "cpu_template": "T2"}"#, OK),
    (Put, "/machine-config", r#"{"vcpu_count": 8, "mem_size_mib": 1024, "smt": true}"#, OK),
    (
        Put,
        "/machine-config",
        r#"{"vcpu_count": 8, "mem_size_mib": 1024, "huge_pages": "7M"}"#,
        Some("unknown variant `7M`"),
    ),
    (Patch, "/machine-config", "invalid_payload", BAD_JSON),
    (Patch, "/machine-config", r#"{"track_dirty_pages": true}"#, OK),
    (Patch, "/machine-config", r#"{"cpu_template": "T2"}"#, OK),
    (Patch, "/machine-config", r#"{"vcpu_count": 8, "mem_size_mib": 1024}"#, OK),
    (
        Patch,
        "/machine-config",
        r#"{"vcpu_count": 1, "mem_size_mib": 1, "smt": false, "cpu_template": "C3"}"#,
        OK,
    ),
    (Patch, "/machine-config", "{}", Some("Empty PATCH request.")),
    // test_api.py: test_api_machine_config
    (Put, "/machine-config", r#"{"vcpu_count": "-2"}"#, Some("invalid type: string \"-2\", expected u8")),
    (Put, "/machine-config", r#"{"smt": "random_string"}"#, Some("expected a boolean")),
    (Put, "/machine-config", r#"{"cpu_template": "random_string"}"#, Some("unknown variant `random_string`")),
    (
        Put,
        "/machine-config",
        r#"{"mem_size_mib": 128}"#,
        Some("missing field `vcpu_count` at line 1 column 21."),
    ),
    (
        Put,
        "/machine-config",
        r#"{"vcpu_count": 2}"#,
        Some("missing field `mem_size_mib` at line 1 column 17."),
    ),
    (Put, "/machine-config", r#"{"mem_size_mib": "-2"}"#, REFUSED),
    (
        Put,
        "/machine-config",
        r#"{"mem_size_mib": 18446744073709551616}"#,
        Some("An error occurred when deserializing the json body of a request: invalid type"),
    ),
    (Patch, "/machine-config", r#"{"mem_size_mib": 18446744073709551615}"#, OK),
    // request/snapshot.rs, test_api.py: test_negative_snapshot_load_api
    (Patch, "/vm", r#"{"state": "Paused"}"#, OK),
    (Patch, "/vm", r#"{"state": "Resumed"}"#, OK),
    (Patch, "/vm", r#"{"invalid": "Paused"}"#, Some("unknown field `invalid`")),
    (
        Put,
        "/snapshot/create",
        r#"{"snapshot_type": "Diff", "snapshot_path": "foo", "mem_file_path": "bar"}"#,
        OK,
    ),
    (Put, "/snapshot/create", r#"{"snapshot_path": "foo", "mem_file_path": "bar"}"#, OK),
    (Put, "/snapshot/create", r#"{"invalid_field": "foo", "mem_file_path": "bar"}"#, Some("unknown field")),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "foo", "mem_backend": {"backend_path": "bar", "backend_type": "File"}, "huge_pages": "2M"}"#,
        OK,
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "foo", "mem_backend": {"backend_path": "bar", "backend_type": "Uffd"}, "resume_vm": true,
            "huge_pages": "Snapshot", "network_overrides": [{"iface_id": "eth0", "host_dev_name": "vmtap2"}],
            "vsock_override": {"uds_path": "v.sock"}, "clock_realtime": true}"#,
        OK,
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "foo", "mem_backend": {"backend_path": "bar", "backend_type": "File"}, "huge_pages": "1M"}"#,
        Some("unknown variant `1M`, expected one of `Snapshot`, `None`, `Transparent`, `2M`"),
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "foo", "mem_backend": {"backend_path": "bar"}}"#,
        Some("missing field `backend_type`"),
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "foo", "mem_backend": {"backend_type": "File"}}"#,
        Some("missing field `backend_path`"),
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "foo", "mem_backend": {"backend_type": "File",}}"#,
        Some("trailing comma at line 1 column "),
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "foo", "mem_backend": {"backend_type": "foo", "backend_path": "bar"}}"#,
        Some("unknown variant `foo`, expected `File` or `Uffd`"),
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"mem_backend": {"backend_type": "File", "backend_path": "bar"}}"#,
        Some("missing field `snapshot_path`"),
    ),
    (Put, "/snapshot/load", r#"{"snapshot_path": "foo", "mem_file_path": "bar", "resume_vm": true}"#, OK),
    (Put, "/snapshot/invalid", "{}", Some("Invalid request method and/or path: PUT /snapshot/invalid.")),
    // parsed_request.rs: test_error_into_response
    (Put, "/boot-source", " ", Some("request: EOF while parsing a value at line 1 column 1.")),
];

/// Methods and paths: `parsed_request.rs`, and `test_api_patch_pre_boot` of `test_api.py`.
const CALLS: &[Case] = &[
    (Get, "/", "", OK),
    (Get, "/version", "", OK),
    (Get, "/vm/config", "", OK),
    (Get, "/mmds", "body", Some("GET request cannot have a body.")),
    (Put, "/mmds", "", Some("Empty PUT request.")),
    (Patch, "/mmds", "", Some("Empty PATCH request.")),
    (
        Patch,
        "/boot-source",
        r#"{"kernel_image_path": "otherfile"}"#,
        Some("Invalid request method and/or path: PATCH boot-source."),
    ),
    (Patch, "/logger", r#"{"level": "Error"}"#, Some("Invalid request method and/or path: PATCH logger.")),
    (Put, "/vm", r#"{"state": "Paused"}"#, Some("Invalid request method and/or path: PUT vm.")),
    (Get, "/actions", "", Some("Invalid request method and/or path: GET actions.")),
    (Delete, "/machine-config", "", Some("Invalid request method and/or path: DELETE machine-config.")),
    (Delete, "/drives/a", "{}", Some("Empty Delete request.")),
];

/// Firecracker accepts these, and tidevm refuses them where they are set.
const REFUSED_HERE: &[&str] = &[
    r#"{"smt": true}"#,
    r#"{"track_dirty_pages": true}"#,
    r#"{"huge_pages": "2M"}"#,
    r#"{"cpu_template": "T2"}"#,
];

fn request(method: Method, path: &str, body: &str) -> Request {
    let body = (!body.is_empty()).then(|| body.as_bytes().to_vec());
    Request { method, path: path.to_owned(), query: String::new(), body, keep_alive: true }
}

fn check(cases: &[Case]) {
    for &(method, path, body, fault) in cases {
        let call = format!("{} {path} {body}", method.name());
        match (route(&request(method, path, body)), fault) {
            (Ok(_), None) => {}
            (Err(text), Some(part)) => assert!(text.contains(part), "{call}: {text}"),
            (result, _) => panic!("{call}: {result:?}, expected {fault:?}"),
        }
    }
}

#[test]
fn bodies_are_accepted_as_by_firecracker() {
    check(BODIES);
}

#[test]
fn methods_and_paths_are_accepted_as_by_firecracker() {
    check(CALLS);
}

/// `vmm_config/memory_hotplug.rs`: the first fault is told, in this order.
#[test]
fn the_bounds_of_a_region_are_those_of_firecracker() {
    let fault = |total_size_mib, block_size_mib, slot_size_mib| {
        let memory = MemoryConfig { total_size_mib, block_size_mib, slot_size_mib };
        Draft::default().set_memory(memory).err().unwrap_or_default()
    };
    for (total, block, slot, text) in [
        (1024, 2, 128, ""),
        (1024, 128, 1024, ""),
        (256, 64, 256, ""),
        (1024, 0, 128, "Block size must not be lower than 2 MiB"),
        (1024, 1, 128, "Block size must not be lower than 2 MiB"),
        (1024, 3, 128, "Block size must be a power of 2"),
        (1024, 2, 0, "Slot size must not be lower than 128 MiB"),
        (1024, 2, 1, "Slot size must not be lower than 128 MiB"),
        (1024, 2, 127, "Slot size must not be lower than 128 MiB"),
        (1024, 4, 130, "Slot size must be a multiple of block size (4 MiB)"),
        (64, 2, 128, "Total size must not be lower than slot size (128 MiB)"),
        (0, 2, 128, "Total size must not be lower than slot size (128 MiB)"),
        (1000, 2, 128, "Total size must be a multiple of slot size (128 MiB)"),
        (u32::MAX, u32::MAX, u32::MAX, "Block size must be a power of 2"),
        (u32::MAX, 1 << 31, 1 << 31, "Total size must be a multiple of slot size (2147483648 MiB)"),
        (0, 1, 1, "Block size must not be lower than 2 MiB"),
    ] {
        let text =
            if text.is_empty() { String::new() } else { format!("Memory hotplug config error: {text}") };
        assert_eq!(fault(total, block, slot), text, "{total} {block} {slot}");
    }
}

#[test]
fn what_tidevm_cannot_give_is_refused_where_it_is_set() {
    for body in REFUSED_HERE {
        let Ok(Action::SetMachine(update)) =
            route(&request(Patch, "/machine-config", body)).map(|routed| routed.action)
        else {
            panic!("{body}");
        };
        let fault = Draft::default().set_machine(&update).expect_err(body);
        assert!(fault.starts_with("The requested operation is not supported: "), "{fault}");
    }
}

/// `api_server/mod.rs`: `test_bind_and_run`, `test_bind_and_run_with_limit`; `parsed_request.rs`: `test_missing_slash`.
#[test]
fn what_is_no_request_is_refused() {
    let take = |text: &str| {
        let mut parser = Parser::default();
        parser.push(text.as_bytes());
        parser.take()
    };
    assert!(matches!(take("GET / HTTP/1.1\r\n\r\n"), Ok(Next::Request(_))));
    let fault = |text: &str| take(text).expect_err(text).to_string();
    assert_eq!(fault("OPTIONS / HTTP/1.1\r\n\r\n"), "Unsupported HTTP method.");
    assert_eq!(fault("GET none HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"), "Invalid URI.");
    assert_eq!(
        fault("PUT http://localhost/home HTTP/1.1\r\nContent-Length: 51201\r\n\r\naaaaaa"),
        "Request payload with size 51201 is larger than the limit of 51200 allowed by server."
    );
}
