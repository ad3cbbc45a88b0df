//! The VMM's own view of guest memory: boot memory and exactly the plugged runs.
#![expect(unsafe_code, reason = "makes windows into mappings; see the invariant of the parent module")]

use std::ops::Range;
use std::sync::Arc;

use tidevm_abi::Size;
use vm_memory::{GuestAddress, GuestRegionCollection};

use super::layout;
use super::mapping::{Mapping, Window};
use super::region::RamRegion;

/// What of guest memory the VMM may touch.
pub type View = GuestRegionCollection<Window>;

/// Boot memory, which never changes, as windows at its guest-physical addresses.
#[derive(Clone, Debug)]
pub(super) struct BootWindows(Vec<Arc<Window>>);

impl BootWindows {
    /// Opens all of `mapping`, which is all of boot memory.
    pub(super) fn open(mapping: &Arc<Mapping>) -> std::io::Result<Self> {
        mapping.open(0..mapping.size())?;
        let mut offset = 0;
        let windows = layout::ram(Size(mapping.size())).map(|range| {
            let offsets = offset..offset + (range.end - range.start);
            offset = offsets.end;
            // SAFETY: all of the mapping was opened above, and nobody closes boot memory.
            Arc::new(unsafe { Window::new(Arc::clone(mapping), offsets, GuestAddress(range.start)) })
        });
        Ok(Self(windows.collect()))
    }

    /// Boot memory and what is plugged of `regions`, but for `without`: offsets in one of them. The
    /// caller shows the result to others only while what it holds stays plugged.
    pub(super) fn with(&self, regions: &[RamRegion], without: Option<(usize, &Range<u64>)>) -> View {
        let mut windows = self.0.clone();
        for (index, region) in regions.iter().enumerate() {
            let mut plugged = region.plugged().clone();
            if let Some((_, range)) = without.filter(|&(of, _)| of == index) {
                plugged.remove(range.clone());
            }
            for run in plugged.iter() {
                let address = GuestAddress(region.start() + run.start);
                // SAFETY: what is plugged is open. Only `RamRegion::unplug` and `RamRegion::reset` close it,
                // which only `Memory`'s methods of these names call, after they put a view without
                // these windows in the place of every other, under a lock that nobody keeps a window
                // beyond.
                let window = unsafe { Window::new(Arc::clone(region.mapping()), run, address) };
                windows.push(Arc::new(window));
            }
        }
        GuestRegionCollection::from_arc_regions(windows)
            .expect("boot memory, then regions, each above the one before: see `layout`")
    }
}
