//! Guest RAM: host mappings, KVM memslots, and the VMM's own view of the memory that the guest may use.
//!
//! Boot memory and device memory are open and in their slots from the start. Hotplug regions start closed;
//! their memory comes and goes by [`Memory::plug`], [`Memory::unplug`] and [`Memory::unplug_all`].
//!
//! "Plugged" is stated in two places, because it means two things:
//!
//! | question | answered by | derived from it |
//! | --- | --- | --- |
//! | What may the guest use? | the bitmap of [`virtio_mem::Device`] | configuration space, [`crate::MemStatus`] |
//! | What can be reached on this host? | the open runs of [`region::RamRegion`] | [`View`], memslots |
//!
//! The device changes its bitmap only after [`Memory::plug`] or [`Memory::unplug`] succeeded. So the two
//! differ in one case only: an unplug failed and the host did not open the range again. Then the range is
//! plugged by the contract and not open; see [`region`].
//!
//! Invariant: whenever a thread can see the [`View`], it holds boot memory and exactly the open runs. All
//! accesses of the VMM to guest memory (queues, buffers, the text about a death) go through it, under its
//! lock. So an address in unplugged memory is an error there and never a fault. Device memory is not in the
//! view: devices reach RAM alone.
//!
//! Lock order: hotplug regions, then view.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tidevm_abi::Size;

use crate::sync::lock;

pub mod content;
pub mod held;
pub mod host_calls;
pub mod layout;
pub mod mapping;
pub mod range;
pub mod region;
pub mod runs;
pub mod slots;
mod view;

use host_calls::FailedCall;
use layout::Place;
use mapping::Mapping;
use range::{GuestRange, OffsetRange};
use region::RamRegion;
use slots::Slots;
#[cfg(feature = "hosted")]
pub(crate) use view::LOOKUPS;
pub use view::View;
#[cfg(test)]
pub(crate) use view::WINDOWS_MADE;

/// All RAM of a VM.
#[derive(Debug)]
pub struct Memory {
    boot: Arc<Mapping>,
    /// Device memory. Its content survives a reset.
    pmem: Vec<(GuestRange, Arc<Mapping>)>,
    regions: Vec<GuestRange>,
    region_mappings: Vec<Arc<Mapping>>,
    hotplug: Mutex<Hotplug>,
    view: RwLock<View>,
    account: held::Account,
}

struct Hotplug {
    regions: Vec<RamRegion>,
    slots: Box<dyn Slots>,
}

impl std::fmt::Debug for Hotplug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hotplug").field("regions", &self.regions).finish_non_exhaustive()
    }
}

/// Why a VM's memory could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "the host refuses {what} of {size}: {error}; make --memory, --hotplug size= or --pmem size= smaller, \
     or raise the limit of addresses (ulimit -v)"
)]
pub struct MemoryError {
    /// The memory, in words.
    pub what: String,
    /// Its size.
    pub size: Size,
    /// The host's error.
    pub error: io::Error,
}

impl Memory {
    /// Makes boot memory and device memory with their slots, and reserves the hotplug regions at
    /// `places`. [`crate::Config::validate`] has checked the places.
    ///
    /// # Errors
    /// The host refuses a mapping, or KVM a slot.
    pub fn new(
        boot: Size,
        places: &[Place],
        pmem: &[Size],
        mut slots: Box<dyn Slots>,
    ) -> Result<Self, MemoryError> {
        let _exempt = host_calls::exempt();
        let boot_mapping = Arc::new(Mapping::reserve(boot.0).map_err(fail("boot memory", boot.0))?);
        let view = View::of_boot_memory(&boot_mapping).map_err(fail("boot memory", boot.0))?;
        add_boot_slots(&boot_mapping, &mut *slots)?;
        let overflow = || io::Error::from_raw_os_error(libc::ENOMEM);
        let mut ranges =
            layout::regions(boot, places.iter().copied().chain(pmem.iter().map(|&size| size.into())))
                .ok_or_else(overflow)
                .map_err(fail("the hotplug regions", u64::MAX))?;
        let pmem = ranges.split_off(places.len()).into_iter().enumerate().map(open_pmem);
        let pmem = pmem.collect::<Result<Vec<_>, _>>()?;
        add_pmem_slots(&pmem, &mut *slots)?;
        let mut regions = Vec::new();
        for (index, &range) in ranges.iter().enumerate() {
            let size = range.size();
            let mapping = Mapping::reserve(size).map_err(fail(&format!("hotplug region #{index}"), size))?;
            mapping.ask_for_huge_pages(mapping.all());
            regions.push(RamRegion::new(range, Arc::new(mapping)));
        }
        Ok(Self {
            boot: boot_mapping,
            pmem,
            regions: ranges,
            region_mappings: regions.iter().map(|region| Arc::clone(region.mapping())).collect(),
            hotplug: Mutex::new(Hotplug { regions, slots }),
            view: RwLock::new(view),
            account: held::Account::open(),
        })
    }

    /// Has boot memory get huge pages from now on. Everything that the guest finds at its start has been written: it lies
    /// thinly spread over a few MiB, and clearing whole huge pages for it would be most of the work of a start.
    /// Small pages that are there stay so until the host collapses them.
    pub fn start_huge_pages(&self) {
        self.boot.ask_for_huge_pages(self.boot.all());
    }

    /// The memory that the VMM may touch now. While the guard lives, nothing is unplugged.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hotplug regions.
    #[must_use]
    pub fn regions(&self) -> &[GuestRange] {
        &self.regions
    }

    /// Makes a range of hotplug region `index` usable. All of it is unplugged now.
    ///
    /// # Errors
    /// The host's error; nothing changed.
    pub fn plug(&self, index: usize, range: GuestRange) -> Result<(), FailedCall> {
        let range = self.offsets(index, range)?;
        let mut hotplug = lock(&self.hotplug);
        let Hotplug { regions, slots } = &mut *hotplug;
        regions[index].plug(range, &mut **slots)?;
        self.change_view().show(&regions[index], range);
        Ok(())
    }

    /// Makes a range of hotplug region `index` unreachable and gives its memory back to the host. All of it
    /// is plugged now.
    ///
    /// # Errors
    /// The host's error. Nothing changed, contents included. If the host did not even open the range again, neither the
    /// guest nor the VMM reaches it; it can be unplugged once more.
    pub fn unplug(&self, index: usize, range: GuestRange) -> Result<(), FailedCall> {
        let offsets = self.offsets(index, range)?;
        let regions = &mut lock(&self.hotplug).regions;
        let mut view = self.change_view();
        // The windows go before the memory that they lead to is closed.
        view.hide(range);
        let result = regions[index].unplug(offsets);
        if result.is_err() {
            view.show(&regions[index], offsets);
        }
        result
    }

    /// Makes all of hotplug region `index` unreachable and gives its memory back to the host, as one operation,
    /// however many runs are plugged.
    ///
    /// # Errors
    /// The host's error. Nothing changed, contents included; for runs that the host does not open again, what [`Memory::unplug`] says holds.
    pub fn unplug_all(&self, index: usize) -> Result<(), FailedCall> {
        let range = *self.regions.get(index).ok_or_else(no_such_memory)?;
        let regions = &mut lock(&self.hotplug).regions;
        let mut view = self.change_view();
        // The windows go before the memory that they lead to is closed.
        view.hide(range);
        let result = regions[index].unplug_all();
        if result.is_err() {
            view.show(&regions[index], self.region_mappings[index].all());
        }
        result
    }

    /// Removes the memslots that unplugs have left empty. The caller holds no lock for which a vCPU may wait: KVM
    /// waits for the vCPUs.
    pub fn remove_empty_slots(&self) {
        let mut hotplug = lock(&self.hotplug);
        let Hotplug { regions, slots } = &mut *hotplug;
        regions.iter_mut().for_each(|region| region.remove_empty_slots(&mut **slots));
    }

    /// Brings all memory back to its state at the start, except for the content of device memory: boot memory
    /// is zero, nothing is plugged, and boot memory and device memory are in `slots`, which belong to a new
    /// machine of KVM. Each region is given back to the host as a whole, however many runs were plugged.
    ///
    /// # Errors
    /// The host refuses; the memory cannot be used any more.
    pub fn reset(&self, slots: Box<dyn Slots>) -> Result<(), MemoryError> {
        let _exempt = host_calls::exempt();
        let mut hotplug = lock(&self.hotplug);
        let Hotplug { regions, slots: current } = &mut *hotplug;
        // Dropping the old slots closes the old machine of KVM, so that KVM need not follow the changes below.
        *current = slots;
        // The windows go before the memory that they lead to is closed.
        let mut view = self.change_view();
        self.regions.iter().for_each(|&region| view.hide(region));
        drop(view);
        for (index, region) in regions.iter_mut().enumerate() {
            let size = region.range().size();
            region.reset().map_err(fail(&format!("to take back hotplug region #{index}"), size))?;
        }
        let size = self.boot.size();
        self.boot.discard(self.boot.all()).map_err(fail("fresh boot memory", size))?;
        add_boot_slots(&self.boot, &mut **current)?;
        add_pmem_slots(&self.pmem, &mut **current)
    }

    /// Whether all of `range` is memory that the guest may use and that can be given back: boot memory, or one run of
    /// plugged memory. Device memory is neither, because its content is the point of it.
    #[must_use]
    pub fn is_usable(&self, range: GuestRange) -> bool {
        let in_boot =
            || layout::boot_parts(self.boot.all()).any(|(part, _)| part.offsets_of(range).is_some());
        in_boot() || lock(&self.hotplug).regions.iter().any(|region| region.is_open(range))
    }

    /// Gives the memory behind `range` back to the host. The range stays usable, and reads as zero until it is written
    /// again. The lock under which memory is unplugged is held meanwhile, so an unplug comes before or after.
    ///
    /// # Errors
    /// The range is not [usable](Memory::is_usable) (`EINVAL`), and nothing changed; or the error of the host.
    pub fn give_back(&self, range: GuestRange) -> Result<(), FailedCall> {
        for (part, offsets) in layout::boot_parts(self.boot.all()) {
            if let Some(inside) = part.offsets_of(range) {
                let start = offsets.start();
                let there = OffsetRange::new(start + inside.start()..start + inside.end());
                return there.map_or(Ok(()), |there| self.boot.discard(there));
            }
        }
        let hotplug = lock(&self.hotplug);
        match hotplug.regions.iter().find(|region| region.is_open(range)) {
            Some(region) => region.give_back(range),
            None => Err(no_such_memory()),
        }
    }

    /// Bytes of host memory that each hotplug region holds; see [`held`].
    ///
    /// # Errors
    /// `/proc/self/smaps` cannot be read.
    pub fn held(&self) -> io::Result<Vec<Size>> {
        self.account.held(&self.region_mappings)
    }

    /// Bytes of host memory that boot memory holds; see [`held`].
    ///
    /// # Errors
    /// `/proc/self/smaps` cannot be read.
    pub fn boot_held(&self) -> io::Result<Size> {
        let held = self.account.held(std::slice::from_ref(&self.boot))?;
        Ok(held.into_iter().sum())
    }

    fn change_view(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offsets of guest-physical addresses in region `index`.
    fn offsets(&self, index: usize, range: GuestRange) -> Result<OffsetRange, FailedCall> {
        let offsets = self.regions.get(index).and_then(|region| region.offsets_of(range));
        offsets.ok_or_else(no_such_memory)
    }
}

/// What the host would say of memory that is in no region. It is not asked.
pub(crate) fn no_such_memory() -> FailedCall {
    FailedCall { call: "mprotect", error: io::Error::from_raw_os_error(libc::EINVAL) }
}

/// For `map_err`: the host refused `size` bytes of `what`.
fn fail<E: Into<io::Error>>(what: &str, size: u64) -> impl FnOnce(E) -> MemoryError {
    move |error| MemoryError { what: what.to_owned(), size: Size(size), error: error.into() }
}

fn add_boot_slots(boot: &Arc<Mapping>, slots: &mut dyn Slots) -> Result<(), MemoryError> {
    for (range, offsets) in layout::boot_parts(boot.all()) {
        let refused = fail("the memslot of boot memory", range.size());
        slots.add(range.start(), boot, offsets).map_err(refused)?;
    }
    Ok(())
}

/// The memory behind a range of device memory, open from the start.
fn open_pmem((index, range): (usize, GuestRange)) -> Result<(GuestRange, Arc<Mapping>), MemoryError> {
    let (what, size) = (format!("device memory #{index}"), range.size());
    let mapping = Mapping::reserve(size).map_err(fail(&what, size))?;
    mapping.ask_for_huge_pages(mapping.all());
    mapping.open(mapping.all()).map_err(fail(&what, size))?;
    Ok((range, Arc::new(mapping)))
}

fn add_pmem_slots(pmem: &[(GuestRange, Arc<Mapping>)], slots: &mut dyn Slots) -> Result<(), MemoryError> {
    for (range, mapping) in pmem {
        let refused = fail("the memslot of device memory", range.size());
        slots.add(range.start(), mapping, mapping.all()).map_err(refused)?;
    }
    Ok(())
}

#[cfg(test)]
impl Memory {
    /// The host addresses behind hotplug region `index`.
    pub(crate) fn host_range_of_region(&self, index: usize) -> std::ops::Range<u64> {
        let mapping = &self.region_mappings[index];
        mapping.host_address()..mapping.host_address() + mapping.size()
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
