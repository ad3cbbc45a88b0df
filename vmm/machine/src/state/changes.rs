//! Changes of a state as events of a descriptor, for a thread that waits for several things at once.
//!
//! Mirrors `notify_all` of the condition variable beside it. An event does not say what changed: the thread reads the state.
//! Changes that no read separates are one event.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Weak};

use vmm_sys_util::eventfd::EventFd;

use super::SharedState;
use crate::sync::lock;

/// A descriptor that is readable when the state has changed since [`Changes::clear`].
#[derive(Debug)]
pub struct Changes(pub(super) Arc<EventFd>);

impl Changes {
    /// Takes the event, and returns whether there was one. Read the state after it, not before.
    #[expect(clippy::must_use_candidate, reason = "the thread reads the state in any case")]
    pub fn clear(&self) -> bool {
        // Fails when nothing changed.
        self.0.read().is_ok()
    }
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Raises the event, and says whether there is still a subscription to it.
pub(super) fn raise(event: &Weak<EventFd>) -> bool {
    let Some(event) = event.upgrade() else { return false };
    // Fails when the counter is full. The event is raised then.
    if let Err(error) = event.write(1) {
        log::debug!("event: {error}");
    }
    true
}

impl SharedState {
    /// Has every later change of the state raise an event.
    ///
    /// # Errors
    /// The host provides no event descriptor.
    pub(crate) fn subscribe(&self) -> io::Result<Changes> {
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        lock(&self.subscriptions).push(Arc::downgrade(&event));
        Ok(Changes(event))
    }
}
