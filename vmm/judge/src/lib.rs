//! A judge of virtio-mem devices: whether a VMM's device keeps to its rules, row by row.
//!
//! Mirrors KVM-Unit-Tests' `run_tests.sh`: a VMM boots a guest whose only purpose is to try the machine. Differs on purpose:
//! the VMM's own resize API has a part in the rows, and the guest is that of tidevm in another mode
//! (`tidevm_abi::cmdline::JUDGE`), so that any VMM that boots a PVH kernel can be judged.
//!
//! `docs/conformance.md` has all rules, and what was found of tidevm and of QEMU.
//!
//! | file | has |
//! | --- | --- |
//! | [`rows`] | the rules |
//! | [`trial`] | the conversation of host and guest, and its deadlines |
//! | [`subject`] | the VMMs |
//! | [`render`] | what people and programs see |
//!
//! Invariant: neither a VMM nor its guest is trusted. Each wait for them has a deadline, and what they say has a bound.

pub mod render;
pub mod rows;
pub mod subject;
pub mod trial;

pub use rows::{Level, Row, rows};
pub use tidevm_abi::judge::Verdict;
pub use trial::{Limits, Outcome, judge};
