//! `deferred`: a CPU that sees the number of deferred sections fall finds the memory that came.

use crate::addr::{Pfn, SectionNr};
use crate::deferred::{Deferred, Unclaimed};
use crate::memblock::Memblock;
use crate::node::{NodeId, ZoneType};
use crate::sync::tests::{Data, fixed, in_every_execution};

/// `done` and `left`.
#[test]
fn a_section_that_is_done_has_its_memory_in_the_zone() {
    let deferred = fixed(Deferred::new());
    let zone = NodeId::FIRST.zone(ZoneType::Normal);
    let unclaimed = Unclaimed { next: SectionNr::new(1), count: 1, memmap: Pfn::new(0) };
    deferred.set(fixed(Memblock::new()), zone, unclaimed);
    let freed = fixed(Data::new());
    in_every_execution(
        move || {
            freed.write();
            deferred.count_done(zone, NodeId::FIRST);
        },
        move || {
            if deferred.left(zone) == 0 {
                freed.assert_written();
            }
        },
    );
}
