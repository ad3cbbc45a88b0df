//! The numbers that `expect` can look at, by their names in scripts.
//!
//! ```text
//! plugged                     bytes that are plugged, of all devices or of one
//! requested                   bytes that the devices ask the guest to use, or one does
//! host.held                   bytes of host memory that the devices' regions really hold, or one does
//! resets                      how often the guest reset its machine
//! memmap.boot_pages, ...      counters of the guest: the words of `Stats::COUNTERS`
//! zone.NAME.COUNTER           pages of a zone: the words of `ZoneStats::COUNTERS`
//! node.N.zone.NAME.COUNTER    the same for one NUMA node
//! node.N.COUNTER              the words of `NodeStats::COUNTERS`
//! ```
//!
//! The VMM knows the first four ([`VmmMetric`]). The guest is asked for the others ([`GuestMetric`]), whose
//! names stand in the tables of their counters only.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::counter::Counter;
use crate::kernel::Kernel;
use crate::limits::MAX_NODES;
use crate::size::Size;
use crate::stats::{NodeStats, Stats, ZoneName, ZoneStats};
use crate::words::{Table, list, value_of, word_for};

/// A number that `expect` can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// One that the VMM knows.
    Vmm(VmmMetric),
    /// One that the guest is asked for.
    Guest(GuestMetric),
}

/// A number that the VMM knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmMetric {
    /// `plugged`: bytes that are plugged, of all devices or of one.
    Plugged,
    /// `requested`: bytes that the devices ask the guest to use, or one does.
    Requested,
    /// `host.held`: bytes of host memory that the devices' regions really hold, or one does.
    HostHeld,
    /// `resets`: how often the guest reset its machine.
    Resets,
}

/// A number that the guest is asked for: a counter of the whole guest, of a zone or of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMetric {
    /// Of the whole guest.
    Whole(&'static Counter<Stats>),
    /// Of a zone, over all nodes.
    Zone(ZoneName, &'static Counter<ZoneStats>),
    /// Of a node.
    Node(NodeNumber, &'static Counter<NodeStats>),
    /// Of a zone of a node.
    NodeZone(NodeNumber, ZoneName, &'static Counter<ZoneStats>),
}

/// What a metric's value counts, which decides how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A size: `512M`.
    Bytes,
    /// A plain number of pages or of events.
    Count,
}

/// Number of a NUMA node of the guest, below [`MAX_NODES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeNumber(u8);

impl NodeNumber {
    /// Node `number`, if there can be one.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < MAX_NODES).then_some(Self(number))
    }

    /// For tables with one entry per node.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }
}

const VMM_METRICS: Table<VmmMetric> = &[
    ("plugged", VmmMetric::Plugged),
    ("requested", VmmMetric::Requested),
    ("host.held", VmmMetric::HostHeld),
    ("resets", VmmMetric::Resets),
];

impl Metric {
    /// The metric that is called `text`.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let vmm = value_of(VMM_METRICS, text).map(Self::Vmm);
        vmm.or_else(|| GuestMetric::new(text).map(Self::Guest))
    }

    /// What its value counts.
    #[must_use]
    pub fn unit(self) -> Unit {
        match self {
            Self::Vmm(VmmMetric::Plugged | VmmMetric::Requested | VmmMetric::HostHeld) => Unit::Bytes,
            Self::Vmm(VmmMetric::Resets) | Self::Guest(_) => Unit::Count,
        }
    }

    /// Whether it is a number of hotplug devices: each has one, and they have a sum.
    #[must_use]
    pub fn is_of_devices(self) -> bool {
        matches!(self, Self::Vmm(VmmMetric::Plugged | VmmMetric::Requested | VmmMetric::HostHeld))
    }

    /// Shows `value` in this metric's unit.
    #[must_use]
    pub fn show(self, value: u64) -> String {
        match self.unit() {
            Unit::Bytes => Size(value).to_string(),
            Unit::Count => value.to_string(),
        }
    }

    /// The names for a machine of one node, for one who types.
    #[must_use]
    pub fn spellings() -> Vec<String> {
        let whole =
            VMM_METRICS.iter().map(|(word, _)| *word).chain(words(Stats::COUNTERS)).map(ToString::to_string);
        let zones = ZoneName::ALL
            .iter()
            .flat_map(|zone| words(ZoneStats::COUNTERS).map(move |counter| format!("zone.{zone}.{counter}")));
        whole.chain(zones).collect()
    }

    /// Every name, for an error.
    pub(crate) fn names() -> String {
        let vmm = VMM_METRICS.iter().map(|(word, _)| *word);
        let plain = list(vmm.chain(words(Stats::COUNTERS)));
        // Patterns have no spaces, or they would read as several.
        let braced = |words: String| words.replace(", ", ",");
        let zones = braced(list(ZoneName::ALL.iter().map(|zone| zone.as_str())));
        let of_zone = braced(list(words(ZoneStats::COUNTERS)));
        let of_node = braced(list(words(NodeStats::COUNTERS)));
        format!("{plain}, [node.N.]zone.{{{zones}}}.{{{of_zone}}}, node.N.{{{of_node}}}")
    }
}

impl GuestMetric {
    fn new(text: &str) -> Option<Self> {
        if let Some(counter) = find(Stats::COUNTERS, text) {
            return Some(Self::Whole(counter));
        }
        let Some(of_node) = text.strip_prefix("node.") else {
            return of_zone(text).map(|(zone, counter)| Self::Zone(zone, counter));
        };
        let (node, text) = of_node.split_once('.')?;
        let node = NodeNumber::new(node.parse().ok()?)?;
        match find(NodeStats::COUNTERS, text) {
            Some(counter) => Some(Self::Node(node, counter)),
            None => of_zone(text).map(|(zone, counter)| Self::NodeZone(node, zone, counter)),
        }
    }

    /// Whether `kernel` tells this number.
    #[must_use]
    pub fn told_by(self, kernel: Kernel) -> bool {
        match self {
            Self::Whole(counter) => counter.told_by(kernel),
            Self::Zone(_, counter) | Self::NodeZone(_, _, counter) => counter.told_by(kernel),
            Self::Node(_, counter) => counter.told_by(kernel),
        }
    }

    /// The node that it is of, if it is one's.
    #[must_use]
    pub fn node(self) -> Option<NodeNumber> {
        match self {
            Self::Whole(_) | Self::Zone(..) => None,
            Self::Node(node, _) | Self::NodeZone(node, ..) => Some(node),
        }
    }

    /// Its value in the guest's counters; `None` if the guest has no such node or zone, or does not tell it.
    #[must_use]
    pub fn read(self, stats: &Stats) -> Option<u64> {
        let absent = self.node().is_some_and(|node| node.index() >= usize::from(stats.nr_nodes));
        if absent || !self.told_by(stats.kernel) {
            return None;
        }
        match self {
            Self::Whole(counter) => Some((counter.read)(stats)),
            Self::Zone(zone, counter) => sum(&stats.zones, zone, counter),
            Self::Node(node, counter) => Some((counter.read)(&stats.nodes[node.index()])),
            Self::NodeZone(node, zone, counter) => sum(&stats.nodes[node.index()].zones, zone, counter),
        }
    }
}

/// A counter of the zones that are called `name`. A guest may report anything, so that there may be several
/// or none, and their sum may be too large.
fn sum(zones: &[ZoneStats], name: ZoneName, counter: &Counter<ZoneStats>) -> Option<u64> {
    let zones = zones.iter().filter(|zone| zone.name == name);
    zones.map(counter.read).reduce(u64::saturating_add)
}

/// `zone.NAME.COUNTER`.
fn of_zone(text: &str) -> Option<(ZoneName, &'static Counter<ZoneStats>)> {
    let (name, counter) = text.strip_prefix("zone.")?.split_once('.')?;
    let zone = ZoneName::ALL.into_iter().find(|zone| zone.as_str() == name)?;
    Some((zone, find(ZoneStats::COUNTERS, counter)?))
}

fn find<T>(counters: &'static [Counter<T>], word: &str) -> Option<&'static Counter<T>> {
    counters.iter().find(|counter| counter.word == Some(word))
}

fn words<T>(counters: &'static [Counter<T>]) -> impl Iterator<Item = &'static str> {
    counters.iter().filter_map(|counter| counter.word)
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmm(metric) => f.write_str(word_for(VMM_METRICS, metric)),
            Self::Guest(metric) => metric.fmt(f),
        }
    }
}

impl fmt::Display for GuestMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Whole(counter) => f.write_str(counter.name()),
            Self::Zone(zone, counter) => write!(f, "zone.{zone}.{}", counter.name()),
            Self::Node(node, counter) => write!(f, "node.{}.{}", node.0, counter.name()),
            Self::NodeZone(node, zone, counter) => write!(f, "node.{}.{}", node.0, Self::Zone(zone, counter)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
