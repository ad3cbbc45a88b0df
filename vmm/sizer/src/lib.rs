//! Keeps a running VM at the size that its guest needs: the policy of `tidevm-autosize` in a thread beside the VM.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`wish`] | the bounds that a user asks for, as text and against a machine | running VMs |
//! | `engine` | when the guest is asked, and what is done about its answers | threads, events |
//! | `target` | what of a VM the engine uses, so that tests can put a fake in its place | the policy |
//! | `status` | how a VM is sized, for those who ask | how it came about |
//! | `ledger` | what the sizes add up to | where they come from |
//! | [`sizer`] | the thread, and the handle for others | the policy |
//!
//! The nearest relative is the `mom` of oVirt, which polls each guest. Differs on purpose: the guest is told the levels of free
//! memory at which there is something to decide, and speaks up when it passes one. A guest whose memory stays between them is
//! not asked, so that an idle machine stays idle.
//!
//! Invariants: a target lies within the bounds. A target that somebody else sets is in force until that hold is released. At
//! most one question to the guest is open.

mod engine;
mod ledger;
pub mod sizer;
mod status;
mod target;
pub mod wish;

pub use sizer::Sizer;
pub use status::{Counts, Status};
pub use tidevm_autosize::{Bounds, DEFAULT_HEADROOM, Pace};
pub use wish::{Wish, WishError};
