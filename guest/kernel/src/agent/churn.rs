//! A churn: jobs that allocate and free pages at random while memory is resized, movable pages mostly, and
//! buddy blocks of several orders for the kernel beside them. Linux has no counterpart in the kernel; its tests
//! do this from processes.
//!
//! Invariant: each thread uses its own [`SLOTS`] slots of the shared workload, and no other, so threads never
//! compete for a slot. A thread ends when it has freed all its pages. When the last one is dropped, the workload is
//! unregistered and the call is answered.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use tidevm_abi::Answer;
use tidevm_mm::{Gfp, Order, Pfn};

use crate::agent::pressure;
use crate::agent::workload::{Hold, Workload, home_cpu};
use crate::cpu::time::Instant;
use crate::job::{self, Job, Progress};
use crate::mailbox::{Reply, Requester};
use crate::mem::MM;

/// Operations of one step.
const BATCH: u32 = 32;
/// Most movable pages per thread.
const SLOTS: u32 = 512;
/// Most buddy blocks for the kernel per thread.
const BLOCKS: usize = 16;

/// The part that the threads of one call share. It is dropped with the last thread.
struct Shared {
    workload: Arc<Workload>,
    allocations: AtomicU64,
    failures: AtomicU64,
    /// The last field: the answer comes when the workload's table is free.
    reply: Reply,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.workload.unregister();
        self.reply.set(Answer::Churned {
            allocations: *self.allocations.get_mut(),
            failures: *self.failures.get_mut(),
        });
    }
}

/// One of the jobs.
struct ChurnThread {
    shared: Arc<Shared>,
    /// The thread's first slot of the workload.
    base: u32,
    blocks: [Option<(Pfn, Order)>; BLOCKS],
    random: u64,
    until: Instant,
}

/// Slots that `threads` threads need.
pub fn slots(threads: u32) -> u64 {
    u64::from(threads) * u64::from(SLOTS)
}

/// Starts `threads` threads, spread over the CPUs, for `millis` milliseconds. They use the slots of
/// `workload`.
pub fn start(requester: Requester, workload: Arc<Workload>, threads: u32, millis: u64) {
    let shared = Arc::new(Shared {
        workload,
        allocations: AtomicU64::new(0),
        failures: AtomicU64::new(0),
        reply: Reply::to(requester),
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
        job::spawn(home_cpu(thread as usize), Box::new(job));
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
        match workload.hold(index) {
            Hold::Empty => {
                if let Some(pfn) = self.allocate(Order::PAGE, Gfp::Movable) {
                    workload.put(index, pfn);
                }
            }
            Hold::Held(pfn) => workload.free(index, pfn),
            Hold::Busy => {}
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
    fn free_all(&mut self) -> bool {
        for (pfn, order) in self.blocks.iter_mut().filter_map(Option::take) {
            MM.free_pages(pfn, order);
        }
        let workload = &self.shared.workload;
        (self.base..self.base + SLOTS).all(|index| match workload.hold(index) {
            Hold::Held(pfn) => {
                workload.free(index, pfn);
                true
            }
            Hold::Empty => true,
            Hold::Busy => false,
        })
    }
}

impl Job for ChurnThread {
    fn step(&mut self) -> Progress {
        if self.until.has_passed() {
            return if self.free_all() { Progress::Done } else { Progress::Again };
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
        pressure::look();
        Progress::Again
    }
}
