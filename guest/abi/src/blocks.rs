//! Memory blocks, as the guest tells of them.
//!
//! Takes the place of Linux's `/sys/devices/system/memory`. Memory blocks that are alike are told of
//! together, so that a large guest needs few records.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::ZoneName;

/// Most runs in one [`Answer::Blocks`](crate::Answer::Blocks).
pub const BLOCK_RUNS: usize = 4;

/// Memory blocks that lie side by side and are alike. Each 128 MiB of boot memory count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRun {
    /// Address of the first.
    pub addr: u64,
    /// How many.
    pub count: u64,
    /// Size of each in bytes.
    pub size: u64,
    /// Whether they were there at boot.
    pub boot: bool,
    /// The zone that they are in, if they are online.
    pub zone: Option<ZoneName>,
    /// Their node.
    pub node: u8,
    /// Bytes that are plugged of each; 0 of boot memory, of which nothing is.
    pub plugged: u64,
    /// Pages of the memmap of each; 0 of boot memory, where that is not told.
    pub memmap_pages: u64,
    /// Whether the memmap of each lies on it.
    pub memmap_on_memory: bool,
}

impl fmt::Display for BlockRun {
    /// One line, in the words of Linux's `/sys/devices/system/memory`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        // Saturating: whoever shows it need not trust who says it.
        let last = self.addr.saturating_add(self.count.saturating_mul(self.size).saturating_sub(1));
        write!(f, "{:#x}-{last:#x}: {} of {} MiB, ", self.addr, self.count, mib(self.size))?;
        match self.zone {
            Some(ZoneName::Dma32) => write!(f, "online DMA32")?,
            Some(ZoneName::Normal) => write!(f, "online Normal")?,
            Some(ZoneName::Movable) => write!(f, "online Movable")?,
            None => write!(f, "offline")?,
        }
        if self.boot {
            return write!(f, ", boot memory");
        }
        let place = if self.memmap_on_memory { "on memory" } else { "elsewhere" };
        write!(f, ", {} MiB plugged, {} memmap pages {place}", mib(self.plugged), self.memmap_pages)
    }
}
