//! A counter of the guest as a row of a table: its names, its place in texts, and how it is read.
//!
//! This file is the form of a row. The rows are beside the records that hold the numbers:
//! [`Stats::COUNTERS`](crate::Stats::COUNTERS), [`NodeStats::COUNTERS`](crate::NodeStats::COUNTERS) and
//! [`ZoneStats::COUNTERS`](crate::ZoneStats::COUNTERS).
//!
//! Invariant: in one table each key is unique, and so is each word.

use crate::Kernel;

/// A counter of a `T`: of the guest, of a NUMA node or of a zone.
#[derive(Debug)]
pub struct Counter<T> {
    /// Key in JSON; unique in its table.
    pub key: &'static str,
    /// Name in scripts, behind `node.N.` or `zone.NAME.` for a counter of these. `expect` does not know a
    /// counter without a name.
    pub word: Option<&'static str>,
    /// Place in the text of the counters, if it is in there.
    pub label: Option<Label>,
    /// Linux tells it too.
    pub linux: bool,
    /// Reads it.
    pub read: fn(&T) -> u64,
}

/// How the text of the counters shows one: `NUMBER text`.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// The counters beside which it stands.
    pub group: Group,
    /// What follows the number.
    pub text: &'static str,
    /// What follows the number 1.
    pub one: &'static str,
}

/// Counters that a text shows together. They stand side by side in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The memmap of hot-added memory.
    Memmap,
    /// Memory blocks.
    Blocks,
    /// Migration of pages.
    Migration,
    /// Per-CPU lists.
    PerCpuLists,
    /// Device memory: a line by itself, where there is some.
    DeviceMemory,
}

impl Group {
    /// What stands before its numbers.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Memmap => "memmap: ",
            Self::DeviceMemory => "device memory: ",
            Self::Blocks | Self::Migration | Self::PerCpuLists => "",
        }
    }
}

impl<T> Counter<T> {
    /// A counter that only JSON shows, under `key`.
    pub(crate) const fn new(key: &'static str, read: fn(&T) -> u64) -> Self {
        Self { key, word: None, label: None, linux: false, read }
    }

    /// Its name in scripts; its key if it has none.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.word.unwrap_or(self.key)
    }

    /// Scripts know it as `word`.
    pub(crate) const fn word(self, word: &'static str) -> Self {
        Self { word: Some(word), ..self }
    }

    /// Linux tells it too.
    pub(crate) const fn linux(self) -> Self {
        Self { linux: true, ..self }
    }

    /// Whether `kernel` tells it. If not, its value means nothing.
    #[must_use]
    pub fn told_by(&self, kernel: Kernel) -> bool {
        kernel == Kernel::Tidevm || self.linux
    }

    /// The text of the counters shows it: `one` behind a 1, otherwise `text`.
    pub(crate) const fn label(self, group: Group, one: &'static str, text: &'static str) -> Self {
        Self { label: Some(Label { group, text, one }), ..self }
    }
}

/// Rows of one table are equal when they have the same key.
impl<T> PartialEq for Counter<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Counter<T> {}
