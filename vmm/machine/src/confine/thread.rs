//! Threads of a VM, each locked in before its starter goes on.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::rules::Kind;
use super::{Confinement, ConfinementError};
use crate::error::{StartError, host};

/// What a new thread passes when it has made its preparations.
#[derive(Debug)]
pub struct Gate {
    confinement: Confinement,
    kind: Kind,
    passed: SyncSender<Result<(), ConfinementError>>,
}

impl Gate {
    /// Takes away the system calls that the thread does not need, and lets its starter go on. Returns whether that
    /// succeeded. If not, the thread has to end.
    #[must_use]
    pub fn pass(self) -> bool {
        let result = self.confinement.filter(self.kind);
        let passed = result.is_ok();
        // The starter waits, or panicked.
        drop(self.passed.send(result));
        passed
    }
}

/// Starts a thread called `name`, which runs `body` and is locked in as `kind` from the [`Gate`] on. Returns when it
/// has passed the gate; `what` names the step in errors.
///
/// # Errors
/// The host provides no thread, or the thread was not locked in; then it ends.
pub fn spawn(
    what: &'static str,
    name: String,
    confinement: Confinement,
    kind: Kind,
    body: impl FnOnce(Gate) + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let (passed, has_passed) = sync_channel(1);
    let gate = Gate { confinement, kind, passed };
    let thread = Builder::new().name(name).spawn(move || body(gate)).map_err(host(what))?;
    // Only the thread can drop the gate, and it does so when its preparations fail.
    let ended = |_| host(what)(io::Error::other("the thread ended while it made its preparations"));
    has_passed.recv().map_err(ended)??;
    Ok(thread)
}
