//! What boot learns from the VMM and from firmware: the boot structures, the command line, CPUs and nodes.

pub mod acpi;
pub mod cmdline;
pub mod memory_map;
pub mod numa;
pub mod percpu_buf;
pub mod pvh;
