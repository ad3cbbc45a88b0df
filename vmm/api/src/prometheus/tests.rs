//! The text of a made-up machine. `promtool` judges that of a real one in the tests of the program.

use std::time::Duration;

use tidevm_abi::{Size, Stats};
use tidevm_machine::{DiskCounts, ExitCounts, MemStatus, RequestCounts, State};
use tidevm_sizer::{Bounds, Counts, Status};

use super::{Facts, Page, text};
use crate::http::{Method, Request};
use crate::requests::Requests;

fn told(sample: Option<(&Stats, Duration)>) -> String {
    let mem = MemStatus {
        region_size: Size::gib(1),
        requested: Size::mib(512),
        plugged: Size::mib(256),
        targets: 3,
        ..MemStatus::default()
    };
    let state = State { mem: vec![mem], resets: 2, stray_accesses: 9, ..State::default() };
    let mut requests = RequestCounts::default();
    requests.by[0][2] = 4;
    (requests.refused_chains, requests.plugged, requests.unplugged) = (5, Size(6), Size(7));
    requests.plug.parts[0] = 1;
    requests.plug.parts[3] = 2;
    requests.plug.sum = Duration::from_micros(1500);
    let mut disk =
        DiskCounts { refused_chains: 3, read: Size(512), written: Size(1024), ..DiskCounts::default() };
    disk.by[1][1] = 6;
    let mut api = Requests::default();
    let request = Request {
        method: Method::Patch,
        path: "/hotplug/memory".to_owned(),
        query: String::new(),
        body: None,
        keep_alive: true,
    };
    [204, 204, 400].into_iter().for_each(|status| api.count(&request, status));
    text(&Facts {
        version: "1.2",
        state: &state,
        reports: true,
        exits: &[ExitCounts::default(), ExitCounts { mmio: 7, ..ExitCounts::default() }],
        held: Some(&[Size(4096)]),
        requests: &[requests, RequestCounts { refused_chains: 8, ..RequestCounts::default() }],
        disks: &[disk],
        auto: None,
        api: &api,
        sample,
    })
}

#[track_caller]
fn assert_line(text: &str, line: &str) {
    assert!(text.lines().any(|other| other == line), "no `{line}` in:\n{text}");
}

#[test]
fn each_fact_is_a_sample_of_its_name() {
    let text = told(None);
    for line in [
        "# TYPE tidevm_resets_total counter",
        "tidevm_resets_total 2",
        "tidevm_stray_accesses_total 9",
        "tidevm_build_info{version=\"1.2\"} 1",
        "tidevm_vcpu_exits_total{vcpu=\"1\",kind=\"mmio\"} 7",
        "tidevm_hotplug_requested_bytes{device=\"0\"} 536870912",
        "tidevm_hotplug_plugged_bytes{device=\"0\"} 268435456",
        "tidevm_hotplug_held_bytes{device=\"0\"} 4096",
        "tidevm_hotplug_converged{device=\"0\"} 0",
        "tidevm_hotplug_targets_total{device=\"0\"} 3",
        "tidevm_virtio_mem_requests_total{device=\"0\",type=\"plug\",answer=\"busy\"} 4",
        "# TYPE tidevm_virtio_blk_requests_total counter",
        "tidevm_virtio_blk_requests_total{device=\"0\",type=\"out\",answer=\"ioerr\"} 6",
        "tidevm_virtio_blk_requests_total{device=\"0\",type=\"in\",answer=\"ok\"} 0",
        "tidevm_virtio_blk_refused_chains_total{device=\"0\"} 3",
        "tidevm_virtio_blk_moved_bytes_total{device=\"0\",type=\"in\"} 512",
        "tidevm_virtio_blk_moved_bytes_total{device=\"0\",type=\"out\"} 1024",
        "tidevm_virtio_mem_refused_chains_total{device=\"0\"} 5",
        "tidevm_virtio_mem_refused_chains_total{device=\"1\"} 8",
        "tidevm_virtio_mem_moved_bytes_total{device=\"0\",type=\"plug\"} 6",
        "tidevm_virtio_mem_moved_bytes_total{device=\"0\",type=\"unplug\"} 7",
        "tidevm_api_requests_total{method=\"PATCH\",path=\"/hotplug/memory\",code=\"204\"} 2",
        "tidevm_api_requests_total{method=\"PATCH\",path=\"/hotplug/memory\",code=\"400\"} 1",
    ] {
        assert_line(&text, line);
    }
    assert!(!text.contains("tidevm_guest_zone"), "a guest that has told nothing has no zones");
    assert!(!text.contains("tidevm_hotplug_guest_used_bytes{"), "no report, no sample");
}

#[test]
fn a_histogram_counts_what_is_below_each_bound() {
    let text = told(None);
    let name = "tidevm_virtio_mem_request_duration_seconds";
    let labels = "device=\"0\",type=\"plug\"";
    for (bound, count) in [("0.0001", 1), ("0.0005", 1), ("0.001", 3), ("2.5", 3), ("+Inf", 3)] {
        assert_line(&text, &format!("{name}_bucket{{{labels},le=\"{bound}\"}} {count}"));
    }
    assert_line(&text, &format!("{name}_sum{{{labels}}} 0.0015"));
    assert_line(&text, &format!("{name}_count{{{labels}}} 3"));
}

#[test]
fn how_the_machine_is_sized_is_told_while_it_is() {
    let sizes = (Size::mib(256), Size::gib(1));
    let bounds = Bounds::new(sizes, 10, sizes.0, Size::gib(8), Size::mib(2)).unwrap();
    let status = Status {
        bounds,
        held: true,
        target: Size::mib(512),
        why: None,
        size: Size::mib(300),
        range: (sizes.0, Size::mib(600)),
        pressure: None,
        counts: Counts { grows: 3, shrinks: 4, holds: 5, pressures: 6, questions: 7 },
        time: Duration::from_secs(2),
        byte_seconds: 9,
    };
    let mut page = Page::default();
    super::auto(&mut page, Some(&status));
    for line in [
        "tidevm_auto_enabled 1",
        "tidevm_auto_held 1",
        "tidevm_auto_target_bytes 536870912",
        "tidevm_auto_min_bytes 268435456",
        "tidevm_auto_max_bytes 1073741824",
        "tidevm_auto_grows_total 3",
        "tidevm_auto_shrinks_total 4",
        "tidevm_auto_holds_total 5",
        "tidevm_auto_pressures_total 6",
        "tidevm_auto_questions_total 7",
    ] {
        assert_line(&page.text, line);
    }
    assert_line(&told(None), "tidevm_auto_enabled 0");
}

#[test]
fn the_guests_counters_are_told_with_their_age() {
    let mut stats = Stats { pages_migrated: 5, blocks_online: 6, ..Stats::default() };
    stats.zones[2].free = 2;
    let text = told(Some((&stats, Duration::from_millis(1500))));
    for line in [
        "tidevm_guest_sample_age_seconds 1.5",
        "tidevm_guest_zone_free_bytes{zone=\"Movable\"} 8192",
        "# TYPE tidevm_guest_pages_migrated_total counter",
        "tidevm_guest_pages_migrated_total 5",
        "# TYPE tidevm_guest_blocks_online gauge",
        "tidevm_guest_blocks_online 6",
    ] {
        assert_line(&text, line);
    }
    for key in super::RISING {
        assert!(Stats::COUNTERS.iter().any(|counter| counter.key == *key), "{key} is no counter");
    }
}

#[test]
fn each_name_has_its_help_and_type_once_and_before_its_samples() {
    let text = told(Some((&Stats::default(), Duration::ZERO)));
    let mut seen = Vec::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split(' ').next().unwrap();
            assert!(!seen.contains(&current), "{current} is told twice");
            seen.push(current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            assert!(name == current || family == Some(current), "{line} below {current}");
        }
    }
}

#[test]
fn texts_are_escaped() {
    let mut page = Page::default();
    page.family("a", super::GAUGE, "one\\\ntwo");
    page.sample("a", &[("b", "c\"d\\e\nf")], 1);
    assert_eq!(page.text, "# HELP a one\\\\\\ntwo\n# TYPE a gauge\na{b=\"c\\\"d\\\\e\\nf\"} 1\n");
}
