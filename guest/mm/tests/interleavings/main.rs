//! Operations of the real `guest/mm`, on a small simulated machine, in thousands of orders of their steps.
//!
//! Shuttle runs the threads that stand for CPUs one at a time. Each access to an atomic is a point where it may go on
//! with another one (`guest/mm/src/sync.rs`). Half of the schedules are random, the other half are chosen by PCT, which
//! finds rare orders of few steps. Each model must hold in 3,000 schedules, and a broken variant must fail in one
//! of them. Shuttle knows no weak memory orderings: for those see `guest/mm/src/sync/tests.rs`.
//!
//! After each schedule `check` walks all of the machine. A model that cannot fail proves nothing. So models also run on
//! broken variants of the code, and must fail. `tests/mutants/mm-interleavings.toml` has the mistakes that the models must
//! notice.
//!
//! Identifiers such as S3.1 are claims of `docs/features.toml`.

mod deferred;
mod lazy;
mod machine;
mod pcp;
mod pgmap;
mod range;
mod reporting;
mod schedules;
mod sparse;
mod walk;
