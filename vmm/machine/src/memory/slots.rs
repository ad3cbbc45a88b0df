//! KVM memslots: the table by which the guest's addresses lead to host memory.
//!
//! A slot change on a running machine waits for a grace period of KVM, and a slot costs time in
//! proportion to its size on some hosts; see [`super::region`] for when slots are made.
#![expect(unsafe_code, reason = "tells KVM which memory of this process the guest may use")]

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use super::mapping::Mapping;

/// Where memslots are made. The one implementation is [`KvmSlots`]; tests have one that fails when
/// told to.
pub trait Slots: Send {
    /// Makes `size` bytes of `mapping` from `offset` appear at guest-physical `address` and returns
    /// the slot's number.
    ///
    /// # Errors
    /// What KVM says; nothing changed.
    fn add(&mut self, address: u64, mapping: &Arc<Mapping>, offset: u64, size: u64) -> io::Result<u32>;

    /// Takes a slot away.
    ///
    /// # Errors
    /// What KVM says; the slot is still there.
    fn remove(&mut self, slot: u32) -> io::Result<()>;
}

/// The memslots of a KVM machine.
#[derive(Debug)]
pub struct KvmSlots {
    vm: Arc<VmFd>,
    /// Numbers given back; [`KvmSlots::next`] and above were never used.
    free: BTreeSet<u32>,
    next: u32,
    /// What the slots lead to, so that it stays mapped as long as the guest may use it.
    mappings: Vec<Option<Arc<Mapping>>>,
}

impl KvmSlots {
    /// The slots of `vm`, of which none was made yet.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, free: BTreeSet::new(), next: 0, mappings: Vec::new() }
    }

    fn set(&self, region: kvm_userspace_memory_region) -> io::Result<()> {
        // SAFETY: a slot of size 0 removes; any other leads to a range that `add` checked to lie
        // in a mapping, and `mappings` keeps that mapping until the slot is removed. Only guest
        // memory lies in mappings.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

impl Slots for KvmSlots {
    fn add(&mut self, address: u64, mapping: &Arc<Mapping>, offset: u64, size: u64) -> io::Result<u32> {
        if size == 0 || offset.checked_add(size).is_none_or(|end| end > mapping.size()) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let slot = self.free.first().copied().unwrap_or(self.next);
        self.set(kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: size,
            userspace_addr: mapping.host_address() + offset,
        })?;
        if !self.free.remove(&slot) {
            self.next += 1;
            self.mappings.push(None);
        }
        self.mappings[slot as usize] = Some(Arc::clone(mapping));
        Ok(slot)
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.set(kvm_userspace_memory_region { slot, ..Default::default() })?;
        self.mappings[slot as usize] = None;
        self.free.insert(slot);
        Ok(())
    }
}
