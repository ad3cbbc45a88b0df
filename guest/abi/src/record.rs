//! The records of the control channel: a [`Call`] of the VMM, a [`Report`] of the guest, and their bytes.
//!
//! Invariants: a record needs no heap, and its encoding is at most [`MAX_RECORD`] bytes long.

use serde::{Deserialize, Serialize};

use crate::{Answer, Handle, PmemOp, Pressure, ProbedWait, Resize, Size, Watch};

/// Longest encoded record, in bytes; both sides' buffers have this size.
pub const MAX_RECORD: usize = 2048;

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
    /// Allocate and fill pages: [`Answer::Hogged`], or [`Failure::DoesNotFit`](crate::Failure::DoesNotFit).
    Hog {
        /// Name for later calls.
        handle: Handle,
        /// Number of 4 KiB pages wanted.
        pages: u64,
        /// Hold what fits. Otherwise hold all pages or none.
        partial: bool,
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
    /// Free a hog's pages: [`Answer::Released`], or [`Failure::WorkloadBusy`](crate::Failure::WorkloadBusy) while it takes
    /// them, and during another release.
    Release {
        /// The hog.
        handle: Handle,
    },
    /// Allocate and free pages in `threads` jobs for `millis` milliseconds, the first on the last
    /// CPU, the next on the one before it and so on: [`Answer::Churned`] when the time is over.
    Churn {
        /// Name in reports.
        handle: Handle,
        /// Number of concurrent jobs. More jobs than CPUs share the CPUs.
        threads: u32,
        /// How long, in milliseconds.
        millis: u64,
    },
    /// Let the boot CPU take a pageblock of the Movable zone whole and give it back, `cycles` times,
    /// while the other CPUs free pages of it: [`Answer::Raced`], or
    /// [`Failure::ProbeUnderWay`](crate::Failure::ProbeUnderWay) during another race or a probe.
    Race {
        /// How often, at most [`MAX_RACE_CYCLES`](crate::MAX_RACE_CYCLES).
        cycles: u32,
        /// The boot CPU is held after its drain of per-CPU lists, until the other CPUs have freed their pages.
        held: bool,
    },
    /// Change a page of a hog: [`Answer::Corrupted`] for its content, [`Answer::Done`] for its memmap.
    Corrupt {
        /// The hog.
        handle: Handle,
        /// The page, counted from 0 in the order of the hog's pages.
        page: u32,
        /// The part of the page that changes.
        part: CorruptPart,
    },
    /// Hold a CPU where the kernel has to wait for it: [`Answer::Done`] when the kernel waits,
    /// [`Failure::NotAwaited`](crate::Failure::NotAwaited) when it does not, and
    /// [`Failure::ProbeUnderWay`](crate::Failure::ProbeUnderWay) during another probe or a race.
    Probe(ProbedWait),
    /// Make the `after`-th (0 is the next) attempt of a step fail, once: [`Answer::Done`].
    Inject {
        /// The step.
        step: FaultStep,
        /// How many attempts to let pass.
        after: u32,
    },
    /// Report memory blocks: [`Answer::Blocks`].
    Blocks {
        /// The lowest address to report.
        from: u64,
    },
    /// Take memory blocks offline and remove them, all at once, and then add them back as they were:
    /// [`Answer::Done`].
    Readd {
        /// Address of the first of them.
        addr: u64,
        /// Size of all of them.
        size: Size,
    },
    /// Write [`ExitCode::PowerOff`](crate::ExitCode::PowerOff); there is no answer.
    PowerOff,
    /// Do something with device memory.
    Pmem(PmemOp),
    /// Take the driver from a virtio-mem device and bind it again, with the memory still plugged: [`Answer::Done`] when the
    /// new driver is bound, [`Failure::NoDriver`](crate::Failure::NoDriver), or
    /// [`Failure::Stuck`](crate::Failure::Stuck) when memory that is in use cannot go; the driver stays then.
    Rebind {
        /// The device, counted from 0 in the order in which the guest found those that it drives.
        device: u8,
    },
    /// Tell how much memory there is: [`Answer::Meminfo`].
    Meminfo,
    /// Tell how much memory is left, now and when it passes a level: [`Answer::Pressure`].
    Watch(Watch),
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
    /// Pages from the Movable zone that lie side by side and cannot move, as a device's buffer: as many
    /// as were wanted, or none. Pages that are in the way move elsewhere.
    Contiguous,
}

/// The part of a page that [`Op::Corrupt`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CorruptPart {
    /// A bit of one word of its content. Which word follows from the page's number, among the words that the
    /// hog filled. The second time the bit has its old value.
    Content,
    /// Its owner in the memmap, which becomes one that is not registered.
    Memmap,
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
    /// Taking a page for a page table, while entries are written: no page.
    PageTable,
    /// Hearing of a virtio-mem device that it has served a request: the driver believes that it was never sent.
    Answer,
    /// Notifying a virtio-mem device of requests: it is not notified.
    Notify,
    /// Sending requests to a virtio-mem device: it is reset behind the driver's back.
    Device,
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
        /// The answer.
        answer: Answer,
    },
    /// A virtio-mem driver came to rest: it reached its target, or knows why it cannot.
    Resize(Resize),
    /// Memory has passed a level of [`Op::Watch`].
    Pressure(Pressure),
    /// The version of the records that this guest speaks ([`RECORDS_VERSION`](crate::kernel::RECORDS_VERSION)). An agent
    /// sends it before [`Report::Ready`]; tidevm's own guest says it in a note of its file.
    Speaks {
        /// The version.
        version: u32,
    },
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
mod tests;
