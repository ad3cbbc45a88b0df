//! Probes: whether the kernel waits for another CPU where it has to.
//!
//! Takes the place of Linux's `rcutorture` and `test_*` modules. A probe holds another CPU in a window (`cpu/window.rs`)
//! in which the kernel has to wait for it, and lets the boot CPU do the operation that waits. The other CPU is let go
//! when the boot CPU waits for it. It is let go too when the operation has ended, and then the kernel did not wait. So
//! the result of a probe does not depend on time.
//!
//! Invariant: a probe has the right to use windows, so one probe runs at a time, and no race beside it.

use alloc::boxed::Box;

use tidevm_abi::{Answer, Failure, Handle, HogKind, ProbedWait};
use tidevm_mm::{Gfp, MemmapFrames, NoPageTable, Order, PAGEBLOCK_PAGES, Pfn, PfnRange, Platform, SectionNr};
use x86_64::instructions::interrupts::without_interrupts;

use crate::agent::pages::SystemPages;
use crate::agent::pattern::PagePattern;
use crate::agent::walk::{self, Task};
use crate::agent::workload::Workload;
use crate::agent::{churn, workload};
use crate::cpu::time::Instant;
use crate::cpu::window::{Cpus, Until, Window, Windows};
use crate::cpu::{self, wait};
use crate::job::{self, Job, Progress};
use crate::mailbox::{self, Reply, Requester};
use crate::mem::{MM, platform};

/// The workload of a probe. A session and the shell count their handles from 0.
const HANDLE: Handle = Handle::MAX;

/// Longest time until a call of a probe is answered, in milliseconds.
const MILLIS: u64 = 60_000;

/// The job of the boot CPU.
struct Probe {
    wait: ProbedWait,
    stage: Stage,
    /// Given back before the answer.
    windows: Windows,
    reply: Reply,
}

enum Stage {
    /// Nothing has begun.
    Start,
    /// The other CPU comes to the end of its job, and the boot CPU's job loop goes round so many times more: a job of
    /// the same call on the boot CPU ends meanwhile.
    Ends { rounds: u32, call: Call },
    /// The other CPU was let go. It is held again when it has given the answer.
    Answers(Call),
}

/// A call that a probe makes.
#[derive(Clone, Copy)]
struct Call {
    deadline: Instant,
    /// Free pages before it.
    free: u64,
}

/// Starts the probe of `wait`.
///
/// # Errors
/// [`Failure::Unfit`] when there is no other CPU, [`Failure::ProbeUnderWay`] during a probe or a race.
pub fn start(requester: Requester, wait: ProbedWait) -> Result<(), Failure> {
    if cpu::online() == 1 {
        return Err(Failure::Unfit);
    }
    let windows = Windows::take().ok_or(Failure::ProbeUnderWay)?;
    job::spawn(0, Box::new(Probe { wait, stage: Stage::Start, windows, reply: Reply::to(requester) }));
    Ok(())
}

impl Probe {
    /// Answers: the kernel waited, or not, or the probe could not begin.
    fn end(&mut self, waited: Result<bool, Failure>) -> Progress {
        self.reply.set(match waited {
            Ok(true) => Answer::Done,
            Ok(false) => Answer::Failed(Failure::NotAwaited(self.wait)),
            Err(failure) => Answer::Failed(failure),
        });
        Progress::Done
    }

    /// Makes a call whose job on the other CPU is held at its end.
    fn call(&mut self) -> Result<Progress, Failure> {
        assert_ends_once()?;
        let free = free_pages();
        // The workload's table is at least a page, and no page of it is taken.
        let threads = cpu::online() as u32;
        let slots = if self.wait == ProbedWait::Churn { churn::slots(threads) } else { 1 };
        let workload = Workload::new(HANDLE, HogKind::Movable, false, slots)?;
        assert!(mailbox::take_probe_answer().is_none(), "a probe's call was answered before it was made");
        self.windows.hold(Window::JobEnded, Cpus::Only(other()), Until::Opened);
        match self.wait {
            ProbedWait::Churn => churn::start(Requester::Probe, workload, threads, 1),
            _ => walk::start(Requester::Probe, SystemPages::of(workload), Task::RELEASE),
        }
        self.stage = Stage::Ends { rounds: 3, call: Call { deadline: Instant::in_millis(MILLIS), free } };
        Ok(soon())
    }
}

impl Job for Probe {
    fn step(&mut self) -> Progress {
        match &mut self.stage {
            Stage::Start => match self.wait {
                ProbedWait::GracePeriod => self.end(Ok(grace_period(&self.windows))),
                ProbedWait::TlbFlush => self.end(tlb_flush(&self.windows)),
                ProbedWait::PageCopy => self.end(page_copy(&self.windows)),
                ProbedWait::Release | ProbedWait::Churn => {
                    self.call().unwrap_or_else(|failure| self.end(Err(failure)))
                }
            },
            Stage::Ends { call, .. } if !Window::JobEnded.is_reached() => {
                let ended = !call.deadline.has_passed();
                assert!(ended, "no job of a probe's call ended within {MILLIS} ms");
                soon()
            }
            Stage::Ends { rounds: 0, call } => {
                let call = *call;
                let early = mailbox::take_probe_answer().is_some();
                self.windows.hold(Window::Answered, Cpus::Only(other()), Until::Opened);
                self.windows.open(Window::JobEnded);
                if early {
                    self.windows.open(Window::Answered);
                    return self.end(Ok(false));
                }
                self.stage = Stage::Answers(call);
                soon()
            }
            Stage::Ends { rounds, .. } => {
                *rounds -= 1;
                soon()
            }
            Stage::Answers(call) => {
                if mailbox::take_probe_answer().is_some() {
                    let is_free = free_pages() == call.free;
                    self.windows.open(Window::Answered);
                    return self.end(Ok(is_free));
                }
                assert!(!call.deadline.has_passed(), "a probe's call was not answered within {MILLIS} ms");
                soon()
            }
        }
    }
}

/// Two calls may end one workload. The second must leave a newer workload at the same place.
///
/// # Panics
/// When the newer workload is gone.
fn assert_ends_once() -> Result<(), Failure> {
    let workload = || Workload::new(HANDLE, HogKind::Movable, false, 1);
    let ended = workload()?;
    ended.unregister();
    let newer = workload()?;
    ended.unregister();
    assert!(workload::find(HANDLE).is_some(), "a workload that had ended took the place of a newer one");
    newer.unregister();
    Ok(())
}

fn free_pages() -> u64 {
    MM.stats().zones.iter().map(|zone| zone.all_free() + zone.pcp).sum()
}

fn soon() -> Progress {
    Progress::Idle(Some(Instant::in_millis(1)))
}

/// The CPU that is held: the one on which workloads run.
fn other() -> usize {
    workload::home_cpu(0)
}

/// A job whose one step is held.
struct Held {
    /// Interrupts are off meanwhile.
    masked: bool,
}

impl Job for Held {
    fn step(&mut self) -> Progress {
        if self.masked {
            without_interrupts(|| Window::Probe.come());
        } else {
            Window::Probe.come();
        }
        Progress::Done
    }
}

/// Holds the other CPU in a step, until this CPU waits for it.
fn hold_in_step(windows: &Windows, masked: bool) {
    windows.hold(Window::Probe, Cpus::Only(other()), Until::AwaitedBy(cpu::this()));
    job::spawn(other(), Box::new(Held { masked }));
    wait::until(MILLIS, format_args!("CPU {} did not come to its step", other()), || {
        Window::Probe.is_reached()
    });
}

/// Whether the CPU that is held at `window` has gone on, so that the operation that has just ended waited for it.
/// Lets it go in any case.
fn was_awaited(windows: &Windows, window: Window) -> bool {
    let left = window.is_left();
    windows.open(window);
    left
}

fn grace_period(windows: &Windows) -> bool {
    hold_in_step(windows, false);
    let _hotplug = MM.hotplug();
    MM.platform().synchronize();
    was_awaited(windows, Window::Probe)
}

/// Unmaps in each of the platform's ways: a memmap that describes nothing, by a large page and by small pages, and the
/// direct map of memory that does not exist.
fn tlb_flush(windows: &Windows) -> Result<bool, Failure> {
    let backing = MM.alloc_pages(Order::PAGEBLOCK, Gfp::Kernel).map_err(|_| Failure::NoMemory)?;
    let waited = {
        let _hotplug = MM.hotplug();
        unmap_in_each_way(windows, platform::unused_section(), backing)
    };
    MM.free_pages(backing, Order::PAGEBLOCK);
    waited.map_err(|NoPageTable| Failure::NoMemory)
}

fn unmap_in_each_way(windows: &Windows, section: SectionNr, backing: Pfn) -> Result<bool, NoPageTable> {
    let platform = MM.platform();
    platform.map_memmap(section, backing)?;
    let whole = flushes_other(windows, || platform.unmap_memmap(section));
    let frames: MemmapFrames = core::array::from_fn(|index| backing.add(index as u32));
    platform.map_memmap_base(section, &frames)?;
    let small = flushes_other(windows, || assert_eq!(platform.unmap_memmap_base(section), frames));
    let memory = PfnRange::new(section.start(), PAGEBLOCK_PAGES);
    platform.map_direct(memory)?;
    let direct = flushes_other(windows, || platform.unmap_direct(memory));
    Ok(whole && small && direct)
}

/// Whether `unmap` returns only when the other CPU, which is held with interrupts off, has flushed its TLB.
fn flushes_other(windows: &Windows, unmap: impl FnOnce()) -> bool {
    let flushes = || cpu::area(other()).flushes.load(core::sync::atomic::Ordering::Relaxed);
    hold_in_step(windows, true);
    let before = flushes();
    unmap();
    was_awaited(windows, Window::Probe) && flushes() > before
}

/// Copies pages, of which the other CPU has to copy at least one.
fn page_copy(windows: &Windows) -> Result<bool, Failure> {
    const ORDER: Order = Order::new(2);
    let alloc = || MM.alloc_pages(ORDER, Gfp::Kernel).map_err(|_| Failure::NoMemory);
    let from = alloc()?;
    let to = alloc().inspect_err(|_| MM.free_pages(from, ORDER))?;
    let (me, pattern) = (cpu::this(), |index| PagePattern::new(HANDLE, index, true));
    for index in 0..ORDER.pages() {
        pattern(index).write(from.add(index));
        pattern(ORDER.pages() + index).write(to.add(index));
    }
    let pages = core::array::from_fn::<(Pfn, Pfn), { 1 << ORDER.get() }, _>(|index| {
        (to.add(index as u32), from.add(index as u32))
    });
    windows.hold(Window::Copying, Cpus::AllBut(me), Until::AwaitedBy(me));
    windows.hold(Window::Posted, Cpus::Only(me), Until::Reached(Window::Copying));
    MM.platform().copy_pages(&pages);
    let is_copied = |index| pattern(index).first_bad(0, to.add(index)).is_none();
    let copied = (0..ORDER.pages()).all(is_copied);
    let waited = was_awaited(windows, Window::Copying);
    // Before that the other CPU may still write to its page.
    wait::until(MILLIS, format_args!("no CPU came back from its copy"), || Window::Copying.is_left());
    {
        let _hotplug = MM.hotplug();
        MM.platform().synchronize();
    }
    MM.free_pages(from, ORDER);
    MM.free_pages(to, ORDER);
    Ok(copied && waited)
}
