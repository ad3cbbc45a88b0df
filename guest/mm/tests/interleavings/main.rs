//! Models of the lock-free steps of `guest/mm`, run through every interleaving of their CPUs and every
//! value that a relaxed load may return (by loom, up to a number of preemptions).
//!
//! The code itself cannot run here, because pages lie in raw memory and statics are made at compile time. So
//! each model repeats the functions of one file, step by step and by name, on a machine as small as the race
//! allows. A change of a step in the code needs the same change here. Every rule that the code relies on is a
//! switch here, and a test shows that the model breaks without it: a model that cannot fail proves nothing.
//!
//! Identifiers such as S3.1 are claims of `docs/features.toml`.

mod deferred;
mod lazy;
mod lock;
mod pcp;
mod sparse;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// The violations seen in any of the interleavings.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<BTreeSet<&'static str>>>);

impl Witness {
    /// Records `violation` unless `holds`. It does not panic, so that a run with a violation ends normally.
    fn expect(&self, holds: bool, violation: &'static str) {
        if !holds {
            self.0.lock().expect("no panic holds it").insert(violation);
        }
    }
}

/// The payload of the panic that ends an exploration. Loom has no other way to end one.
struct Seen;

/// The largest number of switches between CPUs at points where neither waits. The races here need two or three.
/// A third CPU gives so many interleavings that a model with three CPUs has a lower bound of its own.
const PREEMPTIONS: usize = 3;

/// Runs `model` in every interleaving, or up to the first violation; returns the violations seen.
fn explore(
    name: &str,
    preemptions: usize,
    to_the_end: bool,
    model: impl Fn(&Witness) + Send + Sync + 'static,
) -> BTreeSet<&'static str> {
    let (witness, runs) = (Witness::default(), Arc::new(AtomicUsize::new(0)));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    let (seen, count) = (witness.clone(), runs.clone());
    let explored = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            count.fetch_add(1, SeqCst);
            model(&seen);
            if !to_the_end && !seen.0.lock().expect("no panic holds it").is_empty() {
                resume_unwind(Box::new(Seen));
            }
        });
    }));
    if let Err(panic) = explored
        && !panic.is::<Seen>()
    {
        resume_unwind(panic);
    }
    let violations = witness.0.lock().expect("no panic holds it").clone();
    println!("{name}: {} interleavings, violations {violations:?}", runs.load(SeqCst));
    violations
}

/// No interleaving of two CPUs breaks `model`.
#[track_caller]
fn holds(name: &str, model: impl Fn(&Witness) + Send + Sync + 'static) {
    assert_eq!(explore(name, PREEMPTIONS, true, model), BTreeSet::new(), "{name}");
}

/// Some interleaving breaks `model`, in this way.
#[track_caller]
fn breaks(name: &str, violation: &'static str, model: impl Fn(&Witness) + Send + Sync + 'static) {
    let violations = explore(name, PREEMPTIONS, false, model);
    assert!(
        violations.contains(violation),
        "{name}: no interleaving shows {violation:?}; violations are {violations:?}"
    );
}
