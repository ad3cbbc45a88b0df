//! The one grammar: what a session can be told to do, as values and as text.
//!
//! ```text
//! resize SIZE                     plug SIZE                     unplug SIZE
//! hog SIZE movable|unmovable|pinned|contiguous [scattered] [full] as NAME
//! churn N threads for DURATION as NAME
//! verify NAME                     release NAME                  wait NAME
//! expect METRIC ==|!=|<=|>=|<|> VALUE
//! race N cycles                   stats                         check
//! sleep DURATION                  blocks                        readd SIZE at ADDRESS
//! inject STEP [after N]
//! pmem ...                        (see `command/pmem.rs`)
//! ```
//!
//! `resize`, `plug`, `unplug` and `expect` take `device N` (the N-th `--hotplug`, 0 without it) and
//! `within DURATION` at their end, in any order. Sizes are `512M`, `2G`, `2GiB` or plain bytes,
//! durations `200ms`, `5s` or `2m`. METRIC is one of [`Metric`].
//!
//! Every [`Command`] prints as text that parses to the same command, so what a table shows can be
//! typed in again. Parsing is in `command/parse.rs`, sizes and durations in `command/quantity.rs`.

mod parse;
mod pmem;
mod quantity;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use tidevm_abi::{FaultStep, HogKind, ZoneName};
use tidevm_machine::Size;

pub use parse::SyntaxError;
pub(crate) use parse::{Word, Words, count, parse_command};
pub use pmem::{Pmem, PmemMap};
pub use quantity::{ShowDuration, parse_size};

/// One line of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Give a device a new target and wait until the guest is there.
    Resize(Resize),
    /// Let the guest allocate checksummed pages and hold them.
    Hog(Hog),
    /// Let the guest allocate and free pages in the background.
    Churn {
        /// Concurrent storms, at least 1.
        threads: u32,
        /// How long; at least a millisecond, whole milliseconds.
        time: Duration,
        /// What later commands call it.
        name: Name,
    },
    /// Check the content of a hog's pages.
    Verify(Name),
    /// Free a hog's pages; of a churn, wait for its end.
    Release(Name),
    /// Wait for the end of a churn.
    Wait(Name),
    /// Compare a number with what it should be.
    Expect(Expect),
    /// Print every counter.
    Stats,
    /// Let the guest verify every invariant of its memory management.
    Check,
    /// Let the guest list its memory blocks.
    Blocks,
    /// Let the guest take memory blocks offline, remove them at once, and add them back.
    Readd {
        /// Bytes of all of them.
        size: u64,
        /// Guest-physical address of the first.
        addr: u64,
    },
    /// Do something with device memory.
    Pmem(Pmem),
    /// Let time pass.
    Sleep(Duration),
    /// Let one CPU of the guest take a pageblock of hot-added memory and give it back, again and again,
    /// while the others free pages of it.
    Race {
        /// How often, at least once.
        cycles: u32,
    },
    /// Let one attempt of a step of memory hotplug fail, for tests.
    Inject {
        /// The step.
        step: FaultStep,
        /// How many attempts to let pass first.
        after: u32,
    },
}

/// `resize`, `plug` and `unplug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Where to.
    pub target: Target,
    /// Index of the device, in the order of the `--hotplug` options.
    pub device: usize,
    /// How long it may take. Without it a shrink that is blocked fails at once; with it, at the
    /// deadline.
    pub within: Option<Duration>,
}

/// The new size, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `resize`: exactly this.
    To(u64),
    /// `plug`: this much above what is requested now.
    Plug(u64),
    /// `unplug`: this much below what is requested now.
    Unplug(u64),
}

impl Target {
    /// The size as it was written, in bytes.
    pub fn size(self) -> u64 {
        match self {
            Target::To(size) | Target::Plug(size) | Target::Unplug(size) => size,
        }
    }
}

/// `hog`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hog {
    /// Bytes; a multiple of 4 KiB, not 0. What does not fit is reported and is no failure.
    pub size: u64,
    /// Which pages.
    pub kind: HogKind,
    /// Spread over all free memory instead of taken densely.
    pub scattered: bool,
    /// Fill and check every word of each page, not its start, middle and end.
    pub full: bool,
    /// What later commands call it.
    pub name: Name,
}

/// `expect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The number to look at.
    pub metric: Metric,
    /// How to compare it.
    pub comparison: Comparison,
    /// What to compare it with: bytes or a count, as [`Metric::unit`] says.
    pub value: u64,
    /// Which device's number it is; plays no part for the guest's own counters.
    pub device: usize,
    /// How long it may take to become true.
    pub within: Option<Duration>,
}

/// A number that `expect` can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// `plugged`: bytes of the device that are plugged.
    Plugged,
    /// `requested`: bytes that the device asks the guest to use.
    Requested,
    /// `host.held`: bytes of host memory that the device's region really holds.
    HostHeld,
    /// `resets`: how often the guest reset its machine.
    Resets,
    /// `zone.NAME.COUNTER`: pages.
    Zone(ZoneName, ZoneCounter),
    /// `node.N.zone.NAME.COUNTER`: the same for one NUMA node.
    NodeZone(NodeNumber, ZoneName, ZoneCounter),
    /// `node.N.init.local`: sections of the node's boot memory that its own CPUs initialised after boot.
    InitLocal(NodeNumber),
    /// `node.N.init.remote`: those that CPUs of other nodes did.
    InitRemote(NodeNumber),
    /// `memmap.boot_pages`: pages of hot-added memory's memmap in memory the guest already had.
    MemmapBootPages,
    /// `memmap.altmap_pages`: pages of hot-added memory's memmap in the added memory itself.
    MemmapAltmapPages,
    /// `migrated`: pages migrated since boot.
    Migrated,
    /// `blocks.online`: memory blocks online, those of boot memory included.
    BlocksOnline,
    /// `zone.Device.spanned`: pages from the first range of device memory that is mapped to the last.
    DeviceSpanned,
    /// `device.pages`: pages of device memory that can be used.
    DevicePages,
    /// `device.refs`: references to them; each is one, and so is each use.
    DeviceRefs,
    /// `pcp.drains`: forced drains of per-CPU lists since boot.
    PcpDrains,
    /// `pcp.stranded`: pages found on per-CPU lists although they were isolated, since boot.
    PcpStranded,
}

/// Number of a NUMA node of the guest, below [`tidevm_abi::MAX_NODES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeNumber(u8);

impl NodeNumber {
    /// Node `number`, if there can be one.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < tidevm_abi::MAX_NODES).then_some(Self(number))
    }

    /// For tables with one entry a node.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// What a metric's value counts, which decides how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A size: `512M`.
    Bytes,
    /// A plain number.
    Count,
}

impl Metric {
    /// What its value counts.
    pub fn unit(self) -> Unit {
        match self {
            Metric::Plugged | Metric::Requested | Metric::HostHeld => Unit::Bytes,
            _ => Unit::Count,
        }
    }

    /// Shows `value` in this metric's unit.
    pub fn show(self, value: u64) -> String {
        match self.unit() {
            Unit::Bytes => Size(value).to_string(),
            Unit::Count => value.to_string(),
        }
    }
}

/// A counter of a zone (Linux `/proc/zoneinfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneCounter {
    /// Pages between the first and the last, holes included.
    Spanned,
    /// Pages that exist.
    Present,
    /// Pages that the allocator manages.
    Managed,
    /// Pages on the buddy's free lists.
    Free,
}

/// How `expect` compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<=`
    AtMost,
    /// `>=`
    AtLeast,
    /// `<`
    Below,
    /// `>`
    Above,
}

impl Comparison {
    /// Whether `left` stands to `right` as this says.
    pub fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Comparison::Equal => left == right,
            Comparison::NotEqual => left != right,
            Comparison::AtMost => left <= right,
            Comparison::AtLeast => left >= right,
            Comparison::Below => left < right,
            Comparison::Above => left > right,
        }
    }
}

/// A workload's name: a letter, then letters, digits, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Takes `text` if it is a name.
    pub fn new(text: &str) -> Option<Name> {
        let mut letters = text.chars();
        let starts = letters.next()?.is_ascii_alphabetic();
        let goes_on = letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        (starts && goes_on).then(|| Name(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Resize(resize) => write!(f, "{resize}"),
            Command::Hog(hog) => write!(f, "{hog}"),
            Command::Churn { threads, time, name } => {
                let word = if *threads == 1 { "thread" } else { "threads" };
                write!(f, "churn {threads} {word} for {} as {name}", ShowDuration(*time))
            }
            Command::Verify(name) => write!(f, "verify {name}"),
            Command::Release(name) => write!(f, "release {name}"),
            Command::Wait(name) => write!(f, "wait {name}"),
            Command::Expect(expect) => write!(f, "{expect}"),
            Command::Stats => f.write_str("stats"),
            Command::Check => f.write_str("check"),
            Command::Blocks => f.write_str("blocks"),
            Command::Readd { size, addr } => write!(f, "readd {} at {}", Size(*size), Size(*addr)),
            Command::Pmem(pmem) => write!(f, "{pmem}"),
            Command::Sleep(time) => write!(f, "sleep {}", ShowDuration(*time)),
            Command::Race { cycles } => {
                write!(f, "race {cycles} {}", if *cycles == 1 { "cycle" } else { "cycles" })
            }
            Command::Inject { step, after } => {
                write!(f, "inject {}", parse::text_of(parse::FAULT_STEPS, step))?;
                if *after > 0 { write!(f, " after {after}") } else { Ok(()) }
            }
        }
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.target {
            Target::To(_) => "resize",
            Target::Plug(_) => "plug",
            Target::Unplug(_) => "unplug",
        };
        write!(f, "{verb} {}", Size(self.target.size()))?;
        write_suffixes(f, self.device, self.within)
    }
}

impl fmt::Display for Hog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = parse::text_of(parse::HOG_KINDS, &self.kind);
        write!(f, "hog {} {kind}", Size(self.size))?;
        if self.scattered {
            f.write_str(" scattered")?;
        }
        if self.full {
            f.write_str(" full")?;
        }
        write!(f, " as {}", self.name)
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comparison = parse::text_of(parse::COMPARISONS, &self.comparison);
        write!(f, "expect {} {comparison} {}", self.metric, self.metric.show(self.value))?;
        write_suffixes(f, self.device, self.within)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Metric::Zone(zone, counter) => {
                let zone = parse::text_of(parse::ZONES, zone);
                write!(f, "zone.{zone}.{}", parse::text_of(parse::ZONE_COUNTERS, counter))
            }
            Metric::NodeZone(node, zone, counter) => {
                write!(f, "node.{}.{}", node.0, Metric::Zone(*zone, *counter))
            }
            Metric::InitLocal(node) => write!(f, "node.{}.init.local", node.0),
            Metric::InitRemote(node) => write!(f, "node.{}.init.remote", node.0),
            plain => f.write_str(parse::text_of(parse::PLAIN_METRICS, plain)),
        }
    }
}

/// A zone's name in scripts, tables and JSON (Linux's spelling).
pub(crate) fn zone_text(zone: ZoneName) -> &'static str {
    parse::text_of(parse::ZONES, &zone)
}

fn write_suffixes(f: &mut fmt::Formatter<'_>, device: usize, within: Option<Duration>) -> fmt::Result {
    if device > 0 {
        write!(f, " device {device}")?;
    }
    match within {
        Some(time) => write!(f, " within {}", ShowDuration(time)),
        None => Ok(()),
    }
}
