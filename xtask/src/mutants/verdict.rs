//! The test programs with the mutants inside, and what they say about one mutant.
//!
//! Mirrors `cargo mutants`, which takes the first failure for the verdict. Differs on purpose: a host with too much to do
//! makes a test fail by chance, which would raise the score. So a failure counts when it comes a second time.
//!
//! Invariant: a mutant is killed only by a failure that was seen twice.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use std::{sync, thread};

use anyhow::{Context, Result, bail};

use super::list::List;
use crate::cargo;

/// Whether a test noticed a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The suite and the test that failed first, or how the suite ended otherwise.
    Killed(String),
    /// All tests passed.
    Lives,
}

impl Verdict {
    /// Whether the tests noticed only by not ending.
    pub fn is_by_deadline(&self) -> bool {
        matches!(self, Self::Killed(by) if by.contains(NO_END))
    }
}

/// What is said of a suite that hangs.
const NO_END: &str = "does not end within";

/// The test programs of a list, in its order.
pub struct Programs {
    /// Suite, program, and the folder in which cargo would run it.
    suites: Vec<(String, PathBuf, PathBuf)>,
    arguments: Vec<String>,
    limit: Duration,
}

impl Programs {
    /// Builds the tests of a copy.
    pub fn build(tree: &Path, list: &List) -> Result<Self> {
        let mut command = cargo();
        command.current_dir(tree).args(["test", "--no-run", "--quiet", "--message-format=json", "--package"]);
        command.arg(&list.package).arg("--target-dir").arg(tree.join("target"));
        if !list.features.is_empty() {
            command.arg("--features").arg(list.features.join(","));
        }
        if let Some(profile) = &list.profile {
            command.args(["--profile", profile]);
        }
        for suite in &list.suites {
            match suite.as_str() {
                "lib" => command.arg("--lib"),
                test => command.args(["--test", test]),
            };
        }
        let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let messages =
            || text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        if !output.status.success() {
            let errors = messages().filter(|message| message["message"]["level"] == "error");
            let errors: String = errors
                .filter_map(|message| Some(message["message"]["rendered"].as_str()?.to_owned()))
                .collect();
            bail!("the tests of {} with their mutants do not build:\n{errors}", list.package);
        }
        let mut built = BTreeMap::new();
        for message in messages() {
            if let (Some(program), Some(manifest)) =
                (message["executable"].as_str(), message["manifest_path"].as_str())
            {
                let is_lib = message["target"]["kind"][0] == "lib";
                let name =
                    if is_lib { "lib" } else { message["target"]["name"].as_str().unwrap_or_default() };
                let folder = Path::new(manifest).parent().unwrap_or(tree);
                built.insert(name.to_owned(), (PathBuf::from(program), folder.to_owned()));
            }
        }
        let suites = list.suites.iter().map(|suite| {
            let (program, folder) =
                built.remove(suite).with_context(|| format!("no test program {suite}"))?;
            Ok((suite.clone(), program, folder))
        });
        let limit = Duration::from_secs(list.limit);
        Ok(Self { suites: suites.collect::<Result<_>>()?, arguments: list.arguments.clone(), limit })
    }

    /// Allows each run ten times as long as `baseline`, if that is more than the list says.
    pub fn calibrate(&mut self, baseline: Duration) {
        self.limit = self.limit.max(baseline * 10);
    }

    /// Runs the tests with mutant `number`, up to the first failure that comes again.
    pub fn run(&self, number: usize) -> Result<Verdict> {
        for (suite, program, folder) in &self.suites {
            let attempt = |test: Option<&str>| {
                let mut command = Command::new(program);
                command.args(&self.arguments).current_dir(folder);
                command.env("TIDEVM_MUTANT", number.to_string()).env("RUST_BACKTRACE", "0");
                if let Some(test) = test {
                    command.args(["--exact", test]);
                }
                failure(command, self.limit).with_context(|| program.display().to_string())
            };
            if let Some(failure) = confirmed(attempt)? {
                return Ok(Verdict::Killed(format!("{suite} {failure}")));
            }
        }
        Ok(Verdict::Lives)
    }
}

/// How a test program failed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// This test failed.
    Test(String),
    /// The program hung or died, as said here. Which test it was is not known.
    Program(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Test(text) | Self::Program(text)) = self;
        f.write_str(text)
    }
}

/// Runs of a whole suite in which failures that do not come again are let pass.
const CHANCES: usize = 3;

/// The failure of a suite, if it fails twice in the same place. `attempt` runs the suite, or only the test that it gets.
/// A test that failed is run again alone. A suite that hung or died is run again as a whole, under the same deadline, and
/// any failure is the second one then: it may name a test.
fn confirmed(attempt: impl Fn(Option<&str>) -> Result<Option<Failure>>) -> Result<Option<Failure>> {
    for _ in 0..CHANCES {
        let Some(first) = attempt(None)? else { return Ok(None) };
        let counts = match &first {
            Failure::Test(test) => attempt(Some(test))?.map(|_| first.clone()),
            Failure::Program(_) => attempt(None)?,
        };
        if counts.is_some() {
            return Ok(counts);
        }
        eprintln!("{first}: a failure that does not come again, and does not count");
    }
    Ok(None)
}

/// The first failure of a test program, which is ended there. A program that does not end within `limit` hangs.
fn failure(mut command: Command, limit: Duration) -> io::Result<Option<Failure>> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn()?;
    let output = child.stdout.take().map(BufReader::new);
    let child = &Mutex::new(child);
    let (ended, wait) = sync::mpsc::channel::<()>();
    let (failed, hung) = thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let hung = wait.recv_timeout(limit) == Err(sync::mpsc::RecvTimeoutError::Timeout);
            if hung {
                end(child);
            }
            hung
        });
        let mut failed = None;
        for line in output.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            if let Some(test) = failed_test(&line) {
                failed = Some(test.to_owned());
                end(child);
                break;
            }
        }
        drop(ended);
        (failed, watch.join().unwrap_or(false))
    });
    let status = child.lock().unwrap_or_else(sync::PoisonError::into_inner).wait()?;
    Ok(match failed {
        Some(test) => Some(Failure::Test(test)),
        None if hung => Some(Failure::Program(format!("{NO_END} {} s", limit.as_secs()))),
        None => (!status.success()).then(|| Failure::Program(format!("ends with {status}"))),
    })
}

/// Ends a test program. It may have ended already.
fn end(child: &Mutex<Child>) {
    drop(child.lock().unwrap_or_else(sync::PoisonError::into_inner).kill());
}

/// The test in a line of libtest that says that it failed. Tests that run beside each other can print between the
/// name and the result.
fn failed_test(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix("test ")?.trim_end().strip_suffix("FAILED")?.split_once(" ... ")?;
    // libtest says so behind the name of such a test.
    Some(name.strip_suffix(" - should panic").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::process::Command;
    use std::time::Duration;

    use super::{Failure, confirmed, failed_test, failure};

    fn test(name: &str) -> Failure {
        Failure::Test(name.to_owned())
    }

    fn program(how: &str) -> Failure {
        Failure::Program(how.to_owned())
    }

    #[test]
    fn a_failed_test_is_named() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b - should panic ... FAILED"), Some("a::b"));
        for other in ["test a::b ... ok", "test result: FAILED. 1 passed", "FAILED", "test a::b ... ignored"]
        {
            assert_eq!(failed_test(other), None, "{other}");
        }
    }

    #[test]
    fn a_program_that_fails_hangs_or_dies_has_noticed() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            failure(command, Duration::from_secs(1)).unwrap()
        };
        assert_eq!(shell("echo 'test x ... ok'"), None);
        assert_eq!(shell("echo 'test x ... FAILED'; exec sleep 100"), Some(test("x")));
        assert_eq!(shell("exec sleep 100"), Some(program("does not end within 1 s")));
        assert_eq!(shell("exit 3"), Some(program("ends with exit status: 3")));
    }

    /// What `confirmed` says when the runs end as in `ends`, and which tests the runs were of.
    fn verdict(ends: &[Option<Failure>]) -> (Option<Failure>, Vec<String>) {
        let runs = RefCell::new(Vec::new());
        let attempt = |test: Option<&str>| {
            let mut runs = runs.borrow_mut();
            runs.push(test.unwrap_or("all").to_owned());
            Ok(ends[runs.len() - 1].clone())
        };
        let verdict = confirmed(attempt).unwrap();
        (verdict, runs.into_inner())
    }

    #[test]
    fn only_a_failure_that_comes_again_counts() {
        let of = |runs: &[&str]| runs.iter().map(|&run| run.to_owned()).collect::<Vec<_>>();
        let [x, y, hang] = [test("x"), test("y"), program("does not end within 1 s")].map(Some);
        assert_eq!(verdict(&[None]), (None, of(&["all"])));
        assert_eq!(verdict(&[x.clone(), x.clone()]), (x.clone(), of(&["all", "x"])));
        // By chance, and then another test notices the mutant.
        let ends = [x.clone(), None, y.clone(), y.clone()];
        assert_eq!(verdict(&ends), (y, of(&["all", "x", "all", "y"])));
        assert_eq!(verdict(&[x.clone(), None, None]), (None, of(&["all", "x", "all"])));
        // No test is known to be the one that hangs.
        assert_eq!(verdict(&[hang.clone(), hang.clone()]), (hang.clone(), of(&["all", "all"])));
        assert_eq!(verdict(&[hang.clone(), x.clone()]), (x.clone(), of(&["all", "all"])));
        assert_eq!(verdict(&[hang.clone(), None, None]), (None, of(&["all"; 3])));
        let never = [x.clone(), None, x.clone(), None, x, None];
        assert_eq!(verdict(&never), (None, of(&["all", "x", "all", "x", "all", "x"])));
    }
}
