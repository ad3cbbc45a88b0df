//! Values that are computed once and kept: watermarks, limits and zonelists; and the counts of deferred boot
//! memory.
//!
//! Mirrors nothing of Linux, which does not compare these values with their sources.
//!
//! Invariants checked: watermarks, limits and zonelists are what the sizes of the zones give; all CPUs have
//! the limits of the zone; the counts of deferred sections and pages are those of the sections that no CPU
//! has claimed, and those sections are Absent.

use arrayvec::ArrayVec;

use crate::Mm;
use crate::deferred::Claims;
use crate::hotplug::Hotplug;
use crate::memblock::Run;
use crate::node::{MAX_NODES, ZoneId, ZoneType};
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

    /// Checks that deferred boot memory is counted right, and that its sections are Absent.
    pub(super) fn check_deferred(&self, claims: &Claims) {
        for zone in ZoneId::all() {
            let left: u32 = claims.runs(zone).map(Run::len).sum();
            assert_eq!(claims.count(zone), left, "{zone:?}: sections that no CPU has claimed");
            assert_eq!(self.deferred.left(zone), left, "{zone:?}: sections that are not online yet");
            assert_eq!(self.zone(zone).deferred(), claims.free(zone), "{zone:?}: pages that will be free");
            // Sections above the highest that was ever Present are Absent.
            let known = self.sparse.numbers().filter_map(|nr| Some((nr, self.sparse.section(nr)?)));
            for (nr, section) in known.filter(|&(nr, _)| claims.runs(zone).any(|run| run.contains(nr))) {
                assert_eq!(section.state(), SectionState::Absent, "{nr:?}, which no CPU has claimed");
            }
        }
    }
}
