//! Simulated machines below a model checker: machines by the thousand, and the switches of a model.
//!
//! Invariant: a [`Machine`] hands out its `Mm` by a borrow of itself only, so none is in use when it is dropped.
//!
//! Only shuttle runs whole machines.
#![expect(unsafe_code, reason = "gives the memory of a machine back, which other tests leak")]

use core::ops::Deref;
use std::boxed::Box;

use crate::sim::{Sim, SimMachine};
use crate::{Memblock, Mm, sync, variant};

pub use crate::variant::Variant;

/// Chooses a variant of the code for all models on this thread of the host, or the code as it is.
pub fn choose(variant: Option<Variant>) {
    variant::choose(variant);
}

/// Runs `body`, the end of a model whose other threads have ended. No access to memory is a scheduling point there, so
/// it costs no time that another order of steps would need.
pub fn alone<R>(body: impl FnOnce() -> R) -> R {
    sync::shuttle::alone(body)
}

/// A booted machine that lives for one schedule.
pub struct Machine {
    mm: *mut Mm<Sim>,
    memblock: *mut Memblock,
}

impl Machine {
    /// Boots `machine`. No access to memory is a scheduling point before [`scheduled`](Self::scheduled).
    #[must_use]
    pub fn boot(machine: &SimMachine) -> Self {
        sync::shuttle::reset();
        let memblock = Box::into_raw(Box::new(machine.memblock()));
        let mm = machine.build();
        // SAFETY: `memblock` was just made, and `drop` frees it after the `Mm` that refers to it.
        machine.boot_from(mm, unsafe { &mut *memblock }).expect("the machine boots");
        Self { mm: core::ptr::from_ref(mm).cast_mut(), memblock }
    }

    /// Calls `body`, in which each access to memory is a scheduling point.
    pub fn scheduled<R>(&self, body: impl FnOnce(&Mm<Sim>) -> R) -> R {
        sync::shuttle::scheduled(|| body(self))
    }
}

impl Deref for Machine {
    type Target = Mm<Sim>;

    fn deref(&self) -> &Mm<Sim> {
        // SAFETY: `boot` made it of a box that only `drop` frees.
        unsafe { &*self.mm }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A schedule that panics leaves threads behind that hold references.
        if std::thread::panicking() {
            return;
        }
        // SAFETY: `SimMachine::build` leaked a box of the `Mm` and gave it to `boot` alone. References to it borrow
        // from `self`. The tables of sections and of CPUs, which `Mm` hands out for ever, stay.
        drop(unsafe { Box::from_raw(self.mm) });
        // SAFETY: `boot` made it of a box, and the `Mm` that referred to it is gone.
        drop(unsafe { Box::from_raw(self.memblock) });
    }
}
