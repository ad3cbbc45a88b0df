//! How a guest died: the kinds of deaths, the exit status that follows from each, and ([`text`]) the text for people.
//!
//! A death ends the VM. The first one counts: [`SharedState`](crate::state::SharedState) keeps no later one.

use std::fmt;

use kvm_bindings::{KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION};

use crate::error::is_shortage;

pub mod text;
pub mod unplugged;

/// How a guest died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// What happened.
    pub kind: DeathKind,
    /// For people: registers, the code at the instruction pointer, the symbol, and the last lines on the
    /// serial port. It ends without a line break.
    pub text: String,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.kind, self.text)
    }
}

/// The kinds of deaths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeathKind {
    /// The guest reported a panic, by [`tidevm_abi::ExitCode::Panic`].
    #[error("the guest panicked")]
    GuestPanic,
    /// The guest's kernel said on its console that it panicked, or told the pvpanic device.
    #[error("the guest's kernel panicked")]
    KernelPanic,
    /// The guest wrote [`tidevm_abi::ExitCode::Failure`] to the exit port. It ended by its own will: this is no accident, and
    /// has no text.
    #[error("the guest ended, and reported a failure by the exit port")]
    ReportedFailure,
    /// The guest said that its boot found too little memory, by [`tidevm_abi::ExitCode::OutOfMemory`].
    #[error("the guest panicked: out of memory")]
    OutOfMemory,
    /// The guest wrote a code without a meaning to the exit port.
    #[error("the guest ended with the unknown exit code {0}")]
    UnknownExitCode(u8),
    /// A fault occurred while the CPU called the double-fault handler.
    #[error("the guest's CPU shut down (triple fault)")]
    TripleFault,
    /// KVM could not go on (`KVM_EXIT_INTERNAL_ERROR`), for instance because it could not emulate an
    /// instruction. The number is the suberror.
    #[error("KVM cannot go on: {}", suberror(*.0))]
    InternalError(u32),
    /// The CPU refuses to enter the guest with its current state.
    #[error("the CPU refuses to enter the guest (reason {0:#x})")]
    FailEntry(u64),
    /// The guest touched unplugged memory, at this guest-physical address if KVM tells it. The access cannot
    /// be resumed.
    #[error("the guest touched memory that is not plugged{}", at(*.0))]
    UnpluggedMemory(Option<u64>),
    /// `KVM_RUN` failed.
    #[error("KVM_RUN failed: errno {0}")]
    RunFailed(i32),
    /// A limit of tasks forbids the thread that KVM starts for a machine.
    #[error(
        "the host allows no more tasks, and KVM needs one for the machine: raise the limit of this user \
         (ulimit -u) or of the control group (pids.max)"
    )]
    TaskLimit,
    /// The guest reset the machine, and [`crate::Config::reboot`] is off. Kernels with `panic=-1` do this when
    /// they panic.
    #[error("the guest reset the machine, and rebooting is off")]
    UnwantedReset,
    /// The guest was reset, and the host could not start it again.
    #[error("the machine could not be started again after a reset")]
    ResetFailed {
        /// The host refused it. Otherwise the VMM or KVM failed.
        refused: bool,
    },
    /// KVM ended the run with an exit that this VMM never enables.
    #[error("KVM ended the run for an unexpected reason")]
    UnexpectedExit,
    /// The guest reset the machine when it was to power off, so that the end of its work was not an orderly one.
    #[error("the guest reset the machine instead of powering off")]
    ResetAtEnd,
    /// An event loop of the VMM cannot wait for events any more; `errno` is 0 when the system gave no reason.
    #[error("an event loop of the VMM failed: errno {errno}")]
    EventLoop {
        /// The system's error.
        errno: i32,
    },
    /// A thread of the VMM panicked, which is a defect of the VMM.
    #[error("a thread of the VMM panicked")]
    VmmPanic,
}

impl DeathKind {
    /// Whether the host refused what the VM needed to go on. Otherwise the guest, KVM or the VMM is the cause.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        match self {
            Self::TaskLimit => true,
            Self::ResetFailed { refused } => refused,
            Self::RunFailed(errno) | Self::EventLoop { errno } => is_shortage(errno),
            _ => false,
        }
    }
}

fn suberror(number: u32) -> String {
    match number {
        KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate the instruction at rip".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered to the guest".to_owned(),
        number => format!("internal error {number}"),
    }
}

fn at(address: Option<u64>) -> String {
    address.map_or_else(String::new, |address| format!(" (guest-physical address {address:#x})"))
}
