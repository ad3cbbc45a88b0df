//! What CI reads: the guest's console, results in JUnit's and TAP's form, artifacts, and exit statuses.
//!
//! JUnit is read back by `quick-junit`, TAP by Perl's `TAP::Parser`, where there is Perl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use quick_junit::{NonSuccessKind, Report, TestCaseStatus};

use super::{
    Test, assert_status, kernel, lines, path, program, scratch, small, text, tidevm, utf8, with_input,
};

pub const HOSTED: &[Test] = &[
    ("a_wrong_pattern_is_told_with_its_place", a_wrong_pattern_is_told_with_its_place),
    ("a_script_that_is_refused_has_results", a_script_that_is_refused_has_results),
    ("results_that_cannot_be_written_are_told_first", results_that_cannot_be_written_are_told_first),
];

pub const TESTS: &[Test] = &[
    ("a_script_waits_for_the_console", a_script_waits_for_the_console),
    ("a_kernel_that_panics_is_status_4", a_kernel_that_panics_is_status_4),
    ("a_kernel_in_trouble_fails_the_step", a_kernel_in_trouble_fails_the_step),
    ("a_value_at_the_exit_port_is_an_exit_status", a_value_at_the_exit_port_is_an_exit_status),
    ("the_time_for_all_of_it_is_status_124", the_time_for_all_of_it_is_status_124),
    ("results_are_read_back", results_are_read_back),
    ("results_are_there_after_a_signal", results_are_there_after_a_signal),
    ("artifacts_are_those_of_the_session", artifacts_are_those_of_the_session),
];

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a script on a kernel of this code.
fn on(name: &str, code: &[u8], options: &[&str], script: &str) -> Output {
    let kernel = kernel::write(name, code);
    let all = [&["run", "--console", "off", "--kernel", utf8(&kernel), "--script", "-"], options].concat();
    with_input(&all, script)
}

fn then_halt(said: &str) -> Vec<u8> {
    [kernel::say(said), kernel::HALT.to_vec()].concat()
}

fn a_wrong_pattern_is_told_with_its_place() {
    let output =
        with_input(&["script", "check", "-"], "check\nexpect console matches /up (in \\d+/ within 5s\n");
    assert_status(&output, 2, "<stdin>:2:28: no regular expression: unclosed group");
    let told = text(&output.stderr);
    assert_eq!(told.lines().nth(2), Some("  |                            ^"), "{told}");
}

fn a_script_that_is_refused_has_results() {
    let (script, junit, tap) =
        (scratch("refused.script", "step \"a\"\nplug 3M\n"), path("refused.xml"), path("refused.tap"));
    let options = ["--script", utf8(&script), "--junit", utf8(&junit), "--tap", utf8(&tap)];
    let output = tidevm(&small(&options));
    assert_status(&output, 2, "refused.script:2:1: 3M is not a multiple");
    let cases = cases(&read(&junit));
    assert_eq!(cases[0], ("a".to_owned(), "skipped: not reached".to_owned()));
    assert!(cases[1].1.starts_with("Error: not_started (status 2): "), "{cases:?}");
    assert!(
        read(&tap).starts_with("TAP version 13\n1..2\nok 1 - a # SKIP not reached\nnot ok 2 - session\n")
    );
}

fn results_that_cannot_be_written_are_told_first() {
    for option in ["--junit", "--tap", "--report"] {
        let output = tidevm(&small(&[option, "/nowhere/file", "--script", "/nowhere/script"]));
        assert_status(&output, 2, &format!("tidevm: cannot write {option} /nowhere/file: No such file"));
    }
    let file = scratch("no-folder", "");
    let output = tidevm(&small(&["--artifacts", utf8(&file)]));
    assert_status(&output, 2, "cannot write --artifacts ");
}

fn a_script_waits_for_the_console() {
    let kernel = then_halt("boot\r\nfree: 42 MiB\r\nlogin: ");
    let script = "expect console contains \"boot\" within 60s\n\
                  expect console matches /^free: \\d+ [KMG]iB$/ within 60s\n\
                  expect console contains \"login:\" within 60s\n\
                  expect no console matches /^free: 4[013]/\n";
    let out = assert_status(&on("says", &kernel, &[], script), 0, "");
    assert!(out.contains("    `free: 42 MiB`\n") && out.contains("4 steps done"), "{out}");
    let output = on("says", &kernel, &[], "expect console contains \"ready\" within 1s\nsleep 1s\n");
    let out = assert_status(&output, 1, "");
    assert!(
        out.contains("not within 1s: no new line of the console contains \"ready\"; the last is `login:`"),
        "{out}"
    );
    let found = "expect console contains \"login\" within 60s\nexpect no console contains \"free\"\n";
    let out = assert_status(&on("says", &kernel, &[], found), 1, "");
    assert!(out.contains("the console has `free: 42 MiB`"), "{out}");
}

/// By the line with which a panic ends, by a reset behind a panic, and by the device for panics.
fn a_kernel_that_panics_is_status_4() {
    let panic = "[    1.0] Kernel panic - not syncing: no init\r\n";
    let end = "[    1.0] ---[ end Kernel panic - not syncing: no init ]---\r\n";
    let resets = [kernel::say(panic), kernel::RESET_ALONE.to_vec()].concat();
    for (name, code) in [
        ("panic-halt", then_halt(&format!("{panic}{end}"))),
        ("panic-reset", resets.clone()),
        ("panic-device", [kernel::say(panic), kernel::PVPANIC.to_vec()].concat()),
    ] {
        let path = kernel::write(name, &code);
        let output = tidevm(&["run", "--console", "off", "--kernel", utf8(&path)]);
        assert_status(&output, 4, "the guest's kernel panicked\n");
        assert!(text(&output.stderr).contains("  | [    1.0] Kernel panic - not syncing: no init"), "{name}");
        let out = assert_status(&on(name, &code, &["--json"], "sleep 60s"), 4, "");
        let end = lines::events(&out).pop().expect("an end");
        assert_eq!((end["outcome"].as_str(), end["status"].as_u64()), (Some("died"), Some(4)));
    }
    let script = "expect resets >= 2 within 60s";
    assert_status(&on("panic-reset", &resets, &["--allow-warnings"], script), 0, "");
    let output = on("panic-reset", &resets, &["--allow-warnings", "--no-reboot"], script);
    assert_status(&output, 4, "the guest reset the machine, and rebooting is off");
}

fn a_kernel_in_trouble_fails_the_step() {
    let kernel = then_halt("[    1.0] WARNING: CPU: 0 PID: 1 at mm/x.c:1\r\nup\r\n");
    let script = "expect console contains \"up\" within 60s\nsleep 1ms\n";
    let out = assert_status(&on("warns", &kernel, &[], script), 1, "");
    let told = "the guest's kernel is in trouble: `[    1.0] WARNING: CPU: 0 PID: 1 at mm/x.c:1`";
    assert!(out.contains(told) && out.contains("1 of 2 steps failed"), "{out}");
    assert_status(&on("warns", &kernel, &["--allow-warnings"], script), 0, "");
}

/// The table in `docs/scripts.md`.
fn a_value_at_the_exit_port_is_an_exit_status() {
    let paper = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/scripts.md")));
    for (value, alone, in_script) in
        [(0, 0, 1), (16, 0, 1), (17, 1, 1), (1, 4, 4), (2, 4, 4), (3, 4, 4), (255, 4, 4)]
    {
        if value < 3 || (16..18).contains(&value) {
            let row = paper.lines().find(|line| line.starts_with(&format!("| {value} | ")));
            let row = row.unwrap_or_else(|| panic!("no row for {value}"));
            assert!(row.ends_with(&format!("| {alone} | {in_script} |")), "{row}");
        }
        let name = format!("exit-{value}");
        let code = kernel::exit_with(value);
        let path = kernel::write(&name, &code);
        let output = tidevm(&["run", "--console", "off", "--kernel", utf8(&path)]);
        assert_status(&output, alone, "");
        assert_status(&on(&name, &code, &[], "sleep 60s"), in_script, "");
        if value == 17 {
            let out = assert_status(&on(&name, &code, &["--json"], "sleep 60s"), 1, "");
            let end = lines::events(&out).pop().expect("an end");
            let reason = "the guest ended, and reported a failure by the exit port";
            assert_eq!((end["outcome"].as_str(), end["reason"].as_str()), (Some("failed"), Some(reason)));
        }
    }
}

fn the_time_for_all_of_it_is_status_124() {
    let script = "sleep 10m\nsleep 1ms\n";
    let output = on("times-out", kernel::HALT, &["--timeout", "1s"], script);
    let out = assert_status(&output, 124, "");
    assert!(out.contains("the time of 1s is over; it waited for the end of a pause"), "{out}");
    let out = assert_status(&on("times-out", kernel::HALT, &["--timeout", "1s", "--json"], script), 124, "");
    let events = lines::told(&out);
    let end = events.last().expect("an end");
    assert_eq!((end["outcome"].as_str(), end["steps"].as_u64()), (Some("timed_out"), Some(1)));
    assert_eq!(events[2]["vcpus"].as_array().map(Vec::len), Some(1), "what the vCPU did");
    // Without a script, too.
    let path = kernel::write("times-out", kernel::HALT);
    let output = tidevm(&["run", "--console", "off", "--timeout", "1s", "--kernel", utf8(&path)]);
    assert_status(&output, 124, "");
}

/// The cases of a document: name, and result.
fn cases(junit: &str) -> Vec<(String, String)> {
    let report = Report::deserialize_from_str(junit).unwrap_or_else(|error| panic!("{error}:\n{junit}"));
    let [suite] = report.test_suites.as_slice() else { panic!("one suite:\n{junit}") };
    let result = |status: &TestCaseStatus| match status {
        TestCaseStatus::Success { .. } => "passed".to_owned(),
        TestCaseStatus::Skipped { message, .. } => {
            format!("skipped: {}", message.as_ref().map_or("", |text| text.as_str()))
        }
        TestCaseStatus::NonSuccess { kind, message, .. } => {
            let kind = if *kind == NonSuccessKind::Failure { "Failure" } else { "Error" };
            format!("{kind}: {}", message.as_ref().map_or("", |text| text.as_str()))
        }
    };
    suite.test_cases.iter().map(|case| (case.name.as_str().to_owned(), result(&case.status))).collect()
}

/// What Perl's parser reads: `ok` or not, number, description, directive, a test a line. `None` without Perl.
fn tap(text: &str) -> Option<Vec<String>> {
    const READER: &str = "use TAP::Parser; my $p = TAP::Parser->new({tap => join('', <STDIN>)}); \
        while (my $r = $p->next) { next unless $r->is_test; \
        print join('|', $r->is_actual_ok ? 'ok' : 'not ok', $r->number, $r->description, $r->directive), \"\\n\" } \
        die $p->parse_errors if $p->parse_errors; die 'plan' unless $p->is_good_plan;";
    let perl = || {
        let mut perl = Command::new("perl");
        perl.args(["-e", READER]);
        perl
    };
    if !Command::new("perl")
        .args(["-MTAP::Parser", "-e", "1"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("SKIP reading TAP back: there is no Perl with TAP::Parser");
        return None;
    }
    let output = super::fed(&mut perl(), text);
    assert!(output.status.success(), "{}\n{text}", super::text(&output.stderr));
    Some(super::text(&output.stdout).lines().map(str::to_owned).collect())
}

const NAMED: &str = "wait boot within 60s\n\
    step \"grow # twice\"\n\
    repeat 2 {\n\
    plug 128M\n\
    unplug 128M\n\
    }\n\
    step \"too much\"\n\
    plug 100G\n\
    expect plugged == 2M\n\
    step \"never\"\n\
    check\n";

fn results_are_read_back() {
    let (junit, file) = (path("named.xml"), path("named.tap"));
    let script = scratch("named.script", NAMED);
    let run = small(&["--script", utf8(&script), "--junit", utf8(&junit)]);
    let output = tidevm(&[&run[..], &["--tap", utf8(&file)]].concat());
    let table = assert_status(&output, 1, "");
    assert!(table.contains("\ngrow # twice\nplug 128M"), "{table}");
    let cases = cases(&read(&junit));
    assert_eq!(cases[..2].iter().map(|(_, result)| result.as_str()).collect::<Vec<_>>(), ["passed"; 2]);
    assert_eq!(cases[1].0, "grow # twice");
    let (name, result) = &cases[2];
    assert_eq!(name, "too much");
    assert!(result.starts_with("Failure: line 8: plug 100G: refused: "), "{result}");
    assert_eq!(cases[3..], [("never", "skipped: not reached"), ("session", "passed")].map(owned));
    let expected = [
        "ok|1|- 1: wait boot within 1m|",
        "ok|2|- grow \\# twice|",
        "not ok|3|- too much|",
        "ok|4|- never|SKIP",
        "ok|5|- session|",
    ];
    if let Some(read) = tap(&read(&file)) {
        assert_eq!(read, expected);
    }
    // On standard output it is all that is there.
    let output = tidevm(&[&run[..], &["--tap"]].concat());
    let out = assert_status(&output, 1, "");
    assert!(out.starts_with("TAP version 13\n1..5\nok 1 - 1: wait boot within 1m\n"), "{out}");
    if let Some(read) = tap(&out) {
        assert_eq!(read, expected);
    }
}

fn owned((name, result): (&str, &str)) -> (String, String) {
    (name.to_owned(), result.to_owned())
}

/// `timeout` sends its signal twice, and gives its own status.
fn results_are_there_after_a_signal() {
    let (junit, kernel) = (path("signalled.xml"), kernel::write("signalled", kernel::HALT));
    let script = scratch("signalled.script", "sleep 10m\n");
    let mut timeout = Command::new("timeout");
    timeout.args(["--preserve-status", "3"]).arg(program().get_program());
    timeout.args(["run", "--console", "off", "--kernel", utf8(&kernel), "--script", utf8(&script)]);
    timeout.args(["--junit", utf8(&junit)]);
    let output = timeout.output().expect("coreutils");
    assert_status(&output, 143, "");
    let cases = cases(&read(&junit));
    assert_eq!(cases[0].1, "Failure: line 1: sleep 10m: ended by signal 15");
    assert_eq!(cases[1].1, "Error: signal (status 143): signal 15 came");
}

fn artifacts_are_those_of_the_session() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("artifacts-of-ci/below");
    drop(fs::remove_dir_all(&folder));
    let kernel = then_halt("one\r\ntwo\r\n");
    let script = "expect console contains \"two\" within 60s\nexpect console contains \"three\" within 1s\n";
    assert_status(&on("artifacts", &kernel, &["--artifacts", utf8(&folder)], script), 1, "");
    let file = |name: &str| read(&folder.join(name));
    assert_eq!(file("console.log"), "one\r\ntwo\r\n", "in every console mode");
    let events = lines::told(&file("session.jsonl"));
    assert_eq!(events.last().expect("an end")["status"], 1);
    assert!(file("session.html").contains("no new line of the console contains"));
    // The console that the guest has to itself is copied as well.
    let path =
        kernel::write("artifacts-powers-off", &[kernel::say("last\r\n"), kernel::exit_with(0)].concat());
    let out = tidevm(&["run", "--console", "stdio", "--kernel", utf8(&path), "--artifacts", utf8(&folder)]);
    assert!(assert_status(&out, 0, "").contains("last\r\n"));
    assert_eq!(file("console.log"), "last\r\n");
}
