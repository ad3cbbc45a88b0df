//! [`ByKey`]: a guest's counters as an object with a key for each counter of the tables, for JSON.
//!
//! The record itself goes over the control channel in the order of its fields. This is the other form, for programs that
//! read a session or ask the API.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::counter::Counter;
use crate::kernel::Kernel;
use crate::stats::{NodeStats, Stats, ZoneName, ZoneStats};

/// The counters of a guest, by the keys of the tables; those of zones by the zones' names below `zones`, and those of nodes
/// in their order below `nodes`. Times of boot are not counters, and are not there.
#[derive(Clone, Copy, Debug)]
pub struct ByKey<'s>(pub &'s Stats);

struct Node<'s>(&'s NodeStats, Kernel);

/// Each name once: a guest may report a zone twice, and an object has each key once.
struct Zones<'s>(&'s [ZoneStats], Kernel);

/// Those that the kernel tells.
struct Counters<'s, T: 'static>(&'static [Counter<T>], &'s T, Kernel);

impl<T> Counters<'_, T> {
    fn add_to<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let Self(table, of, kernel) = self;
        let mut told = table.iter().filter(|counter| counter.told_by(*kernel));
        told.try_for_each(|counter| map.serialize_entry(counter.key, &(counter.read)(of)))
    }
}

impl<T> Serialize for Counters<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.add_to(&mut map)?;
        map.end()
    }
}

impl Serialize for Zones<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let zone = |name: &ZoneName| {
            let zone = self.0.iter().rev().find(|zone| zone.name == *name)?;
            Some((name.as_str(), Counters(ZoneStats::COUNTERS, zone, self.1)))
        };
        serializer.collect_map(ZoneName::ALL.iter().filter_map(zone))
    }
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("zones", &Zones(&self.0.zones, self.1))?;
        Counters(NodeStats::COUNTERS, self.0, self.1).add_to(&mut map)?;
        map.end()
    }
}

/// The nodes that the guest has.
struct Nodes<'s>(&'s Stats);

impl Serialize for Nodes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nodes = self.0.nodes.iter().take(self.0.nr_nodes.into());
        serializer.collect_seq(nodes.map(|node| Node(node, self.0.kernel)))
    }
}

impl Serialize for ByKey<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("zones", &Zones(&self.0.zones, self.0.kernel))?;
        map.serialize_entry("nodes", &Nodes(self.0))?;
        Counters(Stats::COUNTERS, self.0, self.0.kernel).add_to(&mut map)?;
        map.end()
    }
}
