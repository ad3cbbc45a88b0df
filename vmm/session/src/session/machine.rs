//! What a session needs of a machine: the seam between [`Vm`] and the fake of the tests.
//!
//! Each method is [`Vm`]'s of the same name. `now` is here so that a fake can let hours pass.

use std::io;
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Op, Size};
use tidevm_machine::{CallsUnread, End, ExitCounts, ResizeError, State, Vm, WaitError};

/// A running machine.
pub trait Machine {
    /// The time by which this machine lives.
    fn now(&self) -> Instant;

    /// Bytes of boot memory.
    fn boot_memory(&self) -> u64;

    /// Bytes of device memory, all ranges together.
    fn device_memory(&self) -> u64;

    /// Whether the guest reports and answers calls.
    fn has_agent(&self) -> bool;

    /// A copy of what is known of the guest now.
    fn state(&self) -> State;

    /// Waits at most `limit` for `find` to find something in the state.
    ///
    /// # Errors
    /// Too late, or the machine ended first.
    fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, WaitError>;

    /// Sends a call to the guest.
    ///
    /// # Errors
    /// The guest does not read its calls.
    fn call(&self, op: Op) -> Result<u32, CallsUnread>;

    /// Waits at most `limit` for the answer to a call and takes it.
    ///
    /// # Errors
    /// Too late, or the machine ended first.
    fn answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError>;

    /// Sets a device's target in bytes.
    ///
    /// # Errors
    /// The device refuses; nothing changed.
    fn resize(&self, device: usize, requested: u64) -> Result<(), ResizeError>;

    /// Bytes of host memory really held by a device's region.
    ///
    /// # Errors
    /// The host does not tell.
    fn held(&self, device: usize) -> io::Result<u64>;

    /// Exits since start, one entry a vCPU.
    fn exits(&self) -> Vec<ExitCounts>;

    /// Ends the machine, orderly within `limit`.
    fn stop(self, limit: Duration) -> End;
}

impl Machine for Vm {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn boot_memory(&self) -> u64 {
        Vm::boot_memory(self).0
    }

    fn device_memory(&self) -> u64 {
        Vm::device_memory(self).0
    }

    fn has_agent(&self) -> bool {
        Vm::has_agent(self)
    }

    fn state(&self) -> State {
        Vm::state(self)
    }

    fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, WaitError> {
        Vm::wait(self, limit, what, find)
    }

    fn call(&self, op: Op) -> Result<u32, CallsUnread> {
        Vm::call(self, op)
    }

    fn answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError> {
        Vm::answer(self, id, limit, what)
    }

    fn resize(&self, device: usize, requested: u64) -> Result<(), ResizeError> {
        Vm::resize(self, device, Size(requested))
    }

    fn held(&self, device: usize) -> io::Result<u64> {
        Vm::held(self, device).map(|size| size.0)
    }

    fn exits(&self) -> Vec<ExitCounts> {
        Vm::exits(self)
    }

    fn stop(self, limit: Duration) -> End {
        Vm::stop(self, limit)
    }
}
