//! The VMM's own view of guest memory: boot memory and exactly the open runs of the hotplug regions.
//!
//! Mirrors `vm-memory`'s `GuestRegionCollection`, of which each change copies the whole collection. Differs on
//! purpose: a guest decides how many runs there are, so a change must not cost time in proportion to them. The
//! view is a tree of windows that changes in place. A plug replaces the windows of the runs that it touches, at
//! most two, by one. An unplug splits the windows at its ends.
//!
//! Invariant: outside [`super::Memory`]'s lock there is one window per open run, and no window elsewhere.
#![expect(unsafe_code, reason = "makes windows into mappings; see the invariant of the parent module")]

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::layout;
use super::mapping::{Mapping, Window};
use super::range::{GuestRange, OffsetRange};
use super::region::RamRegion;

/// The guest memory that the VMM may touch.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct View {
    /// By the first address.
    windows: BTreeMap<u64, Shown>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Shown {
    addresses: GuestRange,
    mapping: Arc<Mapping>,
    offsets: OffsetRange,
    window: Window,
}

impl View {
    /// Opens all of `mapping`, which is all of boot memory, and shows it.
    pub(super) fn of_boot_memory(mapping: &Arc<Mapping>) -> std::io::Result<Self> {
        mapping.open(mapping.all())?;
        let mut view = Self { windows: BTreeMap::new() };
        for (addresses, offsets) in layout::boot_parts(mapping.all()) {
            // No code closes boot memory.
            view.insert(addresses, mapping, offsets);
        }
        Ok(view)
    }

    /// Shows the open runs of `region` that overlap `range`, each in one window.
    pub(super) fn show(&mut self, region: &RamRegion, range: OffsetRange) {
        for run in region.open_runs().overlapping(range) {
            let addresses = region.range().addresses_of(run);
            self.hide(addresses);
            self.insert(addresses, region.mapping(), run);
        }
    }

    /// Removes all windows into `range`. What windows show beside it stays.
    pub(super) fn hide(&mut self, range: GuestRange) {
        while let Some((&start, shown)) = self.windows.range(..range.end().0).next_back() {
            if shown.addresses.end() <= range.start() {
                break;
            }
            let Some(shown) = self.windows.remove(&start) else { break };
            for rest in shown.addresses.without(range.start().0..range.end().0) {
                let Some(part) = shown.addresses.offsets_of(rest) else { continue };
                let offset = shown.offsets.start();
                if let Some(offsets) = OffsetRange::new(offset + part.start()..offset + part.end()) {
                    self.insert(rest, &shown.mapping, offsets);
                }
            }
        }
    }

    /// Adds the window of `offsets`, which are open.
    fn insert(&mut self, addresses: GuestRange, mapping: &Arc<Mapping>, offsets: OffsetRange) {
        #[cfg(test)]
        WINDOWS_MADE.set(WINDOWS_MADE.get() + 1);
        // SAFETY: the callers pass boot memory, open runs, and parts of windows, all of which are open. No code
        // closes boot memory. Only `RamRegion::unplug`, `unplug_all` and `reset` close runs. Only `Memory`'s
        // methods of the same names call those, after they hid the range from the one shared view, under its
        // lock; no window is used outside that lock.
        let window = unsafe { Window::new(Arc::clone(mapping), offsets, addresses.start()) };
        let shown = Shown { addresses, mapping: Arc::clone(mapping), offsets, window };
        self.windows.insert(addresses.start().0, shown);
    }
}

impl GuestMemoryBackend for View {
    type R = Window;

    fn num_regions(&self) -> usize {
        self.windows.len()
    }

    fn find_region(&self, address: GuestAddress) -> Option<&Window> {
        #[cfg(feature = "hosted")]
        LOOKUPS.set(LOOKUPS.get() + 1);
        let (_, shown) = self.windows.range(..=address.0).next_back()?;
        shown.addresses.contains(address).then_some(&shown.window)
    }

    fn iter(&self) -> impl Iterator<Item = &Window> {
        self.windows.values().map(|shown| &shown.window)
    }

    fn last_addr(&self) -> GuestAddress {
        self.windows.values().next_back().map_or(GuestAddress(0), |shown| shown.window.last_addr())
    }
}

#[cfg(test)]
thread_local! {
    /// Windows that this thread has made. Tests look at it to see that a change leaves the others alone.
    pub(crate) static WINDOWS_MADE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(feature = "hosted")]
thread_local! {
    /// Addresses that this thread has looked up in a view: the measure of a device's work on a queue.
    pub(crate) static LOOKUPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}
