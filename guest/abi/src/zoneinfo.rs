//! The zones of a kernel, read from text in the form of `/proc/zoneinfo`.
//!
//! Mirrors Linux `mm/vmstat.c`, `zoneinfo_show_print`; the shell of tidevm's guest prints the same form. Lines of another form are
//! passed over: each kernel has others, and a console has messages between them.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

/// A zone of a node. Counters that the text does not have are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Its node.
    pub node: u32,
    /// Linux's name: `DMA32`, `Normal`, `Movable` ...
    pub name: String,
    /// Pages on the buddy's free lists.
    pub free: u64,
    /// The high watermark in pages: free pages above it are there to be taken.
    pub high: u64,
    /// Pages between its first and its last one, with holes.
    pub spanned: u64,
    /// Pages that exist.
    pub present: u64,
    /// Pages that the allocator manages.
    pub managed: u64,
    /// Pages on per-CPU lists, of all CPUs.
    pub pcp: u64,
    /// Pages kept from allocations that could use a higher zone, by the index of that zone in its node.
    pub protection: Vec<u64>,
}

/// The zones in the order of the text.
///
/// ```
/// let text = "Node 1, zone  Movable\n  pages free     7\n        present  9\n    cpu: 0\n              count: 2\n";
/// let zones = tidevm_abi::zoneinfo::parse(text.lines());
/// assert_eq!((zones[0].node, &*zones[0].name), (1, "Movable"));
/// assert_eq!((zones[0].free, zones[0].present, zones[0].pcp), (7, 9, 2));
/// ```
pub fn parse<'t>(lines: impl IntoIterator<Item = &'t str>) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["Node", node, "zone", name] = words[..] {
            let node = node.trim_end_matches(',').parse();
            zones.extend(node.ok().map(|node| Zone { node, name: name.to_owned(), ..Zone::default() }));
        } else if let Some(zone) = zones.last_mut() {
            count(zone, &words);
        }
    }
    zones
}

/// Takes what a line with these words tells of its zone.
fn count(zone: &mut Zone, words: &[&str]) {
    let (name, value) = match words {
        ["protection:", values @ ..] => {
            let values = values.iter().map(|value| value.trim_matches(['(', ')', ',']));
            zone.protection = values.filter_map(|value| value.parse().ok()).collect();
            return;
        }
        ["pages", "free", value] => ("pages free", value),
        [name, value] => (*name, value),
        _ => return,
    };
    let Ok(value) = value.parse::<u64>() else { return };
    match name {
        "pages free" => zone.free = value,
        "high" => zone.high = value,
        "spanned" => zone.spanned = value,
        "present" => zone.present = value,
        "managed" => zone.managed = value,
        // The number of pages on the lists of one CPU.
        "count:" => zone.pcp += value,
        _ => {}
    }
}
