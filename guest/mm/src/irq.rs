//! Interrupts of this CPU, off while it must not be interrupted by what may call `mm`.
//!
//! Mirrors Linux `local_irq_save`, `spin_lock_irqsave`, and `pcp_trylock_prepare`. Differs from Linux on purpose: that
//! interrupts are off is a value ([`IrqOff`]). A function that needs it, such as one that takes a zone's lock, takes a
//! reference to that value, and a guard that it returns ends before the value does. So no caller can forget it.
//!
//! Interrupts are off while a CPU is at its per-CPU lists, holds any lock but that of memory hotplug, or initialises
//! memory that it has claimed. So an interrupt handler, or a thread that has preempted another one, finds each list whole,
//! never waits for a lock that its own CPU holds, and never for memory that its own CPU was about to initialise. A machine
//! whose CPUs are not interrupted by callers of `mm` has nothing to turn off, and pays nothing: the defaults of
//! [`Platform::irq_save`] leave no instruction.
//!
//! Invariant: values of a CPU are dropped in the reverse order in which they were made: each is a local, or the last field of
//! one.

use crate::Mm;
use crate::platform::{Calls, Platform};

/// Interrupts of this CPU are off until this is dropped, and then as they were before.
#[must_use = "interrupts are on again at once"]
pub(crate) struct IrqOff<'m, P: Platform> {
    platform: &'m Calls<P>,
    flags: usize,
}

impl<P: Platform> Drop for IrqOff<'_, P> {
    #[inline(always)]
    fn drop(&mut self) {
        self.platform.irq_restore(self.flags);
    }
}

impl<P: Platform> Mm<P> {
    /// Turns interrupts of this CPU off.
    #[inline(always)]
    pub(crate) fn irq_off(&self) -> IrqOff<'_, P> {
        IrqOff { platform: &self.platform, flags: self.platform.irq_save() }
    }
}

#[cfg(test)]
mod tests;
