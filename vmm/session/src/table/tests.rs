//! The table: columns, widths, and guests with absurd numbers or none.

use std::time::Duration;

use tidevm_abi::{Kernel, MAX_NODES, NodeStats, Size, Stats, ZoneName, ZoneStats};
use tidevm_machine::{ExitCounts, Ready};

use super::{Cell, Table, about, numbers, wrap};
use crate::session::{
    Booted, DeviceSample, Ended, Observer, Rate, Sample, StepFailure, StepRun, Stopped, Summary,
};

fn sample(plugged: u64, migrated: u64) -> Sample {
    let zone =
        |name, present, managed, free| ZoneStats { name, spanned: present, present, managed, free, pcp: 63 };
    let pages = plugged >> 12;
    let blocks = pages.div_ceil(32_768);
    let zones = [
        zone(ZoneName::Dma32, 65_409, 63_211, 61_034),
        zone(ZoneName::Normal, 0, 0, 0),
        zone(ZoneName::Movable, blocks * 32_768, pages - 512 * blocks, pages - 512 * blocks),
    ];
    let mut guest = Stats {
        zones,
        memmap_altmap_pages: 512 * blocks,
        blocks_online: blocks,
        pages_migrated: migrated,
        pcp_drains: 3,
        ..Stats::default()
    };
    guest.nodes = [NodeStats { zones, ..NodeStats::default() }; MAX_NODES];
    let device = DeviceSample {
        region_size: Size(8 << 30),
        requested: Size(plugged),
        plugged: Size(plugged),
        held: Some(Size(plugged / 64 * 9 + 4096)),
        ..DeviceSample::default()
    };
    Sample { devices: vec![device], guest: Some(guest), ..Sample::default() }
}

/// The table of a session with notes, failures and counters.
fn shown(terminal: Option<usize>) -> String {
    let mut out = Vec::new();
    let mut table = Table::new(&mut out, terminal, "hog 128M movable scattered as data".len());
    let ready = Ready { cpus: 2, mem_devices: 1, after: Duration::from_micros(412_345) };
    table.boot(&Booted { at: ready.after, ready: Some(ready), sample: sample(0, 0) }).unwrap();
    let done = || Ok(None);
    let note = |text: &str| Ok(Some(text.to_owned()));
    let failed = |why: &str| {
        let (plugged, target, why) = (Size(200 << 20), Size(0), why.to_owned());
        let stopped = Stopped { within: None, plugged, target, state: None, why };
        Err(StepFailure::Stopped(Box::new(stopped)))
    };
    let blocked = "100 pages cannot move: pfn 0x100000 (workload pins), \
                   pfn 0x100200 (workload pins) and 98 more";
    let steps = [
        ("plug 1G", 310, done(), 1 << 30, 0),
        ("hog 128M movable scattered as data", 4_210, note("32000 of 32768 pages fitted"), 1 << 30, 0),
        ("resize 256M", 2_310, done(), 256 << 20, 24_001),
        ("stats", 0, done(), 256 << 20, 24_001),
        ("resize 0", 71_204, failed(blocked), 200 << 20, 32_768),
    ];
    for (line, (text, millis, result, plugged, migrated)) in steps.into_iter().enumerate() {
        let report = StepRun {
            answer: None,
            listed: None,
            line,
            column: 1,
            name: None,
            command: text.parse().unwrap(),
            start: Duration::ZERO,
            took: Duration::from_millis(millis),
            result,
            sample: sample(plugged, migrated),
            vcpus: Vec::new(),
        };
        table.step(&report).unwrap();
    }
    let gib = |millis| Rate { bytes: 1 << 30, time: Duration::from_millis(millis) };
    let summary = Summary {
        ended: Ended::Failed { reason: None },
        boot: Some(ready.after),
        total: Duration::from_millis(78_034),
        steps: 5,
        failed: 1,
        plug: gib(310),
        unplug: gib(3_100),
        exits: ExitCounts { io: 1_234, mmio: 567, stray: 0, interrupted: 8, other: 90 },
        ..Summary::default()
    };
    table.end(&summary).unwrap();
    anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string()
}

/// Columns at which words of a line end.
fn ends(line: &str) -> Vec<usize> {
    let letters: Vec<char> = line.chars().collect();
    let last =
        |index: &usize| letters[*index] != ' ' && letters.get(index + 1).is_none_or(|next| *next == ' ');
    (0..letters.len()).filter(last).collect()
}

#[test]
fn numbers_stand_under_their_heads() {
    for terminal in [None, Some(160), Some(120)] {
        let text = shown(terminal);
        let lines: Vec<&str> = text.lines().collect();
        // The head `in boot` has two words, so there are more ends of words than numbers.
        let heads = ends(lines[1]);
        let row = ends(lines[3].trim_end_matches("ok").trim_end());
        let numbers = &row[row.len() - 11..];
        assert!(numbers.iter().all(|end| heads.contains(end)), "{text}");
    }
}

#[test]
fn a_table_fits_its_terminal() {
    for width in [80, 100, 116, 120, 140, 160] {
        let text = shown(Some(width));
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= width, "{widest} columns in a terminal of {width}:\n{text}");
    }
}

#[test]
fn everything_is_said() {
    for terminal in [None, Some(80), Some(120)] {
        let text = shown(terminal);
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "hog 128M movable scattered as data",
            "32000 of 32768 pages fitted",
            "71.204 s",
            "FAIL",
            "pfn 0x100200 (workload pins) and 98 more",
            "DMA32 65409 65409 63211 61034 63",
            "24001 pages migrated",
            "1 of 5 steps failed in 78.034 s",
            "guest ready after 0.412 s, plug 0.310 s/GiB, unplug 3.100 s/GiB, 1899 exits (1234 port, 567 MMIO)",
        ] {
            assert!(flat.contains(part), "{part}:\n{text}");
        }
    }
}

#[test]
fn without_a_guest_its_numbers_are_dashes() {
    let mut out = Vec::new();
    let mut table = Table::new(&mut out, None, 5);
    let ready = Ready { cpus: 1, mem_devices: 0, after: Duration::ZERO };
    let nothing = Sample::default();
    table.boot(&Booted { at: ready.after, ready: Some(ready), sample: nothing }).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().last().unwrap().matches(" -").count(), 7, "{text}");
}

/// With more than one node, `stats` shows each.
#[test]
fn zones_are_shown_by_node() {
    let mut sample = sample(0, 0);
    let guest = sample.guest.as_mut().unwrap();
    guest.nr_nodes = 2;
    guest.nodes[1].zones[2].free = 77;
    let mut out = Vec::new();
    let mut table = Table::new(&mut out, None, 5);
    table.boot(&Booted { at: Duration::ZERO, ready: None, sample: sample.clone() }).unwrap();
    let result = Ok(None);
    let command = "stats".parse().unwrap();
    table
        .step(&StepRun {
            line: 1,
            column: 1,
            name: None,
            command,
            start: Duration::ZERO,
            took: Duration::ZERO,
            result,
            answer: None,
            listed: None,
            sample,
            vcpus: Vec::new(),
        })
        .unwrap();
    let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains("node 0 DMA32 65409 65409 63211 61034 63 node 0 Normal"), "{text}");
    assert!(flat.contains("node 1 Movable 0 0 0 77 63 memmap"), "{text}");
    assert!(!flat.contains("node 2"), "{text}");
}

/// A guest may report any number.
#[test]
fn absurd_numbers_are_shown() {
    let mut sample = sample(0, 0);
    sample.guest.as_mut().unwrap().zones.iter_mut().for_each(|zone| zone.free = u64::MAX);
    let mut out = Vec::new();
    let ready = Ready { cpus: 1, mem_devices: 1, after: Duration::ZERO };
    Table::new(&mut out, None, 5).boot(&Booted { at: ready.after, ready: Some(ready), sample }).unwrap();
    assert_eq!(String::from_utf8(out).unwrap().matches("18446744073709551615").count(), 2);
}

#[test]
fn what_the_guest_did_wrong_is_said_if_it_did() {
    let line =
        |stray_accesses, bad_records| numbers(&Summary { stray_accesses, bad_records, ..Summary::default() });
    assert_eq!(line(0, 0), "0 exits (0 port, 0 MMIO)");
    assert_eq!(numbers(&Summary { resets: 1, ..Summary::default() }), "0 exits (0 port, 0 MMIO), 1 reset");
    assert_eq!(line(1, 2), "0 exits (0 port, 0 MMIO), 1 access to nothing, 2 bad records");
}

#[test]
fn no_time_is_0_s() {
    let times = [0, 499, 500, 1_499, 2_000_000].map(|micros| super::seconds(Duration::from_micros(micros)));
    assert_eq!(times, ["0 s", "0 s", "0.001 s", "0.001 s", "2.000 s"]);
    let of = |steps| super::ending(&Summary { steps, ..Summary::default() });
    assert_eq!([of(0), of(1), of(2)], ["0 steps done in 0 s", "1 step done in 0 s", "2 steps done in 0 s"]);
}

#[test]
fn sizes_about() {
    let sizes = [
        (0, "0"),
        (4096, "4K"),
        (1_572_864, "1.50M"),
        (130 << 20, "130M"),
        ((130 << 20) + 4096, "130M"),
        ((12 << 20) + 400_000, "12.4M"),
        ((1 << 30) + (20 << 20), "1.02G"),
    ];
    for (bytes, text) in sizes {
        assert_eq!(about(Size(bytes)), text);
    }
}

#[test]
fn lines_break_at_spaces() {
    assert_eq!(wrap("one two three", 8), ["one two", "three"]);
    assert_eq!(wrap("  indented table", 40), ["  indented table"]);
    assert_eq!(wrap("overlongword x", 5), ["overlongword", "x"]);
}

#[test]
fn what_linux_does_not_tell_has_a_dash() {
    let mut told = sample(1 << 30, 7);
    let cells = |sample: &Sample| [Cell::MemmapInBoot, Cell::Migrated].map(|cell| cell.show(None, sample));
    assert_ne!(cells(&told)[0], "-");
    told.guest.as_mut().expect("a guest").kernel = Kernel::Linux;
    assert_eq!(cells(&told), ["-", "7"]);
}
