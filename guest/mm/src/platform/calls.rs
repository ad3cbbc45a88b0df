//! The machine as the other files of `mm` call it.
//!
//! Takes the place of Linux's `lockdep_assert_held` and `might_sleep` in what `mm` calls. Hosted builds check
//! before each call that the CPU holds the locks of the table at [`Platform`].
//!
//! Invariant: `mm` calls the machine through [`Calls`] only.
#![expect(unsafe_code, reason = "passes on calls of a trait whose contract is unsafe")]

use super::{FaultStep, MemmapFrames, NoPageTable, Platform};
use crate::addr::{Pfn, PfnRange, SectionNr, SectionRange};
use crate::lock::{Locks, Rank, irq_restored, irq_saved};

/// A machine whose calls are checked.
pub(crate) struct Calls<P>(P);

impl<P> Calls<P> {
    pub(crate) const fn new(machine: P) -> Self {
        Self(machine)
    }

    /// The machine itself.
    pub(crate) const fn machine(&self) -> &P {
        &self.0
    }
}

/// Calls that change what is mapped, or are made while pages move.
const HOTPLUG: Locks = Locks::with(Rank::Hotplug, Rank::Hotplug);

// SAFETY: every call is passed on unchanged, with its result, to a machine that keeps the contract.
unsafe impl<P: Platform> Platform for Calls<P> {
    const MIGRATES: bool = P::MIGRATES;

    #[inline]
    fn this_cpu(&self) -> usize {
        self.0.this_cpu()
    }

    #[inline]
    fn get_cpu(&self) -> usize {
        self.0.get_cpu()
    }

    #[inline]
    fn put_cpu(&self) {
        self.0.put_cpu();
    }

    #[inline(always)]
    fn irq_save(&self) -> usize {
        let flags = self.0.irq_save();
        irq_saved();
        flags
    }

    #[inline(always)]
    fn irq_restore(&self, flags: usize) {
        irq_restored();
        self.0.irq_restore(flags);
    }

    fn copy_pages(&self, pages: &[(Pfn, Pfn)]) {
        HOTPLUG.assert("copy_pages");
        self.0.copy_pages(pages);
    }

    fn map_memmap(&self, section: SectionNr, backing: Pfn) -> Result<(), NoPageTable> {
        HOTPLUG.assert("map_memmap");
        self.0.map_memmap(section, backing)
    }

    fn map_prepared_memmap(&self, section: SectionNr, backing: Pfn) {
        Locks::ANY.assert("map_prepared_memmap");
        self.0.map_prepared_memmap(section, backing);
    }

    fn unmap_memmap(&self, section: SectionNr) {
        HOTPLUG.assert("unmap_memmap");
        self.0.unmap_memmap(section);
    }

    fn map_memmap_base(&self, section: SectionNr, frames: &MemmapFrames) -> Result<(), NoPageTable> {
        HOTPLUG.assert("map_memmap_base");
        self.0.map_memmap_base(section, frames)
    }

    fn unmap_memmap_base(&self, section: SectionNr) -> MemmapFrames {
        HOTPLUG.assert("unmap_memmap_base");
        self.0.unmap_memmap_base(section)
    }

    fn map_direct(&self, range: PfnRange) -> Result<(), NoPageTable> {
        HOTPLUG.assert("map_direct");
        self.0.map_direct(range)
    }

    fn prepare(&self, range: SectionRange) -> Result<(), NoPageTable> {
        HOTPLUG.assert("prepare");
        self.0.prepare(range)
    }

    fn map_prepared_direct(&self, range: PfnRange) {
        // Where it is mapped later, others may free the page table: see `is_deferred`.
        Locks::with(Rank::Deferred, Rank::Deferred).assert("map_prepared_direct");
        self.0.map_prepared_direct(range);
    }

    fn release(&self, range: SectionRange) {
        HOTPLUG.assert("release");
        self.0.release(range);
    }

    fn unmap_direct(&self, range: PfnRange) {
        HOTPLUG.assert("unmap_direct");
        self.0.unmap_direct(range);
    }

    fn synchronize(&self) {
        HOTPLUG.assert("synchronize");
        self.0.synchronize();
    }

    fn relax(&self) {
        Locks::up_to(Rank::Hotplug).assert("relax");
        self.0.relax();
    }

    fn drained(&self) {
        Locks::up_to(Rank::Hotplug).assert("drained");
        self.0.drained();
    }

    fn clock(&self) -> u64 {
        Locks::up_to(Rank::Hotplug).assert("clock");
        self.0.clock()
    }

    fn fault(&self, step: FaultStep) -> bool {
        HOTPLUG.assert("fault");
        self.0.fault(step)
    }
}
