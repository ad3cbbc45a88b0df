//! Automatic sizing: what a guest uses goes in, the size that its memory should have comes out.
//!
//! The nearest relatives are the autoscalers of cluster managers, with their stabilisation window, and Linux's
//! watermarks, below which `kswapd` wakes. Differs on purpose from balloon drivers that follow free memory at once:
//! memory comes at once and goes slowly, because a guest that lacks memory waits or loses programs, and a guest that
//! has too much only costs.
//!
//! The policy is pure code: it has no clock, no thread and no VM, so the same code sizes one VM and a thousand
//! simulated ones.
//!
//! [`fleet`] is a simulation of many guests on one host.
//!
//! Invariants, which property tests check: a target lies within the bounds and is a multiple of the block; a target
//! that a user gave stays until the user hands control back.

mod bounds;
pub mod fleet;
mod policy;

pub use bounds::{Bounds, BoundsError, DEFAULT_HEADROOM, MOST_HEADROOM};
pub use policy::{Band, Decision, Pace, Policy, Sample, Why};
