//! A race between frees and isolation: one CPU takes a pageblock out of the allocator and gives it back,
//! again and again, while the other CPUs free pages of it.
//!
//! In each cycle the boot CPU allocates pages, hands them to the other CPUs, and takes their pageblock while
//! those CPUs are in the middle of freeing. The cycle starts when all of them have arrived. Otherwise a CPU
//! that its host does not run would still hold its pages, and pages that no CPU is about to free rightly stop
//! a range from being taken.
//!
//! With the per-CPU lists disabled every cycle succeeds. With a single drain, a page that is freed between
//! the drain and the isolation stays on a per-CPU list, and the cycle fails. Whether a cycle meets that moment is
//! chance, unless the race is a held one. Then the boot CPU is held after its first drain until the other CPUs have
//! freed all their pages, which they begin to do when it is held.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use spin::Mutex;
use tidevm_abi::{Answer, Failure};
use tidevm_mm::{Gfp, NodeId, Order, Pfn, Platform, ZoneType};

use crate::cpu::window::{Cpus, Until, Window, Windows};
use crate::cpu::{self, lapic, wait};
use crate::job::{self, Job, Progress};
use crate::mailbox::{Reply, Requester};
use crate::mem::MM;

/// Pages that are handed out per cycle.
const PAGES: usize = 32;
/// A CPU frees its pages within milliseconds, but a host that shares its CPUs may let it wait.
const MILLIS_TO_FREE: u64 = 60_000;

/// The part that all CPUs share. It is dropped with the last job.
struct Shared {
    /// The boot CPU is held while the others free their pages.
    held: bool,
    /// Pages to free, or 0. Freer `i % freers` frees slot `i`.
    slots: [AtomicU32; PAGES],
    /// The cycle whose pages are in the slots.
    round: AtomicU32,
    /// Freers that have seen the cycle; they wait for each other.
    arrived: AtomicUsize,
    /// Freers that have freed all their pages of the cycle.
    freed: AtomicUsize,
    /// Freers that are through with the cycle.
    finished: AtomicUsize,
    over: AtomicBool,
    result: Mutex<Option<Answer>>,
    /// Given back before the answer.
    windows: Windows,
    reply: Reply,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reply.set(self.result.get_mut().take().expect("the boot CPU's job ends first"));
    }
}

/// The job of the boot CPU: it hands pages out and takes their pageblock.
struct Race {
    shared: Arc<Shared>,
    freers: usize,
    cycles: u32,
    done: u32,
    failures: u32,
    stranded_before: u64,
    random: u32,
    pages: Vec<Pfn>,
}

/// The job of every other CPU: it frees its slots.
struct Freer {
    shared: Arc<Shared>,
    index: usize,
    freers: usize,
    seen: u32,
}

/// Starts `cycles` cycles, with every other CPU as a freer. In each of them the boot CPU is `held`, or not.
///
/// # Errors
/// When there is no other CPU, no plugged memory, or no memory for the job, and during a probe or another race.
pub fn start(requester: Requester, cycles: u32, held: bool) -> Result<(), Failure> {
    let freers = cpu::online() - 1;
    let movable = &MM.stats().zones[ZoneType::Movable as usize];
    if freers == 0 || movable.all_free() < 2 * PAGES as u64 {
        return Err(Failure::Unfit);
    }
    let mut pages = Vec::new();
    pages.try_reserve_exact(PAGES).map_err(|_| Failure::NoMemory)?;
    let shared = Arc::new(Shared {
        held,
        slots: [const { AtomicU32::new(0) }; PAGES],
        round: AtomicU32::new(0),
        arrived: AtomicUsize::new(0),
        freed: AtomicUsize::new(0),
        finished: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        result: Mutex::new(None),
        windows: Windows::take().ok_or(Failure::ProbeUnderWay)?,
        reply: Reply::to(requester),
    });
    for index in 0..freers {
        job::spawn(1 + index, Box::new(Freer { shared: shared.clone(), index, freers, seen: 0 }));
    }
    let stranded_before = MM.stats().pcp_stranded;
    let race = Race { shared, freers, cycles, done: 0, failures: 0, stranded_before, random: 1, pages };
    job::spawn(0, Box::new(race));
    Ok(())
}

impl Race {
    /// xorshift32: any sequence will do.
    fn next_random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random as usize
    }

    /// Allocates pages and hands out those that lie in the pageblock of the first one. Returns the pageblock.
    fn hand_out(&mut self) -> Option<Pfn> {
        while self.pages.len() < PAGES
            && let Ok(pfn) = MM.alloc_pages(Order::PAGE, Gfp::Movable)
        {
            self.pages.push(pfn);
        }
        let first = *self.pages.first()?;
        let start = first.align_down(Order::PAGEBLOCK);
        let mut slots = self.shared.slots.iter();
        for pfn in self.pages.drain(..) {
            if pfn.align_down(Order::PAGEBLOCK) == start
                && let Some(slot) = slots.next()
            {
                slot.store(pfn.get(), Ordering::Relaxed);
            } else {
                MM.free_pages(pfn, Order::PAGE);
            }
        }
        self.shared.arrived.store(0, Ordering::Relaxed);
        self.shared.freed.store(0, Ordering::Relaxed);
        self.shared.finished.store(0, Ordering::Relaxed);
        if self.shared.held {
            self.shared.windows.hold(Window::Drained, Cpus::Only(cpu::this()), Until::Opened);
        }
        self.shared.round.fetch_add(1, Ordering::Release);
        (0..self.freers).for_each(|index| lapic::wake(1 + index));
        Some(start)
    }

    fn cycle(&mut self) {
        // The pageblock is taken once this slot is freed: at a different point of the frees in each cycle.
        let moment = self.next_random() % (PAGES / 2);
        let Some(block) = self.hand_out() else {
            self.failures += 1;
            return;
        };
        let shared = &self.shared;
        await_freers(|| shared.arrived.load(Ordering::Relaxed) == self.freers);
        if !shared.held {
            await_freers(|| shared.slots[moment].load(Ordering::Relaxed) == 0);
        }
        let taken = MM.hotplug().alloc_contig_pageblock(block);
        // If there was no drain, the others free their pages now.
        shared.windows.open(Window::Drained);
        await_freers(|| shared.finished.load(Ordering::Acquire) == self.freers);
        match taken {
            Ok(()) => MM.free_pages(block, Order::PAGEBLOCK),
            Err(_) => {
                self.failures += 1;
                // Drain the per-CPU lists, so that the next cycle does not find this cycle's pages there.
                NodeId::all().for_each(|node| drop(MM.zone_pcp_disable(node.zone(ZoneType::Movable))));
            }
        }
    }
}

/// Waits until `done`, which the freers or the boot CPU make true. The boot CPU may drain lists meanwhile, which waits
/// for every CPU but those that relax.
fn await_freers(done: impl Fn() -> bool) {
    wait::until(MILLIS_TO_FREE, format_args!("the other CPUs did not free their pages"), || {
        MM.platform().relax();
        done()
    });
}

impl Job for Race {
    fn step(&mut self) -> Progress {
        if self.done < self.cycles {
            self.cycle();
            self.done += 1;
            return Progress::Again;
        }
        self.shared.over.store(true, Ordering::Release);
        (0..self.freers).for_each(|index| lapic::wake(1 + index));
        *self.shared.result.lock() = Some(Answer::Raced {
            cycles: self.done,
            failures: self.failures,
            stranded: MM.stats().pcp_stranded - self.stranded_before,
        });
        Progress::Done
    }
}

impl Job for Freer {
    fn step(&mut self) -> Progress {
        if self.shared.over.load(Ordering::Acquire) {
            return Progress::Done;
        }
        let round = self.shared.round.load(Ordering::Acquire);
        if round != self.seen {
            self.seen = round;
            self.shared.arrived.fetch_add(1, Ordering::Relaxed);
            await_freers(|| self.shared.arrived.load(Ordering::Relaxed) == self.freers);
            if self.shared.held {
                await_freers(|| Window::Drained.is_reached());
            }
            for slot in self.shared.slots.iter().skip(self.index).step_by(self.freers) {
                let pfn = slot.load(Ordering::Relaxed);
                if pfn != 0 {
                    MM.free_pages(Pfn::new(pfn), Order::PAGE);
                    slot.store(0, Ordering::Relaxed);
                    // A drain falls between any two frees, and does not wait for all of them.
                    MM.platform().relax();
                }
            }
            // Before `finished`, which lets the boot CPU ask for the window of the next cycle.
            if self.shared.freed.fetch_add(1, Ordering::AcqRel) + 1 == self.freers {
                self.shared.windows.open(Window::Drained);
            }
            self.shared.finished.fetch_add(1, Ordering::Release);
        }
        Progress::Idle(None)
    }
}
