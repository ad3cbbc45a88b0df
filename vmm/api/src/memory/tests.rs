//! What is told of regions, and what Firecracker's clients find in it.

use serde_json::json;
use tidevm_abi::{Owner, Resize, ResizeState, Size, UnmovablePage};
use tidevm_machine::{HostFault, MemStatus, Refusal, RequestCounts, State};

use super::{Facts, converged, status};

/// A region of 1 GiB whose driver has plugged `plugged` of `requested` MiB and said so with `state`.
pub fn region(requested: u64, plugged: u64, state: ResizeState) -> MemStatus {
    let (requested, plugged) = (Size::mib(requested), Size::mib(plugged));
    MemStatus {
        region: 4 << 30,
        region_size: Size::gib(1),
        block_size: Size::mib(2),
        requested,
        plugged,
        usable: Size::gib(1),
        targets: 3,
        generation: 7,
        seen: Some(7),
        driver: true,
        report: Some(Resize { region: 4 << 30, requested, plugged, state, generation: 7 }),
        ..MemStatus::default()
    }
}

const UNMOVABLE: ResizeState = ResizeState::Unmovable {
    pages: 2,
    first: [Some(UnmovablePage { pfn: 0x100, owner: Owner::Workload(4) }), None, None, None],
};

fn facts() -> Facts<'static> {
    Facts { reports: true, slot_size_mib: 128, held: Some(&[Size(4096), Size(0)]), requests: &[] }
}

#[test]
fn a_client_of_firecracker_finds_its_fields_of_the_first_region() {
    let mem = vec![region(512, 512, ResizeState::Reached), region(256, 128, UNMOVABLE)];
    let state = State { mem, ..State::default() };
    let told = status(&state, None, &facts()).unwrap();
    let fields = json!({
        "block_size_mib": 2, "total_size_mib": 1024, "slot_size_mib": 128, "plugged_size_mib": 512,
        "requested_size_mib": 512,
    });
    for (key, value) in fields.as_object().unwrap() {
        assert_eq!(&told[key], value, "{key}");
    }
    assert_eq!(told["converged"], json!(false), "all regions");
    assert_eq!(told["reason"]["kind"], json!("unmovable"));
    assert_eq!(told["host_held"], json!(4096));
    assert_eq!(told["regions"].as_array().unwrap().len(), 2);
    let second = status(&state, Some(1), &facts()).unwrap();
    assert_eq!(second, told["regions"][1]);
    let reason = json!({
        "kind": "unmovable", "text": "2 pages cannot move: pfn 0x100 (unknown workload 4) and 1 more", "pages": 2,
        "first": [{ "pfn": 0x100, "owner": "workload 4" }],
    });
    assert_eq!(second["reason"], reason);
    assert_eq!((&second["usable"], &second["guest_usable"]), (&json!(1_u64 << 30), &json!(128 << 20)));
    assert_eq!(status(&state, Some(2), &facts()), None);
    assert_eq!(status(&State::default(), None, &facts()), None);
}

#[test]
fn a_region_has_converged_when_the_guest_has_answered_this_target() {
    let there = region(512, 512, ResizeState::Reached);
    assert!(converged(&there, true));
    let detour = MemStatus { generation: 9, ..there.clone() };
    assert!(!converged(&detour, true), "the answer was to an earlier target of the same size");
    assert!(!converged(&MemStatus { target_pending: true, ..there.clone() }, true));
    let silent = MemStatus { report: None, ..there };
    assert!(!converged(&silent, true) && converged(&silent, false));
    let absent = MemStatus { driver: false, ..region(512, 0, ResizeState::Reached) };
    assert!(!converged(&absent, true));
    let state = State { mem: vec![absent], ..State::default() };
    assert_eq!(status(&state, None, &facts()).unwrap()["reason"]["kind"], json!("no_driver"));
    assert!(converged(&MemStatus { driver: false, ..region(0, 0, ResizeState::Reached) }, true));
}

#[test]
fn a_busy_host_is_told_with_its_refusal() {
    let host = Some(HostFault { call: "madvise", errno: 12 });
    let refused = Some(Refusal { text: "Busy: Unplug".to_owned(), host });
    let busy = MemStatus { refused, ..region(512, 128, ResizeState::HostBusy) };
    let refused = "Busy: Unplug: madvise: Cannot allocate memory (os error 12)";
    let reason = json!({
        "kind": "host_busy", "call": "madvise", "errno": 12, "refused": refused,
        "text": format!("the device answers BUSY ({refused})"),
    });
    assert_eq!(super::reason(&busy, true), reason);
    let silent = MemStatus { refused: Some("Busy: Unplug".to_owned().into()), ..busy };
    assert_eq!(super::reason(&silent, true).get("errno"), None, "the host has not said why");
}

#[test]
fn what_a_device_has_counted_is_told_with_its_region() {
    let state = State { mem: vec![region(512, 512, ResizeState::Reached); 2], ..State::default() };
    let mut counts =
        RequestCounts { refused_chains: 5, plugged: Size(6), unplugged: Size(7), ..RequestCounts::default() };
    counts.by[2] = [1, 2, 3, 4];
    let requests = &[RequestCounts::default(), counts];
    let told = status(&state, Some(1), &Facts { requests, ..facts() }).unwrap();
    let none = json!({ "ack": 0, "nack": 0, "busy": 0, "error": 0 });
    let expected = json!({
        "plug": none, "unplug": none, "unplug_all": { "ack": 1, "nack": 2, "busy": 3, "error": 4 }, "state": none,
        "malformed": none, "refused_chains": 5, "plugged": 6, "unplugged": 7,
    });
    assert_eq!(told["requests"], expected);
}
