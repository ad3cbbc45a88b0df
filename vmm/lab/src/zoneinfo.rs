//! The counters of a guest's zones, read from text in the form of Linux's `/proc/zoneinfo`.

use serde::{Deserialize, Serialize};

/// Counters of one zone, in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The NUMA node.
    pub node: u32,
    /// Linux's name: `DMA32`, `Normal`, `Movable` ...
    pub name: String,
    /// Pages between the first and the last page, including holes.
    pub spanned: u64,
    /// Pages that exist.
    pub present: u64,
    /// Pages that the allocator manages.
    pub managed: u64,
    /// Free pages, including pages on per-CPU lists, because the list on which a free page lies is not defined.
    pub free: u64,
}

/// The zones in the order of the text, see [`tidevm_abi::zoneinfo::parse`].
pub fn parse<'t>(lines: impl IntoIterator<Item = &'t str>) -> Vec<Zone> {
    let counters = |zone: tidevm_abi::zoneinfo::Zone| Zone {
        node: zone.node,
        name: zone.name,
        spanned: zone.spanned,
        present: zone.present,
        managed: zone.managed,
        free: zone.free + zone.pcp,
    };
    tidevm_abi::zoneinfo::parse(lines).into_iter().map(counters).collect()
}

#[cfg(test)]
mod tests {
    use super::{Zone, parse};

    #[test]
    fn zones_are_read_and_the_rest_is_passed_over() {
        let text = "\
Node 0, zone    DMA32
  per-node stats
      nr_inactive_anon 12
  pages free     764
        boost    0
        spanned  1044480
        present  782296
        managed  758428
        protection: (0, 0, 0, 0, 0)
      nr_free_pages 764
      nr_free_cma  0
  pagesets
    cpu: 0
              count: 60
              high:  371
              batch: 63
    cpu: 1
              count: 5
  start_pfn:           4096
[    1.5] a message of the kernel 17
Node 1, zone  Movable
  pages free     0
        spanned  0
        present  0
        managed  0
";
        let zone = |node, name: &str, [spanned, present, managed, free]: [u64; 4]| Zone {
            node,
            name: name.to_owned(),
            spanned,
            present,
            managed,
            free,
        };
        let expected = [zone(0, "DMA32", [1_044_480, 782_296, 758_428, 829]), zone(1, "Movable", [0; 4])];
        assert_eq!(parse(text.lines()), expected);
    }
}
