//! What is written can be read back, and what is no session is refused with its line and what helps.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use serde_json::{Value, json};

use super::{
    Block, Blocks, Device, End, Event, FORMAT_VERSION, Guest, Kvm, Line, MAX_LINE, Machine, Node, Outcome,
    ReadError, Reader, Ready, Region, Sampled, Start, Step, StepResult, Vcpu, VcpuDetails,
};

fn sampled() -> Sampled {
    let device = Device {
        address: 1 << 32,
        region_size: 8 << 30,
        requested: 1 << 30,
        plugged: 1 << 29,
        ..Device::default()
    };
    let zones = BTreeMap::from([("Movable".to_owned(), BTreeMap::from([("free".to_owned(), u64::MAX)]))]);
    let counters = BTreeMap::from([("pages_migrated".to_owned(), 7)]);
    let guest = Guest {
        nodes: vec![Node { zones: zones.clone(), ..Node::default() }],
        zones,
        counters,
        ..Guest::default()
    };
    let block =
        Block { state: "online".to_owned(), zone: Some("Movable".to_owned()), count: 8, ..Block::default() };
    let blocks = Blocks { runs: vec![block], complete: false };
    Sampled { devices: vec![device], resets: 2, guest: Some(guest), blocks: Some(blocks) }
}

fn session() -> Vec<Line> {
    let machine = Machine { cpus: 2, regions: vec![Region::default()], ..Machine::default() };
    let start = Start {
        format_version: FORMAT_VERSION,
        command_line: vec!["tidevm".to_owned(), "\"\u{1}\n".to_owned()],
        kvm: Kvm::Svm,
        machine: Some(machine),
        ..Start::default()
    };
    let details = VcpuDetails { rip: "0x10".to_owned(), ..VcpuDetails::default() };
    let vcpus = vec![
        Vcpu { state: "halted".to_owned(), details: Some(details), ..Vcpu::default() },
        Vcpu { vcpu: 1, state: "ended".to_owned(), details: None },
    ];
    let step = Step {
        ok: true,
        command: "pmem map 0".to_owned(),
        result: Some(StepResult::PmemMapped {
            pages: 1,
            locked_pages: 2,
            locked_seconds: 0.5,
            total_seconds: 1.5,
            cpus: 2,
        }),
        sampled: sampled(),
        vcpus: vcpus.clone(),
        ..Step::default()
    };
    let events = [
        Event::Start(Box::new(start)),
        Event::Ready(Box::new(Ready { seconds: Some(0.25), sampled: sampled(), ..Ready::default() })),
        Event::Sample(Box::new(Sampled { guest: None, blocks: None, ..sampled() })),
        Event::Step(Box::new(step)),
        Event::End(Box::new(End { status: 4, outcome: Outcome::Died, vcpus, ..End::default() })),
    ];
    let line = |(index, event)| Line { event, at_seconds: index as f64 / 8.0, unix_ms: 1_795_946_006_102 };
    events.into_iter().enumerate().map(line).collect()
}

fn written(lines: &[Line]) -> String {
    lines.iter().map(|line| serde_json::to_string(line).expect("JSON") + "\n").collect()
}

fn read(text: &[u8]) -> Result<Vec<Line>, ReadError> {
    Reader::new(text).collect()
}

#[track_caller]
fn assert_refused(text: impl AsRef<[u8]>, line: usize, what: &str) {
    let error = read(text.as_ref()).expect_err(what);
    assert_eq!(error.line, line, "{error}");
    assert!(error.to_string().contains(what), "no `{what}`: {error}");
}

#[test]
fn what_is_written_is_read_back() {
    let session = session();
    assert_eq!(read(written(&session).as_bytes()).expect("a session"), session);
    let with_mark = format!("\u{feff}{}", written(&session).replace('\n', "\r\n"));
    assert_eq!(read(with_mark.as_bytes()).expect("a session that an editor saved"), session);
}

#[test]
fn keys_of_a_later_writer_are_ignored() {
    let mut later: Vec<Value> = session().iter().map(|line| json!(line)).collect();
    for line in &mut later {
        line["later"] = json!({ "more": [1] });
    }
    later[3]["guest"]["later"] = json!("text");
    let text: String = later.iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(read(text.as_bytes()).expect("a session"), session());
}

#[test]
fn a_session_that_goes_on_has_no_end() {
    let lines = &session()[..3];
    assert_eq!(read(written(lines).as_bytes()).expect("a session"), lines);
}

#[test]
fn what_is_no_session_is_told_with_its_line() {
    let lines = session();
    let start = written(&lines[..1]);
    assert_refused("", 1, "nothing is there; give the lines of one `tidevm run --json`");
    assert_refused("\n", 1, "no JSON object: EOF while parsing a value");
    assert_refused(
        "step  time  requested\n",
        1,
        "no JSON object: expected value at column 1; give the lines",
    );
    assert_refused(format!("{start}{{\"a\":1}}\n"), 2, "an object without `event`; give");
    assert_refused(format!("{start}{{\"event\":\"{}\"}}\n", "x".repeat(999)), 2, "unknown event `xxx");
    assert_refused(format!("{start}[1,2]\n"), 2, "no JSON object");
    assert_refused(format!("{start}{start}"), 2, "a second session starts; give");
    assert_refused(written(&lines[1..]), 1, "`ready` before `start`");
    let more = format!("{}{}", written(&lines), written(&lines[2..3]));
    assert_refused(more, 6, "`sample` after `end`");
    let other = start.replace("\"format_version\":1", "\"format_version\":2");
    assert_refused(&other, 1, "the format's version is 2, and must be 1; use the tidevm that wrote it");
    assert_refused("{\"event\":\"start\"}\n", 1, "the format's version is none, and must be 1");
    let wrong = format!("{start}{{\"event\":\"end\",\"at_seconds\":0,\"unix_ms\":1,\"status\":\"well\"}}\n");
    assert_refused(wrong, 2, "`end` is not as version 1 has it: invalid type: string \"well\", expected u8");
    let error =
        read(format!("{start}{{\"event\":\"{}\"}}\n", "\u{1f30a}".repeat(999)).as_bytes()).unwrap_err();
    assert!(error.to_string().len() < 600, "{error}");
}

#[test]
fn a_session_that_was_cut_off_is_told_with_its_line() {
    let text = written(&session());
    let whole: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    // A step of a prime number, so that all kinds of tokens are cut.
    for end in (1..text.len()).step_by(7).filter(|end| !whole.contains(end) && !whole.contains(&(end + 1))) {
        let line = text[..end].matches('\n').count() + 1;
        assert_refused(&text[..end], line, "if the file was cut off there, remove the line");
    }
}

#[test]
fn bytes_that_are_no_text_are_told() {
    let mut bytes = written(&session()[..2]).into_bytes();
    bytes.extend_from_slice(b"{\"event\":\"\xff\"}\n");
    assert_refused(bytes, 3, "byte 11 is no UTF-8; give the lines");
}

#[test]
fn a_line_without_end_is_not_read_to_its_end() {
    let endless = std::io::repeat(b' ').take(1 << 40);
    let error = Reader::new(BufReader::new(endless)).next().expect("something").expect_err("too long");
    assert_eq!(error.line, 1);
    assert!(error.to_string().contains("longer than 8 MiB"), "{error}");
    let deep = format!("{}{}\n", written(&session()[..1]), "[".repeat(MAX_LINE / 8));
    assert_refused(deep, 2, "no JSON object");
}

#[test]
fn after_a_fault_nothing_is_read() {
    let text = format!("no\n{}", written(&session()));
    let mut reader = Reader::new(text.as_bytes());
    assert!(reader.next().is_some_and(|line| line.is_err()));
    assert!(reader.next().is_none());
}
