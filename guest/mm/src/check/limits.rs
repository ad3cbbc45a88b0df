//! What is computed once and kept: limits that follow from the sizes of zones, and what is still to come of
//! boot memory.

use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use crate::Mm;
use crate::deferred::Claims;
use crate::page::ZoneType;
use crate::platform::Platform;
use crate::sparse::SectionState;
use crate::zone::{Watermark, Zone, pcp_limits, setup_watermarks};

/// The levels of a zone below which it gives nothing away.
#[derive(Debug, PartialEq)]
struct Levels {
    zone: ZoneType,
    marks: [u64; 2],
    lowmem_reserve: [u64; ZoneType::COUNT],
}

impl Levels {
    fn of(zone: &Zone, zone_type: ZoneType) -> Self {
        Self {
            zone: zone_type,
            marks: [Watermark::Min, Watermark::Low].map(|mark| zone.watermark(mark)),
            lowmem_reserve: ZoneType::ALL.map(|highest| zone.lowmem_reserve(highest)),
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Watermarks and limits of per-CPU lists are those of zones of these sizes, and every CPU has them.
    pub(super) fn check_limits(&self) {
        // Nobody has lists disabled, nor changes limits meanwhile.
        let _lists = self.pcp_disable.lock_with(|| self.platform.relax());
        for (zone, of) in self.zones.iter().zip(ZoneType::ALL) {
            let limits = zone.pcp_limits();
            for (cpu, pcp) in self.cpus().iter().enumerate() {
                assert_eq!(pcp.zone(of).limits(), limits, "{of:?}: limits of CPU {cpu}, of the zone");
            }
            assert!(zone.managed() <= zone.present(), "{of:?}: {} pages managed", zone.managed());
            assert!(zone.present() <= zone.spanned().pages().into(), "{of:?}: {} present", zone.present());
        }
        if !self.deferred.is_finished() {
            // They follow the size of a zone only when all of it is there.
            return;
        }
        let levels = || -> ArrayVec<Levels, { ZoneType::COUNT }> {
            self.zones.iter().zip(ZoneType::ALL).map(|(zone, of)| Levels::of(zone, of)).collect()
        };
        let before = levels();
        // Under the lock under which they change, and to what they are.
        setup_watermarks(&self.zones);
        assert_eq!(before, levels(), "watermarks as they were, as they follow from the zones");
        for (zone, of) in self.zones.iter().zip(ZoneType::ALL) {
            let follows = pcp_limits(zone, self.nr_cpus.load(Relaxed));
            assert_eq!(
                zone.pcp_limits(),
                follows,
                "{of:?}: limits of lists, those that follow from its size"
            );
        }
    }

    /// What is left of boot memory: counted right, and in no zone's free lists yet.
    pub(super) fn check_deferred(&self, claims: &Claims) {
        let mut left = 0;
        for nr in claims.sections() {
            let state = self.sparse.section(nr).map(|section| (section.is_boot(), section.state()));
            assert_eq!(state, Some((true, SectionState::Present)), "{nr:?}, which nobody has claimed");
            left += 1;
        }
        assert_eq!(self.deferred.left(), left, "sections that are not online yet");
        assert_eq!(self.deferred.pages(), claims.free(), "pages that will be free");
        assert!(left == 0 || !self.deferred.is_finished(), "finished, with {left} sections to come");
    }
}
