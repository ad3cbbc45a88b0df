//! Which zones of tidevm's records Linux's zones count for, and single numbers of files of proc.
//!
//! tidevm's guest has no zone DMA; here the pages of DMA count as DMA32. Zones that tidevm does not know, such as Device, are
//! left out.

use std::io;

use tidevm_abi::ZoneName;

/// The zone of tidevm's records that has pages of Linux's zone `name`.
pub fn zone_name(name: &str) -> Option<ZoneName> {
    match name {
        "DMA" | "DMA32" => Some(ZoneName::Dma32),
        "Normal" => Some(ZoneName::Normal),
        "Movable" => Some(ZoneName::Movable),
        _ => None,
    }
}

/// The number behind `key` in a text that has one on a line, such as `/proc/vmstat` and `/proc/meminfo`.
///
/// # Errors
/// There is no such line.
pub fn value(text: &str, key: &str) -> io::Result<u64> {
    let number = |line: &str| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok();
    let missing = || io::Error::other(format!("the kernel tells no {key}"));
    text.lines().find_map(number).ok_or_else(missing)
}

#[cfg(test)]
pub(crate) mod tests {
    use tidevm_abi::zoneinfo::parse;

    use super::value;

    /// Two nodes, in the form of Linux 6.1, and with lines that only later kernels have.
    pub const TEXT: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 128
  pages free     2816
        boost    0
        min      60
        low      75
        high     90
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 444, 444, 2492, 2492)
      nr_free_pages 2816
  pagesets
    cpu: 0
              count:    0
              high:     13
              batch:    1
  vm stats threshold: 2
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone    DMA32
  pages free     90000
        min      1900
        low      2375
        high     2850
        spanned  126976
        present  126976
        managed  113900
        protection: (0, 0, 0, 2048, 2048)
  pagesets
    cpu: 0
              count:    55
              high:     378
              batch:    63
    cpu: 1
              count:    45
              high:     378
              high_min: 5
              batch:    63
Node 0, zone   Normal
  pages free     0
        min      0
        low      0
        high     0
        spanned  0
        present  0
        managed  0
        protection: (0, 0, 0, 16384, 16384)
Node 0, zone  Movable
  pages free     65000
        min      32
        low      90
        high     148
        spanned  65536
        present  65536
        managed  65536
        protection: (0, 0, 0, 0, 0)
  pagesets
    cpu: 0
              count:    7
Node 0, zone   Device
  pages free     0
        spanned  9
Node 1, zone  Movable
  pages free     32768
        high     1
        spanned  32768
        present  32768
        managed  32768
        protection: (0, 0, 0, 0, 0)
";

    #[test]
    fn zones_are_read() {
        let zones = parse(TEXT.lines());
        let names: Vec<(u32, &str)> = zones.iter().map(|zone| (zone.node, zone.name.as_str())).collect();
        let expected =
            [(0, "DMA"), (0, "DMA32"), (0, "Normal"), (0, "Movable"), (0, "Device"), (1, "Movable")];
        assert_eq!(names, expected);
        let dma32 = &zones[1];
        assert_eq!((dma32.free, dma32.high, dma32.spanned), (90000, 2850, 126_976));
        assert_eq!((dma32.present, dma32.managed, dma32.pcp), (126_976, 113_900, 100));
        assert_eq!(dma32.protection, [0, 0, 0, 2048, 2048]);
    }

    #[test]
    fn a_line_that_is_missing_is_named() {
        assert_eq!(value("MemTotal:   123 kB\n", "MemTotal:").unwrap(), 123);
        let error = value("MemTotal:   123 kB\n", "MemAvailable:").unwrap_err();
        assert!(error.to_string().contains("MemAvailable:"), "{error}");
    }
}
