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

/// The zones in the order of the text. Lines of any other form are ignored. Zones that the text does not list are
/// missing.
pub fn parse<'t>(lines: impl IntoIterator<Item = &'t str>) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["Node", node, "zone", name] = words[..] {
            let node = node.trim_end_matches(',').parse();
            zones.extend(node.ok().map(|node| Zone { node, name: name.to_owned(), ..Zone::default() }));
            continue;
        }
        let (Some(zone), [name, value]) = (zones.last_mut(), &words[..]) else { continue };
        let Ok(value) = value.parse::<u64>() else { continue };
        match *name {
            "spanned" => zone.spanned = value,
            "present" => zone.present = value,
            "managed" => zone.managed = value,
            // `count` is the number of pages on the lists of one CPU.
            "nr_free_pages" | "count:" => zone.free += value,
            _ => {}
        }
    }
    zones
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
