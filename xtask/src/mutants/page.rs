//! `docs/mutants.md`: the score of each package, and why each survivor may live.

use std::fmt::Write;

use super::list::{List, Mutant};
use super::verdict::Verdict;
use crate::recorded;

/// The verdicts of a run.
#[derive(Default)]
pub struct Page {
    packages: Vec<Package>,
}

struct Package {
    name: String,
    killed: usize,
    survivors: Vec<Survivor>,
}

struct Survivor {
    file: String,
    mutant: String,
    reason: Option<String>,
}

impl Page {
    /// Takes the next verdict. The mutants of a package come one after another.
    pub fn add(&mut self, list: &List, mutant: &Mutant, verdict: Verdict) {
        if self.packages.last().is_none_or(|package| package.name != list.package) {
            self.packages.push(Package { name: list.package.clone(), killed: 0, survivors: Vec::new() });
        }
        let Some(package) = self.packages.last_mut() else { return };
        match verdict {
            Verdict::Killed(_) => package.killed += 1,
            Verdict::Lives => package.survivors.push(Survivor {
                file: list.file(mutant),
                mutant: mutant.name.clone(),
                reason: mutant.lives.clone(),
            }),
        }
    }

    /// Survivors without a reason.
    pub fn unexplained(&self) -> usize {
        self.packages.iter().map(Package::unexplained).sum()
    }

    /// The score as a table.
    pub fn summary(&self) -> String {
        let mut text = String::from("| package | mutants | killed | live, explained | live, unexplained |\n");
        text += "| --- | ---: | ---: | ---: | ---: |\n";
        let all = |count: fn(&Package) -> usize| self.packages.iter().map(count).sum::<usize>();
        let mut row = |name: &str, mutants: usize, killed: usize, unexplained: usize| {
            let percent = killed as f64 * 100.0 / mutants.max(1) as f64;
            let explained = mutants - killed - unexplained;
            let _ = writeln!(
                text,
                "| {name} | {mutants} | {killed} ({percent:.1} %) | {explained} | {unexplained} |"
            );
        };
        for package in &self.packages {
            row(&package.name, package.mutants(), package.killed, package.unexplained());
        }
        row("all", all(Package::mutants), all(|package| package.killed), self.unexplained());
        text
    }

    /// The whole document.
    pub fn document(&self) -> String {
        let mut text = String::from(
            "# Mutants\n\n\
             Each mutant is a mistake that a maintainer could make: a step left out, two steps in the other order, a\n\
             bound that is off by one. `cargo xtask mutants [PATH]` builds the mutants of `tests/mutants/*.toml` into a\n\
             copy of the code and runs the hosted tests once for each. It writes this page.\n\n",
        );
        text += &recorded::line();
        text += "\n";
        text += &self.summary();
        text += "\n## Survivors\n\n| file | mutant | why no test needs to notice it |\n| --- | --- | --- |\n";
        for survivor in self.packages.iter().flat_map(|package| &package.survivors) {
            let reason = survivor.reason.as_deref().unwrap_or("**unexplained**");
            let _ = writeln!(text, "| `{}` | {} | {reason} |", survivor.file, survivor.mutant);
        }
        text
    }
}

impl Package {
    fn mutants(&self) -> usize {
        self.killed + self.survivors.len()
    }

    fn unexplained(&self) -> usize {
        self.survivors.iter().filter(|survivor| survivor.reason.is_none()).count()
    }
}
