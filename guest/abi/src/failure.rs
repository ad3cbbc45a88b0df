//! Why the guest did not do what it was asked, as records and as text.
//!
//! The texts are the only ones: sessions and the guest's shell show them. They are parts of a sentence, so
//! that the side that shows them can say what it was about.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{Counted, Handle, Named, Size, ZoneName, either};

/// Why a [`Call`](crate::Call) was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// No workload has this handle.
    UnknownHandle,
    /// A workload with this handle exists.
    HandleInUse,
    /// Not even the bookkeeping fitted into memory.
    NoMemory,
    /// Not all pages of a workload that is not partial fit. It holds none.
    DoesNotFit {
        /// Most pages that fit.
        pages: u64,
    },
    /// The record could not be read.
    BadRecord,
    /// The range is not made of whole memory blocks that were added and are online.
    NotBlocks,
    /// Memory blocks that hold their own memmaps can only be removed one at a time, as they were added
    /// ([`MEMMAP_REMOVAL`](crate::cmdline::MEMMAP_REMOVAL)).
    Granularity,
    /// Some memory blocks of the range hold their own memmaps, and some do not.
    Mixed,
    /// Pages of a memory block could not be moved.
    Stuck {
        /// The memory block's address.
        addr: u64,
        /// How many pages.
        pages: u64,
    },
    /// The range of device memory does not allow it.
    Pmem(PmemFailure),
    /// The call needs CPUs or plugged memory that this guest does not have.
    Unfit,
    /// The workload has fewer pages, or its pages have no such part.
    NoSuchPage,
    /// The kernel went on while another CPU was held.
    NotAwaited(ProbedWait),
    /// A probe or a race is under way. The guest carries out one of them at a time.
    ProbeUnderWay,
    /// Another call is about to take or to free pages of the workload.
    WorkloadBusy,
    /// The guest drives no such device, or another call is about to bind it again.
    NoDriver,
    /// The guest's kernel has no such thing.
    Unsupported,
    /// The kernel ended the workload's process, as Linux does when it finds no more memory.
    Killed,
    /// `check`: two files of the kernel say different things about the same memory.
    Disagree(Disagreement),
}

/// Two numbers of the kernel that should be the same, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disagreement {
    /// Memory blocks of the zone Movable that are online in sysfs, and pages that are present there in zoneinfo.
    Movable {
        /// The node.
        node: u8,
        /// By `/sys/devices/system/memory`.
        blocks: u64,
        /// By `/proc/zoneinfo`.
        present: u64,
    },
    /// More pages are present in zoneinfo than the memory blocks that are online in sysfs have.
    Node {
        /// The node.
        node: u8,
        /// By `/sys/devices/system/memory`.
        blocks: u64,
        /// By `/proc/zoneinfo`.
        present: u64,
    },
    /// Free pages, managed, present and spanned ones of a zone do not follow each other in size.
    Zone {
        /// The node.
        node: u8,
        /// The zone.
        zone: ZoneName,
    },
    /// `MemTotal` of meminfo, and the managed pages of all zones in zoneinfo.
    Total {
        /// By `/proc/meminfo`.
        meminfo: u64,
        /// By `/proc/zoneinfo`.
        managed: u64,
    },
}

/// Why nothing was done with a range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PmemFailure {
    /// The memory map has no such range.
    NoDevice,
    /// It is mapped already, or about to be.
    Mapped,
    /// It is not mapped.
    NotMapped,
    /// It is not whole memory blocks, or the reserve is not whole pageblocks.
    Misaligned,
    /// It lies beyond the addresses that the guest has struct pages for.
    OutOfRange,
    /// There is other memory.
    Conflict,
    /// Reserve and memmap leave nothing of it.
    AltmapTooLarge,
    /// Too many ranges are mapped.
    TooMany,
    /// No page for a page table.
    NoPageTable,
    /// No room for the memmap.
    NoMemory,
    /// Pages of it are in use.
    InUse {
        /// References.
        refs: u64,
        /// Frame number of the first such page, and the workload that uses it.
        first: Option<(u64, Handle)>,
    },
}

/// Waits of the kernel for another CPU that [`Op::Probe`](crate::Op::Probe) puts to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbedWait {
    /// A grace period ends when the other CPU has ended its job's step.
    GracePeriod,
    /// A memmap is unmapped when the other CPU has flushed its TLB.
    TlbFlush,
    /// Pages are copied when the other CPU has copied its part of them.
    PageCopy,
    /// A release is answered when the other CPU has dropped the job and its tables.
    Release,
    /// A churn is answered when every CPU has dropped its job.
    Churn,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Named::new(self, &|_| None).fmt(f)
    }
}

impl fmt::Display for Named<'_, Failure> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.value {
            Failure::UnknownHandle => "the guest knows no such workload",
            Failure::HandleInUse => "the guest has such a workload already",
            Failure::NoMemory => "the guest has no memory for it",
            Failure::DoesNotFit { pages: 0 } => "does not fit: there is no room for it",
            Failure::DoesNotFit { pages } => {
                let pages = Counted(*pages, "page");
                return write!(
                    f,
                    "does not fit: there is room for at most {pages}; `up to` holds what fits"
                );
            }
            Failure::BadRecord => "the guest could not read the question",
            Failure::NotBlocks => "not made of whole memory blocks that were added and are online",
            Failure::Granularity => {
                "refused: memory blocks that hold their own memmap are removed one at a time, as they were added"
            }
            Failure::Mixed => "refused: some of the memory blocks hold their own memmap, and some do not",
            Failure::Stuck { addr, pages } => {
                // Addresses of memory blocks are round numbers: 4G says more than 0x100000000.
                let addr = Size(*addr);
                let pages = Counted(*pages, "page");
                return write!(f, "blocked: {pages} of the memory block at {addr} cannot move");
            }
            Failure::Pmem(failure) => return self.part(failure).fmt(f),
            Failure::Unfit => "this needs two CPUs and plugged memory",
            Failure::NoSuchPage => "the workload has no such page",
            Failure::ProbeUnderWay => {
                "a probe or a race is under way, and there is one at a time: try again when it has ended"
            }
            Failure::NoDriver => "the guest drives no such device, or it is being bound again",
            Failure::Unsupported => "the guest's kernel has no such thing",
            Failure::Killed => "the guest's kernel ended the workload, because it found no more memory",
            Failure::Disagree(disagreement) => return disagreement.fmt(f),
            Failure::WorkloadBusy => {
                "another call takes or frees pages of this workload: try again when it has ended"
            }
            Failure::NotAwaited(wait) => match wait {
                ProbedWait::GracePeriod => "a grace period ended while another CPU was in its job's step",
                ProbedWait::TlbFlush => "a memmap or memory was unmapped before another CPU flushed its TLB",
                ProbedWait::PageCopy => "a page counted as copied before another CPU had copied it",
                ProbedWait::Release => "`release` was answered before the job's own memory was free",
                ProbedWait::Churn => "`churn` was answered before the memory of all its jobs was free",
            },
        })
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Movable { node, blocks, present } => write!(
                f,
                "node {node}: the memory blocks that are online in zone Movable have {}, and zoneinfo says that \
                 {present} are present",
                Counted(*blocks, "page")
            ),
            Self::Node { node, blocks, present } => write!(
                f,
                "node {node}: the memory blocks that are online have {}, and zoneinfo says that {present} are present",
                Counted(*blocks, "page")
            ),
            Self::Zone { node, zone } => {
                write!(f, "node {node}, zone {zone}: not free <= managed <= present <= spanned in zoneinfo")
            }
            Self::Total { meminfo, managed } => write!(
                f,
                "meminfo says that there are {}, and zoneinfo that zones manage {managed}",
                Counted(*meminfo, "page")
            ),
        }
    }
}

impl fmt::Display for PmemFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Named::new(self, &|_| None).fmt(f)
    }
}

impl fmt::Display for Named<'_, PmemFailure> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.value {
            PmemFailure::NoDevice => "the guest found no such device memory; --pmem size=SIZE makes it",
            PmemFailure::Mapped => "it is mapped already",
            PmemFailure::NotMapped => "it is not mapped",
            PmemFailure::Misaligned => {
                "misaligned: device memory is whole memory blocks of 128M, a reserve whole pageblocks of 2M"
            }
            PmemFailure::OutOfRange => {
                "it lies beyond the addresses that the guest can have struct pages for"
            }
            PmemFailure::Conflict => "there is other memory at its addresses",
            PmemFailure::AltmapTooLarge => "reserve and memmap leave nothing of it: make the reserve smaller",
            PmemFailure::TooMany => "too many ranges are mapped: unmap one",
            PmemFailure::NoPageTable => "the guest has no memory for page tables",
            PmemFailure::NoMemory => "the guest has no memory for its memmap; with `altmap` it needs none",
            PmemFailure::InUse { refs, first } => {
                let are = either(*refs, "is", "are");
                write!(f, "{} to its pages {are} held", Counted(*refs, "reference"))?;
                let Some((pfn, handle)) = first else { return Ok(()) };
                return match self.name_of(*handle) {
                    Some(name) => write!(f, ", the first is pfn {pfn:#x} ({name})"),
                    None => write!(f, ", the first is pfn {pfn:#x} (unknown workload {handle})"),
                };
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Disagreement, Failure, PmemFailure, ProbedWait};
    use crate::{Name, Named, ZoneName};

    #[test]
    fn a_failure_has_one_text() {
        let texts = [
            (Failure::NoMemory, "the guest has no memory for it"),
            (Failure::DoesNotFit { pages: 0 }, "does not fit: there is no room for it"),
            (
                Failure::DoesNotFit { pages: 1 },
                "does not fit: there is room for at most 1 page; `up to` holds what fits",
            ),
            (Failure::NotBlocks, "not made of whole memory blocks that were added and are online"),
            (
                Failure::Stuck { addr: 4 << 30, pages: 3 },
                "blocked: 3 pages of the memory block at 4G cannot move",
            ),
            (Failure::Pmem(PmemFailure::NotMapped), "it is not mapped"),
            (
                Failure::Disagree(Disagreement::Movable { node: 1, blocks: 32768, present: 32767 }),
                "node 1: the memory blocks that are online in zone Movable have 32768 pages, and zoneinfo says that \
                 32767 are present",
            ),
            (
                Failure::Disagree(Disagreement::Zone { node: 0, zone: ZoneName::Normal }),
                "node 0, zone Normal: not free <= managed <= present <= spanned in zoneinfo",
            ),
            (
                Failure::NotAwaited(ProbedWait::PageCopy),
                "a page counted as copied before another CPU had copied it",
            ),
        ];
        for (failure, text) in texts {
            assert_eq!(failure.to_string(), text);
        }
    }

    #[test]
    fn users_of_device_memory_are_named() {
        let failure = Failure::Pmem(PmemFailure::InUse { refs: 4, first: Some((0x140000, 7)) });
        let known = |handle| Name::new("cache").filter(|_| handle == 7);
        let text = "4 references to its pages are held, the first is pfn 0x140000";
        assert_eq!(Named::new(&failure, &known).to_string(), format!("{text} (cache)"));
        assert_eq!(failure.to_string(), format!("{text} (unknown workload 7)"));
        let failure = PmemFailure::InUse { refs: 4, first: None };
        assert_eq!(failure.to_string(), "4 references to its pages are held");
        let failure = PmemFailure::InUse { refs: 1, first: None };
        assert_eq!(failure.to_string(), "1 reference to its pages is held");
    }
}
