//! [`VmControl`]: the part of a VM that a session uses, so that tests can put a fake in its place.
//!
//! Each method forwards to the method of [`Vm`] with the same name. `now` is one of them so that a fake can
//! simulate time.

use std::io;
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Op, Size};
use tidevm_machine::{
    Alarms, CallsUnread, End, ExitCounts, Heard, RequestCounts, ResetRefused, ResizeError, SaveError, Saved,
    State, VcpuReport, Vm, VmHandle, WaitError,
};

/// A running VM.
pub trait VmControl {
    /// The current time of this VM, on a clock that stands still while the VM's process is stopped.
    fn now(&self) -> Instant;

    /// When this VM was first started, on the same clock.
    fn started(&self) -> Instant;

    /// Bytes of boot memory.
    fn boot_memory(&self) -> u64;

    /// Bytes of device memory, all ranges together.
    fn device_memory(&self) -> u64;

    /// Whether the guest says that it is up, and answers calls.
    fn has_agent(&self) -> bool;

    /// Whether the guest's drivers report how far they are, and why.
    fn reports(&self) -> bool;

    /// A copy of the state of the guest as the VMM knows it now.
    fn state(&self) -> State;

    /// Waits at most `limit` for `find` to find something in the state; `what` names it in the error.
    ///
    /// # Errors
    /// The limit passed, or the VM ended first.
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
    /// The limit passed, or the VM ended first.
    fn answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError>;

    /// Waits at most `limit` for the answer to a call and takes it, or the error that ended the VM. `None`: it has not
    /// come, and the call is still open.
    fn await_answer(&self, id: u32, limit: Duration) -> Option<Result<Answer, WaitError>>;

    /// As [`VmControl::answer`], until `stop` returns true. `None` then, and the answer can still be taken.
    ///
    /// # Errors
    /// The limit passed, or the VM ended first.
    fn answer_unless(
        &self,
        id: u32,
        limit: Duration,
        what: &str,
        stop: impl FnMut(&State) -> bool,
    ) -> Result<Option<Answer>, WaitError>;

    /// See [`VmHandle::amid_wait`].
    fn amid_wait<T>(&self, work: impl FnOnce() -> T) -> T;

    /// Sets a device's target in bytes.
    ///
    /// # Errors
    /// The device refuses; nothing changed.
    fn resize(&self, device: usize, requested: Size) -> Result<(), ResizeError>;

    /// Resets the machine, as its reset button does. Returns at once, with the number of the request:
    /// [`State::reset_request`] reaches it when the reset was made.
    ///
    /// # Errors
    /// The machine was not made for it; nothing changed.
    fn reset(&self) -> Result<u64, ResetRefused>;

    /// Bytes of host memory that the region of each device really holds. The host takes as long for all of them
    /// as for one.
    ///
    /// # Errors
    /// The host does not report it.
    fn held(&self) -> io::Result<Vec<Size>>;

    /// Exits since start, one entry per vCPU.
    fn exits(&self) -> Vec<ExitCounts>;

    /// Requests to virtio-mem devices since the start, one entry per device.
    fn mem_requests(&self) -> Vec<RequestCounts>;

    /// See [`VmHandle::heard`].
    fn heard(&self, from: u64) -> Heard;

    /// See [`VmHandle::take_alarms`].
    fn take_alarms(&self) -> Alarms;

    /// What each vCPU does now, of a guest that does not answer.
    fn vcpus(&self) -> Vec<VcpuReport>;

    /// Whether the VM is to be saved in place of its end.
    fn saves(&self) -> bool;

    /// What was given to [`VmControl::end_saved`] when this VM was saved.
    fn remembered(&self) -> &[u8];

    /// Saves the VM in place of its end.
    ///
    /// # Errors
    /// [`SaveError`], with the VM, which goes on.
    fn end_saved(self, remember: &[u8]) -> Result<Saved, Box<(Self, SaveError)>>
    where
        Self: Sized;

    /// Ends the VM: the guest is asked to power off, and ended by force after `limit`.
    fn stop(self, limit: Duration) -> End;
}

impl VmControl for Vm {
    fn now(&self) -> Instant {
        VmHandle::now(self)
    }

    fn started(&self) -> Instant {
        VmHandle::started(self)
    }

    fn amid_wait<T>(&self, work: impl FnOnce() -> T) -> T {
        VmHandle::amid_wait(self, work)
    }

    fn boot_memory(&self) -> u64 {
        VmHandle::boot_memory(self).0
    }

    fn device_memory(&self) -> u64 {
        VmHandle::device_memory(self).0
    }

    fn has_agent(&self) -> bool {
        VmHandle::has_agent(self)
    }

    fn reports(&self) -> bool {
        VmHandle::reports(self)
    }

    fn state(&self) -> State {
        VmHandle::state(self)
    }

    fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl FnMut(&State) -> Option<T>,
    ) -> Result<T, WaitError> {
        VmHandle::wait(self, limit, what, find)
    }

    fn call(&self, op: Op) -> Result<u32, CallsUnread> {
        VmHandle::call(self, op)
    }

    fn answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError> {
        VmHandle::answer(self, id, limit, what)
    }

    fn await_answer(&self, id: u32, limit: Duration) -> Option<Result<Answer, WaitError>> {
        VmHandle::await_answer(self, id, limit)
    }

    fn answer_unless(
        &self,
        id: u32,
        limit: Duration,
        what: &str,
        stop: impl FnMut(&State) -> bool,
    ) -> Result<Option<Answer>, WaitError> {
        VmHandle::answer_unless(self, id, limit, what, stop)
    }

    fn resize(&self, device: usize, requested: Size) -> Result<(), ResizeError> {
        VmHandle::resize(self, device, requested)
    }

    fn reset(&self) -> Result<u64, ResetRefused> {
        VmHandle::reset(self)
    }

    fn held(&self) -> io::Result<Vec<Size>> {
        self.held_by_each()
    }

    fn exits(&self) -> Vec<ExitCounts> {
        VmHandle::exits(self)
    }

    fn mem_requests(&self) -> Vec<RequestCounts> {
        VmHandle::mem_requests(self)
    }

    fn heard(&self, from: u64) -> Heard {
        VmHandle::heard(self, from)
    }

    fn take_alarms(&self) -> Alarms {
        VmHandle::take_alarms(self)
    }

    fn vcpus(&self) -> Vec<VcpuReport> {
        VmHandle::vcpus(self)
    }

    fn saves(&self) -> bool {
        self.config().save.is_some()
    }

    fn remembered(&self) -> &[u8] {
        VmHandle::remembered(self)
    }

    fn end_saved(self, remember: &[u8]) -> Result<Saved, Box<(Self, SaveError)>> {
        Vm::end_saved(self, remember)
    }

    fn stop(self, limit: Duration) -> End {
        Vm::stop(self, limit)
    }
}
