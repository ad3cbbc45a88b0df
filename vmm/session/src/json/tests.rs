//! The JSON output: one object per line, with a key for each counter.

use std::time::Duration;

use serde_json::{Value, json};
use tidevm_abi::{Answer, BlockRun, BlockState, Memmap, PmemMapped, Size, Stats, ZoneName};
use tidevm_machine::{Activity, Death, DeathKind, LookResult, Ready, RequestCounts, VcpuReport, VcpuState};

use super::{guest, lines as json_lines};
use crate::session::{Blocks, Booted, DeviceSample, Ended, Observer, Sample, StepFailure, StepRun, Summary};

#[test]
fn every_line_is_one_object() {
    let mut out = Vec::new();
    let mut lines = json_lines(&mut out);
    let mut requests =
        RequestCounts { refused_chains: 5, plugged: Size(6), unplugged: Size(7), ..RequestCounts::default() };
    requests.by[0] = [1, 2, 3, 4];
    let device = DeviceSample {
        region_size: Size(1 << 30),
        requested: Size(2 << 20),
        requests,
        ..DeviceSample::default()
    };
    let sample = Sample { devices: vec![device], resets: 1, ..Sample::default() };
    let ready = Ready { cpus: 2, mem_devices: 1, after: Duration::from_millis(500) };
    lines.boot(&Booted { at: ready.after, ready: Some(ready), sample: sample.clone() }).unwrap();
    let step = StepRun {
        answer: None,
        listed: None,
        line: 3,
        column: 5,
        name: None,
        command: "plug 2M".parse().unwrap(),
        start: Duration::from_secs(1),
        took: Duration::from_millis(250),
        result: Err(StepFailure::HostSilent("two\nlines, \"quoted\"".to_owned())),
        sample,
        vcpus: Vec::new(),
    };
    lines.step(&step).unwrap();
    lines.step(&StepRun { result: Ok(Some("well".to_owned())), ..step }).unwrap();
    let ended = Ended::Died(Death { kind: DeathKind::GuestPanic, text: "rip".to_owned() });
    lines
        .end(&Summary { ended, steps: 2, failed: 1, bad_records: 3, resets: 4, ..Summary::default() })
        .unwrap();

    drop(lines);
    let text = String::from_utf8(out).unwrap();
    let mut events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in &mut events {
        let wall = event.as_object_mut().unwrap().remove("unix_ms");
        assert!(wall.and_then(|ms| ms.as_u64()).is_some_and(|ms| ms > 1_700_000_000_000), "{event}");
    }
    let none = json!({"ack": 0, "nack": 0, "busy": 0, "error": 0});
    let requests = json!({"plug": {"ack": 1, "nack": 2, "busy": 3, "error": 4}, "unplug": none, "unplug_all": none,
                          "state": none, "malformed": none, "refused_chains": 5, "plugged": 6, "unplugged": 7});
    let machine = json!({"address": 0, "region_size": 1 << 30, "requested": 2 << 20, "plugged": 0,
                         "guest_usable": null, "held": null, "requests": requests});
    assert_eq!(
        events[0],
        json!({"event": "ready", "seconds": 0.5, "cpus": 2, "mem_devices": 1, "at_seconds": 0.5,
               "devices": [machine], "resets": 1, "guest": null, "blocks": null})
    );
    assert_eq!(
        events[1],
        json!({"event": "step", "line": 3, "column": 5, "command": "plug 2M", "start_seconds": 1.0,
               "seconds": 0.25, "at_seconds": 1.25, "ok": false, "result": null,
               "note": null, "reason": "the host does not say what it holds: two\nlines, \"quoted\"", "devices": [machine],
               "resets": 1, "guest": null, "blocks": null})
    );
    assert_eq!(
        (&events[2]["ok"], &events[2]["note"], &events[2]["reason"]),
        (&json!(true), &json!("well"), &Value::Null)
    );
    assert_eq!((&events[3]["event"], &events[3]["status"]), (&json!("end"), &json!(4)));
    assert_eq!(
        (&events[3]["outcome"], &events[3]["reason"]),
        (&json!("died"), &json!("the guest panicked\nrip"))
    );
    assert_eq!(events[3]["plug_seconds_per_gib"], Value::Null);
    assert_eq!(events[3]["resets"], json!(4));
    assert_eq!((&events[3]["stray_accesses"], &events[3]["bad_records"]), (&json!(0), &json!(3)));
    assert_eq!(events.len(), 4);
}

#[test]
fn the_guest_has_a_key_for_each_counter() {
    let zone = r#"{"spanned":0,"present":0,"managed":0,"free":0,"pcp":0}"#;
    let zones = format!(r#""zones":{{"DMA32":{zone},"Normal":{zone},"Movable":{zone}}}"#);
    let expected = format!(
        r#"{{{zones},"nodes":[{{{zones},"init_local":0,"init_remote":0}}],"memmap_boot_pages":0,"memmap_altmap_pages":0,"blocks_online":0,"deferred_pages":0,"pages_migrated":7,"migrate_failed":0,"pcp_drains":0,"pcp_stranded":0,"memmaps_written":0,"faults_injected":0,"device_spanned":0,"device_pages":0,"device_refs":0,"alloc_failed":0,"alloc_waited":0,"alloc_gave_up":0,"driver_mismatches":0,"driver_errors":0,"driver_overdue":0,"driver_resets":0,"boot":{{"mapped_seconds":0.5,"first_allocation_seconds":0.0,"initialised_seconds":null,"memmaps_written":0}}}}"#
    );
    let mut stats = Stats { pages_migrated: 7, ..Stats::default() };
    stats.boot.mapped = 500_000;
    let expected: Value = serde_json::from_str(&expected).unwrap();
    assert_eq!(json!(guest(&stats)), expected);
}

#[test]
fn a_guest_that_did_not_answer_is_told_by_vcpu() {
    let state = VcpuState {
        activity: Activity::Halted,
        interrupts: false,
        rip: 0xffff_ffff_8000_1234,
        symbol: Some("halt+0x2".to_owned()),
        registers: vec![("rax", u64::MAX), ("cr2", 0)],
        requested: vec![49],
        in_service: vec![],
        exception: None,
        interrupt: Some(32),
        nmi: false,
        unplugged: vec![],
    };
    let vcpus = vec![
        VcpuReport { vcpu: 0, seen: LookResult::State(Box::new(state)) },
        VcpuReport { vcpu: 1, seen: LookResult::Ended },
    ];
    let mut out = Vec::new();
    json_lines(&mut out).end(&Summary { vcpus, ..Summary::default() }).unwrap();
    let end: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        end["vcpus"],
        json!([{"vcpu": 0, "state": "halted", "interrupts": false, "rip": "0xffffffff80001234", "symbol": "halt+0x2",
                "irr": [49], "isr": [], "exception": null, "interrupt": 32, "nmi": false, "unplugged": [],
                "registers": {"rax": "0xffffffffffffffff", "cr2": "0x0"}},
               {"vcpu": 1, "state": "ended"}])
    );
    let mut out = Vec::new();
    json_lines(&mut out).end(&Summary::default()).unwrap();
    assert!(!String::from_utf8(out).unwrap().contains("vcpus"));
}

#[test]
fn what_the_guest_lists_and_measures_is_typed() {
    let run = BlockRun {
        addr: 4 << 30,
        count: 2,
        size: Size(128 << 20),
        boot: false,
        state: BlockState::Online,
        zone: Some(ZoneName::Movable),
        node: 1,
        plugged: Some(Size(64 << 20)),
        memmap: Some(Memmap { pages: 512, on_memory: true }),
    };
    let block = json!({"address": 4_u64 << 30, "count": 2, "size": 128 << 20, "boot": false, "state": "online",
                       "zone": "Movable", "node": 1, "plugged": 64 << 20, "memmap_pages": 512,
                       "memmap_on_memory": true});
    let step = |command: &str, answer, listed| StepRun {
        line: 1,
        column: 1,
        name: None,
        command: command.parse().unwrap(),
        start: Duration::ZERO,
        took: Duration::ZERO,
        result: Ok(None),
        answer,
        listed,
        sample: Sample { blocks: Some(Blocks { runs: vec![run], complete: false }), ..Sample::default() },
        vcpus: Vec::new(),
    };
    let mapped =
        PmemMapped { pages: 9, locked_pages: 3, locked_ns: 1_500_000, total_ns: 70_000_000, cpus: 2 };
    let told = |run: &StepRun| {
        let mut out = Vec::new();
        json_lines(&mut out).step(run).unwrap();
        serde_json::from_slice::<Value>(&out).unwrap()
    };
    let line = told(&step("blocks", Some(Answer::Done), Some(vec![run])));
    assert_eq!(line["result"], json!({"kind": "blocks", "blocks": [block]}));
    assert_eq!(line["blocks"], json!({"runs": [block], "complete": false}));
    let line = told(&step("pmem map 0", Some(Answer::PmemMapped(mapped)), None));
    assert_eq!(
        line["result"],
        json!({"kind": "pmem_mapped", "pages": 9, "locked_pages": 3, "locked_seconds": 0.0015,
               "total_seconds": 0.07, "cpus": 2})
    );
    assert_eq!(told(&step("blocks", None, None))["result"], Value::Null);
}
