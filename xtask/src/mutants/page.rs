//! `docs/mutants.md`: the score of each list of mutants, and why each survivor may live.
//!
//! Each list has a part of its own, which a run of that list writes anew, because all lists together take hours. The
//! first table is made from the parts.
//!
//! Invariant: a part names the commit whose code was broken, and counts every mutant of its list.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::list::{List, Mutant};
use super::verdict::Verdict;
use crate::recorded;

const INTRODUCTION: &str = "\
# Mutants

Each mutant is a mistake that a maintainer could make: a step left out, two steps in the other order, a bound that is
off by one. `cargo xtask mutants [PATH]` builds the mutants of `tests/mutants/*.toml` into a copy of the code, runs the
hosted tests for each, and writes this page. PATH is the beginning of a file's path, or the name of a list. A failure
counts when it comes a second time, because a busy host makes tests fail by chance.

";

/// How the heading of a part begins.
const HEADING: &str = "## ";

/// The verdicts on the mutants of one list.
pub struct Part {
    list: String,
    /// Date and commit of the run. A run takes long, so they are those of its beginning.
    run: String,
    killed: usize,
    /// How many of them were noticed only because a test did not end.
    hung: usize,
    survivors: Vec<Survivor>,
}

struct Survivor {
    file: String,
    mutant: String,
    reason: Option<String>,
}

/// The figures of a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Score {
    mutants: usize,
    killed: usize,
    hung: usize,
    explained: usize,
    unexplained: usize,
}

impl Part {
    /// Of a run of `list` that begins now.
    pub fn new(list: &List) -> Self {
        let run = format!("{}, {}", recorded::date(), recorded::commit());
        Self { list: list.name.clone(), run, killed: 0, hung: 0, survivors: Vec::new() }
    }

    /// Takes the next verdict.
    pub fn add(&mut self, list: &List, mutant: &Mutant, verdict: &Verdict) {
        match verdict {
            Verdict::Killed(_) => {
                self.killed += 1;
                self.hung += usize::from(verdict.is_by_deadline());
            }
            Verdict::Lives => self.survivors.push(Survivor {
                file: list.file(mutant),
                mutant: mutant.name.clone(),
                reason: mutant.lives.clone(),
            }),
        }
    }

    /// Survivors without a reason.
    pub fn unexplained(&self) -> usize {
        self.survivors.iter().filter(|survivor| survivor.reason.is_none()).count()
    }

    fn score(&self) -> Score {
        let (killed, hung, unexplained) = (self.killed, self.hung, self.unexplained());
        let explained = self.survivors.len() - unexplained;
        Score { mutants: killed + self.survivors.len(), killed, hung, explained, unexplained }
    }

    /// The part as text.
    pub fn section(&self) -> String {
        let mut text = format!("{HEADING}{}\n\n{}\n\n{}.\n", self.list, self.score().line(), self.run);
        if !self.survivors.is_empty() {
            text += "\n| file | mutant | why no test needs to notice it |\n| --- | --- | --- |\n";
        }
        for survivor in &self.survivors {
            let reason = survivor.reason.as_deref().unwrap_or("**unexplained**");
            let _ = writeln!(text, "| `{}` | {} | {reason} |", survivor.file, survivor.mutant);
        }
        text
    }
}

impl Score {
    fn line(self) -> String {
        let Self { mutants, killed, hung, explained, unexplained } = self;
        format!(
            "Mutants: {mutants}, killed: {killed}, of these by a test that hung: {hung}, live with a reason: {explained}, without: {unexplained}."
        )
    }

    /// From a line of [`Score::line`].
    fn of_line(line: &str) -> Option<Self> {
        let mut numbers = line.strip_prefix("Mutants: ")?.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.find(|word| !word.is_empty())?.parse().ok();
        let [mutants, killed, hung, explained, unexplained] = [next()?, next()?, next()?, next()?, next()?];
        Some(Self { mutants, killed, hung, explained, unexplained })
    }

    fn row(self, name: &str) -> String {
        let Self { mutants, killed, hung, explained, unexplained } = self;
        let percent = killed as f64 * 100.0 / mutants.max(1) as f64;
        format!("| {name} | {mutants} | {killed} ({percent:.1} %) | {hung} | {explained} | {unexplained} |\n")
    }

    fn plus(self, other: Self) -> Self {
        Self {
            mutants: self.mutants + other.mutants,
            killed: self.killed + other.killed,
            hung: self.hung + other.hung,
            explained: self.explained + other.explained,
            unexplained: self.unexplained + other.unexplained,
        }
    }
}

/// The page `old` with `part` in place of the part of the same list.
///
/// # Errors
/// `old` has a part without figures.
pub fn with_part(old: &str, part: &Part) -> Result<String> {
    let mut parts: Vec<(String, String)> = Vec::new();
    for section in format!("\n{old}").split(&format!("\n{HEADING}")).skip(1) {
        let name = section.lines().next().unwrap_or_default().to_owned();
        parts.push((name, format!("{HEADING}{}\n", section.trim_end())));
    }
    parts.retain(|(name, _)| *name != part.list);
    parts.push((part.list.clone(), part.section()));
    parts.sort();
    let mut page = INTRODUCTION.to_owned();
    page +=
        "| list | mutants | killed | of these by a test that hung | live with a reason | live without |\n";
    page += "| --- | ---: | ---: | ---: | ---: | ---: |\n";
    let mut all = Score::default();
    for (name, text) in &parts {
        let score = text.lines().find_map(Score::of_line).with_context(|| format!("no figures of {name}"))?;
        page += &score.row(name);
        all = all.plus(score);
    }
    page += &all.row("all");
    for (_, text) in &parts {
        page += "\n";
        page += text;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::{Part, Score, Survivor, with_part};

    fn part(list: &str, killed: usize, reason: Option<&str>) -> Part {
        let survivor =
            Survivor { file: "a/b.rs".to_owned(), mutant: "x".to_owned(), reason: reason.map(str::to_owned) };
        Part { list: list.to_owned(), run: "a day".to_owned(), killed, hung: 1, survivors: vec![survivor] }
    }

    #[test]
    fn a_part_takes_the_place_of_its_list_and_the_first_table_adds_up() {
        let one = with_part("", &part("one", 8, Some("no difference"))).unwrap();
        let two = with_part(&one, &part("two", 3, None)).unwrap();
        assert!(two.contains("| one | 9 | 8 (88.9 %) | 1 | 1 | 0 |\n"), "{two}");
        assert!(two.contains("| two | 4 | 3 (75.0 %) | 1 | 0 | 1 |\n"), "{two}");
        assert!(two.contains("| all | 13 | 11 (84.6 %) | 2 | 1 | 1 |\n"), "{two}");
        assert!(two.contains("| `a/b.rs` | x | no difference |\n"), "{two}");
        assert!(two.contains("| `a/b.rs` | x | **unexplained** |\n"), "{two}");
        let again = with_part(&two, &part("one", 9, Some("no difference"))).unwrap();
        assert_eq!(again, with_part(&again, &part("two", 3, None)).unwrap(), "the order does not matter");
        assert!(again.contains("| all | 14 | 12 (85.7 %) | 2 | 1 | 1 |\n"), "{again}");
        assert!(with_part("## three\n\nnothing\n", &part("one", 1, None)).is_err());
    }

    #[test]
    fn figures_are_read_as_they_are_written() {
        let score = Score { mutants: 20, killed: 17, hung: 2, explained: 1, unexplained: 2 };
        assert_eq!(Score::of_line(&score.line()), Some(score));
        assert_eq!(Score::of_line("Mutants: 3, killed: 2"), None);
    }
}
