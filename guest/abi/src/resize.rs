//! How far a virtio-mem driver has come, and what is in its way, as records and as text.
//!
//! Linux writes this to its log at best. Here it is a record, so that the VMM can say why a size is not
//! reached.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{Counted, Handle, Named, SHELL_HANDLES, Size};

/// Where a virtio-mem driver stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Guest-physical address of the device's region; names the device.
    pub region: u64,
    /// How much is plugged.
    pub plugged: Size,
    /// The device's target when the driver last looked.
    pub requested: Size,
    /// The device's configuration generation when the driver last looked. It says which of several equal
    /// targets the driver has seen.
    pub generation: u32,
    /// Whether and why it stopped.
    pub state: ResizeState,
}

/// Whether a driver reached its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResizeState {
    /// `plugged` is `requested`.
    Reached,
    /// Pages that cannot move are in the way. The driver tries again when pages are freed or the
    /// target changes.
    Unmovable {
        /// How many such pages were met.
        pages: u64,
        /// The first of them.
        first: [Option<UnmovablePage>; 4],
    },
    /// There is no room to migrate pages to.
    NoRoom,
    /// No memory for page tables or for the memmap of the new memory.
    NoMemory,
    /// The device answered BUSY; the driver tries again.
    HostBusy,
    /// The device answered against the rules; the driver has looked at the true state and goes
    /// on from there.
    DeviceError,
    /// What is left is less than the guest can take in or give up.
    Granularity {
        /// The smallest part.
        unit: Size,
    },
}

/// A page that could not be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmovablePage {
    /// Its frame number.
    pub pfn: u64,
    /// What holds it.
    pub owner: Owner,
}

/// What holds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// Boot allocations: the kernel's image, the first memmap, holes.
    Reserved,
    /// The kernel's heap, stacks, queues.
    Kernel,
    /// Page tables.
    PageTable,
    /// The memmap of hot-added memory.
    Memmap,
    /// A workload of the session.
    Workload(Handle),
}

impl fmt::Display for ResizeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Named::new(self, &|_| None).fmt(f)
    }
}

impl fmt::Display for Named<'_, ResizeState> {
    /// Why the driver stands where it does: `3 pages cannot move: pfn 0x140200 (workload a) and 2 more`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.value {
            ResizeState::Reached => "the guest is at the target",
            ResizeState::Unmovable { pages, first } => return self.unmovable(f, *pages, first),
            ResizeState::NoRoom => "no room to move the pages to that are in use there",
            ResizeState::NoMemory => {
                "the guest has no memory for page tables or for the memmap of new memory"
            }
            ResizeState::HostBusy => "the device answers BUSY",
            ResizeState::DeviceError => "the device answered against the rules",
            ResizeState::Granularity { unit } => {
                return write!(f, "what is left is less than the {unit} that the guest takes at once");
            }
        })
    }
}

impl Named<'_, ResizeState> {
    fn unmovable(
        &self,
        f: &mut fmt::Formatter<'_>,
        pages: u64,
        first: &[Option<UnmovablePage>],
    ) -> fmt::Result {
        write!(f, "{} cannot move", Counted(pages, "page"))?;
        let mut named = 0;
        for page in first.iter().flatten() {
            let separator = if named == 0 { ": " } else { ", " };
            write!(f, "{separator}pfn {:#x} ({})", page.pfn, self.part(&page.owner))?;
            named += 1;
        }
        match pages.saturating_sub(named) {
            1.. if named == 0 => Ok(()),
            0 => Ok(()),
            rest => write!(f, " and {rest} more"),
        }
    }
}

impl fmt::Display for Named<'_, Owner> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.value {
            Owner::Reserved => "reserved at boot",
            Owner::Kernel => "the guest kernel's own",
            Owner::PageTable => "a page table",
            Owner::Memmap => "memmap of hot-added memory",
            Owner::Workload(handle) => {
                return match self.name_of(*handle) {
                    Some(name) => write!(f, "workload {name}"),
                    None if *handle >= SHELL_HANDLES => f.write_str("a workload of the guest's console"),
                    None => write!(f, "unknown workload {handle}"),
                };
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Owner, ResizeState, UnmovablePage};
    use crate::{Name, Named};

    #[test]
    fn pages_that_cannot_move_are_named() {
        let page = |pfn, owner| Some(UnmovablePage { pfn, owner });
        let first = [page(0x100, Owner::Workload(0)), page(0x101, Owner::Workload(1)), None, None];
        let names = |handle| Name::new("pins").filter(|_| handle == 0);
        let text = |pages, first| Named::new(&ResizeState::Unmovable { pages, first }, &names).to_string();
        let both = "pfn 0x100 (workload pins), pfn 0x101 (unknown workload 1)";
        assert_eq!(text(37, first), format!("37 pages cannot move: {both} and 35 more"));
        assert_eq!(text(2, first), format!("2 pages cannot move: {both}"));
        assert_eq!(text(1, [None; 4]), "1 page cannot move");
        let unit = crate::Size::mib(2);
        let text_of_unit = Named::new(&ResizeState::Granularity { unit }, &names).to_string();
        assert_eq!(text_of_unit, "what is left is less than the 2M that the guest takes at once");
        let first = [page(7, Owner::Memmap), None, None, None];
        assert_eq!(text(1, first), "1 page cannot move: pfn 0x7 (memmap of hot-added memory)");
    }
}
