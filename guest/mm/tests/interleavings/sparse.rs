//! `src/sparse.rs`: a look-up by frame number meets a section that comes and goes.
//!
//! One CPU adds a memory block, puts it online, takes it offline and removes it. Another CPU looks up pages of it, as
//! every walk over frames does, once in each step of its job loop. The simulated machine fills a memmap with garbage
//! when it is mapped and when it is unmapped.
//!
//! Must hold: a CPU that finds a section online reads pages that were initialised, and that are mapped until its step
//! ends (pitfall 13 of `docs/pitfalls.md`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use shuttle::thread;
use tidevm_mm::{InitPolicy, MemoryContent, NodeId, Options, PageblockSet};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::machine::{BLOCK, boot, in_schedule, online, small, step_on};
use crate::schedules::holds;

/// Returns how many pages were found online.
fn look_up_meets(options: Options) -> usize {
    let machine = boot(&SimMachine { options, cpus: 2, ..small() }, 0);
    let gone = AtomicBool::new(false);
    let mut found = 0;
    in_schedule(&machine, 0, |mm| {
        found = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut looks = 0;
                // The memmap itself, the first page of a buddy block, and one in it.
                let pages = [0, 1024, 1030].map(|offset| BLOCK.start().add(offset));
                while !gone.load(SeqCst) {
                    looks += step_on(mm, 1, || pages.iter().filter(|&&pfn| mm.look_at(pfn)).count());
                    thread::yield_now();
                }
                looks
            });
            Sim::run_on(0, || {
                let added = mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, options.content);
                added.expect("it is added");
                online(mm, BLOCK);
                mm.hotplug().offline(BLOCK).expect("nothing is in use");
                mm.hotplug().remove_memory(BLOCK).expect("it is offline");
                gone.store(true, SeqCst);
            });
            reader.join().expect("it ends")
        });
    });
    found
}

/// No schedule breaks the model, and in some of them the reader found the memory block online.
fn look_up_holds(options: Options) {
    let found = Arc::new(AtomicUsize::new(0));
    let sum = found.clone();
    holds(move || {
        sum.fetch_add(look_up_meets(options), SeqCst);
    });
    assert!(found.load(SeqCst) > 0, "the reader never came in time");
}

/// Pitfalls 13 and 17: every page is written before the section is published.
#[test]
fn a_section_is_found_with_its_pages_until_its_last_reader_is_gone() {
    look_up_holds(SimMachine::OPTIONS);
}

/// The same where only the heads of buddy blocks are written.
#[test]
fn a_section_of_zeroed_memory_is_found_until_its_last_reader_is_gone() {
    let options = SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
    look_up_holds(options);
}
