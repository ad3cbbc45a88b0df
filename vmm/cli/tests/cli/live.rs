//! `--script -`: lines from a pipe, each carried out when it comes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::endings::{LIMIT, end, kill};
use super::{Test, assert_status, small, spawn, text, with_input};

pub const TESTS: &[Test] = &[
    (
        "a_line_has_its_effect_before_the_next_one_is_written",
        a_line_has_its_effect_before_the_next_one_is_written,
    ),
    (
        "a_wrong_line_ends_a_session_after_the_lines_before_it",
        a_wrong_line_ends_a_session_after_the_lines_before_it,
    ),
    ("a_line_has_to_fit_the_machine", a_line_has_to_fit_the_machine),
    ("a_line_without_an_end_enlarges_nothing", a_line_without_an_end_enlarges_nothing),
    ("a_signal_ends_the_wait_for_a_line", a_signal_ends_the_wait_for_a_line),
];

/// A session that is fed line by line.
struct Fed {
    child: Child,
    lines: ChildStdin,
    rows: Receiver<String>,
}

impl Fed {
    fn start(options: &[&str]) -> Self {
        let mut child = spawn(&small(options));
        let lines = child.stdin.take().expect("a pipe");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, rows) = channel();
        // Ends with the output.
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|row| tell.send(row)));
        Self { rows, child, lines }
    }

    fn write(&mut self, text: &str) {
        self.lines.write_all(text.as_bytes()).expect("it reads its script");
    }

    /// Waits for a row that begins with `begin`.
    fn row(&self, begin: &str) -> String {
        let mut rows = std::iter::from_fn(|| self.rows.recv_timeout(LIMIT).ok());
        rows.find(|row| row.starts_with(begin)).unwrap_or_else(|| panic!("no row {begin} within {LIMIT:?}"))
    }
}

fn a_line_has_its_effect_before_the_next_one_is_written() {
    let mut fed = Fed::start(&["--script", "-"]);
    fed.row("boot");
    fed.write("plug 2M\n");
    assert!(fed.row("plug 2M").ends_with("ok"));
    fed.write("repeat 2 {\nplug 2M\n");
    fed.write("}\n");
    fed.row("plug 2M");
    fed.row("plug 2M");
    fed.write("expect plugged == 6M\nhog 1M movable as data");
    assert!(fed.row("expect plugged == 6M").ends_with("ok"));
    // The end of the input is the end of the script, and of its last line.
    drop(fed.lines);
    assert_eq!(end(&mut fed.child).code(), Some(0));
    let rest: Vec<_> = fed.rows.iter().collect();
    assert!(rest[0].starts_with("hog 1M movable as data"), "{rest:#?}");
}

fn a_wrong_line_ends_a_session_after_the_lines_before_it() {
    let output = with_input(&small(&["--script", "-"]), "plug 2M\nplug 2X\nplug 4M\n");
    let out = assert_status(&output, 2, "<stdin>:2:6: expected");
    assert!(text(&output.stderr).contains("2 | plug 2X\n  |      ^"), "{output:?}");
    assert!(out.contains("\nplug 2M") && !out.contains("4M"), "{out}");
    assert!(out.contains("ended after 1 step") && out.contains("a line is wrong"), "{out}");
    let output = with_input(&small(&["--json", "--script", "-"]), "repeat 2 {\nplug 2M\n");
    let out = assert_status(&output, 2, "<stdin>:1:1: this repeat has no `}`");
    assert!(!out.contains("\"step\"") && out.contains("\"outcome\":\"script\""), "{out}");
}

fn a_line_has_to_fit_the_machine() {
    let output = with_input(&small(&["--script", "-"]), "stats\nplug 3M\n");
    let out = assert_status(&output, 2, "<stdin>:2:1: 3M is not a multiple of the block size 2M");
    assert!(out.contains("\nstats"), "{out}");
    let script = "hog 1M movable as a\nrelease a\nverify a\n";
    let output = with_input(&small(&["--script", "-"]), script);
    assert_status(&output, 2, "<stdin>:3:1: nothing is called `a` here");
}

fn a_line_without_an_end_enlarges_nothing() {
    let mut child = spawn(&small(&["--script", "-"]));
    let mut lines = child.stdin.take().expect("a pipe");
    // More than the pipe and the longest line hold. The rest is not read, so that the pipe breaks.
    let written = lines.write_all(&vec![b'x'; 4 << 20]);
    drop(lines);
    assert!(written.is_err(), "all of it was read");
    let output = child.wait_with_output().expect("it ends");
    assert_status(&output, 2, "<stdin>:1:1: the line is longer than 4096 bytes");
}

fn a_signal_ends_the_wait_for_a_line() {
    for (begun, signal, status) in [("", "-TERM", 143), ("plug", "-INT", 130)] {
        let mut child = spawn(&small(&["--script", "-"]));
        let mut lines = child.stdin.take().expect("a pipe");
        lines.write_all(begun.as_bytes()).expect("it reads its script");
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        until_boot(&mut out);
        kill(signal, &child);
        assert_eq!(end(&mut child).code(), Some(status), "{signal}");
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("text");
        assert!(rest.contains("ended by signal"), "{rest}");
    }
}

/// Reads to the row of the boot, which is printed when the guest is up.
fn until_boot(out: &mut BufReader<ChildStdout>) {
    let boot = out.lines().map(|line| line.expect("text")).find(|line| line.starts_with("boot"));
    assert!(boot.is_some(), "it ended before the guest was up");
}
