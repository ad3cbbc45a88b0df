//! The VMM's own view of guest memory: boot memory and exactly the open runs of the hotplug regions.
//!
//! A view is derived anew from the runs after each change of them. Nothing else is kept.
#![expect(unsafe_code, reason = "makes windows into mappings; see the invariant of the parent module")]

use std::sync::Arc;

use vm_memory::GuestRegionCollection;

use super::layout;
use super::mapping::{Mapping, Window};
use super::range::OffsetRange;
use super::region::RamRegion;

/// The guest memory that the VMM may touch.
pub type View = GuestRegionCollection<Window>;

/// Boot memory, which never changes, as windows at its guest-physical addresses.
#[derive(Clone, Debug)]
pub(super) struct BootWindows(Vec<Arc<Window>>);

impl BootWindows {
    /// Opens all of `mapping`, which is all of boot memory.
    pub(super) fn open(mapping: &Arc<Mapping>) -> std::io::Result<Self> {
        mapping.open(mapping.all())?;
        let windows = layout::boot_parts(mapping.all()).map(|(range, offsets)| {
            // SAFETY: all of the mapping was opened above, and no code closes boot memory.
            Arc::new(unsafe { Window::new(Arc::clone(mapping), offsets, range.start()) })
        });
        Ok(Self(windows.collect()))
    }

    /// Derives the view from the open runs of `regions`, leaving out `without`: offsets in one of them. The
    /// caller shows the view to others only while everything in it stays open.
    pub(super) fn with(&self, regions: &[RamRegion], without: Option<(usize, OffsetRange)>) -> View {
        let mut windows = self.0.clone();
        for (index, region) in regions.iter().enumerate() {
            let mut open = region.open_runs().clone();
            if let Some((_, range)) = without.filter(|&(of, _)| of == index) {
                open.remove(range);
            }
            for run in open.iter() {
                let address = region.range().addresses_of(run).start();
                // SAFETY: `open_runs` are open. Only `RamRegion::unplug` and `RamRegion::reset` close them.
                // Only `Memory`'s methods of the same names call those, after they replaced the one shared
                // view, under its lock, by a view without these windows; no window is used outside that lock.
                let window = unsafe { Window::new(Arc::clone(region.mapping()), run, address) };
                windows.push(Arc::new(window));
            }
        }
        GuestRegionCollection::from_arc_regions(windows)
            .expect("boot memory, then regions, each above the one before: see `layout`")
    }
}
