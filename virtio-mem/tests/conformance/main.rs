//! Conformance (`tests/conformance`): the requirements of virtio 1.3, section 5.15, as a table that is executed.
//!
//! The tables `ROWS` in `device.rs`, `requests.rs` and `driver.rs` are the list of the requirements and of their
//! identifiers. Rows `D` are the specification's requirements on a device and rows `G` those on a driver, numbered
//! in the order of the text. Rows `X` and `Y` are this project's own requirements on device and driver.
//!
//! Numbers that are missing belong to requirements that need more than two state machines:
//! - permissions ("MAY") and read-only access to the configuration space;
//! - feature negotiation, and device reset, which calls nothing of a [`Device`];
//! - suspend;
//! - the content and the accessibility of plugged and unplugged memory;
//! - the order of operations on the queue, and time limits.
//!
//! [`Device`]: virtio_mem::Device

mod device;
mod driver;
mod requests;

use std::panic::catch_unwind;

/// Identifier, requirement, and a check that panics when the requirement is not met.
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
