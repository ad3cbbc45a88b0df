//! What is computed once and kept: limits and zonelists that follow from the sizes of zones, and what is
//! still to come of boot memory.

use arrayvec::ArrayVec;

use crate::Mm;
use crate::deferred::Claims;
use crate::memblock::Run;
use crate::node::{MAX_NODES, ZoneId, ZoneType};
use crate::platform::Platform;
use crate::sparse::SectionState;
use crate::zone::{Watermark, Zone, setup_watermarks};
use crate::zonelist::Zonelist;

/// The levels of a zone below which it gives nothing away.
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

impl<P: Platform> Mm<P> {
    /// Watermarks, limits of per-CPU lists and zonelists are those of zones of these sizes, and every CPU
    /// has them.
    pub(super) fn check_limits(&self) {
        // Nobody has lists disabled, nor changes limits meanwhile.
        let _lists = self.pcp_disable.lock_with(|| self.platform.relax());
        for zone in self.zones() {
            let (id, limits) = (zone.id(), zone.pcp_limits());
            for (cpu, pcp) in self.cpus().iter().enumerate() {
                assert_eq!(pcp.zone(id).limits(), limits, "{id:?}: limits of CPU {cpu}, of the zone");
            }
            assert!(zone.managed() <= zone.present(), "{id:?}: {} pages managed", zone.managed());
            assert!(zone.present() <= zone.spanned().pages().into(), "{id:?}: {} present", zone.present());
        }
        let before = self.zonelists();
        // Under the lock under which they change, and to what they are.
        self.rebuild_zonelists();
        assert_eq!(before, self.zonelists(), "zonelists as they were, as they follow from the zones");
        self.check_levels();
    }

    fn check_levels(&self) {
        let levels = || self.zones().map(Levels::of).collect::<ArrayVec<_, { ZoneId::COUNT }>>();
        let before = levels();
        // As above.
        setup_watermarks(self.zones().as_slice());
        assert_eq!(before, levels(), "watermarks as they were, as they follow from the zones");
        for zone in self.zones() {
            let follow = self.pcp_limits_of(zone);
            assert_eq!(zone.pcp_limits(), follow, "{:?}: limits of lists, those of its size", zone.id());
        }
    }

    fn zonelists(&self) -> ArrayVec<[Zonelist; 2], MAX_NODES> {
        let of =
            |node| [ZoneType::Normal, ZoneType::Movable].map(|highest| self.nodes.zonelist(node, highest));
        self.nodes.ids().map(of).collect()
    }

    /// What is left of boot memory: counted right, and nothing is known of it yet.
    pub(super) fn check_deferred(&self, claims: &Claims) {
        for zone in ZoneId::all() {
            let left: u32 = claims.runs(zone).map(Run::len).sum();
            assert_eq!(claims.count(zone), left, "{zone:?}: sections that nobody has claimed");
            assert_eq!(self.deferred.left(zone), left, "{zone:?}: sections that are not online yet");
            assert_eq!(self.zone(zone).deferred(), claims.free(zone), "{zone:?}: pages that will be free");
            // Of those beyond the walks of this file there is nothing to see.
            let known = self.sparse.numbers().filter_map(|nr| Some((nr, self.sparse.section(nr)?)));
            for (nr, section) in known.filter(|&(nr, _)| claims.runs(zone).any(|run| run.contains(nr))) {
                assert_eq!(section.state(), SectionState::Absent, "{nr:?}, which nobody has claimed");
            }
        }
    }
}
