//! What requests ask for, and the texts of those that ask for nothing. The texts are Firecracker's.

use std::time::Duration;

use super::{Action, MemoryQuery, Routed, route};
use crate::body::{
    ActionType, AutoConfig, AutoUpdate, Balloon, BalloonStatsUpdate, BalloonUpdate, LoggerConfig,
    MachineUpdate, MemoryConfig, MemoryUpdate, VmState,
};
use crate::http::{Method, Request};

fn request(method: Method, target: &str, body: &str) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = (!body.is_empty()).then(|| body.as_bytes().to_vec());
    Request { method, path: path.to_owned(), query: query.to_owned(), body, keep_alive: true }
}

fn action(method: Method, target: &str, body: &str) -> Action {
    route(&request(method, target, body)).unwrap_or_else(|fault| panic!("{target}: {fault}")).action
}

fn fault(method: Method, target: &str, body: &str) -> String {
    route(&request(method, target, body)).expect_err(target)
}

#[test]
fn each_path_has_its_action() {
    use Method::{Delete, Get, Patch, Put};
    assert_eq!(action(Get, "/", ""), Action::GetInstance);
    assert_eq!(action(Get, "/version", ""), Action::GetVersion);
    assert_eq!(action(Get, "/vm/config", ""), Action::GetVmConfig);
    assert_eq!(action(Get, "/machine-config", ""), Action::GetMachineConfig);
    assert_eq!(action(Get, "/events", ""), Action::GetEvents);
    assert_eq!(action(Get, "/stats", ""), Action::GetStats);
    assert_eq!(action(Get, "/metrics", ""), Action::GetMetrics);
    assert_eq!(
        action(Put, "/actions", r#"{"action_type": "InstanceStart"}"#),
        Action::Act(ActionType::InstanceStart)
    );
    assert_eq!(action(Patch, "/vm", r#"{"state": "Paused"}"#), Action::SetVmState(VmState::Paused));
    assert_eq!(action(Get, "/hotplug/memory/auto", ""), Action::GetAuto);
    assert_eq!(
        action(Put, "/hotplug/memory/auto", r#"{"min_size_mib": 256, "max_size_mib": 512}"#),
        Action::SetAuto(AutoConfig { min_size_mib: 256, max_size_mib: 512, headroom_percent: 10 })
    );
    assert_eq!(
        action(Patch, "/hotplug/memory/auto", r#"{"held": false}"#),
        Action::UpdateAuto(AutoUpdate { held: false })
    );
    assert_eq!(action(Delete, "/hotplug/memory/auto", ""), Action::StopAuto);
    assert_eq!(
        action(Put, "/hotplug/memory", r#"{"total_size_mib": 1024}"#),
        Action::SetMemory(MemoryConfig { total_size_mib: 1024, block_size_mib: 2, slot_size_mib: 128 })
    );
    let query = MemoryQuery { wait: Some(Duration::from_secs(10)), blocks: true, region: Some(1) };
    assert_eq!(action(Get, "/hotplug/memory?wait=10s&blocks=1&region=1", ""), Action::GetMemory(query));
    let wait = MemoryQuery { wait: Some(Duration::from_millis(500)), ..MemoryQuery::default() };
    assert_eq!(
        action(Patch, "/hotplug/memory?wait=500ms", r#"{"requested_size_mib": 4294967295}"#),
        Action::Resize(MemoryUpdate { requested_size_mib: u32::MAX }, wait)
    );
    assert_eq!(action(Delete, "/hotplug/memory/resize", ""), Action::CancelResize(MemoryQuery::default()));
    let update = MachineUpdate { vcpu_count: Some(2), ..MachineUpdate::default() };
    assert_eq!(action(Patch, "/machine-config", r#"{"vcpu_count": 2}"#), Action::SetMachine(update));
    let logger = r#"{"log_path": "x", "level": "Warning", "show_level": true}"#;
    assert!(matches!(
        action(Put, "/logger", logger),
        Action::SetLogger(LoggerConfig { level: Some(crate::body::Level::Warn), module: None, .. })
    ));
    assert_eq!(action(Put, "/drives/rootfs", "{}"), Action::NoSuchDevice("drives"));
    assert_eq!(action(Get, "/balloon", ""), Action::GetBalloon);
    assert_eq!(action(Get, "/balloon/statistics", ""), Action::GetBalloonStats);
    for (method, path) in [(Get, "/balloon/hinting/status"), (Patch, "/balloon/hinting/stop")] {
        assert_eq!(action(method, path, ""), Action::NoSuchDevice("free-page hinting"));
    }
    let balloon = Balloon { free_page_reporting: true, stats_polling_interval_s: 2, ..Balloon::default() };
    let body = r#"{"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 2, "free_page_reporting": true}"#;
    assert_eq!(action(Put, "/balloon", body), Action::SetBalloon(balloon));
    let update = BalloonStatsUpdate { stats_polling_interval_s: 1 };
    let body = r#"{"stats_polling_interval_s": 1}"#;
    assert_eq!(action(Patch, "/balloon/statistics", body), Action::UpdateBalloonStats(update));
    let update = BalloonUpdate { amount_mib: 1 };
    assert_eq!(action(Patch, "/balloon", r#"{"amount_mib": 1}"#), Action::UpdateBalloon(update));
}

#[test]
fn what_is_not_known_has_firecrackers_text() {
    use Method::{Delete, Get, Patch, Put};
    let json = |why: &str| format!("An error occurred when deserializing the json body of a request: {why}.");
    let cases = [
        (Get, "/foo/bar", "", "Invalid request method and/or path: GET foo.".to_owned()),
        (Patch, "/actions", "{}", "Invalid request method and/or path: PATCH actions.".to_owned()),
        (Delete, "/hotplug/memory", "", "Invalid request method and/or path: DELETE hotplug.".to_owned()),
        (Get, "/vm", "", "Invalid request method and/or path: GET vm.".to_owned()),
        (Get, "/", "x", "GET request cannot have a body.".to_owned()),
        (Put, "/foo", "", "Empty PUT request.".to_owned()),
        (Get, "/balloon/x", "", "Unrecognized GET request path `x`.".to_owned()),
        (Patch, "/balloon", "", "Empty PATCH request.".to_owned()),
        (Put, "/balloon", r#"{"amount_mib":0}"#, json("missing field `deflate_on_oom` at line 1 column 16")),
        (
            Patch,
            "/balloon/statistics",
            r#"{"stats_polling_interval_s":65536}"#,
            json("invalid value: integer `65536`, expected u16 at line 1 column 33"),
        ),
        (Patch, "/vm", "", "Empty PATCH request.".to_owned()),
        (Patch, "/machine-config", "{}", "Empty PATCH request.".to_owned()),
        (Put, "/snapshot", "{}", "Missing snapshot operation type.".to_owned()),
        (Put, "/snapshot/x", "{}", "Invalid request method and/or path: PUT /snapshot/x.".to_owned()),
        (
            Put,
            "/machine-config",
            r#"{"mem_size_mib": 128}"#,
            json("missing field `vcpu_count` at line 1 column 21"),
        ),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count": 1}"#,
            json("missing field `mem_size_mib` at line 1 column 17"),
        ),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":256,"mem_size_mib":1}"#,
            json("invalid value: integer `256`, expected u8 at line 1 column 17"),
        ),
        (
            Put,
            "/hotplug/memory",
            r#"{"total_size_mib":1,"x":2}"#,
            json(
                "unknown field `x`, expected one of `total_size_mib`, `block_size_mib`, `slot_size_mib` at line 1 column 23",
            ),
        ),
        (
            Patch,
            "/hotplug/memory",
            r#"{"requested_size_mib":4294967296}"#,
            json("invalid value: integer `4294967296`, expected u32 at line 1 column 32"),
        ),
        (
            Put,
            "/actions",
            r#"{"action_type":"Explode"}"#,
            json(
                "unknown variant `Explode`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel` at line \
                 1 column 24",
            ),
        ),
        (Put, "/logger", r#"{"level":"loud"}"#, json("Invalid LevelFilter at line 1 column 16")),
        (
            Put,
            "/snapshot/load",
            r#"{"snapshot_path":"a"}"#,
            json("missing field: either `mem_backend` or `mem_file_path` is required"),
        ),
        (
            Put,
            "/snapshot/load",
            r#"{"snapshot_path":"a","mem_file_path":"b","mem_backend":{"backend_path":"c","backend_type":"File"}}"#,
            json("too many fields: either `mem_backend` or `mem_file_path` exclusively is required"),
        ),
    ];
    for (method, target, body, text) in cases {
        assert_eq!(fault(method, target, body), text, "{target} {body}");
    }
}

/// A client that misspells a field is told so, and is not given the default.
#[test]
fn a_field_that_is_not_known_is_refused() {
    use Method::{Patch, Put};
    let backend = r#""backend_path":"b","backend_type":"File""#;
    let load = format!(r#"{{"snapshot_path":"a","mem_backend":{{{backend}}}}}"#);
    let cases = [
        (Put, "/actions", r#"{"action_type":"InstanceStart"}"#),
        (Put, "/balloon", r#"{"amount_mib":0,"deflate_on_oom":false}"#),
        (Patch, "/balloon", r#"{"amount_mib":0}"#),
        (Patch, "/balloon/statistics", r#"{"stats_polling_interval_s":1}"#),
        (Put, "/boot-source", r#"{"kernel_image_path":"a"}"#),
        (Put, "/hotplug/memory", r#"{"total_size_mib":128}"#),
        (Patch, "/hotplug/memory", r#"{"requested_size_mib":0}"#),
        (Put, "/hotplug/memory/auto", r#"{"min_size_mib":1,"max_size_mib":2}"#),
        (Patch, "/hotplug/memory/auto", r#"{"held":true}"#),
        (Put, "/logger", r#"{"log_path":"a"}"#),
        (Put, "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":1}"#),
        (Patch, "/machine-config", r#"{"vcpu_count":1}"#),
        (Put, "/snapshot/create", r#"{"snapshot_path":"a","mem_file_path":"b"}"#),
        (Put, "/snapshot/load", &load),
        (Patch, "/vm", r#"{"state":"Paused"}"#),
    ];
    for (method, target, body) in cases {
        action(method, target, body);
        let more = body.replacen('{', r#"{"x":1,"#, 1);
        assert!(fault(method, target, &more).contains("unknown field `x`"), "{target} {more}");
    }
    let inner = load.replace(backend, &format!(r#"{backend},"x":1"#));
    assert!(fault(Put, "/snapshot/load", &inner).contains("unknown field `x`"));
    // Firecracker takes it here.
    action(Put, "/metrics", r#"{"metrics_path":"a","x":1}"#);
}

#[test]
fn a_query_is_understood_or_refused() {
    let get = |query: &str| fault(Method::Get, &format!("/hotplug/memory?{query}"), "");
    assert!(get("wait=soon").starts_with("Invalid query: wait=soon is no time"));
    assert!(get("wait=61m").contains("of at most 60m"));
    assert!(get("wait=18446744073709551615m").contains("is no time"));
    let no_blocks = action(Method::Get, "/hotplug/memory?blocks=0", "");
    assert_eq!(no_blocks, Action::GetMemory(MemoryQuery::default()));
    assert!(get("blocks=yes").contains("neither 0 nor 1"));
    assert!(get("region=-1").contains("is no number"));
    assert!(get("x=1").contains("`x` is none of wait, blocks and region"));
    assert!(fault(Method::Get, "/hotplug/cpu", "").contains("Invalid request method and/or path"));
    assert!(fault(Method::Get, "/version?x", "").contains("this path takes none, not `x`"));
}

#[test]
fn deprecated_fields_are_marked() {
    let deprecated = |method, target: &str, body: &str| {
        let Routed { deprecated, .. } = route(&request(method, target, body)).unwrap();
        deprecated
    };
    let machine = r#"{"vcpu_count":1,"mem_size_mib":128,"cpu_template":"None"}"#;
    assert_eq!(
        deprecated(Method::Put, "/machine-config", machine),
        Some("PUT /machine-config: cpu_template field is deprecated.")
    );
    assert_eq!(
        deprecated(Method::Patch, "/machine-config", r#"{"cpu_template":"None"}"#),
        Some("PATCH /machine-config: cpu_template field is deprecated.")
    );
    let old = Some("PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated.");
    let load = |fields: &str| {
        deprecated(Method::Put, "/snapshot/load", &format!(r#"{{"snapshot_path":"a",{fields}}}"#))
    };
    assert_eq!(load(r#""mem_file_path":"b""#), old);
    let backend = r#""mem_backend":{"backend_path":"b","backend_type":"Uffd"}"#;
    assert_eq!(load(&format!(r#"{backend},"enable_diff_snapshots":true"#)), old);
    assert_eq!(load(&format!(r#"{backend},"track_dirty_pages":true"#)), None);
    assert_eq!(deprecated(Method::Put, "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#), None);
    assert_eq!(deprecated(Method::Patch, "/machine-config", r#"{"vcpu_count":1}"#), None);
    assert_eq!(deprecated(Method::Get, "/", ""), None);
}
