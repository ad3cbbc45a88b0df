//! Soak: memory is plugged and unplugged again and again, with random targets, memory in use, failures of the host
//! and of the guest, and resets. No page is lost and no content.
//!
//! | level | is | file |
//! | --- | --- | --- |
//! | `device` | the driver and the VMM's device on host memory; the guest does what it is asked | `hosted`, `stack` |
//! | `hosted` | the same with the guest's memory management on the simulated machine | `hosted`, `guest` |
//! | `booted` | sessions in booted guests | `booted` |
//!
//! `cargo xtask soak` runs a level and records the result in `docs/soak.md`. `tests/hosted` is a short run.
//!
//! Invariant: a seed decides everything that the hosted levels do.

pub mod booted;
mod guest;
pub mod hosted;
mod random;
pub mod stack;
mod tally;

pub use random::Random;
pub use tally::Tally;
