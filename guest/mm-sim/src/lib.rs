//! The hosted platform of [`tidevm_mm`]: a machine for tests, stricter than a real one.
//!
//! Threads stand for CPUs ([`Sim::run_on`]). Every page has one word of content ([`Sim::write`],
//! [`Sim::read`]), so that tests see whether data survives migration. Where hardware would let a mistake
//! pass, this panics or makes it visible:
//! - content outside the direct map cannot be reached, and is lost when its page is unmapped;
//! - a memmap is filled with garbage when it is mapped (zeros may be relied on only when its backing is fresh
//!   from a host that promises them), and when it is unmapped (a later look finds garbage);
//! - the backing of a memmap must be mapped, unless it is boot memory, and backs one memmap;
//! - a section is Absent before its memmap is mapped and after it is unmapped;
//! - two threads are not one CPU at the same time, as far as they use its per-CPU lists or take steps;
//! - a memmap is only unmapped after a grace period at whose beginning its section was Absent;
//! - memory is mapped and unmapped only while its section is Absent, or while its pageblock is an unplugged one
//!   of an online memory block.
//!
//! A test has steps fail by [`Sim::inject`], and sees every call of `mm` by [`Sim::watch`].
//!
//! ```
//! use tidevm_mm::{Gfp, Order};
//! use tidevm_mm_sim::{Sim, SimMachine};
//!
//! let mm = SimMachine { cpus: 2, ..SimMachine::default() }.boot();
//! let page = mm.alloc_pages(Order::PAGE, Gfp::Kernel)?;
//! mm.platform().write(page, 7);
//! // Another CPU reads the page, and frees it.
//! std::thread::spawn(move || {
//!     Sim::run_on(1, || {
//!         assert_eq!(mm.platform().read(page), 7);
//!         mm.free_pages(page, Order::PAGE);
//!     });
//! })
//! .join()
//! .expect("no panic");
//! mm.check();
//! # Ok::<(), tidevm_mm::AllocError>(())
//! ```
//!
//! The unit tests of `tidevm_mm` compile these files too, as a module. They look at what no other crate can see, and for them
//! the crate that this one depends on would be another one. So a path here begins with `tidevm_mm` or with `super`, and never
//! with `crate`.

/// The program of README.md, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod machine;
mod platform;

pub use self::machine::{Machine, SimMachine, address};
pub use self::platform::{PlatformCall, Sim};
