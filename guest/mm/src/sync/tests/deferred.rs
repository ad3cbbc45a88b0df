//! `deferred`: a CPU that sees the number of deferred memory blocks fall finds the memory that came.

use crate::addr::SectionNr;
use crate::deferred::{Deferred, DeferredRange, Origin};
use crate::node::{NodeId, ZoneType};
use crate::sim::SimMachine;
use crate::sync::tests::{Data, fixed, in_every_execution};

/// `done` and `left`.
#[test]
fn a_memory_block_that_is_done_has_its_memory_in_the_zone() {
    let deferred = fixed(Deferred::new());
    let zone = NodeId::FIRST.zone(ZoneType::Normal);
    let origin = Origin::Plugged { block: 1, zeroed: true };
    let off = SimMachine::default().build().irq_off();
    assert!(deferred.add(DeferredRange { sections: SectionNr::new(1).into(), zone, origin }, &off));
    drop(off);
    let freed = fixed(Data::new());
    in_every_execution(
        move || {
            freed.write();
            deferred.count_done(zone, 1);
        },
        move || {
            if deferred.left(zone) == 0 {
                freed.assert_written();
            }
        },
    );
}
