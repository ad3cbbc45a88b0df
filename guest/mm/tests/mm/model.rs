//! The allocator against a model: a table outside of the allocator and the content of every page name its
//! owner.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tidevm_mm::{
    AllocError, Gfp, InitPolicy, MemoryContent, Mm, NodeId, Order, PageblockSet, Pfn, PfnRange, Stats,
    ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

use crate::workload::{BLOCK, POLICIES, Random, zones};

/// The owner of each frame. Finds allocations of two threads that overlap.
struct Owners(Vec<AtomicU32>);

impl Owners {
    fn new(mm_sections: u32) -> Self {
        Self((0..mm_sections * tidevm_mm::SECTION_PAGES).map(|_| AtomicU32::new(0)).collect())
    }

    fn change(&self, pfn: Pfn, order: Order, from: u32, to: u32) {
        for offset in 0..order.pages() {
            let entry = &self.0[pfn.add(offset).get() as usize];
            let found = entry.compare_exchange(from, to, SeqCst, SeqCst);
            assert_eq!(found, Ok(from), "{:?} of a buddy block of {order:?}", pfn.add(offset));
        }
    }
}

/// One thread's buddy blocks.
struct Player<'a> {
    mm: &'static Mm<Sim>,
    owners: &'a Owners,
    me: u32,
    blocks: Vec<(Pfn, Order, u64)>,
    random: Random,
}

impl Player<'_> {
    fn alloc(&mut self) -> Result<(), AllocError> {
        let order = if self.random.chance(60) { 0 } else { self.random.below(Order::COUNT) as u8 };
        let order = Order::new(order);
        let gfp = [Gfp::Kernel, Gfp::PageTable, Gfp::Movable, Gfp::Movable][self.random.below(4)];
        let pfn = self.mm.alloc_pages(order, gfp)?;
        assert!(pfn.is_aligned(order), "{pfn:?} for {order:?}");
        let movable_only = BLOCK.frames().contains(pfn);
        assert!(!movable_only || gfp == Gfp::Movable, "{gfp:?} got {pfn:?}, in Movable");
        self.owners.change(pfn, order, 0, self.me);
        let content = self.random.next();
        self.write(pfn, order, content);
        self.blocks.push((pfn, order, content));
        Ok(())
    }

    fn write(&self, pfn: Pfn, order: Order, content: u64) {
        for offset in 0..order.pages() {
            self.mm.platform().write(pfn.add(offset), content ^ u64::from(offset));
        }
    }

    fn free(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let (pfn, order, content) = self.blocks.swap_remove(self.random.below(self.blocks.len()));
        for offset in 0..order.pages() {
            let found = self.mm.platform().read(pfn.add(offset));
            assert_eq!(found, content ^ u64::from(offset), "content of {:?}", pfn.add(offset));
        }
        self.owners.change(pfn, order, self.me, 0);
        self.mm.free_pages(pfn, order);
    }

    fn split(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let (pfn, order, _) = self.blocks.swap_remove(self.random.below(self.blocks.len()));
        let to = Order::new(self.random.below(usize::from(order.get()) + 1) as u8);
        self.mm.split_page_to(pfn, order, to);
        for start in (0..order.pages()).step_by(to.pages() as usize) {
            let content = self.random.next();
            self.write(pfn.add(start), to, content);
            self.blocks.push((pfn.add(start), to, content));
        }
    }

    /// Phases with mostly allocations and phases with mostly frees take turns, so that memory is sometimes full
    /// and sometimes empty.
    fn play(&mut self, steps: usize) -> usize {
        let mut refused = 0;
        for step in 0..steps {
            let growing = (step / (steps / 6)).is_multiple_of(2);
            match self.random.below(100) {
                0..2 => self.split(),
                choice if (choice < 65) == growing => refused += usize::from(self.alloc().is_err()),
                _ => self.free(),
            }
        }
        refused
    }

    fn drain(&mut self) {
        while !self.blocks.is_empty() {
            self.free();
        }
    }
}

/// Free buddy blocks of each zone by order.
fn histogram(mm: &Mm<Sim>) -> Vec<[u32; Order::COUNT]> {
    zones().map(|zone| mm.free_blocks(zone).map(|types| types.iter().sum())).collect()
}

/// All pages are free, and merged as at the start.
fn assert_all_returned(mm: &Mm<Sim>, before: &[[u32; Order::COUNT]]) {
    zones().for_each(|zone| drop(mm.zone_pcp_disable(zone)));
    mm.check();
    assert_eq!(histogram(mm), before, "free buddy blocks by zone and order");
}

fn machine(cpus: usize) -> &'static Mm<Sim> {
    machine_with(cpus, POLICIES[0], NodeId::FIRST)
}

/// The memory block is on `node`, and so are all CPUs but the first.
fn machine_with(cpus: usize, (init, content): (InitPolicy, MemoryContent), node: NodeId) -> &'static Mm<Sim> {
    // Small, so that memory is full at times: 24 MiB of Dma32, 128 MiB of Movable.
    let memory = [(0, 8 * 1024)].into();
    let cpu_nodes = (0..cpus).map(|cpu| if cpu == 0 { 0 } else { node.get() }).collect();
    let mm = SimMachine {
        memory,
        cpus,
        cpu_nodes,
        options: SimMachine::OPTIONS.with_init(init).with_content(content),
        ..SimMachine::default()
    }
    .boot();
    mm.hotplug().add_memory(node, BLOCK, PageblockSet::range(0..20), content).unwrap();
    mm.hotplug().online(BLOCK, ZoneType::Movable).unwrap();
    mm
}

#[test]
fn one_thread() {
    for policy in POLICIES {
        one_thread_with(policy);
    }
}

fn one_thread_with(policy: (InitPolicy, MemoryContent)) {
    let mm = machine_with(1, policy, NodeId::FIRST);
    let before = histogram(mm);
    let owners = Owners::new(36);
    let mut random = Random::new("model::one_thread");
    let mut player = Player { mm, owners: &owners, me: 1, blocks: Vec::new(), random: random.fork() };
    let mut refused = 0;
    for _ in 0..20 {
        refused += player.play(600);
        mm.check();
    }
    assert!(refused > 0, "memory was never full");
    player.drain();
    assert_all_returned(mm, &before);
}

#[test]
fn two_threads() {
    for policy in POLICIES {
        for node in [0, 1].map(NodeId::new) {
            two_threads_with(policy, node);
        }
    }
}

fn two_threads_with(policy: (InitPolicy, MemoryContent), node: NodeId) {
    let mm = machine_with(3, policy, node);
    let before = histogram(mm);
    let owners = Owners::new(36);
    let mut random = Random::new("model::two_threads");
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (owners, random) = (&owners, random.fork());
            scope.spawn(move || {
                let me = cpu as u32 + 1;
                let mut player = Player { mm, owners, me, blocks: Vec::new(), random };
                Sim::run_on(cpu, || {
                    player.play(12_000);
                    player.drain();
                });
            });
        }
        for _ in 0..20 {
            Sim::run_on(2, || mm.check());
            std::thread::yield_now();
        }
    });
    assert_all_returned(mm, &before);
}

/// Pages are freed by another CPU than the CPU that allocated them.
#[test]
fn freed_elsewhere() {
    let mm = machine(2);
    let before = histogram(mm);
    let pages: Vec<Pfn> =
        (0..2000).map(|_| mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("room")).collect();
    Sim::run_on(1, || pages.iter().for_each(|&page| mm.free_pages(page, Order::PAGE)));
    mm.check();
    assert_all_returned(mm, &before);
}

/// Pages are freed as ranges, in pieces that fit neither buddy blocks nor pageblocks.
#[test]
fn freed_as_ranges() {
    let mm = machine(1);
    let before = histogram(mm);
    let first = mm.alloc_pages(Order::MAX, Gfp::Movable).expect("room");
    mm.split_page(first, Order::MAX);
    let free_pages = || mm.stats().zones.iter().map(|zone| zone.free).sum::<u64>();
    for (start, end) in [(3, 700), (0, 1), (701, 1024), (1, 3), (700, 700), (700, 701)] {
        let free = free_pages();
        mm.free_contig_range(PfnRange::new(first.add(start), end - start));
        assert_eq!(free_pages(), free + u64::from(end - start));
        mm.check();
    }
    assert_all_returned(mm, &before);
}

#[test]
#[should_panic(expected = "is not an allocated block")]
fn a_range_with_a_free_page_in_it() {
    let mm = machine(1);
    let first = mm.alloc_pages(Order::new(2), Gfp::Movable).expect("room");
    mm.split_page(first, Order::new(2));
    mm.free_contig_range(PfnRange::new(first.add(2), 1));
    mm.free_contig_range(PfnRange::new(first, 4));
}

/// Out of memory is an error, again and again, and changes nothing.
#[test]
fn out_of_memory() {
    let mm = machine(1);
    let before = histogram(mm);
    for order in [0, 3, 10].map(Order::new) {
        for gfp in [Gfp::Kernel, Gfp::PageTable, Gfp::Movable] {
            let mut held = Vec::new();
            while let Ok(pfn) = mm.alloc_pages(order, gfp) {
                held.push(pfn);
            }
            assert!(!held.is_empty(), "{gfp:?} of {order:?} got nothing");
            let full = mm.stats();
            for _ in 0..3 {
                assert_eq!(mm.alloc_pages(order, gfp), Err(AllocError));
            }
            // Only the failures are counted.
            let Stats { alloc_failed_movable: movable, alloc_failed_kernel: kernel, .. } = mm.stats();
            let failed = [movable - full.alloc_failed_movable, kernel - full.alloc_failed_kernel];
            assert_eq!(failed, if gfp == Gfp::Movable { [3, 0] } else { [0, 3] });
            let mut same = full;
            (same.alloc_failed_movable, same.alloc_failed_kernel) = (movable, kernel);
            assert_eq!(mm.stats(), same);
            mm.check();
            held.iter().for_each(|&pfn| mm.free_pages(pfn, order));
            assert_all_returned(mm, &before);
        }
    }
}

/// Watermarks: the last pages are for page tables.
#[test]
fn page_tables_get_the_reserve() {
    let mm = machine(1);
    while mm.alloc_pages(Order::PAGE, Gfp::Kernel).is_ok() {}
    let left = mm.stats().zones[0].free;
    // sqrt(pages * 4 KiB * 16) KiB, Linux's min_free_kbytes.
    let managed = mm.stats().zones[0].managed;
    let min = (managed * 64).isqrt().max(128) / 4;
    // The last refill brought 8 pages, and one of them had to be above the watermark.
    assert!(left + 8 > min && left < min + 64, "left {left}, watermark {min}");
    for _ in 0..left {
        mm.alloc_pages(Order::PAGE, Gfp::PageTable).expect("the reserve");
    }
    assert_eq!(mm.alloc_pages(Order::PAGE, Gfp::PageTable), Err(AllocError));
    mm.check();
}

/// Kernel pages never come from Movable. Movable pages come from Movable first, and then from all zones.
#[test]
fn zonelists() {
    let mm = machine(1);
    let movable = BLOCK.frames();
    let first = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
    assert!(movable.contains(first), "{first:?} is not in Movable");
    let mut elsewhere = 0;
    while let Ok(pfn) = mm.alloc_pages(Order::PAGE, Gfp::Movable) {
        elsewhere += usize::from(!movable.contains(pfn));
    }
    assert!(elsewhere > 1000, "movable pages fall back to kernel zones: {elsewhere}");
    let mm = machine(1);
    while let Ok(pfn) = mm.alloc_pages(Order::PAGE, Gfp::PageTable) {
        assert!(!movable.contains(pfn), "a page table at {pfn:?}, in Movable");
    }
    assert_eq!(mm.stats().zones[2].free, mm.stats().zones[2].managed);
}

/// Fallback between migrate types keeps unmovable pages together: few pageblocks get mixed.
#[test]
fn unmovable_pages_share_pageblocks() {
    let mm = machine(1);
    let mut pageblocks = std::collections::BTreeSet::new();
    for _ in 0..512 {
        let _movable = mm.alloc_pages(Order::PAGE, Gfp::Movable).unwrap();
        let kernel = mm.alloc_pages(Order::PAGE, Gfp::Kernel).unwrap();
        pageblocks.insert(kernel.get() / 512);
    }
    assert!(pageblocks.len() <= 2, "512 kernel pages lie in {} pageblocks", pageblocks.len());
    mm.check();
}

#[test]
#[should_panic(expected = "is not an allocated block")]
fn double_free() {
    let mm = machine(1);
    let pfn = mm.alloc_pages(Order::PAGE, Gfp::Kernel).unwrap();
    mm.free_pages(pfn, Order::PAGE);
    mm.free_pages(pfn, Order::PAGE);
}

#[test]
#[should_panic(expected = "is not an allocated block")]
fn free_with_wrong_order() {
    let mm = machine(1);
    let pfn = mm.alloc_pages(Order::new(3), Gfp::Kernel).unwrap();
    mm.free_pages(pfn, Order::new(2));
}

#[test]
#[should_panic(expected = "has no page")]
fn free_of_absent_memory() {
    machine(1).free_pages(BLOCK.frames().end(), Order::PAGE);
}
