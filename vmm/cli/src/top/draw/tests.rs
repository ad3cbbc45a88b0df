//! Pictures of a view in terminals of several sizes.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::draw;
use crate::top::view::{News, View};

/// A machine that is stuck on its way from 2 GiB to 512 MiB.
fn view() -> View {
    let start = Instant::now();
    let mut view = View::new(start);
    view.take(News::Instance(json!({ "id": "vm-1", "state": "Running" })));
    let region = |plugged: u64, requested: u64, reason: Value| {
        json!({
            "address": 1_u64 << 32, "total_size_mib": 4096, "requested_size_mib": requested, "plugged_size_mib": plugged,
            "guest_usable": plugged << 20, "host_held": plugged << 19, "converged": reason.is_null(), "driver": true,
            "reason": reason,
        })
    };
    for second in 0..60 {
        let memory = json!({ "regions": [region(second * 32, 2048, Value::Null)] });
        view.take(News::Memory(start + Duration::from_secs(second), memory));
    }
    let zones = json!({ "Movable": { "managed": 500_000, "free": 400_000, "pcp": 63 } });
    view.take(News::Stats(json!({ "zones": zones, "pages_migrated": 77, "blocks_online": 16 })));
    let run = |address: u64, count: u64, state: &str, zone: Value, plugged: u64| {
        json!({ "address": address, "count": count, "size": 128 << 20, "boot": false, "state": state, "zone": zone,
                "plugged": plugged })
    };
    let blocks = json!([
        { "address": 0, "count": 2, "size": 128 << 20, "boot": true, "state": "online", "zone": "DMA32", "plugged": 0 },
        run(1 << 32, 4, "online", json!("Movable"), 128 << 20),
        run((1 << 32) + (512 << 20), 1, "online", json!("Movable"), 64 << 20),
        run((1 << 32) + (640 << 20), 1, "offline", Value::Null, 2 << 20),
    ]);
    let reason = json!({ "kind": "unmovable", "text": "2 pages cannot move: pfn 0x100000 (workload 3)" });
    let memory = json!({ "regions": [region(706, 512, reason)], "blocks": blocks });
    view.take(News::Memory(start + Duration::from_secs(60), memory));
    view.take(News::Event(
        json!({ "event": "requested", "region": 0, "plugged_size_mib": 2048, "requested_size_mib": 512 }),
    ));
    view.take(News::Event(json!({ "event": "reset", "resets": 3 })));
    view
}

fn picture(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, view)).expect("it draws");
    terminal.backend().to_string()
}

#[test]
fn everything_is_in_the_picture() {
    let picture = picture(&view(), 100, 40);
    for part in [
        "tidevm top",
        "vm-1",
        "Running",
        "706M plugged of 512M",
        "q quits",
        "requested 512M",
        "plugged 706M",
        "used 390M",
        "held 353M",
        "120 s ago",
        "now",
        "4G",
        // Eight of them are half a GiB and more; a character is 128 MiB.
        "\u{2588}\u{2588}\u{2588}\u{2588}\u{2592}\u{2591}\u{b7}\u{b7}",
        "0     706M      512M       4G       706M       353M  stuck",
        "device 0: 2 pages cannot move: pfn 0x100000 (workload 3)",
        "device 0: 512M requested, 2G plugged",
        "the guest was reset, resets: 3",
        "pages_migrated",
        "77",
    ] {
        assert!(picture.contains(part), "no `{part}` in\n{picture}");
    }
    let drawn = picture.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c));
    assert!(drawn, "no curve in\n{picture}");
}

#[test]
fn a_small_terminal_has_what_matters_most() {
    let picture = picture(&view(), 60, 8);
    for part in ["tidevm top", "706M", "512M", "2 pages cannot move"] {
        assert!(picture.contains(part), "no `{part}` in\n{picture}");
    }
}

/// Also one that is made smaller and smaller, and machines without memory or with absurd numbers.
#[test]
fn any_terminal_has_a_picture_of_any_machine() {
    let mut absurd = view();
    let region = json!({ "address": u64::MAX, "total_size_mib": u64::MAX, "requested_size_mib": u64::MAX,
                         "plugged_size_mib": u64::MAX, "host_held": u64::MAX, "reason": { "text": "x".repeat(9999) } });
    let block = json!({ "address": u64::MAX, "count": u64::MAX, "size": u64::MAX, "plugged": u64::MAX });
    absurd.take(News::Memory(
        Instant::now(),
        json!({ "regions": vec![region; 30], "blocks": [block, { "size": 0 }] }),
    ));
    absurd.take(News::Event(Value::Null));
    let empty = View::new(Instant::now());
    for view in [&view(), &absurd, &empty] {
        for (width, height) in [(1, 1), (2, 1), (5, 40), (200, 2), (40, 20), (80, 24), (300, 100)] {
            picture(view, width, height);
        }
    }
    assert!(picture(&empty, 80, 30).contains("no hotplug memory"));
}
