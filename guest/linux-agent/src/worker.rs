//! The process of one workload. Its first call starts it, and further ones look at its pages or end it.
//!
//! Invariant: a release is answered when the pages are free.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::stdio::stdin;
use tidevm_abi::{
    Answer, BadWord, Call, CorruptPart, Failure, Handle, HogKind, MAX_RECORD, Op, PagePattern, Report,
    decode, encode,
};

use crate::pages::Pages;

use crate::pipes::{self, KernelPages};
use crate::{churn, files};

/// The process that the kernel ends first when memory is short (proc(5), `oom_score_adj`).
const FIRST_VICTIM: &str = "1000";

/// A hog: its pages, and how they are filled.
struct Hog {
    handle: Handle,
    full: bool,
    held: Held,
}

/// The pages of a hog.
enum Held {
    /// Of this process, with the references that keep them from moving, if they are pinned.
    Program { pages: Pages, _pins: Vec<OwnedFd> },
    /// Of the kernel.
    Kernel(KernelPages),
}

/// Serves the workload of this process until it ends, or the agent does.
///
/// # Errors
/// The agent cannot be reached, or sent something that is no call of a workload.
pub fn run() -> io::Result<()> {
    fs::write("self/oom_score_adj", FIRST_VICTIM)?;
    let Some(Call { id, op }) = next_call()? else { return Ok(()) };
    let mut hog = match op {
        Op::Hog { handle, pages, partial, kind, full, .. } => {
            match Hog::take(handle, kind, full, pages, partial) {
                Ok(hog) => hog,
                Err(failure) => return answer(id, Answer::Failed(failure)),
            }
        }
        Op::Churn { handle, threads, millis } => {
            return answer(id, churn::run(handle, threads, Duration::from_millis(millis)));
        }
        other => return Err(io::Error::other(format!("no workload begins by {other:?}"))),
    };
    answer(id, Answer::Hogged { pages: hog.count() })?;
    while let Some(Call { id, op }) = next_call()? {
        match op {
            Op::Verify { .. } => answer(id, hog.verify())?,
            Op::Corrupt { page, part, .. } => answer(id, hog.corrupt(page.into(), part))?,
            Op::Release { .. } => {
                let pages = hog.count();
                drop(hog);
                return answer(id, Answer::Released { pages });
            }
            other => return Err(io::Error::other(format!("no call of a workload: {other:?}"))),
        }
    }
    Ok(())
}

/// The next call; `None` when the agent has ended.
fn next_call() -> io::Result<Option<Call>> {
    let mut buffer = [0; MAX_RECORD];
    let (_, size) = recv(stdin(), &mut buffer, RecvFlags::empty())?;
    if size == 0 {
        return Ok(None);
    }
    decode(&buffer[..size]).map(Some).map_err(|_| io::Error::other("the agent sent no call"))
}

fn answer(id: u32, answer: Answer) -> io::Result<()> {
    let mut buffer = [0; MAX_RECORD];
    let record =
        encode(&Report::Done { id, answer }, &mut buffer).expect("every record fits into MAX_RECORD");
    send(stdin(), record, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The system refused pages, or what they need.
fn refused(error: &io::Error) -> Failure {
    files::log(&format!("no pages for a workload: {error}"));
    Failure::NoMemory
}

impl Hog {
    /// Takes `wanted` pages and fills them. A partial one of the kernel's pages may have fewer.
    fn take(handle: Handle, kind: HogKind, full: bool, wanted: u64, partial: bool) -> Result<Self, Failure> {
        let pattern = |page| PagePattern::new(handle, page, full);
        let held = match kind {
            HogKind::Movable | HogKind::Pinned => {
                let mut pages = Pages::map(wanted).map_err(|error| refused(&error))?;
                (0..wanted).for_each(|page| pages.write(page, pattern(page)));
                let pins = match kind {
                    HogKind::Pinned => pipes::pin(&pages).map_err(|error| refused(&error))?,
                    _ => Vec::new(),
                };
                Held::Program { pages, _pins: pins }
            }
            HogKind::Unmovable => match KernelPages::take(wanted, pattern) {
                (pages, Some(error)) if !partial || pages.count() == 0 => return Err(refused(&error)),
                (pages, _) => Held::Kernel(pages),
            },
            HogKind::Contiguous => return Err(Failure::Unsupported),
        };
        Ok(Self { handle, full, held })
    }

    fn count(&self) -> u64 {
        match &self.held {
            Held::Program { pages, .. } => pages.count(),
            Held::Kernel(pages) => pages.count(),
        }
    }

    fn pattern(&self, page: u64) -> PagePattern {
        PagePattern::new(self.handle, page, self.full)
    }

    fn verify(&self) -> Answer {
        let pages = self.count();
        match &self.held {
            Held::Program { pages: held, .. } => {
                let (mut corrupt, mut first) = (0, None::<BadWord>);
                for bad in (0..pages).filter_map(|page| held.first_bad(page, self.pattern(page))) {
                    corrupt += 1;
                    first.get_or_insert(bad);
                }
                Answer::Verified { pages, corrupt, first }
            }
            // The kernel does not say which frames it has taken.
            Held::Kernel(held) => match held.corrupt(|page| self.pattern(page)) {
                Ok(corrupt) => Answer::Verified { pages, corrupt, first: None },
                Err(error) => Answer::Failed(refused(&error)),
            },
        }
    }

    fn corrupt(&mut self, page: u64, part: CorruptPart) -> Answer {
        let pattern = self.pattern(page);
        match &mut self.held {
            Held::Program { pages, .. } if part == CorruptPart::Content && page < pages.count() => {
                Answer::Corrupted(pages.flip(page, pattern))
            }
            _ => Answer::Failed(Failure::NoSuchPage),
        }
    }
}
