//! Keys of the guest's command line. Where Linux has a key for the same thing, it is Linux's.

/// `nr_cpus=N`: most CPUs to bring up, of the CPUs that ACPI lists. Without ACPI it is their number, and
/// their local APIC ids are `0..N`.
pub const NR_CPUS: &str = "nr_cpus";
/// `tsc_early_khz=N`: frequency of the time-stamp counter.
pub const TSC_KHZ: &str = "tsc_early_khz";
/// `pci=off`: do not look for devices on PCI. Each access to PCI may cost an exit.
pub const PCI: &str = "pci";
/// `virtio_mmio.device=SIZE@ADDRESS:IRQ`, once per device.
pub const VIRTIO_MMIO_DEVICE: &str = "virtio_mmio.device";
/// `memory_hotplug.memmap_on_memory=on|off`.
pub const MEMMAP_ON_MEMORY: &str = "memory_hotplug.memmap_on_memory";
/// `tidevm.memory_block=SIZE`: size of a memory block, a power of two from 128M to 2G. A region that is
/// not a multiple of it is divided into smaller memory blocks.
pub const MEMORY_BLOCK: &str = "tidevm.memory_block";
/// `tidevm.memmap_removal=per-block|range`: how memory blocks that hold their own memmaps are removed:
/// several at once, or only one at a time, as they were added.
pub const MEMMAP_REMOVAL: &str = "tidevm.memmap_removal";
/// `tidevm.pcp_disable=on|off|once`: while a range goes offline, per-CPU lists are disabled, or are drained
/// again and again, or are drained once, which is not enough.
pub const PCP_DISABLE: &str = "tidevm.pcp_disable";
/// `tidevm.init=eager|deferred|lazy`: when struct pages are initialised.
pub const INIT: &str = "tidevm.init";
/// `tidevm.deferred_grow=on|off`: whether allocations that find too little memory initialise more of the
/// boot memory that was left for later. `off` shows what happens without it: boot memory that is left for
/// later counts as free, so that no memory is held back for page tables either.
pub const DEFERRED_GROW: &str = "tidevm.deferred_grow";
/// `tidevm.numa=MEMORY[:CPUS],...`: nodes in their order, each with so much of boot memory, in whole memory
/// blocks from the lowest address up, and so many CPUs. Memory and CPUs in no node are on node 0. Without
/// this key, nodes are those of ACPI's SRAT.
pub const NUMA: &str = "tidevm.numa";
/// `tidevm.deferred_workers=all|one`: whether every CPU initialises boot memory that was left for later,
/// or one worker that goes from node to node.
pub const DEFERRED_WORKERS: &str = "tidevm.deferred_workers";
/// `percpu_buf=SIZE`: bytes that every CPU allocates while it is brought up.
pub const PERCPU_BUF: &str = "percpu_buf";
/// `tidevm.device_init=once|twice`: whether struct pages of device memory are written once, outside of
/// the memory hotplug lock, or under it and outside.
pub const DEVICE_INIT: &str = "tidevm.device_init";
/// `tidevm.zeroed=on|off`: the VMM promises that boot memory and plugged memory are zero until the
/// guest writes to them.
pub const ZEROED: &str = "tidevm.zeroed";
