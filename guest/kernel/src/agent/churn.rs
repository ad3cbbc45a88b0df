//! A thread of allocations and frees: movable pages that come and go while memory is resized, and
//! kernel pages of several orders beside them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tidevm_abi::Answer;
use tidevm_mm::{Gfp, Order, Pfn};

use crate::agent::workload::{Take, Workload};
use crate::cpu;
use crate::cpu::time::Instant;
use crate::job;
use crate::job::{Job, Progress};
use crate::mailbox::Requester;
use crate::mem::MM;

/// Operations of one step.
const BATCH: u32 = 32;
/// Movable pages that one thread holds at most.
const SLOTS: u32 = 512;
/// Kernel blocks that one thread holds at most.
const BLOCKS: usize = 16;

/// What the threads of one call have in common.
struct Shared {
    requester: Requester,
    workload: Arc<Workload>,
    running: AtomicU32,
    allocations: AtomicU64,
    failures: AtomicU64,
}

struct ChurnThread {
    shared: Arc<Shared>,
    /// First of this thread's slots.
    base: u32,
    blocks: [Option<(Pfn, Order)>; BLOCKS],
    random: u64,
    until: Instant,
}

/// Slots that `threads` threads need.
pub fn slots(threads: u32) -> u64 {
    u64::from(threads) * u64::from(SLOTS)
}

/// Starts `threads` threads on as many CPUs, for `millis` milliseconds, in the slots of `workload`.
pub fn start(requester: Requester, workload: Arc<Workload>, threads: u32, millis: u64) {
    let shared = Arc::new(Shared {
        requester,
        workload,
        running: AtomicU32::new(threads),
        allocations: AtomicU64::new(0),
        failures: AtomicU64::new(0),
    });
    let until = Instant::in_millis(millis);
    for thread in 0..threads {
        let job = ChurnThread {
            shared: shared.clone(),
            base: thread * SLOTS,
            blocks: [None; BLOCKS],
            random: u64::from(thread) + 1,
            until,
        };
        // From the last CPU down: the boot CPU has the drivers.
        let online = cpu::online();
        job::spawn((online - 1) - thread as usize % online, Box::new(job));
    }
}

impl ChurnThread {
    /// xorshift64: any sequence will do, as long as the low bits differ.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn allocate(&self, order: Order, gfp: Gfp) -> Option<Pfn> {
        let page = MM.alloc_pages(order, gfp).ok();
        let counter = if page.is_some() { &self.shared.allocations } else { &self.shared.failures };
        counter.fetch_add(1, Ordering::Relaxed);
        page
    }

    fn turn_movable(&self, index: u32) {
        let workload = &self.shared.workload;
        match workload.take(index) {
            Take::Empty => {
                if let Some(pfn) = self.allocate(Order::PAGE, Gfp::Movable) {
                    workload.put(index, pfn);
                }
            }
            Take::Held(pfn) => workload.free(index, pfn),
            Take::Busy => {}
        }
    }

    fn turn_kernel(&mut self, index: usize, order: Order) {
        self.blocks[index] = match self.blocks[index] {
            Some((pfn, order)) => {
                MM.free_pages(pfn, order);
                None
            }
            None => self.allocate(order, Gfp::Kernel).map(|pfn| (pfn, order)),
        };
    }

    /// Frees everything; `false` while a page is being moved.
    fn settle(&mut self) -> bool {
        for (pfn, order) in self.blocks.iter_mut().filter_map(Option::take) {
            MM.free_pages(pfn, order);
        }
        let workload = &self.shared.workload;
        (self.base..self.base + SLOTS).all(|index| match workload.take(index) {
            Take::Held(pfn) => {
                workload.free(index, pfn);
                true
            }
            Take::Empty => true,
            Take::Busy => false,
        })
    }

    fn end(&self) -> Progress {
        let shared = &self.shared;
        if shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.workload.unregister();
            let answer = Answer::Churned {
                allocations: shared.allocations.load(Ordering::Relaxed),
                failures: shared.failures.load(Ordering::Relaxed),
            };
            shared.requester.answer(answer);
        }
        Progress::Done
    }
}

impl Job for ChurnThread {
    fn step(&mut self) -> Progress {
        if self.until.has_passed() {
            return if self.settle() { self.end() } else { Progress::Again };
        }
        for _ in 0..BATCH {
            let random = self.next_random();
            let pick = (random >> 8) as u32;
            if random & 7 == 0 {
                self.turn_kernel(pick as usize % BLOCKS, Order::new((random >> 4 & 3) as u8));
            } else {
                self.turn_movable(self.base + pick % SLOTS);
            }
        }
        Progress::Again
    }
}
