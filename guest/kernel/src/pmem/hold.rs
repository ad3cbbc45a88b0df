//! Pages of device memory in use: taken, filled, checked and given back, a few a step.

use alloc::boxed::Box;
use alloc::vec::Vec;

use spin::Mutex;
use tidevm_abi::{Answer, Failure, Handle};
use tidevm_mm::{Pfn, PfnRange};

use crate::agent::{Asker, workload_cpu};
use crate::content::Content;
use crate::job::{self, Job, Step};
use crate::{MM, workload};

/// Pages of one step.
const BATCH: u32 = 64;

/// Pages that one user holds: those of the range that have its name.
#[derive(Clone, Copy)]
struct Hold {
    handle: Handle,
    range: PfnRange,
}

static HOLDS: Mutex<Vec<Hold>> = Mutex::new(Vec::new());

fn find(handle: Handle) -> Option<Hold> {
    HOLDS.lock().iter().find(|hold| hold.handle == handle).copied()
}

/// What is done with each page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Take,
    Verify,
    Release,
}

struct Walk {
    asker: Asker,
    task: Task,
    hold: Hold,
    next: Pfn,
    /// Pages still wanted.
    wanted: u64,
    pages: u64,
    corrupt: u64,
    first_corrupt: Option<u64>,
}

/// Starts to take up to `pages` pages of a range.
///
/// # Errors
/// There is no such range, or it is not mapped; or the handle is in use.
pub fn start(asker: Asker, handle: Handle, device: u8, pages: u64) -> Result<(), Failure> {
    let pgmap = super::mapped(device)?;
    if workload::find(handle).is_some() || find(handle).is_some() {
        return Err(Failure::HandleInUse);
    }
    let info = MM.pgmap(pgmap).ok_or(Failure::Pmem(tidevm_abi::PmemFailure::NotMapped))?;
    let hold = Hold { handle, range: info.pages };
    let mut holds = HOLDS.lock();
    holds.try_reserve(1).map_err(|_| Failure::NoMemory)?;
    holds.push(hold);
    drop(holds);
    spawn(asker, Task::Take, hold, pages);
    Ok(())
}

/// Starts to check the pages of `handle`, if it is one of device memory.
pub fn verify(asker: Asker, handle: Handle) -> bool {
    find(handle).map(|hold| spawn(asker, Task::Verify, hold, u64::MAX)).is_some()
}

/// Starts to give the pages of `handle` back, if it is one of device memory.
pub fn release(asker: Asker, handle: Handle) -> bool {
    find(handle).map(|hold| spawn(asker, Task::Release, hold, u64::MAX)).is_some()
}

fn spawn(asker: Asker, task: Task, hold: Hold, wanted: u64) {
    let next = hold.range.start();
    let walk = Walk { asker, task, hold, next, wanted, pages: 0, corrupt: 0, first_corrupt: None };
    job::spawn(workload_cpu(), Box::new(walk));
}

impl Walk {
    fn content(&self, pfn: Pfn) -> Content {
        Content::new(self.hold.handle, pfn.get(), false)
    }

    fn visit(&mut self, pfn: Pfn) {
        let handle = self.hold.handle;
        if self.task == Task::Take {
            if MM.dev_page(pfn).is_none_or(|page| page.user.is_some())
                || MM.get_dev_page(pfn, handle).is_err()
            {
                return;
            }
            self.content(pfn).write(pfn);
            self.pages += 1;
            return;
        }
        let user = MM.dev_page(pfn).and_then(|page| page.user);
        if user.is_none_or(|user| user.tag != handle) {
            return;
        }
        self.pages += 1;
        if self.task == Task::Release {
            MM.put_dev_page(pfn, handle).expect("it is this user's");
        } else if !self.content(pfn).matches(pfn) {
            self.corrupt += 1;
            self.first_corrupt.get_or_insert(pfn.get().into());
        }
    }

    fn end(&self) -> Answer {
        let Self { pages, corrupt, first_corrupt, .. } = *self;
        match self.task {
            Task::Take => {
                // No page of it lies behind the last one that was taken.
                let taken = self.hold.range.before(self.next);
                let mut holds = HOLDS.lock();
                holds
                    .iter_mut()
                    .filter(|hold| hold.handle == self.hold.handle)
                    .for_each(|hold| hold.range = taken);
                Answer::Hogged { pages }
            }
            Task::Verify => Answer::Verified { pages, corrupt, first_corrupt },
            Task::Release => {
                HOLDS.lock().retain(|hold| hold.handle != self.hold.handle);
                Answer::Released { pages }
            }
        }
    }
}

impl Job for Walk {
    fn step(&mut self) -> Step {
        for _ in 0..BATCH {
            if self.next == self.hold.range.end() || self.pages == self.wanted {
                self.asker.answer(self.end());
                return Step::Done;
            }
            self.visit(self.next);
            self.next = self.next.add(1);
        }
        Step::Again
    }
}
