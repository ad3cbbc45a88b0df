//! What the VMM and its guest agree on beside virtio: the exit port, the command-line keys, and
//! the records that travel on the control channel.
//!
//! The control channel is a virtio-console device (virtio 1.3, section 5.3) without the multiport
//! feature: queue 0 carries [`Call`]s to the guest, queue 1 carries [`Report`]s to the VMM. One
//! buffer holds one record, so one message costs one exit. Text for people goes to the serial
//! port instead.
//!
//! Records are encoded by `postcard`. Neither side trusts the other's bytes: [`decode`] never
//! panics, allocates nothing and rejects records longer than [`MAX_RECORD`].
#![no_std]
#![forbid(unsafe_code)]

mod blocks;
pub mod cmdline;
mod pmem;
mod resize;
mod stats;

use serde::{Deserialize, Serialize};

pub use blocks::{BLOCK_RUNS, BlockRun};
pub use pmem::{Pmem, PmemFailure, PmemMapped, PmemOp, PmemUse};
pub use resize::{Owner, Resize, ResizeState, UnmovablePage};
pub use stats::{BootTimes, NR_ZONES, NodeStats, Stats, ZoneName, ZoneStats};

/// I/O port to which the guest writes an [`ExitCode`] byte to end the machine. It is the place of
/// QEMU's `isa-debug-exit` device, so the same guest also ends under QEMU.
pub const EXIT_PORT: u16 = 0xf4;

/// What the guest writes to [`EXIT_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The guest ended as it was asked to.
    PowerOff = 0,
    /// The guest panicked; the reason is on the serial port.
    Panic = 1,
}

/// First I/O port of the serial console (COM1, a 16550).
pub const SERIAL_PORT: u16 = 0x3f8;

/// Guest-physical addresses at and above this are refused by both sides: the guest's section
/// table ends here (2 TiB).
pub const MAX_PHYS_ADDR: u64 = 2 << 40;

/// Most CPUs that the guest brings up.
pub const MAX_CPUS: usize = 64;

/// Most NUMA nodes that the guest tells apart.
pub const MAX_NODES: usize = 4;

/// Most virtio-mem devices that the guest looks for on its command line.
pub const MAX_MEM_DEVICES: usize = 16;

/// Most ranges of device memory that the guest looks for in its memory map.
pub const MAX_PMEM: usize = 8;

/// Type of device memory in the memory map (PVH's and e820): persistent memory, as ACPI has it.
pub const E820_PMEM: u32 = 7;

/// The same in the form that came before ACPI's. Linux takes it without further tables.
pub const E820_PRAM: u32 = 12;

/// Least size of a memory block, the unit in which the guest adds and removes memory, and the default.
pub const MEMORY_BLOCK_SIZE: u64 = 128 << 20;

/// Largest size of a memory block.
pub const MAX_MEMORY_BLOCK_SIZE: u64 = 2 << 30;

/// Name of the ELF note by which the VMM knows a guest that speaks what is written here; it holds one
/// 32-bit number, 1.
pub const NOTE_NAME: &str = "tidevm";

/// Longest encoded record, in bytes; both sides' buffers have this size.
pub const MAX_RECORD: usize = 2048;

/// Names one workload of a session. The VMM chooses it, and never uses one twice at a time.
pub type Handle = u32;

/// A request of the VMM, answered by exactly one [`Report::Done`] with the same `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the VMM; comes back in the answer.
    pub id: u32,
    /// What to do.
    pub op: Op,
}

/// What the VMM can ask of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Report counters: [`Answer::Stats`].
    Stats,
    /// Verify every invariant of the memory management: [`Answer::Checked`], or a guest panic
    /// that names the two values that differ.
    Check,
    /// Allocate and fill pages: [`Answer::Hogged`].
    Hog {
        /// Name for later calls.
        handle: Handle,
        /// Number of 4 KiB pages wanted.
        pages: u64,
        /// Which pages.
        kind: HogKind,
        /// Spread over all free memory instead of taken densely.
        scattered: bool,
        /// Fill and check every word of a page rather than its start, middle and end.
        full: bool,
    },
    /// Check the content of a hog's pages: [`Answer::Verified`].
    Verify {
        /// The hog.
        handle: Handle,
    },
    /// Free a hog's pages: [`Answer::Released`].
    Release {
        /// The hog.
        handle: Handle,
    },
    /// Allocate and free pages in `threads` jobs for `millis` milliseconds, the first on the last
    /// CPU, the next on the one before it and so on: [`Answer::Churned`] when the time is over.
    Churn {
        /// Name in reports.
        handle: Handle,
        /// Number of concurrent storms; more than CPUs share them.
        threads: u32,
        /// How long, in milliseconds.
        millis: u64,
    },
    /// Let the boot CPU take a pageblock of the Movable zone whole and give it back, `cycles` times,
    /// while the other CPUs free pages of it: [`Answer::Raced`].
    Race {
        /// How often.
        cycles: u32,
    },
    /// Make the `after`-th (0 is the next) attempt of a step fail, once: [`Answer::Done`].
    Inject {
        /// The step.
        step: FaultStep,
        /// How many attempts to let pass.
        after: u32,
    },
    /// Report memory blocks: [`Answer::Blocks`].
    Blocks {
        /// Address from which on.
        from: u64,
    },
    /// Take memory blocks offline and remove them, all at once, and then add them back as they were:
    /// [`Answer::Done`].
    Readd {
        /// Address of the first of them.
        addr: u64,
        /// Size of all of them in bytes.
        size: u64,
    },
    /// Write [`ExitCode::PowerOff`]; there is no answer.
    PowerOff,
    /// Do something with device memory.
    Pmem(PmemOp),
}

/// Kinds of pages that a hog may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HogKind {
    /// Pages that the guest can migrate, from the Movable zone first.
    Movable,
    /// Pages that cannot move, from the kernel zones.
    Unmovable,
    /// Pages from the Movable zone that are pinned after allocation, as by long-term DMA.
    Pinned,
    /// Pages from the Movable zone that lie side by side and cannot move, as a device's buffer: all that
    /// were wanted, or none. What is in the way moves elsewhere.
    Contiguous,
}

/// Steps of memory hotplug at which a test can inject one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultStep {
    /// Mapping the direct map of a range: no page-table page.
    MapDirect,
    /// Mapping the memmap of a section: no page-table page.
    MapMemmap,
    /// Taking pages for the memmap, wherever they come from.
    AllocMemmap,
    /// Onlining, after the memmap is initialised.
    Online,
    /// Isolating a pageblock.
    Isolate,
    /// Migrating a page.
    Migrate,
}

/// Messages of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is no heap to put counters on, and few are under way")]
pub enum Report {
    /// All CPUs are up and all drivers are bound. Sent once.
    Ready {
        /// CPUs that run.
        cpus: u32,
        /// virtio-mem devices that were found.
        mem_devices: u32,
    },
    /// The answer to a [`Call`].
    Done {
        /// The call's id.
        id: u32,
        /// What came of it.
        answer: Answer,
    },
    /// A virtio-mem driver came to rest: it reached its target, or knows why it cannot.
    Resize(Resize),
}

/// What came of a [`Call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is no heap to put counters on, and few are under way")]
pub enum Answer {
    /// To [`Op::Stats`].
    Stats(Stats),
    /// To [`Op::Check`]: number of pages looked at.
    Checked {
        /// Pages looked at.
        pages: u64,
    },
    /// To [`Op::Hog`]: pages that fitted, at most the number asked for.
    Hogged {
        /// Pages held now.
        pages: u64,
    },
    /// To [`Op::Verify`].
    Verified {
        /// Pages whose content was checked.
        pages: u64,
        /// Pages whose content was wrong.
        corrupt: u64,
        /// Frame number of the first wrong page, if any.
        first_corrupt: Option<u64>,
    },
    /// To [`Op::Release`]: pages given back.
    Released {
        /// Pages given back.
        pages: u64,
    },
    /// To [`Op::Churn`].
    Churned {
        /// Successful allocations.
        allocations: u64,
        /// Allocations that found no memory.
        failures: u64,
    },
    /// To [`Op::Blocks`].
    Blocks {
        /// Ascending by address, then none.
        runs: [Option<BlockRun>; BLOCK_RUNS],
        /// Where to ask for more, if there are more.
        next: Option<u64>,
    },
    /// To [`Op::Race`].
    Raced {
        /// Cycles that were run.
        cycles: u32,
        /// Those in which the pageblock could not be taken.
        failures: u32,
        /// Pages that were found on per-CPU lists although they were isolated.
        stranded: u64,
    },
    /// To [`Op::Inject`] and [`Op::Readd`].
    Done,
    /// To [`Op::Pmem`].
    Pmem(Pmem),
    /// To [`PmemOp::Map`].
    PmemMapped(PmemMapped),
    /// To [`PmemOp::Unmap`].
    PmemUnmapped {
        /// Pages that could be used.
        pages: u64,
    },
    /// The guest could not do it.
    Failed(Failure),
}

/// Why a [`Call`] was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// No workload has this handle.
    UnknownHandle,
    /// A workload with this handle exists.
    HandleInUse,
    /// Not even the bookkeeping fitted into memory.
    NoMemory,
    /// The record could not be read.
    BadRecord,
    /// The range is not made of whole memory blocks that were added and are online.
    NotBlocks,
    /// Memory blocks that hold their own memmaps go one at a time, as they came
    /// ([`cmdline::MEMMAP_REMOVAL`]).
    Granularity,
    /// Some memory blocks of the range hold their own memmaps, and some do not.
    Mixed,
    /// Pages stand in the way of a memory block.
    Stuck {
        /// The memory block's address.
        addr: u64,
        /// How many pages.
        pages: u64,
    },
    /// Device memory is not what the call takes it for.
    Pmem(PmemFailure),
    /// It needs CPUs or plugged memory that this guest does not have.
    Unfit,
}

/// A record that could not be encoded or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRecord;

/// Encodes `record` into `buffer` and returns the bytes used.
///
/// # Errors
/// [`BadRecord`] when `buffer` is too short; [`MAX_RECORD`] bytes are enough for every record.
pub fn encode<'b, T: Serialize>(record: &T, buffer: &'b mut [u8]) -> Result<&'b [u8], BadRecord> {
    postcard::to_slice(record, buffer).map(|bytes| &*bytes).map_err(|_| BadRecord)
}

/// Decodes one record that fills `bytes` from its start; bytes after it are ignored.
///
/// # Errors
/// [`BadRecord`] when `bytes` is longer than [`MAX_RECORD`] or is not such a record.
pub fn decode<'b, T: Deserialize<'b>>(bytes: &'b [u8]) -> Result<T, BadRecord> {
    if bytes.len() > MAX_RECORD {
        return Err(BadRecord);
    }
    postcard::from_bytes(bytes).map_err(|_| BadRecord)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_record_fits() {
        let page = Some(UnmovablePage { pfn: u64::MAX, owner: Owner::Workload(u32::MAX) });
        let resize = Report::Resize(Resize {
            region: u64::MAX,
            plugged: u64::MAX,
            requested: u64::MAX,
            state: ResizeState::Unmovable { pages: u64::MAX, first: [page; 4] },
        });
        let zone = ZoneStats {
            name: ZoneName::Movable,
            spanned: u64::MAX,
            present: u64::MAX,
            managed: u64::MAX,
            free: u64::MAX,
            pcp: u64::MAX,
        };
        let stats = Report::Done {
            id: u32::MAX,
            answer: Answer::Stats(Stats {
                zones: [zone; NR_ZONES],
                nr_nodes: u8::MAX,
                nodes: [NodeStats { zones: [zone; NR_ZONES], init_local: u64::MAX, init_remote: u64::MAX };
                    MAX_NODES],
                memmap_boot_pages: u64::MAX,
                memmap_altmap_pages: u64::MAX,
                blocks_online: u64::MAX,
                pages_migrated: u64::MAX,
                migrate_failed: u64::MAX,
                pcp_drains: u64::MAX,
                pcp_stranded: u64::MAX,
                memmaps_written: u64::MAX,
                device_spanned: u64::MAX,
                device_pages: u64::MAX,
                device_refs: u64::MAX,
                boot: BootTimes {
                    mapped: u64::MAX,
                    first_allocation: u64::MAX,
                    initialised: Some(u64::MAX),
                    memmaps_written: u64::MAX,
                },
            }),
        };
        let run = Some(BlockRun {
            addr: u64::MAX,
            count: u64::MAX,
            size: u64::MAX,
            boot: false,
            zone: Some(ZoneName::Movable),
            node: u8::MAX,
            plugged: u64::MAX,
            memmap_pages: u64::MAX,
            memmap_on_memory: true,
        });
        let answer = Answer::Blocks { runs: [run; BLOCK_RUNS], next: Some(u64::MAX) };
        let blocks = Report::Done { id: u32::MAX, answer };
        let mapped = PmemUse { pages: u64::MAX, users: u64::MAX, memmap_pages: u64::MAX, altmap: true };
        let device = Pmem { start: u64::MAX, size: u64::MAX, mapped: Some(mapped) };
        let pmem = Report::Done { id: u32::MAX, answer: Answer::Pmem(device) };
        for report in [resize, stats, blocks, pmem] {
            let mut buffer = [0; MAX_RECORD];
            let bytes = encode(&report, &mut buffer).unwrap();
            assert_eq!(decode::<Report>(bytes), Ok(report));
        }
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(decode::<Report>(&[]), Err(BadRecord));
        assert_eq!(decode::<Report>(&[0xff; 16]), Err(BadRecord));
        assert_eq!(decode::<Call>(&[0; MAX_RECORD + 1]), Err(BadRecord));
    }
}
