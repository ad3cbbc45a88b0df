//! What firmware's tables (ACPI 6.5, chapters 5 and 20) and PCI's configuration space say, read from bytes.
//!
//! Takes the place of the parsers in Linux's `drivers/acpi` and `drivers/pci/probe.c`. It differs on purpose: nothing here
//! maps memory or accesses a port. The guest kernel passes bytes that it has mapped, or a closure that reads a register. So
//! the parsers run under `cargo test`.
//!
//! Invariants: no input makes a parser panic, and none loops for longer than its input. What is not understood is left out.
#![no_std]

#[cfg(test)]
extern crate std;

mod aml;
mod buses;
mod fadt;
mod list;
mod msix;
mod root;

#[cfg(test)]
mod tests;

pub use aml::{root_buses, sleep_type};
pub use buses::{BusSet, Buses, Place};
pub use fadt::{Fadt, Register};
pub use list::{Affinity, affinities, bus_ranges, cpus};
pub use msix::{MSIX_ENABLE, MSIX_FUNCTION_MASK, MsixTable, message};
pub use root::{BIOS_AREA, EBDA_SEGMENT, ebda, find_root};
