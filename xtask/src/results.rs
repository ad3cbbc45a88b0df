//! The results of tests, read from the output of test programs while they run.
//!
//! A test is named by its suite (the test program, as cargo names it) and its own name:
//! `mm::lazy::a_memmap_that_was_used_is_not_zero`. The output has the form of libtest. A program that runs its tests one by
//! one prints the name first and the result later, with the output of the test between the two.
//!
//! Invariant: a test that says that it skips itself never counts as passed.

use std::collections::{BTreeMap, BTreeSet};

/// The result of a test. With several hosts, a failure counts before a pass, and a pass before a skip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestResult {
    /// Not run, with the reason.
    Skipped(String),
    Passed,
    Failed,
}

impl TestResult {
    fn weight(&self) -> u8 {
        match self {
            Self::Skipped(_) => 0,
            Self::Passed => 1,
            Self::Failed => 2,
        }
    }
}

/// The result of each test.
#[derive(Debug, Default)]
pub struct Results {
    tests: BTreeMap<String, TestResult>,
    /// Suites whose program ended without the result of all its tests, or failed although all its tests passed.
    broken: BTreeSet<String>,
}

impl Results {
    /// The result of `test`; `None` when no program printed one.
    pub fn of(&self, test: &str) -> Option<&TestResult> {
        self.tests.get(test)
    }

    /// The names of the tests of `suite` that passed, without the suite.
    pub fn passed<'s>(&'s self, suite: &'s str) -> impl Iterator<Item = &'s str> {
        let passed = self.tests.iter().filter(|(_, result)| **result == TestResult::Passed);
        passed.filter_map(move |(test, _)| test.strip_prefix(suite)?.strip_prefix("::"))
    }

    /// Whether a test failed.
    pub fn any_failed(&self) -> bool {
        self.tests.values().any(|result| *result == TestResult::Failed)
    }

    /// Whether a test failed in a suite that is `wanted`, or the program of such a suite ended before its time or with
    /// a failure.
    pub fn any_bad(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let suite = |test: &str| test.split("::").next().is_some_and(&wanted);
        let failed = |(test, result): (&String, &TestResult)| *result == TestResult::Failed && suite(test);
        self.tests.iter().any(failed) || self.broken.iter().any(|suite| wanted(suite))
    }

    /// Adds the results of another host.
    pub fn merge(&mut self, other: Self) {
        self.broken.extend(other.broken);
        for (test, result) in other.tests {
            let known = self.tests.entry(test).or_insert_with(|| result.clone());
            if result.weight() > known.weight() {
                *known = result;
            }
        }
    }
}

/// Reads the output of one host, line by line.
#[derive(Default)]
pub struct Reader {
    suite: Option<String>,
    /// A test whose result has not come yet.
    open: Option<String>,
    /// The program has not said yet how its tests went, as a whole. A program that runs several tests at a time names
    /// none that it has not ended, so a crash leaves no other trace.
    unfinished: bool,
    /// The reasons of tests that skip themselves. A test may print its reason before or after its result.
    skips: BTreeMap<String, String>,
    results: BTreeMap<String, TestResult>,
    broken: BTreeSet<String>,
}

impl Reader {
    /// A reader for the output of the program `suite`. `None` is for the output of cargo, which names each program.
    pub fn new(suite: Option<&str>) -> Self {
        Self { suite: suite.map(str::to_owned), unfinished: suite.is_some(), ..Self::default() }
    }

    /// Takes the next line.
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(program) = line.strip_prefix("Running ").and_then(|rest| rest.strip_suffix(')')) {
            self.end_program();
            self.suite = program.rsplit(['/', '(']).next().map(without_hash);
            self.unfinished = true;
        } else if line.starts_with("Doc-tests ") {
            self.end_program();
            self.suite = None;
            self.unfinished = true;
        } else if line.starts_with("test result: ") {
            self.unfinished = false;
        } else if line.starts_with("error: ") && line.contains("test failed, to rerun pass ") {
            // Cargo says so of the program that has just ended with another status than 0.
            self.break_suite();
        } else if let Some((name, rest)) = test_line(line) {
            self.open = Some(self.full_name(name));
            self.said(rest);
        } else {
            self.said(line);
        }
    }

    /// Takes a text that may be the result of the open test, or the reason of a test that skips itself.
    fn said(&mut self, text: &str) {
        if let Some((name, reason)) = text.strip_prefix("SKIP ").and_then(|rest| rest.split_once(": ")) {
            self.skips.insert(self.full_name(name), reason.to_owned());
            return;
        }
        let result = match text {
            "ok" => TestResult::Passed,
            "FAILED" => TestResult::Failed,
            "ignored" => TestResult::Skipped(String::new()),
            _ => match text.strip_prefix("ignored, ") {
                Some(reason) => TestResult::Skipped(reason.to_owned()),
                None => return,
            },
        };
        if let Some(test) = self.open.take() {
            self.results.insert(test, result);
        }
    }

    /// The program of the suite has ended. If a test or the whole has no result, that was before its time.
    fn end_program(&mut self) {
        if self.open.take().is_some() || self.unfinished {
            self.break_suite();
        }
        self.unfinished = false;
    }

    /// The program of the suite did not end well, whatever its tests said.
    fn break_suite(&mut self) {
        self.broken.insert(self.suite.clone().unwrap_or_default());
    }

    fn full_name(&self, name: &str) -> String {
        let suite = self.suite.as_deref().unwrap_or_default();
        format!("{suite}::{name}")
    }

    /// Ends the output.
    pub fn finish(mut self) -> Results {
        self.end_program();
        for (test, reason) in self.skips {
            // A test that says that it skips itself did not pass, even if libtest counts it as passed.
            if self.results.get(&test).is_some_and(|result| *result != TestResult::Failed) {
                self.results.insert(test, TestResult::Skipped(reason));
            }
        }
        Results { tests: self.results, broken: self.broken }
    }
}

/// The name and the text after it in a line `test NAME ... RESULT`.
fn test_line(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ...")?;
    let name = name.trim_end();
    Some((name.strip_suffix(" - should panic").unwrap_or(name), result.trim()))
}

/// The name of a target, from the name of its program.
fn without_hash(program: &str) -> String {
    program.rsplit_once('-').map_or(program, |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Reader, Results, TestResult};

    #[test]
    fn what_passed_is_known_by_its_own_name() {
        let results =
            read(Some("linux"), "test a ... ok\ntest b ... FAILED\ntest c ... ignored\ntest d ... ");
        assert_eq!(results.passed("linux").collect::<Vec<_>>(), ["a"]);
        assert_eq!(results.passed("lin").count(), 0);
        assert!(results.any_failed());
        assert!(!read(Some("linux"), "test a ... ok").any_failed());
    }

    fn read(suite: Option<&str>, text: &str) -> Results {
        let mut reader = Reader::new(suite);
        text.lines().for_each(|line| reader.line(line));
        reader.finish()
    }

    #[test]
    fn programs_of_cargo() {
        let results = read(
            None,
            "     Running unittests src/lib.rs (target/debug/deps/tidevm_mm-0a1b2c)
             running 3 tests
             test altmap::tests::a ... ok
             test altmap::tests::b - should panic ... ok
             test result: ok. 2 passed; 0 failed; 0 ignored
                  Running tests/mm/main.rs (target/debug/deps/mm-0a1b2c)
             test lazy::a ... FAILED
             test lazy::b ... ignored, takes an hour
                Doc-tests tidevm_mm
             test src/lib.rs - x (line 3) ... ok",
        );
        assert_eq!(results.of("tidevm_mm::altmap::tests::a"), Some(&TestResult::Passed));
        assert_eq!(results.of("tidevm_mm::altmap::tests::b"), Some(&TestResult::Passed));
        assert_eq!(results.of("mm::lazy::a"), Some(&TestResult::Failed));
        assert_eq!(results.of("mm::lazy::b"), Some(&TestResult::Skipped("takes an hour".to_owned())));
        assert_eq!(results.of("mm::lazy::c"), None);
    }

    /// The harness of the sessions pads names, and prints the output of a test before its result.
    #[test]
    fn tests_that_talk() {
        let results = read(
            Some("sessions"),
            "SKIP late: no time
             test one    ... ok
             test second ... tidevm: a warning
             ok
             test late   ... ignored
             test died   ... thread 'main' panicked",
        );
        assert_eq!(results.of("sessions::one"), Some(&TestResult::Passed));
        assert_eq!(results.of("sessions::second"), Some(&TestResult::Passed));
        assert_eq!(results.of("sessions::late"), Some(&TestResult::Skipped("no time".to_owned())));
        assert_eq!(results.of("sessions::died"), None);
    }

    #[test]
    fn a_failure_belongs_to_its_suite() {
        let results = read(
            None,
            "     Running tests/sessions.rs (target/debug/deps/sessions-0a1b2c)
             test a ... FAILED
             test result: FAILED. 0 passed; 1 failed
             error: test failed, to rerun pass `-p tidevm-tests --test sessions`
                  Running tests/mm/main.rs (target/debug/deps/mm-0a1b2c)
             test a ... ok
             test result: ok. 1 passed; 0 failed
                  Running tests/cli.rs (target/debug/deps/cli-0a1b2c)
             test a ... memory allocation of 9 bytes failed
                Doc-tests tidevm_mm
             test src/lib.rs - x (line 3) ... ok
             test result: ok. 1 passed; 0 failed",
        );
        assert_eq!(SUITES.map(|suite| is_bad(&results, suite)), [true, false, true, false, false]);
        assert!(is_bad(&read(Some("linux"), "test a ... "), "linux"));
        let good = read(Some("linux"), "test a ... ok\ntest result: ok. 1 passed");
        assert!(!is_bad(&good, "linux"));
    }

    const SUITES: [&str; 5] = ["sessions", "mm", "cli", "session", ""];

    fn is_bad(results: &Results, suite: &str) -> bool {
        results.any_bad(|known| known == suite)
    }

    /// The tests of `mm` run several at a time, so none is named before its end. `sessions` fails when its tests are
    /// over, and the program of the doctests does not compile.
    #[test]
    fn a_program_that_crashes_is_bad_though_every_test_that_it_names_passed() {
        let results = read(
            None,
            "     Running tests/mm/main.rs (target/debug/deps/mm-0a1b2c)
             running 2 tests
             test a ... ok
             error: test failed, to rerun pass `-p tidevm-mm --test mm`
             Caused by:
               process didn't exit successfully: `target/debug/deps/mm-0a1b2c` (signal: 6, SIGABRT: process abort signal)
                  Running tests/cli.rs (target/debug/deps/cli-0a1b2c)
             running 1 test
                  Running tests/sessions.rs (target/debug/deps/sessions-0a1b2c)
             test a ... ok
             test result: ok. 1 passed; 0 failed
             error: test failed, to rerun pass `-p tidevm-tests --test sessions`
                  Running unittests src/lib.rs (target/debug/deps/session-0a1b2c)
             running 0 tests
             test result: ok. 0 passed; 0 failed
                Doc-tests tidevm_mm
             error: doctest failed, to rerun pass `-p tidevm-mm --doc`",
        );
        assert_eq!(SUITES.map(|suite| is_bad(&results, suite)), [true, true, true, false, true]);
        assert!(!results.any_failed());
    }

    #[test]
    fn a_test_that_skips_itself_has_not_passed() {
        let results = read(Some("cli"), "test a ... SKIP a: no KVM\nok\ntest b ... ok\nSKIP b: no KVM");
        for test in ["cli::a", "cli::b"] {
            assert_eq!(results.of(test), Some(&TestResult::Skipped("no KVM".to_owned())), "{test}");
        }
    }

    #[test]
    fn hosts_make_up_for_each_other_but_not_for_a_failure() {
        let mut all = read(Some("s"), "test a ... ignored\ntest b ... ok\ntest c ... FAILED\ntest d ... ok");
        all.merge(read(Some("s"), "test a ... ok\ntest b ... ignored\ntest c ... ok\ntest d ... FAILED"));
        let results = ["s::a", "s::b", "s::c", "s::d"].map(|test| all.of(test).cloned());
        use TestResult::{Failed, Passed};
        assert_eq!(results, [Passed, Passed, Failed, Failed].map(Some));
    }
}
