//! The counters of the kernel's memory management, as the record of `tidevm_abi` has them.

use std::io;

use tidevm_abi::zoneinfo::Zone;
use tidevm_abi::{Kernel, MAX_NODES, NodeStats, Stats, ZoneName, ZoneStats};

use crate::blocks::Block;
use crate::zoneinfo::{value, zone_name};

/// The counters. Those that Linux does not tell stay 0 ([`tidevm_abi::Counter::told_by`]).
///
/// # Errors
/// `vmstat` has no counters of migration.
pub fn stats(zones: &[Zone], blocks: &[Block], vmstat: &str) -> io::Result<Stats> {
    let nodes = zones.iter().map(|zone| zone.node as usize + 1).max().unwrap_or(1);
    let mut stats = Stats {
        kernel: Kernel::Linux,
        nr_nodes: nodes.min(MAX_NODES) as u8,
        blocks_online: blocks.iter().filter(|block| block.online).count() as u64,
        pages_migrated: value(vmstat, "pgmigrate_success ")?,
        migrate_failed: value(vmstat, "pgmigrate_fail ")?,
        ..Stats::default()
    };
    for zone in zones {
        let Some(name) = zone_name(&zone.name) else { continue };
        add(&mut stats.zones, name, zone);
        if let Some(NodeStats { zones, .. }) = stats.nodes.get_mut(zone.node as usize) {
            add(zones, name, zone);
        }
    }
    Ok(stats)
}

fn add(zones: &mut [ZoneStats], name: ZoneName, zone: &Zone) {
    for sum in zones.iter_mut().filter(|sum| sum.name == name) {
        sum.spanned += zone.spanned;
        sum.present += zone.present;
        sum.managed += zone.managed;
        sum.free += zone.free;
        sum.pcp += zone.pcp;
    }
}

#[cfg(test)]
mod tests {
    use tidevm_abi::ZoneName;
    use tidevm_abi::zoneinfo::parse;

    use crate::blocks::Block;
    use crate::zoneinfo::tests::TEXT;

    #[test]
    fn counters_are_those_of_scripts() {
        let online = Block { addr: 0, size: 1, online: true, zone: None, node: 0, boot: true };
        let blocks = [online.clone(), Block { online: false, ..online }];
        let vmstat = "nr_free_pages 3\npgmigrate_success 12\npgmigrate_fail 1\n";
        let stats = super::stats(&parse(TEXT.lines()), &blocks, vmstat).unwrap();
        assert_eq!((stats.pages_migrated, stats.migrate_failed, stats.blocks_online), (12, 1, 1));
        assert_eq!(stats.nr_nodes, 2);
        let [dma32, normal, movable] = stats.zones;
        assert_eq!((dma32.name, dma32.present, dma32.pcp), (ZoneName::Dma32, 130_974, 100));
        assert_eq!((normal.present, movable.present), (0, 98_304));
        assert_eq!(stats.nodes[0].zones[2].free, 65000);
        assert_eq!(stats.nodes[1].zones[2].free, 32768);
        assert!(super::stats(&[], &[], "pgmigrate_successful 1").is_err());
    }
}
