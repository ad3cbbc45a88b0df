//! The machines of the models, and what must hold on each after a schedule.
//!
//! Invariant: a machine is as small as the race allows, because it is booted anew for each schedule.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use shuttle::thread;
use tidevm_mm::hosted::model;
use tidevm_mm::{
    Gfp, MemoryContent, Mm, MovableOwner, NodeId, Order, OwnerId, PageblockSet, Pfn, SECTION_PAGES,
    SectionNr, Stats, ZoneId, ZoneType,
};
use tidevm_mm_sim::{Machine, Sim, SimMachine};

pub const MOVABLE: ZoneId = NodeId::FIRST.zone(ZoneType::Movable);

/// Memory blocks of one section each, behind the boot memory.
pub const BLOCKS: [SectionNr; 2] = [SectionNr::new(1), SectionNr::new(2)];
pub const BLOCK: SectionNr = BLOCKS[0];

/// CPUs, and one section of boot memory.
pub fn small() -> SimMachine {
    SimMachine { sections: 4, memory: [(0, SECTION_PAGES)].into(), cpus: 3, ..SimMachine::default() }
}

/// Adds memory block `nr` to `mm`.
pub fn add(mm: &Mm<Sim>, nr: SectionNr) {
    mm.hotplug()
        .add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown)
        .expect("it is added");
}

/// Puts memory block `nr` online as movable memory.
pub fn online(mm: &Mm<Sim>, nr: SectionNr) {
    mm.hotplug().online(nr, ZoneType::Movable).expect("it comes online");
}

/// `machine`, booted, with the first `blocks` memory blocks online.
pub fn boot(machine: &SimMachine, blocks: usize) -> Machine {
    let machine = Machine::boot(machine);
    for &nr in &BLOCKS[..blocks] {
        add(&machine, nr);
        online(&machine, nr);
    }
    machine
}

/// A movable page, which is in use.
pub fn movable_page(mm: &Mm<Sim>) -> Pfn {
    mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("there is room")
}

/// Runs `body` on CPU `cpu` as one step of its job loop.
pub fn step_on<R>(mm: &Mm<Sim>, cpu: usize, body: impl FnOnce() -> R) -> R {
    Sim::run_on(cpu, || mm.platform().step(body))
}

/// Calls `body`, in which each access to memory is a scheduling point.
pub fn scheduled<R>(machine: &Machine, body: impl FnOnce(&Mm<Sim>) -> R) -> R {
    model::scheduled(|| body(machine))
}

/// All pages that can be allocated, in each zone.
fn usable(stats: &Stats) -> Vec<(u64, u64)> {
    stats.zones.iter().map(|zone| (zone.managed, zone.free + zone.pcp + zone.deferred)).collect()
}

/// Runs `threads` on the machine, then checks it, and compares the pages that can be allocated with those of
/// before. `threads` gives back what it takes.
pub fn in_schedule(machine: &Machine, held: u64, threads: impl FnOnce(&Mm<Sim>)) {
    let before = usable(&machine.stats());
    scheduled(machine, threads);
    machine.check();
    let (mut expected, now) = (before, machine.stats());
    // The pages that were in use before and are not any more.
    let zone = ZoneType::ALL.iter().position(|&zone| zone == ZoneType::Movable).expect("it is one");
    expected[zone].1 += held;
    assert_eq!(usable(&now), expected, "managed and free pages of each zone: some are lost");
    assert_eq!(now.pcp_stranded, 0, "a page of an isolated pageblock stayed on a per-CPU list");
}

/// The holder of movable pages that may be asked to give them up. Page 0 is never one of them.
pub struct Tenant([AtomicU64; 2]);

impl Tenant {
    const ISOLATED: u64 = 1 << 32;

    /// Takes a page per slot.
    pub fn new(mm: &Mm<Sim>) -> &'static Self {
        let tenant: &'static Self = Box::leak(Box::new(Self([const { AtomicU64::new(0) }; 2])));
        mm.register_owner(OwnerId(0), tenant);
        for (slot, index) in tenant.0.iter().zip(0..) {
            let page = movable_page(mm);
            mm.platform().write(page, index);
            slot.store(page.get().into(), SeqCst);
            mm.set_owner(page, OwnerId(0), index);
        }
        tenant
    }

    /// Frees the page of `slot`, after migration has let go of it. Its content is as it was.
    pub fn release(&self, mm: &Mm<Sim>, slot: usize) {
        loop {
            let page = self.0[slot].load(SeqCst);
            let taken =
                page & Self::ISOLATED == 0 && self.0[slot].compare_exchange(page, 0, SeqCst, SeqCst).is_ok();
            if taken {
                let pfn = Pfn::new(page as u32);
                assert_eq!(mm.platform().read(pfn), slot as u64, "content of {pfn:?}");
                mm.free_pages(pfn, Order::PAGE);
                return;
            }
            thread::yield_now();
        }
    }

    fn change(&self, index: u64, from: u64, to: u64) -> bool {
        self.0[index as usize].compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }
}

impl MovableOwner for Tenant {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        self.change(index, pfn.get().into(), u64::from(pfn.get()) | Self::ISOLATED)
    }

    fn hand_over(&self, from: Pfn, to: Pfn, index: u64) -> bool {
        self.change(index, u64::from(from.get()) | Self::ISOLATED, to.get().into())
    }

    fn put_back(&self, pfn: Pfn, index: u64) {
        assert!(self.change(index, u64::from(pfn.get()) | Self::ISOLATED, pfn.get().into()));
    }
}
