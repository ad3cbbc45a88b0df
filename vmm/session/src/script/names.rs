//! Checks the names of workloads in a script before anything runs.
//!
//! A repeated body is walked twice. The second walk finds the errors of a second round, such as a
//! `hog ... as a` that no `release a` follows.

use std::collections::{BTreeSet, HashMap};

use tidevm_abi::command::{Churn, Command, Corrupt, Pmem, PmemHold};
use tidevm_abi::{CorruptPart, Name};

use super::{Statement, Step};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Pages of the page allocator.
    Hog {
        /// How many it wants.
        pages: u64,
    },
    /// Pages of device memory.
    Pmem {
        /// How many it wants.
        pages: u64,
    },
    Churn,
}

/// The workloads after the steps so far: their kinds, and the lines that started them.
type Living = HashMap<Name, (Kind, usize)>;
type Errors = BTreeSet<(usize, usize, String)>;

/// Walks `body` in the order of its run and returns (line, column, message) per misused name.
pub(super) fn check(body: &[Statement]) -> Vec<(usize, usize, String)> {
    let mut errors = Errors::new();
    walk(body, &mut Living::new(), &mut errors);
    errors.into_iter().collect()
}

fn walk(body: &[Statement], living: &mut Living, errors: &mut Errors) {
    for statement in body {
        match statement {
            Statement::Step(step) => {
                if let Err(message) = visit(step, living) {
                    errors.insert((step.line, step.column, message));
                }
            }
            Statement::Repeat { times, body } => {
                for _ in 0..(*times).min(2) {
                    walk(body, living, errors);
                }
            }
        }
    }
}

fn visit(step: &Step, living: &mut Living) -> Result<(), String> {
    let start = |living: &mut Living, name: &Name, kind| match living.insert(name.clone(), (kind, step.line))
    {
        None => Ok(()),
        Some((_, line)) => Err(format!("`{name}` is in use since line {line}; release it first")),
    };
    let kind = |living: &Living, name: &Name| {
        living.get(name).map(|(kind, _)| *kind).ok_or_else(|| format!("nothing is called `{name}` here"))
    };
    match &step.command {
        Command::Hog(hog) => start(living, &hog.name, Kind::Hog { pages: hog.size.pages() }),
        Command::Pmem(Pmem::Hold(PmemHold { name, size, .. })) => {
            start(living, name, Kind::Pmem { pages: size.pages() })
        }
        Command::Churn(Churn { name, .. }) => start(living, name, Kind::Churn),
        Command::Verify(name) => match kind(living, name)? {
            Kind::Hog { .. } | Kind::Pmem { .. } => Ok(()),
            Kind::Churn => Err(format!("`{name}` is a churn: it has no content to verify")),
        },
        Command::Corrupt(corrupt) => can_corrupt(kind(living, &corrupt.name)?, corrupt),
        Command::Wait(name) => match kind(living, name)? {
            Kind::Churn => {
                living.remove(name);
                Ok(())
            }
            Kind::Hog { .. } | Kind::Pmem { .. } => {
                Err(format!("`{name}` is a hog: it does not end by itself"))
            }
        },
        Command::Release(name) => {
            kind(living, name)?;
            living.remove(name);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether a workload of `kind` has the page and the part of it that `corrupt` changes.
fn can_corrupt(kind: Kind, Corrupt { name, page, part }: &Corrupt) -> Result<(), String> {
    let pages = match kind {
        Kind::Churn => return Err(format!("`{name}` is a churn: it has no content that stays")),
        Kind::Pmem { .. } if *part == CorruptPart::Memmap => {
            return Err(format!("`{name}` is in device memory, whose pages have no owner in the memmap"));
        }
        Kind::Hog { pages } | Kind::Pmem { pages } => pages,
    };
    if u64::from(*page) < pages {
        return Ok(());
    }
    Err(format!("`{name}` has no page {page}: the last of its {pages} pages is page {}", pages - 1))
}
