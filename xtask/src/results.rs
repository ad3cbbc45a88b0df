//! What became of each test: read from the output of test programs while they run.
//!
//! A test has the name of its suite (the test program, as cargo names it) in front of its own:
//! `mm::lazy::what_was_used_is_not_zero`. Programs tell in libtest's form; one that runs its tests one by
//! one prints a name first and its result later, and what the test says comes between the two.

use std::collections::BTreeMap;

/// What became of a test on one host, the worse the larger; on several hosts the largest counts, but for
/// [`Outcome::Skipped`], which any other one is better than.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not run, and why.
    Skipped(String),
    Passed,
    Failed,
}

impl Outcome {
    fn weight(&self) -> u8 {
        match self {
            Self::Skipped(_) => 0,
            Self::Passed => 1,
            Self::Failed => 2,
        }
    }
}

/// Outcomes by test.
#[derive(Debug, Default)]
pub struct Results(BTreeMap<String, Outcome>);

impl Results {
    /// What became of `test`; `None` when no program told of it.
    pub fn of(&self, test: &str) -> Option<&Outcome> {
        self.0.get(test)
    }

    /// The tests of `suite` that passed, by their own names.
    pub fn passed<'s>(&'s self, suite: &'s str) -> impl Iterator<Item = &'s str> {
        let passed = self.0.iter().filter(|(_, outcome)| **outcome == Outcome::Passed);
        passed.filter_map(move |(test, _)| test.strip_prefix(suite)?.strip_prefix("::"))
    }

    /// Whether a test failed.
    pub fn any_failed(&self) -> bool {
        self.0.values().any(|outcome| *outcome == Outcome::Failed)
    }

    /// Takes what another host made of its tests.
    pub fn merge(&mut self, other: Self) {
        for (test, outcome) in other.0 {
            let known = self.0.entry(test).or_insert_with(|| outcome.clone());
            if outcome.weight() > known.weight() {
                *known = outcome;
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
    /// Why tests skip themselves; they may say so before or after their result.
    skips: BTreeMap<String, String>,
    outcomes: BTreeMap<String, Outcome>,
}

impl Reader {
    /// For a program that is `suite`. Without one, cargo says which program runs.
    pub fn new(suite: Option<&str>) -> Self {
        Self { suite: suite.map(str::to_owned), ..Self::default() }
    }

    /// Takes the next line.
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(program) = line.strip_prefix("Running ").and_then(|rest| rest.strip_suffix(')')) {
            self.suite = program.rsplit(['/', '(']).next().map(without_hash);
        } else if line.starts_with("Doc-tests ") {
            self.suite = None;
        } else if let Some((name, rest)) = test_line(line) {
            self.open = Some(self.full_name(name));
            self.said(rest);
        } else {
            self.said(line);
        }
    }

    /// Takes what may be a result of the open test, or a word of a test that skips itself.
    fn said(&mut self, text: &str) {
        if let Some((name, reason)) = text.strip_prefix("SKIP ").and_then(|rest| rest.split_once(": ")) {
            self.skips.insert(self.full_name(name), reason.to_owned());
            return;
        }
        let outcome = match text {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            "ignored" => Outcome::Skipped(String::new()),
            _ => match text.strip_prefix("ignored, ") {
                Some(reason) => Outcome::Skipped(reason.to_owned()),
                None => return,
            },
        };
        if let Some(test) = self.open.take() {
            self.outcomes.insert(test, outcome);
        }
    }

    fn full_name(&self, name: &str) -> String {
        let suite = self.suite.as_deref().unwrap_or_default();
        format!("{suite}::{name}")
    }

    /// The host is through.
    pub fn finish(mut self) -> Results {
        for (test, reason) in self.skips {
            // What says that it skips itself did not pass, whatever it is counted as.
            if self.outcomes.get(&test).is_some_and(|outcome| *outcome != Outcome::Failed) {
                self.outcomes.insert(test, Outcome::Skipped(reason));
            }
        }
        Results(self.outcomes)
    }
}

/// `test NAME ... RESULT`: the name, and what follows.
fn test_line(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ...")?;
    let name = name.trim_end();
    Some((name.strip_suffix(" - should panic").unwrap_or(name), result.trim()))
}

/// The name of a target, of the name of its program.
fn without_hash(program: &str) -> String {
    program.rsplit_once('-').map_or(program, |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Reader, Results};

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
        assert_eq!(results.of("tidevm_mm::altmap::tests::a"), Some(&Outcome::Passed));
        assert_eq!(results.of("tidevm_mm::altmap::tests::b"), Some(&Outcome::Passed));
        assert_eq!(results.of("mm::lazy::a"), Some(&Outcome::Failed));
        assert_eq!(results.of("mm::lazy::b"), Some(&Outcome::Skipped("takes an hour".to_owned())));
        assert_eq!(results.of("mm::lazy::c"), None);
    }

    /// The harness of the sessions pads names, and what a test says comes before its result.
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
        assert_eq!(results.of("sessions::one"), Some(&Outcome::Passed));
        assert_eq!(results.of("sessions::second"), Some(&Outcome::Passed));
        assert_eq!(results.of("sessions::late"), Some(&Outcome::Skipped("no time".to_owned())));
        assert_eq!(results.of("sessions::died"), None);
    }

    #[test]
    fn who_skips_itself_has_not_passed() {
        let results = read(Some("cli"), "test a ... SKIP a: no KVM\nok\ntest b ... ok\nSKIP b: no KVM");
        for test in ["cli::a", "cli::b"] {
            assert_eq!(results.of(test), Some(&Outcome::Skipped("no KVM".to_owned())), "{test}");
        }
    }

    #[test]
    fn hosts_make_up_for_each_other_but_not_for_a_failure() {
        let mut all = read(Some("s"), "test a ... ignored\ntest b ... ok\ntest c ... FAILED\ntest d ... ok");
        all.merge(read(Some("s"), "test a ... ok\ntest b ... ignored\ntest c ... ok\ntest d ... FAILED"));
        let outcomes = ["s::a", "s::b", "s::c", "s::d"].map(|test| all.of(test).cloned());
        use Outcome::{Failed, Passed};
        assert_eq!(outcomes, [Passed, Passed, Failed, Failed].map(Some));
    }
}
