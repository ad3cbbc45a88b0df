//! Models of the memory orderings of this crate: real functions of a few steps, in every execution that loom finds.
//!
//! Each model has two threads. One writes data and then publishes it by a function of this crate; the other one finds
//! it by another function and looks at the data. So a model fails when one of the two orderings is `Relaxed`. Whole
//! operations are too long for loom: shuttle runs them (`tests/interleavings`).
//!
//! Invariant: a model changes atomics only, or what it makes itself. Other memory would not begin anew with the next
//! execution.

mod copy_batch;
mod deferred;
mod grace;
mod lock;
mod page;
mod pcplist;
mod pgmap;
mod sparse;
mod tlb_flush;
mod wakeup;
mod zone;

use std::boxed::Box;
use std::println;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::Mm;
use crate::sim::{Sim, SimMachine};
use crate::sync::loom::{begin, end};
use crate::sync::{AtomicU32, Ordering::Relaxed};

/// Most atomics that the threads of a model access.
const WORDS: usize = 48;

/// The largest number of switches between threads at points where neither waits.
const PREEMPTIONS: usize = 3;

/// Runs `body` in every execution, or up to the first that panics.
fn model(body: impl Fn() + Send + Sync + 'static) {
    struct End;

    impl Drop for End {
        fn drop(&mut self) {
            end();
        }
    }

    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    let _end = End;
    let executions = Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    builder.check(move || {
        count.fetch_add(1, SeqCst);
        begin(WORDS);
        body();
        end();
    });
    println!("{} executions", executions.load(SeqCst));
    assert!(executions.load(SeqCst) > 1, "the threads meet in no way");
}

/// Data that has no order of its own: what a real thread writes before it publishes.
struct Data(AtomicU32);

impl Data {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn write(&self) {
        self.0.store(1, Relaxed);
    }

    #[track_caller]
    fn assert_written(&self) {
        assert_eq!(self.0.load(Relaxed), 1, "data that was published is not seen");
    }
}

/// Runs both functions at once, in every execution.
fn in_every_execution(one: impl Fn() + Send + Sync + 'static, other: impl Fn() + Send + Sync + 'static) {
    let (one, other) = (Arc::new(one), Arc::new(other));
    model(move || {
        let one = one.clone();
        let thread = loom::thread::spawn(move || one());
        other();
        thread.join().expect("it ends");
    });
}

/// A machine that is not booted.
fn machine() -> &'static Mm<Sim> {
    SimMachine { sections: 2, ..SimMachine::default() }.build()
}

/// A value for one model.
fn fixed<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
