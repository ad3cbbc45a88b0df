//! The memory hotplug lock, held: the right to change which memory there is.
//!
//! Mirrors Linux `mem_hotplug_begin` and `mem_hotplug_done`. Differs from Linux on purpose: the lock is a
//! value. An operation that needs the lock is a method of [`Hotplug`], or takes a reference to
//! [`HotplugHeld`], so that no caller can forget it.
//!
//! Invariants: the lock is the first of the lock order. There is one [`HotplugHeld`] per [`Mm`], behind the lock
//! that [`hotplug_lock`] makes, and nothing else makes one: a reference to it is proof.

use crate::Mm;
use crate::lock::{Guard, Locks, Rank, SpinLock};
use crate::platform::Platform;
use crate::sparse::SectionOwner;

/// The data that the memory hotplug lock protects has no single place, so the value behind the lock is empty: a
/// reference to it proves that the lock is held.
pub(crate) struct HotplugHeld(());

#[cfg(test)]
impl HotplugHeld {
    /// Stands for the lock in tests of parts that have no [`Mm`].
    pub(crate) const fn without_mm() -> Self {
        Self(())
    }
}

/// The memory hotplug lock of a new [`Mm`].
pub(crate) const fn hotplug_lock() -> SpinLock<HotplugHeld> {
    SpinLock::new(Rank::Hotplug, HotplugHeld(()))
}

// Sections that are neither deferred boot memory nor device memory on its way change state under this lock.
impl SectionOwner for HotplugHeld {
    const LOCKS: Locks = Locks::with(Rank::Hotplug, Rank::Hotplug);
}

/// The memory hotplug lock of an [`Mm`], held until dropped. Its methods add memory blocks, put them
/// online, take them offline and remove them; map and unmap device memory; and allocate ranges of frames.
///
/// The holder may allocate and free pages. A second [`Mm::hotplug`] by the same CPU waits for ever.
///
/// ```
/// use tidevm_mm::{Gfp, MemoryContent, NodeId, OfflineError, Order, PageblockSet, SectionNr, ZoneType};
/// use tidevm_mm_sim::SimMachine;
///
/// let mm = SimMachine::default().boot();
/// // 128 MiB at 4 GiB: the kernel learns of them, and then they can be allocated.
/// let block = SectionNr::new(32);
/// mm.hotplug().add_memory(NodeId::FIRST, block, PageblockSet::ALL, MemoryContent::Unknown)?;
/// mm.hotplug().online(block, ZoneType::Movable)?;
/// let page = mm.alloc_pages(Order::PAGE, Gfp::Movable)?;
/// assert_eq!(page.section(), block);
/// // A page without an owner cannot move, and the error names it.
/// let error = mm.hotplug().offline(block).unwrap_err();
/// assert!(matches!(error, OfflineError::Unmovable(stuck) if stuck.pages == 1), "{error}");
/// mm.free_pages(page, Order::PAGE);
/// mm.hotplug().offline(block)?;
/// mm.hotplug().remove_memory(block)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// There is no way to these methods without the lock:
///
/// ```compile_fail,E0599
/// use tidevm_mm::{SectionNr, ZoneType};
/// use tidevm_mm_sim::SimMachine;
///
/// _ = SimMachine::default().boot().online(SectionNr::new(32), ZoneType::Movable);
/// ```
///
/// ```compile_fail,E0451
/// use tidevm_mm::Hotplug;
/// use tidevm_mm_sim::SimMachine;
///
/// _ = Hotplug { mm: SimMachine::default().boot(), lock: () };
/// ```
#[must_use = "the lock is released at once"]
pub struct Hotplug<'m, P: Platform> {
    pub(crate) mm: &'m Mm<P>,
    lock: Guard<'m, HotplugHeld>,
}

impl<P: Platform> Hotplug<'_, P> {
    /// The proof that the lock is held, for functions below the life cycle.
    pub(crate) fn held(&self) -> &HotplugHeld {
        &self.lock
    }
}

impl<P: Platform> Mm<P> {
    /// Waits for the memory hotplug lock, calling [`Platform::relax`] meanwhile, and holds it until the
    /// result is dropped.
    pub fn hotplug(&self) -> Hotplug<'_, P> {
        Hotplug { mm: self, lock: self.hotplug.lock_with(|| self.platform.relax()) }
    }
}

#[cfg(test)]
mod tests;
