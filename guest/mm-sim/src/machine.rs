//! How a simulated machine is made, and how it ends.
//!
//! Invariant: the `Mm` and the table of sections live as long as the process, or the `Mm` as long as a [`Machine`].
#![expect(unsafe_code, reason = "hands the window to `mm`, and gives the memory of a machine back")]

use core::ops::Deref;
use core::ptr;

use tidevm_mm::{
    BootError, Memblock, Mm, NodeId, Options, PAGE_SIZE, PerCpuPages, Pfn, PfnRange, PhysAddr, PhysRange,
    SECTION_PAGES, Section, Sparse,
};

use super::platform::Sim;

/// How a simulated machine is made.
#[derive(Clone, Debug)]
pub struct SimMachine {
    /// Sections that the table has.
    pub sections: u32,
    /// RAM at boot, in pages: first frame, number of frames.
    pub memory: Vec<(u32, u32)>,
    /// RAM that is in use at boot, likewise.
    pub reserved: Vec<(u32, u32)>,
    /// CPUs.
    pub cpus: usize,
    /// The node of each CPU from the first on; CPUs that are not listed are on node 0.
    pub cpu_nodes: Vec<u8>,
    /// The nodes of addresses: first frame, number of frames, node. Other RAM is on node 0.
    pub nodes: Vec<(u32, u32, u8)>,
    /// Distances that differ from the default: from, to, distance, in this direction only.
    pub distances: Vec<(u8, u8, u8)>,
    /// The options to boot with, except that [`Options::nr_cpus`] is taken from `cpus`. The content holds for
    /// memory that is mapped later too, until the memory is written to.
    pub options: Options,
    /// Whether each `map_*` takes a page-table page from the allocator, which goes back when all that was
    /// mapped with it is unmapped. Maps made before the allocator works take none.
    pub page_tables: bool,
}

impl Default for SimMachine {
    /// 256 MiB at boot with the first 4 MiB in use, one CPU, [`OPTIONS`](Self::OPTIONS), room for 4.5 GiB.
    fn default() -> Self {
        Self {
            sections: 36,
            memory: [(0, 2 * SECTION_PAGES)].into(),
            reserved: [(0, 1024)].into(),
            cpus: 1,
            cpu_nodes: Vec::new(),
            nodes: Vec::new(),
            distances: Vec::new(),
            options: Self::OPTIONS,
            page_tables: false,
        }
    }
}

impl SimMachine {
    /// The options of a default machine: memmap on memory, lists disabled while memory is taken away, eager
    /// initialisation, memory of unknown content.
    pub const OPTIONS: Options = Options::DEFAULT;

    /// The machine, before [`Mm::boot`]. It lives as long as the process does.
    pub fn build(&self) -> &'static Mm<Sim> {
        let sections: Box<[Section]> = (0..self.sections).map(|_| Section::new()).collect();
        let per_cpu: Box<[PerCpuPages]> = (0..self.cpus).map(|_| PerCpuPages::new()).collect();
        let sim = Sim::new(self.sections, self.cpus, self.options.content, self.page_tables);
        // SAFETY: `Sim::new` made a window for this many sections, for this `Mm` only.
        let sparse = unsafe { Sparse::new(sim.window.pages(), Box::leak(sections)) };
        let mm: &'static Mm<Sim> = Box::leak(Box::new(Mm::new(sim, sparse, Box::leak(per_cpu))));
        for (cpu, &node) in self.cpu_nodes.iter().enumerate() {
            mm.set_cpu_node(cpu, NodeId::new(node));
        }
        for &(from, to, distance) in &self.distances {
            mm.set_distance(NodeId::new(from), NodeId::new(to), distance);
        }
        mm.platform().mm.set(mm).ok().expect("a new machine");
        mm
    }

    /// The memory map of the machine at boot.
    pub fn memblock(&self) -> Memblock {
        let range = |&(first, pages): &(u32, u32)| {
            PhysRange::new(Pfn::new(first).address(), u64::from(pages) * PAGE_SIZE)
        };
        let mut memblock = Memblock::new();
        for memory in self.memory.iter().map(range) {
            memblock.add(memory).expect("a short memory map");
        }
        for reserved in self.reserved.iter().map(range) {
            memblock.reserve(reserved).expect("a short memory map");
        }
        for &(first, pages, node) in &self.nodes {
            memblock.set_node(range(&(first, pages)), NodeId::new(node)).expect("disjoint nodes");
        }
        memblock
    }

    /// The options that [`boot`](Self::boot) passes on.
    pub fn boot_options(&self) -> Options {
        self.options.with_nr_cpus(self.cpus)
    }

    /// The machine, booted.
    pub fn boot(&self) -> &'static Mm<Sim> {
        let mm = self.build();
        self.boot_on(mm).expect("the machine boots");
        mm
    }

    /// Boots `mm`, which [`Self::build`] made.
    ///
    /// # Errors
    /// Those of [`Mm::boot`].
    pub fn boot_on(&self, mm: &Mm<Sim>) -> Result<(), BootError> {
        self.boot_from(mm, Box::leak(Box::new(self.memblock())))
    }

    fn boot_from(&self, mm: &Mm<Sim>, memblock: &'static mut Memblock) -> Result<(), BootError> {
        for &(first, pages) in &self.memory {
            mm.platform().prepare_boot(PfnRange::new(Pfn::new(first), pages));
        }
        mm.boot(memblock, self.boot_options())
    }
}

/// Address of frame `pfn`, for memory maps in tests.
pub fn address(pfn: u32) -> PhysAddr {
    Pfn::new(pfn).address()
}

/// A booted machine that ends when it is dropped: for tests that make thousands. One that is dropped in a panic stays,
/// because other threads may still use it. The tables of sections and of CPUs stay too.
pub struct Machine {
    mm: *mut Mm<Sim>,
    memblock: *mut Memblock,
}

impl Machine {
    /// Boots `machine`.
    ///
    /// # Panics
    /// When it does not boot.
    #[must_use]
    pub fn boot(machine: &SimMachine) -> Self {
        let memblock = Box::into_raw(Box::new(machine.memblock()));
        let mm = machine.build();
        // SAFETY: `memblock` was just made, and `drop` frees it after the `Mm` that refers to it.
        machine.boot_from(mm, unsafe { &mut *memblock }).expect("the machine boots");
        Self { mm: ptr::from_ref(mm).cast_mut(), memblock }
    }
}

impl Deref for Machine {
    type Target = Mm<Sim>;

    fn deref(&self) -> &Mm<Sim> {
        // SAFETY: `boot` made it of a box that only `drop` frees.
        unsafe { &*self.mm }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Threads that a panic has left behind hold references.
        if std::thread::panicking() {
            return;
        }
        // SAFETY: `SimMachine::build` leaked a box of the `Mm` and gave it to `boot` alone. References to it borrow
        // from `self`. The tables of sections and of CPUs, which `Mm` hands out for ever, stay.
        drop(unsafe { Box::from_raw(self.mm) });
        // SAFETY: `boot` made it of a box, and the `Mm` that referred to it is gone.
        drop(unsafe { Box::from_raw(self.memblock) });
    }
}
