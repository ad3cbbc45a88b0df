//! Boot: the structures that the VMM passes, the command line, and the CPUs and nodes of ACPI's tables.

pub mod acpi;
pub mod cmdline;
pub mod memory_map;
pub mod numa;
pub mod percpu_buf;
pub mod pvh;
