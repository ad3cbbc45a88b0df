//! The walk over a workload's pages: one job that takes, verifies, corrupts or releases them, a batch per step, so
//! that the CPU's other jobs go on.
//!
//! A [`PageSet`] knows how a page is taken and given back: [`SystemPages`] in memory of the page allocator,
//! [`DevicePages`] in device memory.
//!
//! Invariant: a walk holds no page from one step to the next.
//!
//! [`SystemPages`]: crate::agent::pages::SystemPages
//! [`DevicePages`]: crate::agent::pmem::pages::DevicePages

use alloc::boxed::Box;

use tidevm_abi::{Answer, BadWord, CorruptPart, Failure};
use tidevm_mm::Pfn;

use crate::agent::pattern::PagePattern;
use crate::agent::pressure::{self, Wait};
use crate::agent::workload::{Hold, home_cpu};
use crate::cpu::time::Instant;
use crate::job::{self, Job, Progress};
use crate::mailbox::{Reply, Requester};
use crate::mem::lending;

/// Pages of one step.
const BATCH: u32 = 64;

/// The result of [`PageSet::take_some`].
pub enum Taken {
    /// So many pages, at least one.
    Pages(u32),
    /// The next page is in use elsewhere, and is left out.
    LeftOut,
    /// There is no page now, and memory that is lent to the host comes back in a moment.
    Lent,
    /// There are no more.
    NoMore,
}

/// The pages of one workload, at places with numbers.
pub trait PageSet: Send {
    /// Takes the next pages for the workload, at most `wanted` of them, and fills them with their patterns.
    fn take_some(&mut self, wanted: u64) -> Taken;

    /// Whether there may be more pages later, when there are none now.
    fn may_come_later(&self) -> bool {
        false
    }

    /// No more pages are taken.
    fn end_take(&mut self) {}

    /// Makes the caller the one that changes which pages the workload has; `false` while another one does. Who takes the
    /// first pages is that from the start.
    fn begin_change(&self) -> bool;

    /// The change is over, and the workload stays.
    fn end_change(&self);

    /// Number of places.
    fn places(&self) -> u32;

    /// Holds the page at `place`, so that it neither moves nor goes away.
    fn hold(&self, place: u32) -> Hold;

    /// The pattern of the page at `place`.
    fn pattern(&self, place: u32) -> PagePattern;

    /// Makes the memmap say that the page that [`hold`](Self::hold) gave has an owner that is not registered. `false`
    /// when the memmap has no owners for such pages.
    fn corrupt_owner(&self, _pfn: Pfn) -> bool {
        false
    }

    /// Lets go of the page that [`hold`](Self::hold) gave.
    fn let_go(&self, place: u32, pfn: Pfn);

    /// Gives back the page that [`hold`](Self::hold) gave, at the latest in [`end_step`](Self::end_step).
    fn release(&mut self, place: u32, pfn: Pfn);

    /// A step ends.
    fn end_step(&mut self) {}

    /// Forgets the workload, which has no page left.
    fn forget(&self);
}

/// The task of a walk.
#[derive(Clone, Copy)]
pub enum Task {
    /// Take pages until there are `wanted`.
    Take {
        /// Number of pages.
        wanted: u64,
        /// Keep what fits. Otherwise give all of it back if it is less.
        partial: bool,
    },
    /// Compare every page with its pattern.
    Verify {
        /// Pages that differ.
        corrupt: u64,
        /// The first word that differs.
        first: Option<BadWord>,
    },
    /// Change a page behind the workload's back.
    Corrupt {
        /// The page, counted from 0 in the order of the places that have one.
        page: u64,
        /// The part of it that changes.
        part: CorruptPart,
        /// The word that is wrong now, or none for the memmap, once it is done.
        done: Option<Result<Option<BadWord>, Failure>>,
    },
    /// Give all pages back, and forget the workload.
    Release {
        /// The answer, if it is not the number of pages.
        because: Option<Failure>,
    },
}

impl Task {
    /// The start of a verification.
    pub const VERIFY: Self = Self::Verify { corrupt: 0, first: None };

    /// The start of a release that was asked for.
    pub const RELEASE: Self = Self::Release { because: None };

    /// The start of taking `wanted` pages: what fits if it is `partial`, otherwise all or none.
    pub fn take(wanted: u64, partial: bool) -> Self {
        Self::Take { wanted, partial }
    }

    /// The start of a search for a page to corrupt.
    pub fn corrupt(page: u32, part: CorruptPart) -> Self {
        Self::Corrupt { page: page.into(), part, done: None }
    }
}

/// Starts the walk over `set`; it answers `requester` at its end.
pub fn start(requester: Requester, set: impl PageSet + 'static, task: Task) {
    let reply = Reply::to(requester);
    job::spawn(home_cpu(0), Box::new(Walk { set, task, next: 0, pages: 0, wait: None, reply }));
}

struct Walk<S> {
    set: S,
    task: Task,
    /// The next place.
    next: u32,
    /// Pages taken, visited or released so far.
    pages: u64,
    /// It waits for memory.
    wait: Option<Wait>,
    /// The last field: the answer comes when the workload's table is free.
    reply: Reply,
}

/// The result of one visit.
enum Visit {
    /// The walk goes on; the visit counts as this many pages of the step.
    Counts(u32),
    /// The page is being moved, by another CPU or between two steps of a job on this CPU.
    Busy,
    /// There is nothing to do until memory comes, or until this moment.
    Waits(Instant),
    /// There is nothing more to visit.
    End,
}

impl<S: PageSet> Walk<S> {
    fn visit(&mut self) -> Visit {
        match &mut self.task {
            Task::Take { wanted, partial } => {
                let left = *wanted - self.pages;
                let partial = *partial;
                if left == 0 { Visit::End } else { self.take(left, partial) }
            }
            Task::Verify { corrupt, first } => {
                let page = self.pages;
                visit_place(&mut self.set, &mut self.next, &mut self.pages, |set, place, pfn| {
                    if let Some(bad) = set.pattern(place).first_bad(page, pfn) {
                        *corrupt += 1;
                        first.get_or_insert(bad);
                    }
                    set.let_go(place, pfn);
                })
            }
            Task::Corrupt { done: Some(_), .. } => Visit::End,
            Task::Corrupt { page, part, done } => {
                let at_page = self.pages == *page;
                visit_place(&mut self.set, &mut self.next, &mut self.pages, |set, place, pfn| {
                    if at_page {
                        *done = Some(match part {
                            CorruptPart::Content => Ok(Some(set.pattern(place).flip(*page, pfn))),
                            CorruptPart::Memmap if set.corrupt_owner(pfn) => Ok(None),
                            CorruptPart::Memmap => Err(Failure::NoSuchPage),
                        });
                    }
                    set.let_go(place, pfn);
                })
            }
            Task::Release { .. } => {
                visit_place(&mut self.set, &mut self.next, &mut self.pages, |set, place, pfn| {
                    set.release(place, pfn);
                })
            }
        }
    }

    /// Takes pages, at most `left`, or waits for memory. With `partial` fewer pages than were wanted will do.
    fn take(&mut self, left: u64, partial: bool) -> Visit {
        if let Some(until) = self.wait.as_ref().and_then(Wait::pause) {
            return Visit::Waits(until);
        }
        // Read before there is no memory, so that none that comes after it is missed.
        let arrivals = Wait::arrivals();
        match self.set.take_some(left) {
            Taken::Pages(taken) => {
                self.wait = None;
                self.pages += u64::from(taken);
                return Visit::Counts(taken);
            }
            Taken::LeftOut => return Visit::Counts(1),
            Taken::Lent => return Visit::Waits(lending::look_again_at()),
            Taken::NoMore => {}
        }
        if self.set.may_come_later() {
            self.wait = match self.wait.take() {
                None => Wait::begin(arrivals),
                Some(wait) => wait.go_on(arrivals),
            };
        }
        match &self.wait {
            Some(wait) => Visit::Waits(wait.pause().unwrap_or_else(Instant::now)),
            None if partial => Visit::End,
            None => self.give_back(),
        }
    }

    /// Not all pages fit that were wanted: goes on with a release of those that were taken.
    fn give_back(&mut self) -> Visit {
        self.set.end_take();
        self.task = Task::Release { because: Some(Failure::DoesNotFit { pages: self.pages }) };
        self.pages = 0;
        Visit::Counts(1)
    }

    fn end(&mut self) -> Answer {
        let pages = self.pages;
        match self.task {
            Task::Take { .. } => {
                self.set.end_take();
                self.set.end_change();
                Answer::Hogged { pages }
            }
            Task::Verify { corrupt, first } => Answer::Verified { pages, corrupt, first },
            Task::Corrupt { done, .. } => match done.unwrap_or(Err(Failure::NoSuchPage)) {
                Ok(Some(word)) => Answer::Corrupted(word),
                Ok(None) => Answer::Done,
                Err(failure) => Answer::Failed(failure),
            },
            Task::Release { because } => {
                self.set.forget();
                because.map_or(Answer::Released { pages }, Answer::Failed)
            }
        }
    }
}

/// Holds the page at place `next` for `use_page`, and goes on to the following place unless the page is busy.
fn visit_place<S: PageSet>(
    set: &mut S,
    next: &mut u32,
    pages: &mut u64,
    use_page: impl FnOnce(&mut S, u32, Pfn),
) -> Visit {
    if *next == set.places() {
        return Visit::End;
    }
    match set.hold(*next) {
        Hold::Held(pfn) => {
            *pages += 1;
            use_page(set, *next, pfn);
        }
        Hold::Empty => {}
        Hold::Busy => return Visit::Busy,
    }
    *next += 1;
    Visit::Counts(1)
}

impl<S: PageSet> Job for Walk<S> {
    fn step(&mut self) -> Progress {
        let mut left = BATCH;
        let progress = loop {
            match self.visit() {
                Visit::Counts(pages) if pages < left => left -= pages,
                Visit::Counts(_) | Visit::Busy => break Progress::Again,
                Visit::Waits(until) => break Progress::Idle(Some(until)),
                Visit::End => break Progress::Done,
            }
        };
        self.set.end_step();
        pressure::look();
        if progress == Progress::Done {
            let answer = self.end();
            self.reply.set(answer);
        }
        progress
    }
}
