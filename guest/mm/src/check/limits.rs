//! Values that are computed once and kept: watermarks, limits and zonelists; and the ranges and counts of deferred
//! memory.
//!
//! Mirrors nothing of Linux, which does not compare these values with their sources.
//!
//! Invariants checked: watermarks, limits and zonelists are what the sizes of the zones give; all CPUs have
//! the limits of the zone; the counts of deferred memory blocks and pages are those of the memory that no CPU
//! has claimed, and its sections are Absent.

use arrayvec::ArrayVec;

use crate::Mm;
use crate::addr::SectionNr;
use crate::deferred::Claims;
use crate::geometry::MAX_NODES;
use crate::hotplug::Hotplug;
use crate::node::{ZoneId, ZoneType};
use crate::platform::Platform;
use crate::sparse::SectionState;
use crate::zone::{Watermark, Zone, setup_watermarks};
use crate::zonelist::Zonelist;

/// The watermarks and reserves of a zone.
#[derive(Debug, PartialEq)]
struct Levels {
    zone: ZoneId,
    marks: [u64; 2],
    lowmem_reserve: [u64; ZoneType::COUNT],
}

impl Levels {
    fn of(zone: &Zone) -> Self {
        Self {
            zone: zone.id(),
            marks: [Watermark::Min, Watermark::Low].map(|mark| zone.watermark(mark)),
            lowmem_reserve: ZoneType::ALL.map(|highest| zone.lowmem_reserve(highest)),
        }
    }
}

impl<P: Platform> Hotplug<'_, P> {
    /// Checks that watermarks, limits of per-CPU lists and zonelists follow from the sizes of the zones, and that
    /// every CPU has the same limits.
    pub(super) fn check_limits(&self) {
        let mm = self.mm;
        for zone in mm.zones() {
            let (id, limits) = (zone.id(), zone.pcp_limits());
            for (cpu, pcp) in mm.cpus().iter().enumerate() {
                assert_eq!(pcp.zone(id).limits(), limits, "{id:?}: limits of CPU {cpu}, of the zone");
            }
            assert!(zone.managed() <= zone.present(), "{id:?}: {} pages managed", zone.managed());
            assert!(zone.present() <= zone.spanned().pages().into(), "{id:?}: {} present", zone.present());
        }
        let before = mm.zonelists();
        // A rebuild changes nothing when they are right.
        self.rebuild_zonelists();
        assert_eq!(before, mm.zonelists(), "zonelists as they were, as they follow from the zones");
        self.check_levels();
    }

    fn check_levels(&self) {
        let levels = || self.mm.zones().map(Levels::of).collect::<ArrayVec<_, { ZoneId::COUNT }>>();
        let before = levels();
        setup_watermarks(self.mm.zones().as_slice(), self.held());
        assert_eq!(before, levels(), "watermarks as they were, as they follow from the zones");
        for zone in self.mm.zones() {
            let follow = self.mm.pcp_limits_of(zone);
            assert_eq!(zone.pcp_limits(), follow, "{:?}: limits of lists, those of its size", zone.id());
        }
    }
}

impl<P: Platform> Mm<P> {
    fn zonelists(&self) -> ArrayVec<[Zonelist; 2], MAX_NODES> {
        let of =
            |node| [ZoneType::Normal, ZoneType::Movable].map(|highest| self.nodes.zonelist(node, highest));
        self.nodes.ids().map(of).collect()
    }

    /// Checks that deferred memory is counted right, and that its sections are Absent.
    pub(super) fn check_deferred(&self, claims: &Claims) {
        for zone in ZoneId::all() {
            assert_eq!(
                self.deferred.left(zone),
                claims.count(zone),
                "{zone:?}: memory blocks left, unclaimed"
            );
            assert_eq!(self.zone(zone).deferred(), claims.free(zone), "{zone:?}: pages that will be free");
        }
        let (mut end, mut before) = (SectionNr::new(0), None);
        for range in claims.ranges().iter() {
            assert!(end <= range.sections.first(), "{range:?} begins below {end:?}, after {before:?}");
            assert_eq!(range.sections.len() % range.block(), 0, "{range:?} has whole memory blocks");
            (end, before) = (range.sections.end(), Some(*range));
            // Sections above the highest that was ever Present are Absent.
            for nr in range.sections.before(self.sparse.end()).sections() {
                let state = self.section_state(nr);
                assert_eq!(state, SectionState::Absent, "{nr:?}, which no CPU has claimed");
            }
        }
    }
}
