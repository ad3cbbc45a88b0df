//! The calls to the host that change guest memory, as a test sees them: before each one, the test may look at
//! the memory, and may let the call fail.
//!
//! Invariant: a watch belongs to one thread. Each test has its own.

use std::cell::RefCell;
use std::io;

use super::range::OffsetRange;

/// A call to the host. Offsets are those of the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostCall {
    Open(OffsetRange),
    Close(OffsetRange),
    Discard(OffsetRange),
    /// A slot with its guest-physical address and its size.
    AddSlot(u64, u64),
    RemoveSlot(u32),
}

/// Returns whether the call fails.
type Watch = Box<dyn FnMut(HostCall) -> bool>;

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// From now on `watch` is asked before each call of this thread whether the call fails.
pub(crate) fn watch(watch: impl FnMut(HostCall) -> bool + 'static) {
    drop(WATCH.replace(Some(Box::new(watch))));
}

/// Asks the watch of this thread.
///
/// # Errors
/// `ENOMEM`, when the test lets the call fail.
pub(crate) fn about_to(call: HostCall) -> io::Result<()> {
    let fails = WATCH.with_borrow_mut(|watch| watch.as_mut().is_some_and(|watch| watch(call)));
    if fails { Err(io::Error::from_raw_os_error(libc::ENOMEM)) } else { Ok(()) }
}
