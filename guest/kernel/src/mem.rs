//! Memory below and around `tidevm_mm`: page tables and a check of them, the platform that `mm` runs on, the heap, and
//! the jobs that copy pages and initialise boot memory; and whether memory may be lent to the host.

pub mod copy;
pub mod deferred;
pub mod heap;
pub mod lending;
pub mod mappings;
pub mod paging;
pub mod platform;
pub mod span;
pub mod stacks;
pub mod stamps;

pub use platform::MM;
