//! `zone` and `zonelist`: readers without a lock.

use crate::addr::{Pfn, PfnRange};
use crate::hotplug::HotplugHeld;
use crate::node::{NodeId, ZoneType};
use crate::sync::tests::{fixed, in_every_execution};
use crate::zone::Zone;
use crate::zonelist::Nodes;

/// `sub_deferred` and `deferred`: pages that leave the deferred ones are found among the free ones.
#[test]
fn deferred_pages_are_free_or_deferred() {
    const PAGES: u64 = 100;
    let zone = &fixed(Zone::all())[0];
    zone.add_deferred(PAGES);
    in_every_execution(
        || {
            zone.set_free(PAGES);
            zone.sub_deferred(PAGES);
        },
        || {
            let deferred = zone.deferred();
            assert!(deferred + zone.free() >= PAGES, "pages are missed");
        },
    );
}

/// `build_zonelists` and `zonelist`: a CPU that finds a zone there finds its pages.
#[test]
fn a_zone_is_on_the_lists_with_its_pages() {
    let (zones, nodes) = (fixed(Zone::all()), fixed(Nodes::new()));
    let zone = NodeId::FIRST.zone(ZoneType::Movable);
    zones[zone.index()].grow_span(PfnRange::new(Pfn::new(0), 7), &HotplugHeld::without_mm());
    in_every_execution(
        move || {
            zones[zone.index()].add_present(7, &HotplugHeld::without_mm());
            nodes.build_zonelists(1 << zone.index());
        },
        move || {
            if nodes.zonelist(NodeId::FIRST, ZoneType::Movable).first() == Some(zone) {
                assert_eq!(zones[zone.index()].present(), 7, "present pages of a zone on the lists");
            }
        },
    );
}
