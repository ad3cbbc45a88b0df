//! `check`: what the kernel says of the same memory in sysfs, zoneinfo and meminfo agrees.
//!
//! tidevm's own guest verifies every invariant of its memory management. A program in Linux sees counters only, so this
//! compares those that have to be equal: a memory block that is online in zone Movable is present there as a whole, also if
//! only a part of it is plugged (Linux `online_pages`, `adjust_present_page_count`), and `MemTotal` is what all zones manage.

use tidevm_abi::zoneinfo::Zone;
use tidevm_abi::{Answer, Disagreement, Failure, PAGE_SIZE, ZoneName};

use crate::blocks::Block;
use crate::zoneinfo::zone_name;

/// Checks one picture of the memory. `total` is `MemTotal`, in pages.
///
/// # Errors
/// The first disagreement.
pub fn check(zones: &[Zone], blocks: &[Block], total: u64) -> Result<Answer, Failure> {
    for zone in zones {
        if let Some(name) = zone_name(&zone.name).filter(|_| !is_ordered(zone)) {
            return Err(Failure::Disagree(Disagreement::Zone { node: zone.node as u8, zone: name }));
        }
    }
    let mut nodes: Vec<u32> = zones.iter().map(|zone| zone.node).collect();
    nodes.dedup();
    for node in nodes {
        check_node(node as u8, zones, blocks)?;
    }
    let managed = zones.iter().map(|zone| zone.managed).sum();
    if managed != total {
        return Err(Failure::Disagree(Disagreement::Total { meminfo: total, managed }));
    }
    Ok(Answer::Checked { pages: zones.iter().map(|zone| zone.present).sum(), deferred: 0 })
}

/// Free pages are not compared: the kernel sums them up late.
fn is_ordered(zone: &Zone) -> bool {
    zone.managed <= zone.present && zone.present <= zone.spanned
}

fn check_node(node: u8, zones: &[Zone], blocks: &[Block]) -> Result<(), Failure> {
    let here = |zone: &&Zone| zone.node == u32::from(node);
    let online = || blocks.iter().filter(|block| block.online && block.node == node);
    let pages =
        |blocks: &mut dyn Iterator<Item = &Block>| blocks.map(|block| block.size / PAGE_SIZE).sum::<u64>();
    let present = zones.iter().filter(here).map(|zone| zone.present).sum();
    let all = pages(&mut online());
    // Memory blocks of boot memory have holes.
    if present > all {
        return Err(Failure::Disagree(Disagreement::Node { node, blocks: all, present }));
    }
    let movable = zones.iter().filter(here).filter(|zone| zone_name(&zone.name) == Some(ZoneName::Movable));
    let present = movable.map(|zone| zone.present).sum();
    let blocks = pages(&mut online().filter(|block| block.zone.as_deref() == Some("Movable")));
    // With `movablecore=`, a part of boot memory is in Movable, and a memory block may be in two zones.
    let mixed = online().any(|block| block.boot && block.zone.is_none());
    if blocks != present && !mixed {
        return Err(Failure::Disagree(Disagreement::Movable { node, blocks, present }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidevm_abi::zoneinfo::{Zone, parse};
    use tidevm_abi::{Answer, Disagreement, Failure};

    use super::check;
    use crate::blocks::Block;
    use crate::zoneinfo::tests::TEXT;

    const SIZE: u64 = 128 << 20;
    const TOTAL: u64 = 3840 + 113_900 + 65_536 + 32_768;

    fn blocks() -> Vec<Block> {
        let block = |index: u64, zone: &str, node| Block {
            addr: index * SIZE,
            size: SIZE,
            online: true,
            zone: Some(zone.to_owned()),
            node,
            boot: index < 4,
        };
        let boot = (0..4).map(|index| block(index, "DMA32", 0));
        boot.chain([block(32, "Movable", 0), block(33, "Movable", 0), block(40, "Movable", 1)]).collect()
    }

    fn changed(change: impl FnOnce(&mut Vec<Zone>, &mut Vec<Block>)) -> Result<Answer, Failure> {
        let (mut zones, mut blocks) = (parse(TEXT.lines()), blocks());
        change(&mut zones, &mut blocks);
        check(&zones, &blocks, TOTAL)
    }

    #[test]
    fn what_agrees_is_counted() {
        let pages = 3998 + 126_976 + 65_536 + 32_768;
        assert_eq!(changed(|_, _| ()), Ok(Answer::Checked { pages, deferred: 0 }));
    }

    #[test]
    fn each_disagreement_is_found() {
        let found = |result: Result<Answer, Failure>| match result {
            Err(Failure::Disagree(disagreement)) => disagreement,
            other => panic!("{other:?}"),
        };
        let elsewhere = found(changed(|_, blocks| blocks[5].zone = Some("Normal".to_owned())));
        assert_eq!(elsewhere, Disagreement::Movable { node: 0, blocks: 32_768, present: 65_536 });
        let missing = found(changed(|zones, _| zones[5].present -= 1));
        assert!(matches!(missing, Disagreement::Zone { node: 1, .. }), "managed is more than present");
        let moved = found(changed(|_, blocks| blocks[6].node = 0));
        assert_eq!(moved, Disagreement::Movable { node: 0, blocks: 98_304, present: 65_536 });
        let gone = found(changed(|_, blocks| {
            blocks.drain(..3);
        }));
        assert_eq!(gone, Disagreement::Node { node: 0, blocks: 98_304, present: 196_510 });
        let total = found(check(&parse(TEXT.lines()), &blocks(), TOTAL - 1));
        assert_eq!(total, Disagreement::Total { meminfo: TOTAL - 1, managed: TOTAL });
    }
}
