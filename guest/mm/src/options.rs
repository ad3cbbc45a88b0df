//! Choices made at boot: every switch of memory management, in one value.
//!
//! Takes the place of Linux's boot parameters `memory_hotplug.memmap_on_memory`, `nr_cpus`
//! and of configuration such as `CONFIG_DEFERRED_STRUCT_PAGE_INIT`. Differs from Linux on purpose: policies
//! of older kernels can be chosen too, to compare them.
//!
//! Invariant: [`OptionsWord`] holds a whole [`Options`] in one atomic word, so that a reader needs no lock
//! and never sees half of a change.

use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Choices made at boot.
///
/// ```
/// use tidevm_mm::{InitPolicy, MemoryContent, Options};
///
/// // Four CPUs, and memory that the host gives as zeros: struct pages are written when memory is wanted.
/// let options = Options::DEFAULT.with_nr_cpus(4).with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero);
/// assert!(options.memmap_on_memory, "as it is if nothing is said");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// CPUs that will ever run, at least 1.
    pub nr_cpus: usize,
    /// Whether the memmap of hot-added memory lies in that memory.
    pub memmap_on_memory: bool,
    /// How per-CPU lists are treated while memory is taken away.
    pub pcp: PcpPolicy,
    /// How much hot-added memory may be removed at a time.
    pub removal: RemovalPolicy,
    /// When struct pages are initialised.
    pub init: InitPolicy,
    /// Whether an allocation that finds too little memory may initialise more of deferred memory.
    pub grow: bool,
    /// The content of boot memory that nothing has written to.
    pub content: MemoryContent,
    /// How struct pages of device memory are initialised.
    pub device_init: DeviceInit,
}

impl Options {
    /// The options of a machine about which nothing is said: one CPU, memmap on memory, per-CPU lists disabled while
    /// memory is taken away, eager initialisation, memory of unknown content.
    pub const DEFAULT: Self = Self {
        nr_cpus: 1,
        memmap_on_memory: true,
        pcp: PcpPolicy::Disable,
        removal: RemovalPolicy::PerBlock,
        init: InitPolicy::Eager,
        grow: true,
        content: MemoryContent::Unknown,
        device_init: DeviceInit::Once,
    };

    /// The same with another [`nr_cpus`](Self::nr_cpus).
    #[must_use]
    pub const fn with_nr_cpus(mut self, nr_cpus: usize) -> Self {
        self.nr_cpus = nr_cpus;
        self
    }

    /// The same with another [`memmap_on_memory`](Self::memmap_on_memory).
    #[must_use]
    pub const fn with_memmap_on_memory(mut self, memmap_on_memory: bool) -> Self {
        self.memmap_on_memory = memmap_on_memory;
        self
    }

    /// The same with another [`pcp`](Self::pcp).
    #[must_use]
    pub const fn with_pcp(mut self, pcp: PcpPolicy) -> Self {
        self.pcp = pcp;
        self
    }

    /// The same with another [`removal`](Self::removal).
    #[must_use]
    pub const fn with_removal(mut self, removal: RemovalPolicy) -> Self {
        self.removal = removal;
        self
    }

    /// The same with another [`init`](Self::init).
    #[must_use]
    pub const fn with_init(mut self, init: InitPolicy) -> Self {
        self.init = init;
        self
    }

    /// The same with another [`grow`](Self::grow).
    #[must_use]
    pub const fn with_grow(mut self, grow: bool) -> Self {
        self.grow = grow;
        self
    }

    /// The same with another [`content`](Self::content).
    #[must_use]
    pub const fn with_content(mut self, content: MemoryContent) -> Self {
        self.content = content;
        self
    }

    /// The same with another [`device_init`](Self::device_init).
    #[must_use]
    pub const fn with_device_init(mut self, device_init: DeviceInit) -> Self {
        self.device_init = device_init;
        self
    }
}

impl Default for Options {
    /// [`Options::DEFAULT`].
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How the pages on per-CPU lists are dealt with while pageblocks are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum PcpPolicy {
    /// The lists are disabled meanwhile (Linux `zone_pcp_disable`).
    Disable = 0,
    /// The lists are drained before isolation and again in every round (Linux before 5.11).
    DrainAgain = 1,
    /// The lists are drained once, before isolation, and not disabled. A page that is freed between drain
    /// and isolation stays on a list: the pageblocks are not taken, or the page is allocated again
    /// although its pageblock is isolated. This policy exists to show that. (Linux before 5.9 drained
    /// once after isolation, which leaves a narrower gap.)
    DrainOnce = 2,
}

/// How much may be removed at a time when the memmap lies on the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum RemovalPolicy {
    /// One memory block: the unit of adding.
    Range = 0,
    /// Any number of memory blocks, one after another.
    PerBlock = 1,
}

/// When struct pages are initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum InitPolicy {
    /// All of a section, before any of its pages is used.
    Eager = 0,
    /// As `Eager`, but in each node's highest zone only the first section of boot memory is initialised before
    /// pages are allocated (see `deferred`).
    Deferred = 1,
    /// Where the memmap is known to be zero, each page when a buddy block begins at it; else as `Eager`. One
    /// section of boot memory per node is initialised before pages are allocated, and memory that is plugged when an
    /// allocation wants it (see `deferred`).
    Lazy = 2,
}

/// The content of memory when it is added, or at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum MemoryContent {
    /// Anything.
    Unknown = 0,
    /// Zeros: the provider of the memory promises it, and nothing has written to the memory since.
    Zero = 1,
}

/// How struct pages of device memory are initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum DeviceInit {
    /// Once, outside the memory hotplug lock.
    Once = 0,
    /// Once under the lock and once outside, as Linux did before 4.20. This policy exists to be compared.
    Twice = 1,
}

/// The [`Options`] of an [`Mm`](crate::Mm).
pub(crate) struct OptionsWord(AtomicU64);

impl OptionsWord {
    const MEMMAP_ON_MEMORY: u32 = 32;
    const PCP: u32 = 33;
    const REMOVAL: u32 = 35;
    const INIT: u32 = 36;
    const GROW: u32 = 38;
    const CONTENT: u32 = 39;
    const DEVICE_INIT: u32 = 40;

    /// The options before boot: there are no CPUs yet.
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Makes `options` the current ones.
    pub(crate) fn set(&self, options: Options) {
        let Options { nr_cpus, memmap_on_memory, pcp, removal, init, grow, content, device_init } = options;
        let cpus = u32::try_from(nr_cpus).expect("there are fewer than 2^32 CPUs");
        let word = u64::from(cpus)
            | u64::from(memmap_on_memory) << Self::MEMMAP_ON_MEMORY
            | (pcp as u64) << Self::PCP
            | (removal as u64) << Self::REMOVAL
            | (init as u64) << Self::INIT
            | u64::from(grow) << Self::GROW
            | (content as u64) << Self::CONTENT
            | (device_init as u64) << Self::DEVICE_INIT;
        self.0.store(word, Relaxed);
    }

    /// The options as they are now.
    #[inline]
    pub(crate) fn get(&self) -> Options {
        let word = self.0.load(Relaxed);
        let bit = |at: u32| word >> at & 1 != 0;
        Options {
            nr_cpus: word as u32 as usize,
            memmap_on_memory: bit(Self::MEMMAP_ON_MEMORY),
            pcp: match word >> Self::PCP & 3 {
                0 => PcpPolicy::Disable,
                1 => PcpPolicy::DrainAgain,
                _ => PcpPolicy::DrainOnce,
            },
            removal: if bit(Self::REMOVAL) { RemovalPolicy::PerBlock } else { RemovalPolicy::Range },
            init: match word >> Self::INIT & 3 {
                0 => InitPolicy::Eager,
                1 => InitPolicy::Deferred,
                _ => InitPolicy::Lazy,
            },
            grow: bit(Self::GROW),
            content: if bit(Self::CONTENT) { MemoryContent::Zero } else { MemoryContent::Unknown },
            device_init: if bit(Self::DEVICE_INIT) { DeviceInit::Twice } else { DeviceInit::Once },
        }
    }

    /// Switches options of a machine that runs, for tests that compare policies on one machine.
    #[cfg(test)]
    pub(crate) fn change(&self, change: impl FnOnce(&mut Options)) {
        let mut options = self.get();
        change(&mut options);
        self.set(options);
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceInit, InitPolicy, MemoryContent, Options, OptionsWord, PcpPolicy, RemovalPolicy};

    #[test]
    fn the_word_holds_every_option() {
        let word = OptionsWord::new();
        assert_eq!(word.get().nr_cpus, 0);
        let mut options = Options {
            nr_cpus: u32::MAX as usize,
            memmap_on_memory: false,
            pcp: PcpPolicy::Disable,
            removal: RemovalPolicy::Range,
            init: InitPolicy::Eager,
            grow: false,
            content: MemoryContent::Unknown,
            device_init: DeviceInit::Once,
        };
        // Each option alone, and with all that were changed before it.
        let changes: [fn(&mut Options); 9] = [
            |options| options.nr_cpus = 64,
            |options| options.memmap_on_memory = true,
            |options| options.pcp = PcpPolicy::DrainAgain,
            |options| options.pcp = PcpPolicy::DrainOnce,
            |options| options.removal = RemovalPolicy::PerBlock,
            |options| options.init = InitPolicy::Deferred,
            |options| options.init = InitPolicy::Lazy,
            |options| (options.grow, options.content) = (true, MemoryContent::Zero),
            |options| options.device_init = DeviceInit::Twice,
        ];
        for change in changes {
            let before = options;
            change(&mut options);
            word.set(before);
            word.change(change);
            assert_ne!(before, options);
            assert_eq!(word.get(), options);
        }
    }
}
