//! `cargo xtask mutants`: breaks the code by one plausible mistake at a time, and looks whether a hosted test fails.
//!
//! The lists are `tests/mutants/*.toml`. Like cargo-mutants, this works on a copy of the repository. Differs on
//! purpose: a list is written by hand, so that a mutant is a mistake that a person would make (two steps in the
//! other order, a rollback that is forgotten); and all mutants of a package are built into one set of test programs
//! ("mutant schemata"), in which the environment variable `TIDEVM_MUTANT` selects one, so that a mutant costs a run of
//! the tests and no build.
//!
//! Invariants: the tests pass without a mutant before any verdict counts; the text that a mutant replaces occurs
//! exactly once, so a list that has fallen behind the code is an error; a mutant that no test notices fails the run
//! unless the list says why it may live.

mod copy;
mod list;
mod page;
mod verdict;

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use tidevm_guest_image::workspace_root;

use self::list::List;
use self::page::Part;
use self::verdict::{Programs, Verdict};

/// The mutants whose files begin with `path`, which is relative to the repository, or those of the list with this name;
/// all mutants when it is empty. A list of which all mutants were run has its part of `docs/mutants.md` written.
///
/// # Errors
/// A list is malformed or behind the code, or the tests do not pass without a mutant.
pub fn run(path: &str) -> Result<ExitCode> {
    let lists = list::read_all()?;
    let of = |list: &List| list.mutants.iter().filter(|mutant| list.is_meant(mutant, path)).count();
    let total: usize = lists.iter().map(of).sum();
    if total == 0 {
        bail!(
            "tests/mutants/*.toml have no mutant of a file that begins with {path:?}, and none of them has that name"
        );
    }
    let file = workspace_root().join("docs/mutants.md");
    let mut unexplained = 0;
    let mut done = 0;
    for list in lists.iter().filter(|list| of(list) > 0) {
        let mut part = Part::new(list);
        let tree = copy::with_mutants(list)?;
        eprintln!("building the tests of {} with {} mutants inside", list.package, list.mutants.len());
        let mut programs = Programs::build(&tree, list)?;
        let began = Instant::now();
        if let Verdict::Killed(by) = programs.run(0)? {
            bail!("the tests of {} fail without a mutant: {by}", list.package);
        }
        programs.calibrate(began.elapsed());
        for (index, mutant) in list.mutants.iter().enumerate() {
            if !list.is_meant(mutant, path) {
                continue;
            }
            done += 1;
            let began = Instant::now();
            let verdict = programs.run(list::number(index))?;
            let word = match (&verdict, &mutant.lives) {
                (Verdict::Killed(_), _) => "killed",
                (Verdict::Lives, Some(_)) => "lives, as the list explains",
                (Verdict::Lives, None) => "LIVES",
            };
            let by = if let Verdict::Killed(by) = &verdict { by } else { "" };
            let took = began.elapsed().as_secs();
            writeln!(io::stdout(), "{done:4}/{total}  {took:4} s  {word:7} {}  {by}", mutant.name)?;
            part.add(list, mutant, &verdict);
        }
        println!("\n{}", part.section());
        unexplained += part.unexplained();
        if of(list) == list.mutants.len() {
            let old = fs::read_to_string(&file).unwrap_or_default();
            fs::write(&file, page::with_part(&old, &part)?)?;
        }
    }
    Ok(if unexplained == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::{copy, list};

    #[test]
    fn the_lists_have_not_fallen_behind_the_code() {
        for list in list::read_all().unwrap() {
            copy::changed_files(&list).unwrap_or_else(|error| panic!("{}: {error:#}", list.package));
        }
    }
}
