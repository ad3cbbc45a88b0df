//! What of a VM the engine uses, so that tests can put a fake in its place.

use std::time::Instant;

use tidevm_abi::{Answer, Op, Pressure, Size, Watch};
use tidevm_machine::{ResizeError, State, VmHandle};

/// A VM that is sized.
pub trait Target {
    /// The time now on the clock of the VM, which stands still while the guest does.
    fn now(&self) -> Instant;

    /// The state of the guest as it is now.
    fn state(&self) -> State;

    /// Whether the guest reports what it does.
    fn reports(&self) -> bool;

    /// Has the guest watch its memory. Returns the number of the question, if it takes one now.
    fn watch(&self, watch: Watch) -> Option<u32>;

    /// The answer to question `id`, if it came; `Some(None)` if it will not come.
    fn answer(&self, id: u32) -> Option<Option<Pressure>>;

    /// See [`VmHandle::resize_after`].
    ///
    /// # Errors
    /// The size is not possible; nothing changed.
    fn resize_after(&self, size: Size, after: u64) -> Result<Option<u64>, ResizeError>;
}

/// The region that is sized: there is only one.
pub const REGION: usize = 0;

impl Target for VmHandle {
    fn now(&self) -> Instant {
        Self::now(self)
    }

    fn state(&self) -> State {
        Self::state(self)
    }

    fn reports(&self) -> bool {
        VmHandle::reports(self)
    }

    fn watch(&self, watch: Watch) -> Option<u32> {
        self.try_call(Op::Watch(watch))
    }

    fn answer(&self, id: u32) -> Option<Option<Pressure>> {
        self.try_answer(id).map(|answer| match answer {
            Ok(Answer::Pressure(pressure)) => Some(pressure),
            Ok(_) | Err(_) => None,
        })
    }

    fn resize_after(&self, size: Size, after: u64) -> Result<Option<u64>, ResizeError> {
        Self::resize_after(self, REGION, size, after)
    }
}
