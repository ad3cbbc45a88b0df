//! The guest's memory blocks, as records and as text.
//!
//! Takes the place of Linux's `/sys/devices/system/memory`. One record describes all neighbours that are
//! alike, so that a large guest needs few records.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{Counted, Size, ZoneName};

/// Most runs in one [`Answer::Blocks`](crate::Answer::Blocks).
pub const BLOCK_RUNS: usize = 4;

/// The state of a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockState {
    /// Its memory can be used.
    Online,
    /// It was added, and no zone has it.
    Offline,
    /// Boot memory that is initialised when it is wanted. It belongs to its zone already.
    Deferred,
}

impl BlockState {
    /// The word for it. The first two are Linux's.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Deferred => "deferred",
        }
    }
}

/// Memory blocks that lie side by side and are alike. Each 128 MiB of boot memory count as one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRun {
    /// Address of the first.
    pub addr: u64,
    /// How many.
    pub count: u64,
    /// Size of each.
    pub size: Size,
    /// Whether they were there at boot.
    pub boot: bool,
    /// Their state.
    pub state: BlockState,
    /// The zone that they are in, unless they are offline.
    pub zone: Option<ZoneName>,
    /// Their node.
    pub node: u8,
    /// How much of each is plugged; 0 for boot memory, which is never plugged. `None`: the guest does not tell it.
    pub plugged: Option<Size>,
    /// The memmap of each, if the guest tells of it.
    pub memmap: Option<Memmap>,
}

/// The memmap of a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memmap {
    /// Its pages; 0 for boot memory, which does not report them.
    pub pages: u64,
    /// Whether it lies on the memory block.
    pub on_memory: bool,
}

impl fmt::Display for BlockRun {
    /// One line, in the words of Linux's `/sys/devices/system/memory`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |size: Size| size.0 >> 20;
        // Saturating: the VMM shows this and does not trust the guest's numbers.
        let last = self.addr.saturating_add(self.count.saturating_mul(self.size.0).saturating_sub(1));
        write!(f, "{:#x}-{last:#x}: {} of {} MiB, ", self.addr, self.count, mib(self.size))?;
        f.write_str(self.state.as_str())?;
        if let Some(zone) = self.zone {
            write!(f, " {zone}")?;
        }
        if self.boot {
            return write!(f, ", boot memory");
        }
        if let Some(plugged) = self.plugged {
            write!(f, ", {} MiB plugged", mib(plugged))?;
        }
        let Some(Memmap { pages, on_memory }) = self.memmap else { return Ok(()) };
        let place = if on_memory { "on memory" } else { "elsewhere" };
        write!(f, ", {} {place}", Counted(pages, "memmap page"))
    }
}
