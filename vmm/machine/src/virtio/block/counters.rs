//! How many requests a disk answered, and how.
//!
//! The thread of the disk alone writes the counters, other threads read them at any time, and they are not ordered with
//! anything else. So counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use tidevm_abi::Size;

use super::request::{Answer, Kind};

/// The words for the types of requests, in the order of [`DiskCounts::by`]. The last one is every other type.
pub const DISK_REQUEST_KINDS: [&str; 5] = ["in", "out", "flush", "get_id", "other"];

/// The words for answers, in the order of each row of [`DiskCounts::by`].
pub const DISK_ANSWERS: [&str; 3] = ["ok", "ioerr", "unsupp"];

/// Requests to a disk since the VM was first started. Requests of a driver that was gone before the answer are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// By type ([`DISK_REQUEST_KINDS`]) and answer ([`DISK_ANSWERS`]).
    pub by: [[u64; 3]; 5],
    /// Chains without room for an answer.
    pub refused_chains: u64,
    /// What went from the medium to guest memory.
    pub read: Size,
    /// What went from guest memory to the medium.
    pub written: Size,
}

/// The live counters behind [`DiskCounts`].
#[derive(Debug, Default)]
pub(crate) struct DiskCounters {
    by: [[AtomicU64; 3]; 5],
    refused_chains: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

impl DiskCounters {
    /// Counts a request of `kind` with its `answer`, for which `moved` bytes were moved.
    pub(super) fn answered(&self, kind: Kind, answer: Answer, moved: usize) {
        self.by[kind as usize][answer as usize].fetch_add(1, Ordering::Relaxed);
        let moved = moved as u64;
        match kind {
            Kind::In => self.read.fetch_add(moved, Ordering::Relaxed),
            Kind::Out => self.written.fetch_add(moved, Ordering::Relaxed),
            Kind::Flush | Kind::GetId | Kind::Other => 0,
        };
    }

    /// Counts a chain without room for an answer.
    pub(super) fn refuse_chain(&self) {
        self.refused_chains.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub(crate) fn read(&self) -> DiskCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskCounts {
            by: self.by.each_ref().map(|row| row.each_ref().map(load)),
            refused_chains: load(&self.refused_chains),
            read: Size(load(&self.read)),
            written: Size(load(&self.written)),
        }
    }
}
