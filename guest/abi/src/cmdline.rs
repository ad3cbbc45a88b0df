//! Keys of the guest's command line. Where Linux has a key for the same thing, it is Linux's.

/// `nr_cpus=N`: most CPUs to bring up of those that ACPI lists; without ACPI, their number, and
/// their local APIC ids are `0..N`.
pub const NR_CPUS: &str = "nr_cpus";
/// `tsc_early_khz=N`: frequency of the time-stamp counter.
pub const TSC_KHZ: &str = "tsc_early_khz";
/// `pci=off`: do not look for devices on PCI, where each look may cost an exit.
pub const PCI: &str = "pci";
/// `virtio_mmio.device=SIZE@ADDRESS:IRQ`, once a device.
pub const VIRTIO_MMIO_DEVICE: &str = "virtio_mmio.device";
/// `memory_hotplug.memmap_on_memory=on|off`.
pub const MEMMAP_ON_MEMORY: &str = "memory_hotplug.memmap_on_memory";
/// `tidevm.memory_block=SIZE`: size of a memory block, a power of two from 128M to 2G. A region that is
/// not made of whole ones is divided into smaller ones.
pub const MEMORY_BLOCK: &str = "tidevm.memory_block";
/// `tidevm.memmap_removal=per-block|range`: whether several memory blocks that hold their own memmaps
/// can be removed at once, or only one, which is how they were added.
pub const MEMMAP_REMOVAL: &str = "tidevm.memmap_removal";
/// `tidevm.pcp_disable=on|off|once`: per-CPU lists are out of play while a range goes offline, or
/// are drained again and again, or once, which is not enough.
pub const PCP_DISABLE: &str = "tidevm.pcp_disable";
/// `tidevm.init=eager|deferred|lazy`: when struct pages are initialised.
pub const INIT: &str = "tidevm.init";
/// `tidevm.deferred_grow=on|off`: whether allocations that find too little initialise more of boot
/// memory that was left for later. Off is to show what happens then: what is to come counts as free, so
/// nothing is held back for page tables either.
pub const DEFERRED_GROW: &str = "tidevm.deferred_grow";
/// `tidevm.numa=MEMORY[:CPUS],...`: nodes in their order, each with so much of boot memory, in whole memory
/// blocks from the lowest address up, and so many CPUs. What is in none is on node 0. Without it, nodes
/// are those of ACPI's SRAT.
pub const NUMA: &str = "tidevm.numa";
/// `tidevm.deferred_workers=all|one`: whether every CPU initialises boot memory that was left for later,
/// or one worker that goes from node to node.
pub const DEFERRED_WORKERS: &str = "tidevm.deferred_workers";
/// `percpu_buf=SIZE`: every CPU takes so many bytes while it is brought up.
pub const PERCPU_BUF: &str = "percpu_buf";
/// `tidevm.device_init=once|twice`: whether struct pages of device memory are written once, outside of
/// the memory hotplug lock, or under it and outside.
pub const DEVICE_INIT: &str = "tidevm.device_init";
/// `tidevm.zeroed=on|off`: the VMM promises that boot memory, and what it plugs, is zero until the
/// guest writes to it.
pub const ZEROED: &str = "tidevm.zeroed";
