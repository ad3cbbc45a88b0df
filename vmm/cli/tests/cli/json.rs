//! The lines of `tidevm run --json`: each session of these tests is held against the schema of its lines, and ends with an
//! `end` in every case.

use std::fs;
use std::io::BufRead;

use serde_json::{Value, json};

use super::endings::{end, kill};
use super::lines::{events, schema, told};
use super::{Test, assert_status, kernel, scratch, small, spawn, tidevm, with_input};

pub const HOSTED: &[Test] = &[
    ("a_session_that_is_refused_has_a_start_and_an_end", a_session_that_is_refused_has_a_start_and_an_end),
    ("the_schema_refuses_what_is_no_session", the_schema_refuses_what_is_no_session),
];

pub const TESTS: &[Test] = &[
    ("json_is_one_object_a_line", json_is_one_object_a_line),
    ("what_a_step_finds_is_typed", what_a_step_finds_is_typed),
    ("memory_is_sampled_within_a_step", memory_is_sampled_within_a_step),
    ("a_failing_session_tells_why", a_failing_session_tells_why),
    ("a_session_that_a_signal_ends_has_an_end", a_session_that_a_signal_ends_has_an_end),
    ("a_line_that_comes_and_is_wrong_ends_a_session", a_line_that_comes_and_is_wrong_ends_a_session),
    ("a_machine_that_does_not_start_has_an_end", a_machine_that_does_not_start_has_an_end),
];

fn json_is_one_object_a_line() {
    let output = with_input(&small(&["--json", "--script", "-"]), "plug 130M\nresize 0\n");
    let events = told(&assert_status(&output, 0, ""));
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap_or_default()).collect();
    assert_eq!(kinds, ["start", "ready", "step", "step", "end"]);
    let (start, plug, end) = (&events[0], &events[2], &events[4]);
    assert_eq!(
        start["machine"],
        json!({"cpus": 1, "memory": 128 << 20, "pmem": [], "guest_kernel": null,
               "regions": [{"size": 256 << 20, "block_size": 2 << 20, "requested": 0, "node": null}]})
    );
    let words = start["command_line"].as_array().expect("words");
    assert_eq!(words[1..3], [json!("run"), json!("--memory")]);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    assert_eq!(start["host"], host.trim());
    assert_eq!(plug["devices"][0]["plugged"], 130 << 20);
    assert_eq!(plug["guest"]["zones"]["Movable"]["present"], 65_536);
    assert_eq!(plug["guest"]["nodes"].as_array().map(Vec::len), Some(1));
    assert_eq!(plug["guest"]["nodes"][0]["zones"], plug["guest"]["zones"]);
    assert_eq!((&events[3]["ok"], &end["status"]), (&Value::Bool(true), &Value::from(0)));
}

fn what_a_step_finds_is_typed() {
    let script = "plug 130M\nblocks\npmem map 0\nhog 2M movable as data\nverify data\ncheck\npmem unmap 0\n";
    let output = with_input(&small(&["--pmem", "size=128M", "--json", "--script", "-"]), script);
    let events = told(&assert_status(&output, 0, ""));
    let step = |command: &str| {
        events.iter().find(|event| event["command"] == command).unwrap_or_else(|| panic!("no `{command}`"))
    };
    let blocks = &step("blocks")["result"];
    let in_region = |block: &&Value| block["boot"] == false;
    let blocks: Vec<&Value> = blocks["blocks"].as_array().expect("blocks").iter().filter(in_region).collect();
    let plugged: Vec<_> =
        blocks.iter().map(|block| (&block["plugged"], &block["memmap_on_memory"])).collect();
    assert_eq!(plugged, [(&json!(128 << 20), &json!(true)), (&json!(2 << 20), &json!(true))], "{blocks:?}");
    assert_eq!(
        step("plug 130M")["blocks"]["runs"],
        step("blocks")["result"]["blocks"],
        "also without `blocks`"
    );
    let mapped = &step("pmem map 0")["result"];
    assert_eq!((&mapped["kind"], &mapped["pages"]), (&json!("pmem_mapped"), &json!(32_768)));
    assert!(mapped["total_seconds"].as_f64() >= mapped["locked_seconds"].as_f64(), "{mapped}");
    assert_eq!(step("hog 2M movable as data")["result"], json!({"kind": "hogged", "pages": 512}));
    assert_eq!(step("verify data")["result"], json!({"kind": "verified", "pages": 512, "corrupt": 0}));
    assert_eq!(step("check")["result"]["kind"], "checked");
    assert_eq!(step("pmem unmap 0")["result"], json!({"kind": "pmem_unmapped", "pages": 32_768}));
}

fn memory_is_sampled_within_a_step() {
    let output = with_input(
        &small(&["--json", "--script", "-"]),
        "sleep 300ms\nresize 256M\nhog 8M movable as data\n",
    );
    let events = events(&assert_status(&output, 0, ""));
    let at = |command: &str| {
        events
            .iter()
            .position(|event| event["command"] == command)
            .unwrap_or_else(|| panic!("no `{command}`"))
    };
    let within = &events[at("sleep 300ms") + 1..at("resize 256M")];
    let requested =
        |event: &&Value| event["event"] == "sample" && event["devices"][0]["requested"] == 256 << 20;
    let first = within.iter().find(requested).unwrap_or_else(|| panic!("{within:?}"));
    let (start, took) = (&events[at("resize 256M")]["start_seconds"], first["at_seconds"].as_f64());
    assert!(took >= start.as_f64(), "{first} {start}");
    assert_eq!((&first["guest"], &first["blocks"]), (&Value::Null, &Value::Null), "the guest is not asked");
}

fn a_failing_session_tells_why() {
    let output = with_input(&small(&["--json", "--script", "-"]), "plug 512M\nexpect plugged == 2M\ncheck\n");
    let events = told(&assert_status(&output, 1, ""));
    let (end, steps) = (events.last().expect("an end"), &events[2..events.len() - 1]);
    assert_eq!(steps[0]["reason"], "refused: 512M does not fit into the region of 256M");
    assert_eq!((&end["outcome"], &end["reason"]), (&json!("failed"), &json!("plugged is 0")));
    assert_eq!((&end["steps"], &end["failed"], &end["status"]), (&json!(2), &json!(2), &json!(1)));
}

fn a_session_that_a_signal_ends_has_an_end() {
    let mut child = spawn(&small(&["--json", "--script", "-"]));
    drop(child.stdin.take().map(|mut input| std::io::Write::write_all(&mut input, b"sleep 10m")));
    let mut out = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut text = String::new();
    while !text.contains("\"ready\"") {
        assert!(out.read_line(&mut text).expect("text") > 0, "the guest never came up");
    }
    kill("-INT", &child);
    std::io::Read::read_to_string(&mut out, &mut text).expect("text");
    assert_eq!(end(&mut child).code(), Some(130));
    let events = told(&text);
    let end = events.last().expect("an end");
    assert_eq!((&end["outcome"], &end["signal"], &end["status"]), (&json!("signal"), &json!(2), &json!(130)));
}

/// A line that comes while the script runs is read when the machine is up.
fn a_line_that_comes_and_is_wrong_ends_a_session() {
    let output = with_input(&small(&["--json", "--script", "-"]), "plug 2M\ngrow 2M\n");
    let events = told(&assert_status(&output, 2, "<stdin>:2:1: expected a command"));
    let end = events.last().expect("an end");
    assert_eq!((&end["outcome"], &end["steps"], &end["status"]), (&json!("script"), &json!(1), &json!(2)));
}

/// The start and the end of a session that came no further.
#[track_caller]
fn assert_not_started(out: &str, status: i32, reason: &str) {
    let events = events(out);
    assert_eq!(events.len(), 2, "{out}");
    let end = &events[1];
    assert_eq!((&end["outcome"], &end["status"]), (&json!("not_started"), &json!(status)), "{end}");
    assert!(end["reason"].as_str().is_some_and(|text| text.contains(reason)), "no `{reason}`: {end}");
}

fn a_session_that_is_refused_has_a_start_and_an_end() {
    let refused = |arguments: &[&str], reason: &str| {
        assert_not_started(&assert_status(&tidevm(arguments), 2, reason), 2, reason);
    };
    let script = |name: &str, text: &str| scratch(name, text).to_str().expect("UTF-8").to_owned();
    let (wrong, unfit) = (script("wrong.script", "plug 2M\ngrow 2M\n"), script("unfit.script", "plug 3M\n"));
    refused(&small(&["--json", "--script", &wrong]), "wrong.script:2:1: expected a command");
    refused(&small(&["--json", "--script", &unfit]), "3M is not a multiple of the block size 2M");
    refused(&small(&["--json", "--script", "no/such/file"]), "cannot read the script no/such/file");
    refused(&["run", "--json", "--memory", "1M"], "the guest needs at least");
    refused(&["run", "--json", "--console", "stdio"], "both write standard output");
    let machine = &events(&assert_status(&tidevm(&["run", "--json", "--memory", "1M"]), 2, ""))[0]["machine"];
    assert_eq!(machine["memory"], 1 << 20, "the machine that was asked for");
}

fn a_machine_that_does_not_start_has_an_end() {
    let no_kernel =
        scratch("json.elf", "I am no kernel, but I am longer than the header of an ELF file would be.");
    let path = no_kernel.to_str().expect("UTF-8");
    let output = tidevm(&["run", "--json", "--kernel", path]);
    assert_not_started(&assert_status(&output, 2, path), 2, path);
    // The machine of 64 GiB is one that the limit of addresses forbids.
    let limited = std::process::Command::new("prlimit")
        .args(["--as=4294967296", env!("CARGO_BIN_EXE_tidevm")])
        .args(["run", "--json", "--memory", "64G"])
        .output()
        .expect("prlimit");
    let why = "the host refuses boot memory of 64G";
    assert_not_started(&assert_status(&limited, 3, why), 3, why);
    let halt = kernel::write("json-panic", &kernel::exit_with(1));
    let output = tidevm(&["run", "--json", "--kernel", halt.to_str().expect("UTF-8")]);
    let died = told(&assert_status(&output, 4, ""));
    assert_eq!(
        died.last().map(|end| &end["outcome"]),
        Some(&json!("died")),
        "one that starts has another end"
    );
}

/// A schema that accepts everything would prove nothing.
fn the_schema_refuses_what_is_no_session() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let output = tidevm(&["run", "--json", "--memory", "1M"]);
    let end = events(&assert_status(&output, 2, "")).pop().expect("an end");
    assert!(validator.is_valid(&end));
    let changed = |key: &str, value: Option<Value>| {
        let mut changed = end.clone();
        let object = changed.as_object_mut().expect("an object");
        match value {
            Some(value) => drop(object.insert(key.to_owned(), value)),
            None => drop(object.remove(key)),
        }
        validator.is_valid(&changed)
    };
    assert!(!changed("event", Some(json!("ended"))));
    assert!(!changed("outcome", Some(json!("well"))));
    assert!(!changed("steps", Some(json!(-1))));
    assert!(!changed("reason", None));
    assert!(!changed("more", Some(json!(1))));
}
