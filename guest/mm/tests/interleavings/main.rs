//! Operations of the real `guest/mm`, on a small simulated machine, in thousands of orders of their steps.
//!
//! Shuttle runs the threads that stand for CPUs one at a time. Each access to an atomic is a point where it may go on
//! with another one (`guest/mm/src/sync.rs`). Half of the schedules are random, the other half are chosen by PCT, which
//! finds rare orders of few steps. Shuttle knows no weak memory orderings: for those see `guest/mm/src/sync/tests.rs`.
//!
//! After each schedule `check` walks all of the machine. A model that cannot fail proves nothing, so each is also run
//! on a broken variant of the code, and must fail.
//!
//! Identifiers such as S3.1 are claims of `docs/features.toml`.

mod deferred;
mod lazy;
mod machine;
mod pcp;
mod pgmap;
mod schedules;
mod sparse;
mod walk;
