//! KVM memslots: the table that leads from the guest's addresses to host memory.
//!
//! A slot change on a running machine waits for a grace period of KVM, and on some hosts a slot costs time in
//! proportion to its size; see [`super::region`] for when slots are made.
#![expect(unsafe_code, reason = "tells KVM which memory of this process the guest may use")]

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;

use super::host_calls::{FailedCall, MemoryCall, about_to};
use super::mapping::Mapping;
use super::range::OffsetRange;

/// A table of memslots. [`KvmSlots`] is the only implementation outside tests, which have one that fails on
/// request.
pub trait Slots: Send {
    /// Makes `offsets` of `mapping` appear from `address` on and returns the slot's number.
    ///
    /// # Errors
    /// KVM's error; nothing changed.
    fn add(
        &mut self,
        address: GuestAddress,
        mapping: &Arc<Mapping>,
        offsets: OffsetRange,
    ) -> Result<u32, FailedCall> {
        let call = MemoryCall::AddSlot(address.0, offsets.size());
        about_to(call)?;
        self.add_slot(address, mapping, offsets).map_err(|error| call.failed(error))
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// KVM's error; the slot is still there.
    fn remove(&mut self, slot: u32) -> Result<(), FailedCall> {
        let call = MemoryCall::RemoveSlot(slot);
        about_to(call)?;
        self.remove_slot(slot).map_err(|error| call.failed(error))
    }

    /// The table's part of [`Slots::add`].
    ///
    /// # Errors
    /// As [`Slots::add`].
    fn add_slot(
        &mut self,
        address: GuestAddress,
        mapping: &Arc<Mapping>,
        offsets: OffsetRange,
    ) -> io::Result<u32>;

    /// The table's part of [`Slots::remove`].
    ///
    /// # Errors
    /// As [`Slots::remove`].
    fn remove_slot(&mut self, slot: u32) -> io::Result<()>;
}

/// The memslots of a machine of KVM.
#[derive(Debug)]
pub struct KvmSlots {
    vm: Arc<VmFd>,
    /// Numbers given back. [`KvmSlots::next`] and above were never used.
    free: BTreeSet<u32>,
    next: u32,
    /// The mapping behind each slot, so that it stays mapped as long as the guest may use it.
    mappings: Vec<Option<Arc<Mapping>>>,
}

impl KvmSlots {
    /// The slots of `vm`, which has none yet.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, free: BTreeSet::new(), next: 0, mappings: Vec::new() }
    }

    fn set(&self, region: kvm_userspace_memory_region) -> io::Result<()> {
        // SAFETY: a slot of size 0 removes. Any other slot leads to a range that `add` checked to lie in a
        // mapping, and `mappings` keeps that mapping until the slot is removed. Mappings hold nothing but
        // guest memory.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

impl Slots for KvmSlots {
    fn add_slot(
        &mut self,
        address: GuestAddress,
        mapping: &Arc<Mapping>,
        offsets: OffsetRange,
    ) -> io::Result<u32> {
        if offsets.end() > mapping.size() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let slot = self.free.first().copied().unwrap_or(self.next);
        self.set(kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address.0,
            memory_size: offsets.size(),
            userspace_addr: mapping.host_address() + offsets.start(),
        })?;
        if !self.free.remove(&slot) {
            self.next += 1;
            self.mappings.push(None);
        }
        self.mappings[slot as usize] = Some(Arc::clone(mapping));
        Ok(slot)
    }

    fn remove_slot(&mut self, slot: u32) -> io::Result<()> {
        self.set(kvm_userspace_memory_region { slot, ..Default::default() })?;
        self.mappings[slot as usize] = None;
        self.free.insert(slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
