//! The calls of `mm` to a simulated machine, told to a test before each of them takes effect.
//!
//! A test that watches sees the order of the steps of an operation, and the state of the machine between them.
//! So it finds two steps in the wrong order, even if the result is the same.
//!
//! Invariant: a probe runs on the CPU that makes the call, with the locks of that call held. It may look at
//! the machine, and must take none of these locks.

use tidevm_mm::{FaultStep, PfnRange, SectionNr, SectionRange};

use super::Sim;

/// Runs at each call, before the call takes effect.
pub(super) type CallObserver = Box<dyn Fn(PlatformCall) + Send>;

/// A call of a [`Platform`](tidevm_mm::Platform).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlatformCall {
    /// Copies so many pages.
    CopyPages(usize),
    /// Maps the memmap of the section, by a large page or by base pages.
    MapMemmap(SectionNr),
    /// Unmaps the memmap of the section, of either kind.
    UnmapMemmap(SectionNr),
    /// Maps the range into the direct map.
    MapDirect(PfnRange),
    /// Sets aside what mapping the sections and their memmaps needs.
    Prepare(SectionRange),
    /// Gives that back.
    Release(SectionRange),
    /// Takes the range out of the direct map.
    UnmapDirect(PfnRange),
    /// Begins a grace period.
    Synchronize,
    /// Reads the clock.
    Clock,
    /// Asks whether the step fails. [`FaultStep::PageTable`] is asked by the machine itself.
    Fault(FaultStep),
}

impl Sim {
    /// Calls `probe` at every call from now on, before the call has an effect. The probe changes nothing.
    pub fn watch(&self, probe: impl Fn(PlatformCall) + Send + 'static) {
        *self.probe.lock().expect("no panic holds it") = Some(Box::new(probe));
    }

    /// Ends [`Self::watch`].
    pub fn unwatch(&self) {
        *self.probe.lock().expect("no panic holds it") = None;
    }

    pub(super) fn tell(&self, call: PlatformCall) {
        if let Some(probe) = &*self.probe.lock().expect("no panic holds it") {
            probe(call);
        }
    }
}
