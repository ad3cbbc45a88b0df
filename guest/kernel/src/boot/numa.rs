//! NUMA nodes: which exist, and which CPUs and memory they have.
//!
//! Mirrors Linux `acpi_numa_init` and `numa_init`: proximity domains of ACPI's SRAT become nodes, and
//! distances come from the SLIT. `tidevm.numa=` on the command line replaces both, as Linux `numa=fake=`
//! does. It differs from Linux on purpose: nodes are numbered in the order of their domains, so a node's
//! number is its domain's as long as no domain is left out.
//!
//! Contradictions are reported and survived. Domains beyond the last node count to node 0 (Linux gives up all
//! nodes). When ranges overlap, everything is on node 0, as in Linux.

use arrayvec::ArrayVec;
use core::sync::atomic::Ordering;

use spin::{Mutex, MutexGuard};
use tidevm_firmware::Affinity;
use tidevm_mm::{MAX_NODES, Memblock, NodeId, PhysAddr, PhysRange, SECTION_SIZE};

use crate::boot::acpi::Entry;
use crate::boot::cmdline::NodeSpec;
use crate::console::println;
use crate::cpu;
use crate::mem::MM;

const _: () = assert!(MAX_NODES == tidevm_abi::MAX_NODES);

/// Most ranges of memory that are recorded.
const MAX_RANGES: usize = 32;
/// Most proximity domains that are recorded.
const MAX_DOMAINS: usize = 64;

/// The knowledge of nodes.
pub struct Numa {
    /// Proximity domains, ascending; the first ones are the nodes.
    domains: ArrayVec<u32, MAX_DOMAINS>,
    /// By local APIC id, the domain.
    cpus: [Option<u32>; 256],
    /// Ranges of memory, with their domains.
    memory: ArrayVec<(PhysRange, u32), MAX_RANGES>,
    /// There were more ranges or domains than there is room for.
    too_many: bool,
    /// From, to, distance.
    distances: ArrayVec<(NodeId, NodeId, u8), { MAX_NODES * MAX_NODES }>,
}

/// Boot's findings, for memory that is plugged later.
static KNOWN: Mutex<Numa> = Mutex::new(Numa::new());

impl Numa {
    /// Boot's findings: at first, that everything is on one node.
    pub fn known() -> MutexGuard<'static, Self> {
        KNOWN.lock()
    }

    const fn new() -> Self {
        Self {
            domains: ArrayVec::new_const(),
            cpus: [None; 256],
            memory: ArrayVec::new_const(),
            too_many: false,
            distances: ArrayVec::new_const(),
        }
    }

    /// The node of a domain, once all domains are noted.
    fn node(&self, domain: u32) -> Option<NodeId> {
        let number = self.domains.binary_search(&domain).ok().filter(|&number| number < MAX_NODES)?;
        Some(NodeId::new(number as u8))
    }

    fn note_domain(&mut self, domain: u32) {
        if let Err(place) = self.domains.binary_search(&domain) {
            self.too_many |= self.domains.try_insert(place, domain).is_err();
        }
    }

    fn note_memory(&mut self, range: PhysRange, domain: u32) {
        self.note_domain(domain);
        self.too_many |= self.memory.try_push((range, domain)).is_err();
    }

    /// Records one entry of ACPI's tables.
    pub fn note(&mut self, entry: Entry<'_>) {
        match entry {
            Entry::Affinity(Affinity::Cpu { apic_id, domain }) => {
                self.note_domain(domain);
                if let Some(entry) = self.cpus.get_mut(apic_id as usize) {
                    *entry = Some(domain);
                }
            }
            Entry::Affinity(Affinity::Memory { start, size, domain }) => {
                // The guest uses no memory above MAX_PHYS_ADDR.
                let end = start.saturating_add(size).min(tidevm_abi::MAX_PHYS_ADDR);
                if start < end {
                    self.note_memory(PhysRange::new(PhysAddr::new(start), end - start), domain);
                }
            }
            Entry::Distances { domains, matrix } => {
                for (from, &one) in NodeId::all().zip(&self.domains) {
                    for (to, &other) in NodeId::all().zip(&self.domains) {
                        let row = matrix.chunks_exact(domains.max(1)).nth(one as usize);
                        if let Some(&distance) = row.and_then(|row| row.get(other as usize)) {
                            self.distances.push((from, to, distance));
                        }
                    }
                }
            }
            Entry::Cpu(_) | Entry::Buses(_) | Entry::RootBuses(_) | Entry::Power(..) => {}
        }
    }

    /// Replaces everything by the command line's nodes: boot memory from the lowest memory block up, and CPUs
    /// from the first one up.
    fn set_nodes(&mut self, nodes: &[NodeSpec], memblock: &Memblock) {
        *self = Self::new();
        let mut blocks = (0..tidevm_abi::MAX_PHYS_ADDR / SECTION_SIZE)
            .map(|block| block * SECTION_SIZE)
            .filter(|&start| {
                let block = PhysRange::new(PhysAddr::new(start), SECTION_SIZE);
                memblock.memory().any(|ram| ram.intersect(block).size() > 0)
            });
        let mut next_cpu = 0;
        for (domain, &NodeSpec { memory, cpus }) in (0..).zip(nodes) {
            self.note_domain(domain);
            for start in blocks.by_ref().take((memory.0 / SECTION_SIZE) as usize) {
                match self.memory.last_mut() {
                    Some((range, last)) if *last == domain && range.end().get() == start => {
                        *range = range.hull(PhysRange::new(PhysAddr::new(start), SECTION_SIZE));
                    }
                    _ => self.note_memory(PhysRange::new(PhysAddr::new(start), SECTION_SIZE), domain),
                }
            }
            for index in next_cpu..(next_cpu + cpus).min(cpu::MAX_CPUS) {
                self.cpus[apic_id(index)] = Some(domain);
            }
            next_cpu += cpus;
        }
    }

    /// Tells memory management which nodes boot memory and the first `nr_cpus` CPUs are on. The local APIC
    /// ids of the CPUs are recorded before. `nodes` are the command line's, if it names any.
    pub fn settle(&mut self, nodes: &[NodeSpec], memblock: &mut Memblock, nr_cpus: usize) {
        if !nodes.is_empty() {
            self.set_nodes(nodes, memblock);
        }
        if let Some(domain) = self.domains.get(MAX_NODES) {
            println!(
                "NUMA: there are {MAX_NODES} nodes at most; what is in proximity domain {domain} and in those \
                 above counts to node 0"
            );
        }
        if self.too_many {
            println!(
                "NUMA: more than {MAX_RANGES} ranges of memory or {MAX_DOMAINS} domains; the rest is on node 0"
            );
        }
        for &(range, domain) in &self.memory {
            let node = self.node(domain).unwrap_or(NodeId::FIRST);
            if let Err(error) = memblock.set_node(range, node) {
                let (start, end) = (range.start().get(), range.end().get());
                println!("NUMA: {start:#x}-{end:#x} cannot be on node {}: {error:?}", node.get());
                println!("NUMA: everything is on node 0");
                memblock.forget_nodes();
                *self = Self::new();
                break;
            }
        }
        for index in 0..nr_cpus {
            let node = self.cpus[apic_id(index)].and_then(|domain| self.node(domain));
            MM.set_cpu_node(index, node.unwrap_or(NodeId::FIRST));
        }
        for &(from, to, distance) in &self.distances {
            MM.set_distance(from, to, distance);
        }
    }
}

/// Local APIC id of CPU `index`, below 256.
fn apic_id(index: usize) -> usize {
    cpu::area(index).apic_id.load(Ordering::Relaxed) as usize
}

/// The node of memory that is plugged at `address`. `domain` is the device's proximity domain, if it names
/// one.
pub fn node_of(domain: Option<u16>, address: u64) -> NodeId {
    let known = KNOWN.lock();
    let by_address = || {
        let holds = |range: &PhysRange| (range.start().get()..range.end().get()).contains(&address);
        known.memory.iter().find(|(range, _)| holds(range)).map(|&(_, domain)| domain)
    };
    // A domain that the tables do not name is ignored.
    let domain = domain.map(u32::from).filter(|domain| known.domains.contains(domain)).or_else(by_address);
    domain.and_then(|domain| known.node(domain)).unwrap_or(NodeId::FIRST)
}
