//! Boot: the time to the first page, which should not depend on the size of memory; and boot by policy.

use tidevm_bench::clock::{cpu, in_turns, wall};
use tidevm_bench::machine::{MEMMAP_SIZE, Mapping, Spec};
use tidevm_bench::table::{Row, Table, time};
use tidevm_mm::{Gfp, InitPolicy, MemoryContent, Order, SECTION_SIZE};

const ROUNDS: usize = 15;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// The most memory that frame numbers can name.
const MOST: u64 = 16 * TIB - SECTION_SIZE;

pub fn run(table: &mut Table) {
    table.section("Boot to the first page, lazily, memory untouched");
    let cold = |boot| Spec { warm: false, ..Spec::new(boot) };
    let [small, tib, most] = in_turns(
        ROUNDS,
        [&mut || first_page(cold(GIB)), &mut || first_page(cold(TIB)), &mut || first_page(cold(MOST))],
    );
    table.add(Row::new("1 GiB", time(small)));
    for (name, ns) in [("1 TiB", tib), ("16 TiB less a section", most)] {
        let row = Row::new(name, time(ns)).beside(time(small), ns / small);
        table.add(row.target("<= 1.10", ns / small <= 1.1));
    }

    table.section("Boot by policy: to the first page, and to all initialised (S2.9)");
    for gib in [1, 8, 64] {
        policies(table, gib);
    }
}

/// Time of the memory management to boot and to allocate the first page.
fn first_page(spec: Spec) -> f64 {
    spec.with(|machine| {
        let memblock = machine.memblock();
        wall(|| {
            machine.boot_from(memblock);
            machine.mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("a page")
        })
    })
}

fn policies(table: &mut Table, gib: u64) {
    let spec = |init, content| Spec { init, content, ..Spec::new(gib * GIB) };
    let lazy = || spec(InitPolicy::Lazy, MemoryContent::Zero);
    let times = |spec: Spec| {
        spec.with(|machine| {
            let memblock = machine.memblock();
            let first = cpu(|| {
                machine.boot_from(memblock);
                machine.mm.alloc_pages(Order::PAGE, Gfp::Kernel).expect("a page")
            });
            (first, first + cpu(|| while machine.mm.init_deferred() {}))
        })
    };
    let mut memory = Mapping::populated((gib * GIB / SECTION_SIZE) as usize * MEMMAP_SIZE);
    let mut cleared = || cpu(|| memory.bytes().fill(0));
    let first = |init, content| move || times(spec(init, content)).0;
    let all = |init, content| move || times(spec(init, content)).1;
    let [eager, deferred, deferred_all, lazy_first, memset, lazy_all] = in_turns(
        5,
        [
            &mut first(InitPolicy::Eager, MemoryContent::Unknown),
            &mut first(InitPolicy::Deferred, MemoryContent::Unknown),
            &mut all(InitPolicy::Deferred, MemoryContent::Unknown),
            &mut || times(lazy()).0,
            &mut cleared,
            &mut || times(lazy()).1,
        ],
    );
    let row = |what: &str, ns: f64| {
        Row::new(format!("{gib} GiB: {what}"), time(ns)).beside(format!("eager {}", time(eager)), ns / eager)
    };
    table.add(row("deferred, first page", deferred));
    table.add(row("deferred, all", deferred_all));
    table.add(row("lazy, first page", lazy_first));
    table.add(row("lazy, all", lazy_all));
    table.add(row("memset of the memmap, then lazy", memset + lazy_all));
}
