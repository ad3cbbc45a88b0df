//! Guest RAM: host mappings, KVM memslots, and the VMM's own view of what the guest may use.
//!
//! Boot memory and device memory are open and in their slots from the start. Hotplug regions start closed; their blocks
//! come and go by [`Memory::plug`] and [`Memory::unplug`].
//!
//! Invariant: the [`View`] holds boot memory and exactly the plugged runs, whenever anyone can see
//! it. All accesses of the VMM to guest memory (queues, buffers, reports) go through it, under its
//! lock, so an address in unplugged memory is an error there and never a fault. Device memory is not in
//! it: devices reach RAM alone. Lock order: hotplug
//! regions, then view.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use tidevm_abi::Size;

use crate::sync::lock;

pub mod held;
pub mod layout;
pub mod mapping;
pub mod region;
pub mod runs;
pub mod slots;
mod view;

use mapping::Mapping;
use region::RamRegion;
use slots::Slots;
use view::BootWindows;

pub use view::View;

/// All RAM of a machine.
#[derive(Debug)]
pub struct Memory {
    boot: Arc<Mapping>,
    boot_windows: BootWindows,
    /// Device memory: its content outlives a reset.
    pmem: Vec<(Range<u64>, Arc<Mapping>)>,
    regions: Vec<Range<u64>>,
    region_mappings: Vec<Arc<Mapping>>,
    hotplug: Mutex<Hotplug>,
    view: RwLock<View>,
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

/// Why a machine's memory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the host refuses {what} of {size}: {error}; make --memory, --hotplug size= or --pmem size= smaller")]
pub struct MemoryError {
    /// The memory, in words.
    pub what: String,
    /// Its size.
    pub size: Size,
    /// The host's error.
    pub error: io::Error,
}

impl Memory {
    /// Makes `boot` bytes of boot memory with its slots, and reserves a region of each of `sizes`. Each
    /// of `pmem` is a range of device memory.
    /// Sizes are checked by [`crate::Config::validate`].
    ///
    /// # Errors
    /// The host refuses a mapping or KVM a slot.
    pub fn new(
        boot: Size,
        sizes: &[Size],
        pmem: &[Size],
        mut slots: Box<dyn Slots>,
    ) -> Result<Self, MemoryError> {
        let boot_mapping = Arc::new(Mapping::reserve(boot.0).map_err(fail("boot memory", boot.0))?);
        let boot_windows = BootWindows::open(&boot_mapping).map_err(fail("boot memory", boot.0))?;
        add_boot_slots(&boot_mapping, &mut *slots)?;
        let overflow = || io::Error::from_raw_os_error(libc::ENOMEM);
        let mut ranges = layout::regions(boot, sizes.iter().chain(pmem).copied())
            .ok_or_else(overflow)
            .map_err(fail("the hotplug regions", u64::MAX))?;
        let pmem = ranges.split_off(sizes.len()).into_iter().enumerate().map(open_pmem);
        let pmem = pmem.collect::<Result<Vec<_>, _>>()?;
        add_pmem_slots(&pmem, &mut *slots)?;
        let mut regions = Vec::new();
        for (index, range) in ranges.iter().enumerate() {
            let size = range.end - range.start;
            let mapping = Mapping::reserve(size).map_err(fail(&format!("hotplug region #{index}"), size))?;
            regions.push(RamRegion::new(range.start, Arc::new(mapping)));
        }
        let view = boot_windows.with(&regions, None);
        Ok(Self {
            boot: boot_mapping,
            boot_windows,
            pmem,
            regions: ranges,
            region_mappings: regions.iter().map(|region| Arc::clone(region.mapping())).collect(),
            hotplug: Mutex::new(Hotplug { regions, slots }),
            view: RwLock::new(view),
        })
    }

    /// What the VMM may touch now. While the guard lives, nothing is unplugged.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Address ranges of the hotplug regions.
    #[must_use]
    pub fn regions(&self) -> &[Range<u64>] {
        &self.regions
    }

    /// Makes a range of guest-physical addresses of hotplug region `index` usable. All of it is
    /// unplugged now.
    ///
    /// # Errors
    /// What the host says; nothing changed.
    pub fn plug(&self, index: usize, range: Range<u64>) -> io::Result<()> {
        let range = self.offsets(index, range)?;
        let mut hotplug = lock(&self.hotplug);
        let Hotplug { regions, slots } = &mut *hotplug;
        regions[index].plug(range, &mut **slots)?;
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = self.boot_windows.with(regions, None);
        Ok(())
    }

    /// Makes a range of guest-physical addresses of hotplug region `index` unreachable and gives
    /// its memory back to the host. All of it is plugged now.
    ///
    /// # Errors
    /// What the host says; nothing changed but, maybe, the contents of the range. A range that the
    /// host does not even open again is out of everybody's reach, and can be unplugged once more.
    pub fn unplug(&self, index: usize, range: Range<u64>) -> io::Result<()> {
        let range = self.offsets(index, range)?;
        let mut hotplug = lock(&self.hotplug);
        let Hotplug { regions, slots } = &mut *hotplug;
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        // The windows go first: what they lead to is about to be closed.
        *view = self.boot_windows.with(regions, Some((index, &range)));
        let result = regions[index].unplug(range, &mut **slots);
        if result.is_err() {
            *view = self.boot_windows.with(regions, None);
        }
        result
    }

    /// All memory as at the start but for the content of device memory: boot memory zero and in slots, of `slots`, which belong to a new
    /// machine of KVM; nothing plugged. What the host held comes back whole, a region at a time, however
    /// many runs were plugged.
    ///
    /// # Errors
    /// The host refuses; the memory is of no use any more.
    pub fn reset(&self, slots: Box<dyn Slots>) -> Result<(), MemoryError> {
        let mut hotplug = lock(&self.hotplug);
        let Hotplug { regions, slots: current } = &mut *hotplug;
        // The old slots hold the old machine of KVM, which need not follow its memory's end.
        *current = slots;
        // The windows go before what they lead to.
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = self.boot_windows.with(&[], None);
        for (index, region) in regions.iter_mut().enumerate() {
            let size = region.mapping().size();
            region.reset().map_err(fail(&format!("to take back hotplug region #{index}"), size))?;
        }
        let size = self.boot.size();
        self.boot.discard(0..size).map_err(fail("fresh boot memory", size))?;
        add_boot_slots(&self.boot, &mut **current)?;
        add_pmem_slots(&self.pmem, &mut **current)
    }

    /// Bytes of host memory held by hotplug region `index`; see [`held`].
    ///
    /// # Errors
    /// `/proc/self/smaps` cannot be read, or there is no such region.
    pub fn held(&self, index: usize) -> io::Result<u64> {
        let no_such = || io::Error::new(io::ErrorKind::NotFound, format!("no hotplug region #{index}"));
        held::held(self.region_mappings.get(index).ok_or_else(no_such)?)
    }

    /// Guest-physical addresses to offsets in region `index`.
    fn offsets(&self, index: usize, range: Range<u64>) -> io::Result<Range<u64>> {
        match self.regions.get(index) {
            Some(region) if region.start <= range.start && range.end <= region.end && !range.is_empty() => {
                Ok(range.start - region.start..range.end - region.start)
            }
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }
}

/// For `map_err`: the host refused `size` bytes of `what`.
fn fail(what: &str, size: u64) -> impl FnOnce(io::Error) -> MemoryError {
    move |error| MemoryError { what: what.to_owned(), size: Size(size), error }
}

fn add_boot_slots(boot: &Arc<Mapping>, slots: &mut dyn Slots) -> Result<(), MemoryError> {
    let mut offset = 0;
    for range in layout::ram(Size(boot.size())) {
        let size = range.end - range.start;
        slots.add(range.start, boot, offset, size).map_err(fail("the memslot of boot memory", size))?;
        offset += size;
    }
    Ok(())
}

/// Memory behind a range of device memory, which is the guest's from the start.
fn open_pmem((index, range): (usize, Range<u64>)) -> Result<(Range<u64>, Arc<Mapping>), MemoryError> {
    let (what, size) = (format!("device memory #{index}"), range.end - range.start);
    let mapping = Mapping::reserve(size).map_err(fail(&what, size))?;
    mapping.open(0..size).map_err(fail(&what, size))?;
    Ok((range, Arc::new(mapping)))
}

fn add_pmem_slots(pmem: &[(Range<u64>, Arc<Mapping>)], slots: &mut dyn Slots) -> Result<(), MemoryError> {
    for (range, mapping) in pmem {
        let size = range.end - range.start;
        slots.add(range.start, mapping, 0, size).map_err(fail("the memslot of device memory", size))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
