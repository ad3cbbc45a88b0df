//! Device memory: what the VMM can ask of the guest about it, and what the guest answers.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{Counted, Handle, Size};

/// What the VMM can ask of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PmemOp {
    /// Report what is known of a range of device memory: [`Answer::Pmem`](crate::Answer::Pmem).
    Look {
        /// Which range.
        device: u8,
    },
    /// Map ranges of device memory, all or none: [`Answer::PmemMapped`](crate::Answer::PmemMapped).
    Map {
        /// Bit `n` is the `n`-th range of the memory map.
        devices: u8,
        /// Their memmaps lie in themselves.
        altmap: bool,
        /// Pages at the start of each that are left alone, with `altmap`.
        reserve: u32,
        /// Most CPUs that initialise struct pages, at least 1.
        cpus: u32,
    },
    /// Unmap a range of device memory: [`Answer::PmemUnmapped`](crate::Answer::PmemUnmapped).
    Unmap {
        /// Which range.
        device: u8,
    },
    /// Use free pages of a range of device memory, and fill them: [`Answer::Hogged`](crate::Answer::Hogged), or
    /// [`Failure::DoesNotFit`](crate::Failure::DoesNotFit). The handle is good for [`Op::Verify`](crate::Op::Verify) and [`Op::Release`](crate::Op::Release).
    Hold {
        /// Name for later calls.
        handle: Handle,
        /// Which range.
        device: u8,
        /// Number of 4 KiB pages wanted.
        pages: u64,
        /// Use the pages that are free. Otherwise use all that are wanted or none.
        partial: bool,
    },
}

/// A range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pmem {
    /// First byte.
    pub start: u64,
    /// Its size.
    pub size: Size,
    /// How it is mapped, if it is.
    pub mapped: Option<PmemUse>,
}

/// How a range of device memory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemUse {
    /// Pages that can be used.
    pub pages: u64,
    /// References to them by users.
    pub users: u64,
    /// Pages of its memmap.
    pub memmap_pages: u64,
    /// Whether they lie in the range itself.
    pub altmap: bool,
}

/// What mapping took, summed up over the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemMapped {
    /// Pages that can be used.
    pub pages: u64,
    /// Struct pages written under the memory hotplug lock.
    pub locked_pages: u64,
    /// How long that lock was held, in nanoseconds.
    pub locked_ns: u64,
    /// From the call until all pages could be used, in nanoseconds.
    pub total_ns: u64,
    /// CPUs that initialised struct pages.
    pub cpus: u32,
}

impl fmt::Display for Pmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}, ", self.size, self.start)?;
        let Some(PmemUse { pages, users, memmap_pages, altmap }) = self.mapped else {
            return f.write_str("not mapped");
        };
        let place = if altmap { "its own" } else { "the kernel's memory" };
        let (pages, users) = (Counted(pages, "page"), Counted(users, "reference"));
        write!(f, "{pages}, {users} by users, memmap in {} of {place}", Counted(memmap_pages, "page"))
    }
}

impl fmt::Display for PmemMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, locked_pages, locked_ns, total_ns, cpus } = *self;
        let (total, locked) = (Millis(total_ns), Millis(locked_ns));
        write!(
            f,
            "{} to use after {total} on {}; the hotplug lock was held for {locked}, and {} written under it",
            Counted(pages, "page"),
            Counted(cpus.into(), "CPU"),
            Counted(locked_pages, "struct page")
        )
    }
}

/// Nanoseconds, shown as milliseconds with three decimals.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.saturating_add(500) / 1000;
        write!(f, "{}.{:03} ms", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::{Pmem, PmemMapped, PmemUse, Size};

    #[test]
    fn a_range_says_how_it_is_mapped() {
        let range = Pmem { start: 0x1_4000_0000, size: Size(1 << 30), mapped: None };
        assert_eq!(range.to_string(), "1G at 0x140000000, not mapped");
        let mapped = PmemUse { pages: 258_048, users: 2, memmap_pages: 4096, altmap: true };
        let text = "1G at 0x140000000, 258048 pages, 2 references by users, memmap in 4096 pages of its own";
        assert_eq!(Pmem { mapped: Some(mapped), ..range }.to_string(), text);
    }

    #[test]
    fn times_are_shown_in_milliseconds() {
        let mapped = PmemMapped {
            pages: 258_048,
            locked_pages: 4096,
            locked_ns: 1_500_499,
            total_ns: 70_000_000,
            cpus: 2,
        };
        let text = "258048 pages to use after 70.000 ms on 2 CPUs; the hotplug lock was held for 1.500 ms, and 4096 \
                    struct pages written under it";
        assert_eq!(mapped.to_string(), text);
        let text = PmemMapped { cpus: 1, total_ns: 999_999_500, ..mapped }.to_string();
        assert!(text.starts_with("258048 pages to use after 1000.000 ms on 1 CPU;"), "{text}");
    }
}
