//! The JSON output: one object per line, with a key for each counter.

use std::time::Duration;

use serde_json::{Value, json};
use tidevm_abi::{Size, Stats};
use tidevm_machine::{Activity, Death, DeathKind, LookResult, Ready, VcpuReport, VcpuState};

use super::{JsonLines, guest};
use crate::session::{Booted, DeviceSample, Ended, Observer, Sample, StepFailure, StepRun, Summary};

#[test]
fn every_line_is_one_object() {
    let mut out = Vec::new();
    let mut lines = JsonLines(&mut out);
    let device =
        DeviceSample { region_size: Size(1 << 30), requested: Size(2 << 20), plugged: Size(0), held: None };
    let sample = Sample { devices: vec![device], guest: None };
    let ready = Ready { cpus: 2, mem_devices: 1, after: Duration::from_millis(500) };
    lines.boot(&Booted { ready: Some(ready), sample: sample.clone() }).unwrap();
    let step = StepRun {
        answer: None,
        line: 3,
        column: 5,
        command: "plug 2M".parse().unwrap(),
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

    let text = String::from_utf8(out).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let machine = json!({"region_size": 1 << 30, "requested": 2 << 20, "plugged": 0, "held": null});
    assert_eq!(
        events[0],
        json!({"event": "ready", "seconds": 0.5, "cpus": 2, "mem_devices": 1, "devices": [machine], "guest": null})
    );
    assert_eq!(
        events[1],
        json!({"event": "step", "line": 3, "column": 5, "command": "plug 2M", "seconds": 0.25, "ok": false,
               "note": null, "reason": "the host does not say what it holds: two\nlines, \"quoted\"", "devices": [machine], "guest": null})
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
        r#"{{{zones},"nodes":[{{{zones},"init_local":0,"init_remote":0}}],"memmap_boot_pages":0,"memmap_altmap_pages":0,"blocks_online":0,"deferred_pages":0,"pages_migrated":7,"migrate_failed":0,"pcp_drains":0,"pcp_stranded":0,"memmaps_written":0,"faults_injected":0,"device_spanned":0,"device_pages":0,"device_refs":0,"alloc_failed":0,"alloc_waited":0,"alloc_gave_up":0,"boot":{{"mapped_seconds":0.5,"first_allocation_seconds":0.0,"initialised_seconds":null,"memmaps_written":0}}}}"#
    );
    let mut stats = Stats { pages_migrated: 7, ..Stats::default() };
    stats.boot.mapped = 500_000;
    assert_eq!(serde_json::to_string(&guest(&stats)).unwrap(), expected);
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
    JsonLines(&mut out).end(&Summary { vcpus, ..Summary::default() }).unwrap();
    let end: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        end["vcpus"],
        json!([{"vcpu": 0, "state": "halted", "interrupts": false, "rip": "0xffffffff80001234", "symbol": "halt+0x2",
                "irr": [49], "isr": [], "exception": null, "interrupt": 32, "nmi": false, "unplugged": [],
                "registers": {"rax": "0xffffffffffffffff", "cr2": "0x0"}},
               {"vcpu": 1, "state": "ended"}])
    );
    let mut out = Vec::new();
    JsonLines(&mut out).end(&Summary::default()).unwrap();
    assert!(!String::from_utf8(out).unwrap().contains("vcpus"));
}
