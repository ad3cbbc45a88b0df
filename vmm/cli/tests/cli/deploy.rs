//! The examples of `docs/deploy.md`: systemd reads the unit, its command runs a machine, curl's calls are answered, and the
//! container and the job call what the program knows.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::endings::{kill, until};
use super::{Test, program, text};

pub const HOSTED: &[Test] = &[
    ("systemd_reads_the_unit_of_the_papers", systemd_reads_the_unit_of_the_papers),
    (
        "the_job_of_the_papers_is_one_that_the_program_takes",
        the_job_of_the_papers_is_one_that_the_program_takes,
    ),
    (
        "the_container_of_the_papers_has_what_the_tarball_has",
        the_container_of_the_papers_has_what_the_tarball_has,
    ),
];

pub const TESTS: &[Test] =
    &[("the_unit_of_the_papers_runs_and_curl_resizes_it", the_unit_of_the_papers_runs_and_curl_resizes_it)];

/// The only code block of the page in `language`.
fn block(language: &str) -> String {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/deploy.md"));
    let (_, rest) = page.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("\n```").expect("its end").0.to_owned()
}

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).expect("the scratch folder is writable");
    folder
}

/// The unit, in which the program is the one under test, and the machine is `a`.
fn unit() -> String {
    block("systemd").replace("/usr/bin/tidevm", env!("CARGO_BIN_EXE_tidevm")).replace("%i", "a")
}

fn systemd_reads_the_unit_of_the_papers() {
    let file = folder("unit").join("tidevm@a.service");
    fs::write(&file, unit()).expect("the scratch folder is writable");
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
    let Ok(output) = verify else {
        eprintln!("SKIP systemd_reads_the_unit_of_the_papers: there is no systemd-analyze");
        return;
    };
    // It complains about units of the host too.
    let said = text(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("tidevm@a.service")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    assert!(output.status.success(), "{said}");
}

/// Asserts that the program takes `words`, and comes as far as a kernel that does not exist.
#[track_caller]
fn is_taken(words: &[&str]) {
    let output = program().args(words).args(["--kernel", "no/such/kernel"]).stdin(Stdio::null()).output();
    let output = output.expect("the program runs");
    assert!(text(&output.stderr).contains("no/such/kernel"), "{words:?}: {}", text(&output.stderr));
}

fn the_job_of_the_papers_is_one_that_the_program_takes() {
    let folder = folder("job");
    let job: serde_json::Value = hcl::from_str(&block("hcl")).expect("HCL");
    let task = &job["job"]["tidevm"]["group"]["machines"]["task"]["a"];
    assert_eq!(
        (&task["driver"], &task["config"]["command"]),
        (&"raw_exec".into(), &"/usr/bin/tidevm".into())
    );
    let folder = folder.to_str().expect("UTF-8");
    let arguments = task["config"]["args"].as_array().expect("a list").iter();
    let arguments: Vec<String> =
        arguments.map(|word| word.as_str().expect("a word").replace("${NOMAD_TASK_DIR}", folder)).collect();
    is_taken(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

fn the_container_of_the_papers_has_what_the_tarball_has() {
    let lines = block("containerfile");
    assert_eq!(lines, "FROM scratch\nCOPY tidevm /tidevm\nENTRYPOINT [\"/tidevm\"]");
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/deploy.md"));
    let calls: Vec<&str> = page.lines().filter(|line| line.starts_with("docker run")).collect();
    assert_eq!(calls.len(), 2);
    for call in calls {
        assert!(call.contains("--device /dev/kvm"), "{call}");
        let (_, words) = call.split_once(" tidevm ").expect("the image, and words for the program");
        let words: Vec<&str> = words.split_whitespace().take_while(|word| *word != "<").collect();
        match words[..] {
            ["run", ..] => is_taken(&words),
            _ => assert_ne!(
                program().args(&words).output().expect("the program runs").status.code(),
                Some(2),
                "{call}"
            ),
        }
    }
}

fn the_unit_of_the_papers_runs_and_curl_resizes_it() {
    let folder = folder("service");
    let path = |text: &str| text.replace("/run/tidevm-a", folder.to_str().expect("UTF-8"));
    let unit = path(&unit());
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a command");
    let mut words = command.split_whitespace();
    let mut service = Command::new(words.next().expect("a program"))
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    // After the start, and maybe samples, a line says that the guest is ready; the API answers by then.
    let mut stdout = BufReader::new(service.stdout.take().expect("a pipe"));
    loop {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        if line.starts_with("{\"event\":\"ready\"") {
            break;
        }
        let comes_before =
            ["start", "sample"].iter().any(|event| line.starts_with(&format!("{{\"event\":\"{event}\"")));
        assert!(comes_before, "{line}");
    }
    let socket = folder.join("api.sock");
    let curls: Vec<String> = block("sh").lines().filter(|line| line.starts_with("curl ")).map(path).collect();
    let answers: Vec<String> = curls
        .iter()
        .filter_map(|curl| {
            let output =
                Command::new("sh").args(["-c", &format!("{curl} --silent --max-time 60")]).output().ok()?;
            assert!(output.status.success(), "{curl}: {}", text(&output.stderr));
            Some(text(&output.stdout))
        })
        .collect();
    // As systemd stops it.
    kill("-TERM", &service);
    let status = service.wait().expect("it ends");
    assert_eq!(status.code(), Some(0), "{answers:?}");
    until("its socket is removed", || !socket.exists());
    let expected = ["\"id\":\"a\"", "\"converged\":true", "\"plugged_size_mib\":256", "# TYPE tidevm_"];
    assert_eq!(answers.len(), expected.len());
    for (answer, part) in answers.iter().zip(expected) {
        assert!(answer.contains(part), "no `{part}` in {answer}");
    }
}
