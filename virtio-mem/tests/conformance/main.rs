//! The requirements of virtio 1.3, section 5.15, as a table that is executed. Rows `D` are the
//! specification's for a device, rows `G` those for a driver, in the order of their text; rows `X`
//! and `Y` are the project's own for each.
//!
//! Not here, because only a transport, a memory or a guest can show it: D1, D11, D17 and G1, G15
//! (permissions and reads), D12 to D14 (negotiation, device reset: nothing of a [`Device`] is
//! called by it), D15, D23, G16 (suspend), D16, D19, D20, G6 to G12 (memory access), X1, X2, X4, X9
//! (queue), Y2, Y3 (reading the configuration, watching the clock).
//!
//! [`Device`]: virtio_mem::Device

mod device;
mod driver;
mod requests;

use std::panic::catch_unwind;

/// Id, requirement, and the check that panics when it is not met.
type Row = (&'static str, &'static str, fn());

#[test]
fn the_table() {
    let rows = || device::ROWS.iter().chain(requests::ROWS).chain(driver::ROWS);
    let broken: Vec<_> = rows().filter(|(.., check)| catch_unwind(check).is_err()).collect();
    for (id, requirement, _) in rows() {
        let met = !broken.iter().any(|(broken, ..)| broken == id);
        println!("{id:8} {:6} {requirement}", if met { "met" } else { "BROKEN" });
    }
    assert!(broken.is_empty(), "{} of {} rows are broken", broken.len(), rows().count());
}
