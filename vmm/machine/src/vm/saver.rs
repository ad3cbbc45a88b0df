//! What a machine that can be saved has for that: where to, and the way to the states of its vCPUs.
//!
//! KVM gives the state of a vCPU only while the vCPU is out of the guest, and to its thread without a wait. So each thread reads its
//! own vCPU, as for a look ([`super::look`]), while it is parked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuFd};

use crate::boot::Image;
use crate::clock::{self, Nap};
use crate::error::{StartError, host, kvm};
use crate::memory::content::Pagemap;
use crate::snapshot::folder::Destination;
use crate::snapshot::machine::Sum;
use crate::snapshot::vcpu::{VcpuError, VcpuState};
use crate::snapshot::write::SaveError;
use crate::sync::lock;

/// The time between two looks for what a vCPU thread is to do.
const LOOK: Duration = Duration::from_millis(1);

/// What a machine that can be saved has for that.
#[derive(Debug)]
pub(super) struct Saver {
    pub(super) destination: Destination,
    pub(super) pagemap: Pagemap,
    /// The MSRs that KVM lists.
    msrs: Vec<u32>,
    /// The kernel and the RAM disk.
    pub(super) files: [Sum; 2],
    /// One save at a time.
    turn: Mutex<()>,
    /// The number of the last collection of vCPUs' states, from 1.
    wanted: AtomicU64,
    /// By vCPU.
    collected: Mutex<Vec<Option<Result<VcpuState, VcpuError>>>>,
    answered: Condvar,
}

impl Saver {
    /// Opens what a save needs, before the process gives its files away.
    ///
    /// # Errors
    /// The host does not tell which memory was touched, or KVM not which MSRs it has.
    pub(super) fn new(
        destination: Destination,
        kvm_device: &Kvm,
        files: [Sum; 2],
    ) -> Result<Self, StartError> {
        let pagemap = Pagemap::open().map_err(host("tell which memory was touched (/proc/self/pagemap)"))?;
        let msrs = kvm_device.get_msr_index_list().map_err(kvm("list its MSRs"))?;
        Ok(Self {
            destination,
            pagemap,
            msrs: msrs.as_slice().to_vec(),
            files,
            turn: Mutex::default(),
            wanted: AtomicU64::new(0),
            collected: Mutex::default(),
            answered: Condvar::new(),
        })
    }

    /// The turn of the calling thread: one save at a time.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// Called by the thread of vCPU `index` before each entry into the guest. `last` is the last collection that it answered.
    pub(super) fn answer(&self, index: usize, vcpu: &VcpuFd, last: &mut u64) {
        // Pairs with the store of `collect`: the table is there already.
        let wanted = self.wanted.load(Ordering::Acquire);
        if std::mem::replace(last, wanted) == wanted {
            return;
        }
        let state = VcpuState::of(vcpu, &self.msrs);
        if let Some(place) = lock(&self.collected).get_mut(index) {
            *place = Some(state);
        }
        self.answered.notify_all();
    }

    /// The states of `count` vCPUs, all of which are parked. `wake` has their threads look.
    ///
    /// # Errors
    /// One did not look within `limit`, or KVM does not give its state.
    pub(super) fn collect(
        &self,
        limit: Duration,
        count: usize,
        wake: impl Fn(),
    ) -> Result<Vec<VcpuState>, SaveError> {
        let mut collected = lock(&self.collected);
        *collected = (0..count).map(|_| None).collect();
        self.wanted.fetch_add(1, Ordering::Release);
        let start = clock::now();
        while collected.iter().any(Option::is_none) {
            if clock::now() - start > limit {
                // A late answer finds no place.
                collected.clear();
                return Err(SaveError::StillRunning(limit));
            }
            let nap = Nap::of(LOOK);
            wake();
            let waited = self.answered.wait_timeout(collected, nap.time());
            collected = waited.unwrap_or_else(PoisonError::into_inner).0;
            nap.end();
        }
        let states = collected.drain(..).flatten().collect::<Result<Vec<_>, _>>()?;
        Ok(in_step(states))
    }
}

/// vCPUs are read one after another while their counters go on. Afterwards none has gone back, and all agree.
fn in_step(mut states: Vec<VcpuState>) -> Vec<VcpuState> {
    if let Some(last) = states.iter().filter_map(VcpuState::tsc).max() {
        states.iter_mut().for_each(|state| state.set_tsc(last));
    }
    states
}

/// The checksums of the files that `config` names, as they were read.
pub(super) fn sums(kernel: &Image, initrd: Option<&[u8]>) -> [Sum; 2] {
    [Sum::of(kernel.bytes()), initrd.map_or_else(Sum::default, Sum::of)]
}
