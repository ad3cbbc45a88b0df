//! Memory that goes offline: free memory should cost time per free buddy block, used memory the time of a copy.

use std::sync::Mutex;

use tidevm_bench::clock::{cpu, in_turns};
use tidevm_bench::count::{counted, instructions};
use tidevm_bench::machine::{Mapping, PlainMachine, Spec};
use tidevm_bench::table::{Row, Table};
use tidevm_mm::{
    Gfp, MemoryContent, MovableOwner, NodeId, Order, OwnerId, PAGE_SIZE, PageblockSet, Pfn, SectionNr,
    ZoneType,
};

use crate::Counted;

const GIB: u64 = 1 << 30;
/// Free buddy blocks in 1 GiB with every other pageblock plugged. The pageblocks of the memmaps are not free.
const SMALL: f64 = 8.0 * 31.0;
/// Free buddy blocks in 1 GiB with all pageblocks plugged: 31 of 4 MiB and one of 2 MiB per section.
const LARGE: f64 = 8.0 * 32.0;

pub const COUNTED: &[Counted] = &[
    ("offline-4m", count_whole),
    ("offline-2m", count_every_other),
    ("offline-unwanted", || count_unwanted(1)),
    ("offline-unwanted-64", || count_unwanted(64)),
];

pub fn run(table: &mut Table) {
    table.section("Memory that is free goes offline, instructions");
    for (what, work, most) in [
        ("1 GiB that nobody wanted leaves", "offline-unwanted", 10_000),
        ("64 GiB that nobody wanted leaves", "offline-unwanted-64", 20_000),
    ] {
        table.add(match instructions(work) {
            Ok(count) => {
                Row::new(what, format!("{count} instr.")).target(format!("<= {most}"), count <= most)
            }
            Err(error) => Row::new(what, error),
        });
    }
    // If the cost is per buddy block, buddy blocks of twice the size cost no more.
    match (instructions("offline-2m"), instructions("offline-4m")) {
        (Ok(small), Ok(large)) => {
            let [small_each, large_each] = [small as f64 / SMALL, large as f64 / LARGE];
            let each = |count: f64| format!("{count:.0} a free block");
            let row = Row::new("every other 2 MiB plugged, so 248 free blocks", format!("{small} instr."));
            table.add(row.beside(each(small_each), 1.0));
            let row = Row::new("all plugged, 248 free blocks of 4 MiB, 8 of 2", format!("{large} instr."));
            let ratio = large_each / small_each;
            table.add(row.beside(each(large_each), ratio).target("<= 1.10", ratio <= 1.1));
        }
        (Err(error), _) | (_, Err(error)) => table.add(Row::new("offline", error)),
    }
    full(table);
}

fn region() -> Spec {
    Spec { region: GIB, ..Spec::new(GIB) }
}

fn count_unwanted(gib: u64) {
    Spec { region: gib * GIB, warm: false, ..Spec::new(GIB) }.with(|machine| {
        machine.boot();
        machine.plug_all();
        counted(|| machine.unplug_all());
    });
}

fn count_whole() {
    region().with(|machine| {
        machine.boot();
        machine.blocks().for_each(|block| machine.plug(block));
        counted(|| offline(machine));
    });
}

fn count_every_other() {
    region().with(|machine| {
        machine.boot();
        let every_other = (0..32).map(|pair| PageblockSet::range(2 * pair..2 * pair + 1));
        let plugged = every_other.fold(PageblockSet::NONE, PageblockSet::union);
        for block in machine.blocks() {
            machine
                .mm
                .hotplug()
                .add_memory(NodeId::FIRST, block, plugged, MemoryContent::Zero)
                .expect("a block that is not there");
            machine.mm.hotplug().online(block, ZoneType::Movable).expect("a block that is not online");
        }
        counted(|| offline(machine));
    });
}

fn offline(machine: &PlainMachine) {
    machine.blocks().rev().for_each(|block| machine.mm.hotplug().offline(block).expect("nothing is in use"));
}

/// An owner of pages. A page is known by its index in the list.
struct Holder(Mutex<Vec<Pfn>>);

impl MovableOwner for Holder {
    fn isolate(&self, pfn: Pfn, index: u64) -> bool {
        self.0.lock().expect("no panic holds it")[index as usize] == pfn
    }

    fn hand_over(&self, _: Pfn, to: Pfn, index: u64) -> bool {
        self.0.lock().expect("no panic holds it")[index as usize] = to;
        true
    }

    fn put_back(&self, _: Pfn, _: u64) {}
}

fn full(table: &mut Table) {
    table.section("1 GiB that is full of movable pages goes offline");
    let mut copy = Copy::new();
    let [ours, copied] = in_turns(5, [&mut migrate, &mut || copy.all()]);
    let rate = |ns: f64| format!("{:.2} GB/s", GIB as f64 / ns);
    table.add(
        Row::new("offline, pages migrate", rate(ours))
            .beside(format!("memcpy of them {}", rate(copied)), copied / ours)
            .target(">= 0.90", copied / ours >= 0.9),
    );
}

/// Time to move the upper half of 2 GiB into the lower half.
fn migrate() -> f64 {
    let spec = Spec { region: 2 * GIB, with_content: true, ..Spec::new(GIB) };
    spec.with(|machine| {
        machine.boot();
        let blocks: Vec<SectionNr> = machine.blocks().collect();
        let (lower, upper) = blocks.split_at(8);
        upper.iter().for_each(|&block| machine.plug(block));
        let holder: &'static Holder = Box::leak(Box::new(Holder(Mutex::new(Vec::new()))));
        machine.mm.register_owner(OwnerId(0), holder);
        let mut pages = holder.0.lock().expect("no panic holds it");
        // All pages except those of the memmaps.
        for index in 0..GIB / PAGE_SIZE - 8 * 512 {
            let page = machine.mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page");
            machine.mm.set_owner(page, OwnerId(0), index);
            pages.push(page);
        }
        drop(pages);
        machine.populate_content();
        lower.iter().for_each(|&block| machine.plug(block));
        let share = (GIB / PAGE_SIZE) as f64 / (GIB / PAGE_SIZE - 8 * 512) as f64;
        share
            * cpu(|| upper.iter().rev().for_each(|&block| machine.mm.hotplug().offline(block).expect("room")))
    })
}

/// Time to copy the same amount of memory page by page, without bookkeeping.
struct Copy {
    from: Mapping,
    to: Mapping,
}

impl Copy {
    fn new() -> Self {
        Self { from: Mapping::populated(GIB as usize), to: Mapping::populated(GIB as usize) }
    }

    fn all(&mut self) -> f64 {
        let (from, to) = (self.from.bytes(), self.to.bytes());
        let pages = to.chunks_exact_mut(PAGE_SIZE as usize).zip(from.chunks_exact(PAGE_SIZE as usize));
        cpu(|| pages.for_each(|(to, from)| to.copy_from_slice(from)))
    }
}
