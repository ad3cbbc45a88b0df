//! What people expect of any program: its version, its log, completions, man pages.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::{Test, assert_status, kernel, lines, program, spawn, text, tidevm, with_input};

pub const HOSTED: &[Test] = &[
    ("the_version_has_the_commit_where_there_is_one", the_version_has_the_commit_where_there_is_one),
    ("options_of_firecrackers_form_stand_alone", options_of_firecrackers_form_stand_alone),
    ("completions_know_every_command_and_option", completions_know_every_command_and_option),
    ("bash_completes_a_command_line", bash_completes_a_command_line),
    ("every_command_of_a_script_has_an_example", every_command_of_a_script_has_an_example),
    ("a_host_is_surveyed_as_the_process_sees_it", a_host_is_surveyed_as_the_process_sees_it),
    ("there_is_a_man_page_of_every_subcommand", there_is_a_man_page_of_every_subcommand),
    (
        "a_level_that_is_none_is_refused_where_it_was_given",
        a_level_that_is_none_is_refused_where_it_was_given,
    ),
];

pub const TESTS: &[Test] = &[
    ("the_log_has_what_its_level_says", the_log_has_what_its_level_says),
    ("the_log_goes_into_its_file", the_log_goes_into_its_file),
    ("the_demo_is_that_of_its_options", the_demo_is_that_of_its_options),
];

/// The output of a command that must succeed.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().expect("it can be run");
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).expect("the scratch folder is writable");
    folder
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let person = ["-c", "user.name=x", "-c", "user.email=x"];
    let output = Command::new("git").arg("-C").arg(folder).args(person).args(arguments).output().ok()?;
    output.status.success().then(|| text(&output.stdout).trim().to_owned())
}

/// The build script says it, so it runs here for sources in a repository, in a part of one, and in none.
fn the_version_has_the_commit_where_there_is_one() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let version = assert_status(&tidevm(&["--version"]), 0, "");
    let own = git(root, &["rev-parse", "--show-prefix"]).is_some_and(|below| below.is_empty());
    let commit =
        git(root, &["rev-parse", "HEAD"]).filter(|_| own).map(|commit| format!(" ({})", &commit[..12]));
    assert_eq!(version, format!("tidevm {}{}\n", env!("CARGO_PKG_VERSION"), commit.unwrap_or_default()));

    // Not below the target folder, which is in the repository of these sources.
    let folder = std::env::temp_dir().join(format!("tidevm-version-{}", std::process::id()));
    let package = folder.join("sources/vmm/cli");
    fs::create_dir_all(&package).expect("a folder for temporary files");
    let script = folder.join("build-script");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/build.rs");
    output(Command::new("rustc").args(["--edition", "2024", source, "-o"]).arg(&script));
    let said = || {
        let mut command = Command::new(&script);
        output(command.env("CARGO_MANIFEST_DIR", &package).env("CARGO_PKG_VERSION", "1.2.3"))
    };
    let is = |version: &str| format!("cargo::rustc-env=TIDEVM_VERSION={version}\n");
    assert!(said().ends_with(&is("1.2.3")), "{}", said());
    let commit = |at: &Path| {
        git(at, &["init", "--quiet"])?;
        git(at, &["commit", "--quiet", "--allow-empty", "--message", "x"])?;
        git(at, &["rev-parse", "HEAD"])
    };
    match commit(&folder) {
        Some(_) => {
            assert!(said().ends_with(&is("1.2.3")), "the commit of another repository: {}", said());
            let commit = commit(&folder.join("sources")).expect("as before");
            let said = said();
            assert!(said.ends_with(&is(&format!("1.2.3 ({})", &commit[..12]))), "{said}");
            // Cargo runs the script again when one of these changes, and each time when one is missing.
            let watched: Vec<_> =
                said.lines().filter_map(|line| line.strip_prefix("cargo::rerun-if-changed=/")).collect();
            assert_eq!(watched.len(), 2, "{said}");
            assert!(watched.iter().all(|path| Path::new("/").join(path).exists()), "{said}");
        }
        None => eprintln!("SKIP the_version_has_the_commit_where_there_is_one: there is no git"),
    }
    fs::remove_dir_all(&folder).expect("it is ours");
}

fn options_of_firecrackers_form_stand_alone() {
    for (arguments, remedy) in [
        (&["--api-sock", "x", "run", "--script", "-"][..], "--api-sock before `run`"),
        (&["--api-sock", "x", "run", "--script", "-"], "write `tidevm run --api-sock`"),
        (
            &["--no-seccomp", "script", "check", "-"],
            "`tidevm script` has no such option; leave it or `script` out",
        ),
    ] {
        assert_eq!(assert_status(&tidevm(arguments), 2, remedy), "");
    }
    // Those of every subcommand stand anywhere.
    for arguments in
        [["--log-level", "off", "script", "check", "-"], ["script", "check", "-", "--log-level", "off"]]
    {
        assert_status(&tidevm(&arguments), 0, "");
    }
}

/// Subcommands, from the help of `words`.
fn subcommands(words: &[&str]) -> Vec<String> {
    let help = assert_status(&tidevm(&[words, &["--help"]].concat()), 0, "");
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(str::to_owned).collect()
}

/// Long options, from the help of `words`.
fn options(words: &[&str]) -> BTreeSet<String> {
    let help = assert_status(&tidevm(&[words, &["--help"]].concat()), 0, "");
    let options = help.lines().filter_map(|line| {
        let option = line.trim_start().trim_start_matches("-h, ").trim_start_matches("-V, ");
        option.split([' ', '=']).next().filter(|name| name.len() > 2 && name.starts_with("--"))
    });
    options.map(str::to_owned).collect()
}

fn completions_know_every_command_and_option() {
    let commands = subcommands(&[]);
    assert!(commands.len() > 5, "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = assert_status(&tidevm(&["completions", shell]), 0, "");
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell} does not know {command}");
            for option in options(&[command]) {
                // fish writes `-l NAME`.
                let name = if shell == "fish" { format!("-l {}", &option[2..]) } else { option };
                assert!(script.contains(&name), "{shell} does not know {name} of {command}");
            }
        }
        let parsed = Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(mut parser) = parsed else {
            eprintln!("SKIP completions_know_every_command_and_option: there is no {shell} to read them");
            continue;
        };
        parser.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("it reads all");
        let output = parser.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
    }
    assert_eq!(assert_status(&tidevm(&["completions", "tcsh"]), 2, "possible values: bash, zsh, fish"), "");
}

fn bash_completes_a_command_line() {
    let script = assert_status(&tidevm(&["completions", "bash"]), 0, "");
    let complete = |words: &[&str]| {
        let ask = format!(
            "COMP_WORDS=({}); COMP_CWORD={}; _tidevm tidevm \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \
             \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
        );
        let bash = Command::new("bash").arg("-c").arg(format!("{script}\n{ask}")).output();
        bash.ok().map(|output| text(&output.stdout).trim().to_owned())
    };
    let Some(first) = complete(&["tidevm", "exp"]) else {
        eprintln!("SKIP bash_completes_a_command_line: there is no bash");
        return;
    };
    assert_eq!(first, "experiment");
    assert_eq!(complete(&["tidevm", "run", "--memory-"]).as_deref(), Some("--memory-block"));
    assert_eq!(complete(&["tidevm", "run", "--log-level", "de"]).as_deref(), Some("debug"));
}

fn there_is_a_man_page_of_every_subcommand() {
    let folder = folder("man");
    let path = folder.to_str().expect("UTF-8");
    assert_eq!(assert_status(&tidevm(&["man", path]), 0, ""), "");
    let whole = assert_status(&tidevm(&["man"]), 0, "");
    let read = |name: &str| fs::read_to_string(folder.join(name)).expect(name);
    assert_eq!(read("tidevm.1"), whole);
    assert!(whole.contains("the guest died"), "the exit statuses are told: {whole}");
    for command in subcommands(&[]) {
        let page = read(&format!("tidevm-{command}.1")).replace("\\-", "-");
        for option in options(&[&command]).iter().filter(|option| *option != "--help") {
            assert!(page.contains(option.as_str()), "no {option} in the page of {command}");
        }
    }
    for entry in fs::read_dir(&folder).expect("a folder") {
        let page = entry.expect("a page").path();
        let Ok(groff) = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(&page).output()
        else {
            eprintln!("SKIP there_is_a_man_page_of_every_subcommand: there is no groff to read them");
            break;
        };
        assert!(
            groff.status.success() && groff.stderr.is_empty(),
            "{}: {}",
            page.display(),
            text(&groff.stderr)
        );
    }
    let missing = folder.join("no/such/folder");
    let output = tidevm(&["man", missing.to_str().expect("UTF-8")]);
    assert_eq!(assert_status(&output, 2, "cannot write man pages into"), "");
}

/// The finding about `what` in the survey that `sh` makes after `change`, and the exit status. [`None`] if that change
/// is not possible here.
fn finding(what: &str, change: &str) -> Option<(Value, i32)> {
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "--", "sh", "-c"])
        .arg(format!("{change} && exec \"$0\" check-host --json || exit 77"));
    let output = shell.arg(env!("CARGO_BIN_EXE_tidevm")).stdin(Stdio::null()).output().ok()?;
    let survey: Value = serde_json::from_slice(&output.stdout).ok()?;
    let status = output.status.code()?;
    assert_eq!(survey["runs"], status == 0, "{survey}");
    let finding = survey["findings"].as_array()?.iter().find(|finding| finding["what"] == what)?;
    Some((finding.clone(), status))
}

fn a_host_is_surveyed_as_the_process_sees_it() {
    let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let output = tidevm(&["check-host"]);
    let status = if opens { 0 } else { 3 };
    let lines = assert_status(&output, status, "");
    assert!(lines.starts_with(if opens { "ok       /dev/kvm" } else { "missing  /dev/kvm" }), "{lines}");
    for part in
        ["kernel           Linux ", "Landlock  ", "seccomp  ", "huge pages  ", "open files  ", "memory  "]
    {
        assert!(lines.contains(part), "no `{part}`: {lines}");
    }
    if opens {
        for part in ["KVM interface  ", "virtual machine  can be made", "guest paging  ", "guest addresses  "]
        {
            assert!(lines.contains(part), "no `{part}`: {lines}");
        }
        let stat = Command::new("stat").args(["-c", "owner %U, group %G, mode %a", "/dev/kvm"]).output();
        let owner = text(&stat.expect("coreutils").stdout);
        // A user or a group may have no name.
        if !owner.contains("UNKNOWN") {
            assert!(
                lines.starts_with(&format!("ok       /dev/kvm         {}, opens\n", owner.trim())),
                "{lines}"
            );
        }
    }
    let remedy = |finding: &Value| finding["remedy"].as_str().unwrap_or_default().to_owned();
    let Some((files, with_few)) = finding("open files", "ulimit -n 64") else {
        eprintln!("SKIP a_host_is_surveyed_as_the_process_sees_it: no mount namespace without root");
        return;
    };
    assert_eq!((with_few, files["state"].as_str()), (status, Some("limited")), "{files}");
    assert!(remedy(&files).contains("ulimit -n 128"), "{files}");
    let (device, without) = finding("/dev/kvm", "mount -t tmpfs none /dev").expect("as before");
    assert_eq!((without, device["state"].as_str()), (3, Some("missing")), "{device}");
    assert!(device["found"].as_str().is_some_and(|found| found.starts_with("no such device")), "{device}");
    assert!(!remedy(&device).is_empty() && !remedy(&device).starts_with('.'), "{device}");
}

/// That each example is such a command is a test of the grammar.
fn every_command_of_a_script_has_an_example() {
    let help = assert_status(&tidevm(&["script", "--help"]), 0, "");
    let examples = help.lines().filter_map(|line| line.strip_prefix("      example: "));
    let examples: Vec<_> = examples.filter_map(|example| example.split(' ').next()).collect();
    // A word that begins no command has all of them in its error.
    let unknown = text(&with_input(&["script", "check", "-"], "grow\n").stderr);
    let (_, words) = unknown.split_once("a command (").expect("a list");
    let (words, _) = words.split_once(')').expect("its end");
    let words: Vec<_> = words.split([',', ' ']).filter(|word| !["", "or"].contains(word)).collect();
    assert!(words.len() > 15, "{words:?}");
    assert_eq!(examples, words);
}

fn a_level_that_is_none_is_refused_where_it_was_given() {
    let script = ["script", "check", "-"];
    let with = |level: &str| program().args(script).env("TIDEVM_LOG", level).stdin(Stdio::null()).output();
    let output = with("loud").expect("the program runs");
    assert_status(&output, 2, "TIDEVM_LOG=loud in the environment is no level: it can be off, error, warn");
    for good in ["", "DEBUG", "off"] {
        assert_status(&with(good).expect("the program runs"), 0, "");
    }
    let output = tidevm(&[&script[..], &["--log-level", "loud"]].concat());
    assert_status(&output, 2, "invalid value 'loud' for '--log-level <LEVEL>'");
    let output = tidevm(&[&script[..], &["--log-file", "/dev/null/x"]].concat());
    assert_status(&output, 2, "cannot open --log-file /dev/null/x: Not a directory");
}

/// Runs a guest that reads an address without a device, and ends.
fn stray(options: &[&str], environment: &str) -> Output {
    // `mov eax, [0xf0000000]`.
    let kernel = kernel::write("stray", &[&[0xa1, 0, 0, 0, 0xf0], &kernel::exit_with(0)[..]].concat());
    let mut command = program();
    command.args(["run", "--console", "off", "--kernel"]).arg(kernel).args(options);
    let output =
        command.env("TIDEVM_LOG", environment).stdin(Stdio::null()).output().expect("the program runs");
    assert_status(&output, 0, "");
    output
}

fn the_log_has_what_its_level_says() {
    let (warning, note) = ("tidevm: the guest accesses 0xf0000000", "tidevm: the machine runs: vCPUs 1,");
    for (options, environment, has) in [
        (&[][..], "", [true, false]),
        (&["--log-level", "error"], "", [false, false]),
        (&["--log-level", "info"], "", [true, true]),
        (&[], "info", [true, true]),
        (&["--log-level", "off"], "trace", [false, false]),
        // What `--seccomp log` adds is the default only.
        (&["--seccomp", "log", "--log-level", "warn"], "", [true, false]),
    ] {
        let log = text(&stray(options, environment).stderr);
        assert_eq!([warning, note].map(|part| log.contains(part)), has, "{options:?} {environment}: {log}");
    }
}

fn the_log_goes_into_its_file() {
    let file = folder("log").join("tidevm.log");
    for runs in 1..=2 {
        let output = stray(&["--log-file", file.to_str().expect("UTF-8")], "");
        assert_eq!(text(&output.stderr), "");
        let log = fs::read_to_string(&file).expect("it is written");
        let warnings = log.lines().filter(|line| line.starts_with("tidevm: the guest accesses 0xf0000000"));
        assert_eq!(warnings.count(), runs, "{log}");
    }
}

fn the_demo_is_that_of_its_options() {
    let mut child = spawn(&["demo", "--json", "--cpus", "1", "--memory", "384M", "--log-level", "info"]);
    drop(child.stdin.take());
    let mut out = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let start = lines::next(&mut out, "start");
    lines::next(&mut out, "ready");
    // The rest of the demo has a test of its own, and takes its time.
    child.kill().expect("it runs");
    let output = child.wait_with_output().expect("it ended");
    assert_eq!(start["machine"]["cpus"], 1, "{start}");
    let log = text(&output.stderr);
    assert!(log.contains("the machine runs: vCPUs 1, boot memory 384M"), "{log}");
}
