//! Checks the names of workloads in a script before anything runs.
//!
//! A repeated body is walked twice. The second walk finds the errors of a second round, such as a
//! `hog ... as a` that no `release a` follows.

use std::collections::{BTreeSet, HashMap};

use tidevm_abi::command::{Churn, Command, Corrupt, Fails, Pmem, PmemHold};
use tidevm_abi::{CorruptPart, Counted, Name};

use super::{Statement, Step};
use crate::remembered::Remembered;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The workloads after the steps so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workloads {
    /// Their kinds, and the lines that started them; 0 for those of a session before, in a snapshot.
    living: HashMap<Name, (Kind, usize)>,
    /// Those that a reset ended, with its line.
    reset: HashMap<Name, usize>,
}

impl Workloads {
    /// The workloads of a session that saved its machine.
    pub(crate) fn remembered(remembered: &Remembered) -> Self {
        let workload = |(name, pages): (&Name, Option<u64>)| {
            (name.clone(), (pages.map_or(Kind::Churn, |pages| Kind::Hog { pages }), 0))
        };
        Self { living: remembered.living().map(workload).collect(), reset: HashMap::new() }
    }

    fn start(&mut self, name: &Name, kind: Kind, line: usize) -> Result<(), String> {
        self.reset.remove(name);
        match self.living.insert(name.clone(), (kind, line)) {
            None => Ok(()),
            Some((_, 0)) => Err(format!("`{name}` is in use since before the snapshot; release it first")),
            Some((_, line)) => Err(format!("`{name}` is in use since line {line}; release it first")),
        }
    }

    fn kind(&self, name: &Name) -> Result<Kind, String> {
        match (self.living.get(name), self.reset.get(name)) {
            (Some((kind, _)), _) => Ok(*kind),
            (None, Some(line)) => Err(format!("`{name}` is gone: line {line} resets the machine")),
            (None, None) => Err(format!("nothing is called `{name}` here")),
        }
    }

    /// The names that are in use.
    pub(super) fn names(&self) -> Vec<Name> {
        self.living.keys().cloned().collect()
    }

    /// Of these workloads and those of `before`, keeps the ones that `lives` says: not every step did what it says.
    pub(super) fn settle(&mut self, before: Self, lives: impl Fn(&Name) -> bool) {
        for (name, workload) in before.living {
            self.living.entry(name).or_insert(workload);
        }
        self.living.retain(|name, _| lives(name));
    }

    fn end(&mut self, name: &Name) {
        self.living.remove(name);
    }

    fn end_all(&mut self, line: usize) {
        self.reset.extend(self.living.drain().map(|(name, _)| (name, line)));
    }
}

type Errors = BTreeSet<(usize, usize, String)>;

/// Walks `body` in the order of its run, after `workloads`, and returns (line, column, message) per misused name.
pub(super) fn check(body: &[Statement], workloads: &mut Workloads) -> Vec<(usize, usize, String)> {
    let mut errors = Errors::new();
    walk(body, workloads, &mut errors);
    errors.into_iter().collect()
}

fn walk(body: &[Statement], workloads: &mut Workloads, errors: &mut Errors) {
    for statement in body {
        match statement {
            Statement::Step(step) => {
                if let Err(message) = visit(step, workloads) {
                    errors.insert((step.line, step.column, message));
                }
            }
            Statement::Repeat { times, body } => {
                for _ in 0..(*times).min(2) {
                    walk(body, workloads, errors);
                }
            }
        }
    }
}

fn visit(step: &Step, workloads: &mut Workloads) -> Result<(), String> {
    match &step.command {
        Command::Fails(Fails { command, .. }) => may_fail(command, workloads, step.line),
        Command::Hog(hog) => workloads.start(&hog.name, Kind::Hog { pages: hog.size.pages() }, step.line),
        Command::Pmem(Pmem::Hold(PmemHold { name, size, .. })) => {
            workloads.start(name, Kind::Pmem { pages: size.pages() }, step.line)
        }
        Command::Churn(Churn { name, .. }) => workloads.start(name, Kind::Churn, step.line),
        Command::Verify(name) => match workloads.kind(name)? {
            Kind::Hog { .. } | Kind::Pmem { .. } => Ok(()),
            Kind::Churn => Err(format!("`{name}` is a churn: it has no content to verify")),
        },
        Command::Corrupt(corrupt) => can_corrupt(workloads.kind(&corrupt.name)?, corrupt),
        Command::Wait(name) => match workloads.kind(name)? {
            Kind::Churn => {
                workloads.end(name);
                Ok(())
            }
            Kind::Hog { .. } | Kind::Pmem { .. } => {
                Err(format!("`{name}` is a hog: it does not end by itself"))
            }
        },
        Command::Release(name) => {
            workloads.kind(name)?;
            workloads.end(name);
            Ok(())
        }
        Command::Reset { .. } => {
            workloads.end_all(step.line);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Checks the names of a command that is expected to fail: it starts no workload, and a machine that refuses a reset
/// keeps its workloads.
fn may_fail(command: &Command, workloads: &mut Workloads, line: usize) -> Result<(), String> {
    let ends = matches!(command, Command::Wait(_) | Command::Release(_));
    let mut tried = if ends { std::mem::take(workloads) } else { workloads.clone() };
    let step = Step { line, column: 0, command: command.clone() };
    let result = visit(&step, &mut tried);
    if ends {
        *workloads = tried;
    }
    result
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
    Err(format!(
        "`{name}` has no page {page}: the last of its {} is page {}",
        Counted(pages, "page"),
        pages - 1
    ))
}
