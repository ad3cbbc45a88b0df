//! The guest's command line: its keys, and the words of those values that are not numbers.
//!
//! Where Linux has a key for the same thing, it is Linux's. The VMM writes the command line and the guest's
//! kernel reads it; both use the [`Table`]s beside the keys.
//!
//! Invariant: a table has a word for every value of its enum.

use core::fmt;

use crate::words::{Table, word_for};

/// Words of a switch. Linux (`kstrtobool`) accepts the short ones too.
pub const SWITCHES: Table<bool> = &[
    ("on", true),
    ("off", false),
    ("1", true),
    ("0", false),
    ("Y", true),
    ("N", false),
    ("y", true),
    ("n", false),
];

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

/// How memory blocks that hold their own memmaps are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemmapRemoval {
    /// Several at once, each with its own memmap.
    PerBlock,
    /// Only one memory block at a time, as they were added.
    Range,
}

/// Words of [`MEMMAP_REMOVAL`].
pub const MEMMAP_REMOVALS: Table<MemmapRemoval> =
    &[("per-block", MemmapRemoval::PerBlock), ("range", MemmapRemoval::Range)];

/// `tidevm.pcp_disable=on|off|once`: what is done about per-CPU lists while a range goes offline.
pub const PCP_DISABLE: &str = "tidevm.pcp_disable";

/// What is done about per-CPU lists while a range goes offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PcpDisable {
    /// They are disabled.
    On,
    /// They are drained again and again.
    Off,
    /// They are drained once, which is not enough.
    Once,
}

/// Words of [`PCP_DISABLE`], which takes those of [`SWITCHES`] too.
pub const PCP_DISABLES: Table<PcpDisable> =
    &[("on", PcpDisable::On), ("off", PcpDisable::Off), ("once", PcpDisable::Once)];

impl From<bool> for PcpDisable {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

/// `tidevm.init=eager|deferred|lazy`: when struct pages are initialised.
pub const INIT: &str = "tidevm.init";

/// When the guest initialises struct pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitPolicy {
    /// All struct pages of a memory block before the memory block is used.
    Eager,
    /// Those of boot memory on demand or in the background; those of added memory as with `Eager`.
    Deferred,
    /// Each struct page when its page is first used. A memory block is mapped when an allocation wants some of it.
    #[default]
    Lazy,
}

/// Words of [`INIT`].
pub const INIT_POLICIES: Table<InitPolicy> =
    &[("eager", InitPolicy::Eager), ("deferred", InitPolicy::Deferred), ("lazy", InitPolicy::Lazy)];

impl fmt::Display for InitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_for(INIT_POLICIES, self))
    }
}

/// `tidevm.deferred_grow=on|off`: whether allocations that find too little memory initialise more of the
/// memory that was left for later. `off` shows what happens without it: boot memory that is left for
/// later counts as free, so that no memory is held back for page tables either; plugged memory is not left for later.
pub const DEFERRED_GROW: &str = "tidevm.deferred_grow";
/// `tidevm.numa=MEMORY[:CPUS],...`: nodes in their order, each with so much of boot memory, in whole memory
/// blocks from the lowest address up, and so many CPUs. Memory and CPUs in no node are on node 0. Without
/// this key, nodes are those of ACPI's SRAT.
pub const NUMA: &str = "tidevm.numa";
/// `tidevm.deferred_workers=all|one`: whether every CPU initialises boot memory that was left for later,
/// or one worker that goes from node to node.
pub const DEFERRED_WORKERS: &str = "tidevm.deferred_workers";

/// The CPUs that initialise boot memory that was left for later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeferredWorkers {
    /// Every CPU, each with the memory of its own node first.
    All,
    /// One worker that goes from node to node.
    One,
}

/// Words of [`DEFERRED_WORKERS`].
pub const DEFERRED_WORKERS_WORDS: Table<DeferredWorkers> =
    &[("all", DeferredWorkers::All), ("one", DeferredWorkers::One)];

/// `percpu_buf=SIZE`: bytes that every CPU allocates while it is brought up: the size of a workload that
/// needs much memory during boot.
pub const PERCPU_BUF: &str = "percpu_buf";
/// `tidevm.device_init=once|twice`: whether struct pages of device memory are written once, outside of
/// the memory hotplug lock, or under it and outside.
pub const DEVICE_INIT: &str = "tidevm.device_init";

/// How often struct pages of device memory are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceInit {
    /// Once, outside of the memory hotplug lock.
    Once,
    /// Under the lock, and again outside.
    Twice,
}

/// Words of [`DEVICE_INIT`].
pub const DEVICE_INITS: Table<DeviceInit> = &[("once", DeviceInit::Once), ("twice", DeviceInit::Twice)];

/// `tidevm.zeroed=on|off`: the VMM promises that boot memory and plugged memory are zero until the
/// guest writes to them.
pub const ZEROED: &str = "tidevm.zeroed";

/// `tidevm.judge=on`: boot as the judge of a virtio-mem device ([`crate::judge`]) instead of a guest that uses its memory.
pub const JUDGE: &str = "tidevm.judge";

/// Begins the keys that are this guest's own, and so no other kernel's.
const OWN: &str = "tidevm.";

/// All of them.
pub const OWN_KEYS: &[&str] = &[
    MEMORY_BLOCK,
    MEMMAP_REMOVAL,
    PCP_DISABLE,
    INIT,
    DEFERRED_GROW,
    NUMA,
    DEFERRED_WORKERS,
    DEVICE_INIT,
    ZEROED,
    JUDGE,
];

/// The first word of `line` that looks like one of this guest's own and is none: its key is unknown, or it has no
/// value. The guest would ignore it, as it ignores words for others.
#[must_use]
pub fn unknown_word(line: &str) -> Option<&str> {
    let is_unknown = |word: &&str| {
        let key = word.split_once('=').map(|(key, _)| key);
        word.starts_with(OWN) && !key.is_some_and(|key| OWN_KEYS.contains(&key))
    };
    line.split_ascii_whitespace().find(is_unknown)
}

#[cfg(test)]
mod tests {
    use core::fmt::Debug;

    use super::{
        DEFERRED_WORKERS_WORDS, DEVICE_INITS, INIT_POLICIES, InitPolicy, MEMMAP_REMOVALS, OWN, OWN_KEYS,
        PCP_DISABLES, PcpDisable, SWITCHES, unknown_word,
    };
    use crate::words::{Table, value_of, word_for};

    #[track_caller]
    fn assert_round_trip<T: Copy + Debug + PartialEq>(table: Table<T>, values: usize) {
        let mut written: Vec<_> = table.iter().map(|(_, value)| word_for(table, value)).collect();
        for (word, value) in table {
            assert_eq!(value_of(table, word), Some(*value), "{word} stands for two values");
            assert_eq!(value_of(table, word_for(table, value)), Some(*value));
        }
        written.sort_unstable();
        written.dedup();
        assert_eq!(written.len(), values);
    }

    #[test]
    fn every_value_has_a_word() {
        assert_round_trip(SWITCHES, 2);
        assert_round_trip(MEMMAP_REMOVALS, 2);
        assert_round_trip(PCP_DISABLES, 3);
        assert_round_trip(INIT_POLICIES, 3);
        assert_round_trip(DEFERRED_WORKERS_WORDS, 2);
        assert_round_trip(DEVICE_INITS, 2);
        for on in [true, false] {
            let word = word_for(SWITCHES, &on);
            assert_eq!(word, if on { "on" } else { "off" });
            assert_eq!(value_of(PCP_DISABLES, word), Some(PcpDisable::from(on)));
        }
    }

    #[test]
    fn every_key_of_its_own_is_known() {
        let value = |line: &'static str| {
            line.strip_prefix("pub const ")?.split_once(": &str = \"")?.1.strip_suffix("\";")
        };
        let all = include_str!("cmdline.rs").lines().filter_map(value);
        let own: Vec<&str> = all.filter(|key| key.starts_with(OWN)).collect();
        assert!(own.len() > 5 && own.iter().all(|key| OWN_KEYS.contains(key)), "{own:?}");
        assert_eq!(own.len(), OWN_KEYS.len());
        let line = OWN_KEYS.iter().map(|key| format!("{key}=1 quiet tidevmx.a ")).collect::<String>();
        assert_eq!(unknown_word(&line), None);
        for word in ["tidevm.innit=lazy", "tidevm.init", "tidevm.", "tidevm.init.x=1"] {
            assert_eq!(unknown_word(&format!("{line} {word} tidevm.zeroed=on")), Some(word));
        }
    }

    #[test]
    fn init_policies_have_names() {
        for (name, policy) in
            [("eager", InitPolicy::Eager), ("deferred", InitPolicy::Deferred), ("lazy", InitPolicy::Lazy)]
        {
            assert_eq!(value_of(INIT_POLICIES, name), Some(policy));
            assert_eq!(policy.to_string(), name);
        }
        assert_eq!(value_of(INIT_POLICIES, "lazy-ish"), None);
    }
}
