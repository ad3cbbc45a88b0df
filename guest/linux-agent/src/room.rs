//! How many pages a new workload can have, so that one that does not fit is refused and not ended by the kernel.
//!
//! Linux gives memory to programs before it has it (overcommit), and ends one of them when it runs out. What there is, is an
//! estimate: `MemAvailable` for pages that programs use, and what zones have above their watermarks for the kernel's own.

use std::io;

use tidevm_abi::zoneinfo::Zone;
use tidevm_abi::{HogKind, PAGE_SIZE, ZoneName};

use crate::zoneinfo::{value, zone_name};

/// Pages left to everybody else.
const RESERVE: u64 = 4096;
/// A page table has room for so many pages.
const PER_TABLE: u64 = 512;

/// The most pages of `kind` that a new workload can have.
///
/// # Errors
/// `meminfo` does not say what is available.
pub fn most(kind: HogKind, zones: &[Zone], meminfo: &str) -> io::Result<u64> {
    let pages = match kind {
        HogKind::Unmovable => zones.iter().map(|zone| for_kernel(zone, zones)).sum(),
        _ => value(meminfo, "MemAvailable:")? * 1024 / PAGE_SIZE,
    };
    let left = pages.saturating_sub(RESERVE);
    Ok(left - left / PER_TABLE)
}

/// What `zone` has for the kernel, which takes no pages from the zone Movable, and prefers Normal.
fn for_kernel(zone: &Zone, zones: &[Zone]) -> u64 {
    if !matches!(zone_name(&zone.name), Some(ZoneName::Dma32 | ZoneName::Normal)) {
        return 0;
    }
    let mut of_node = zones.iter().filter(|other| other.node == zone.node);
    let normal = of_node.position(|other| other.name == "Normal");
    let kept = normal.and_then(|index| zone.protection.get(index)).copied().unwrap_or(0);
    zone.free.saturating_sub(zone.high + kept)
}

#[cfg(test)]
mod tests {
    use tidevm_abi::HogKind;
    use tidevm_abi::zoneinfo::parse;

    use super::{RESERVE, most};
    use crate::zoneinfo::tests::TEXT;

    #[test]
    fn the_kernel_takes_nothing_from_movable() {
        let meminfo = "MemTotal: 1000000 kB\nMemAvailable:  800000 kB\n";
        let kernel: u64 = (2816 - 90 - 444) + (90000 - 2850);
        let room = |kind| most(kind, &parse(TEXT.lines()), meminfo).unwrap();
        assert_eq!(room(HogKind::Unmovable), kernel - RESERVE - (kernel - RESERVE) / 512);
        let available: u64 = 200_000 - RESERVE;
        assert_eq!(room(HogKind::Movable), available - available / 512);
        assert_eq!(room(HogKind::Pinned), room(HogKind::Movable));
        assert_eq!(most(HogKind::Movable, &[], "MemAvailable: 0 kB").unwrap(), 0);
    }
}
