//! Hot-added memory: the time to its first page, and the later cost of all its pages (S2.10, S2.11).

use tidevm_bench::clock::{cpu, in_turns, median, page_faults, wall};
use tidevm_bench::count::{counted, instructions};
use tidevm_bench::machine::{PlainMachine, Spec};
use tidevm_bench::table::{Row, Table, time};
use tidevm_mm::{Gfp, InitPolicy, MemoryContent, Order, PAGE_SIZE, Pfn};

use crate::Counted;

const GIB: u64 = 1 << 30;
const ROUNDS: usize = 15;

pub const COUNTED: &[Counted] =
    &[("online", count_online), ("plug-1", || count_plug(1)), ("plug-64", || count_plug(64))];

pub fn run(table: &mut Table) {
    table.section("Hot-add to first page");
    let region = |gib: u64| Spec { region: gib * GIB, warm: false, ..Spec::new(GIB) };
    let [small, middle, large] = in_turns(
        ROUNDS,
        [&mut || first_page(region(1)), &mut || first_page(region(64)), &mut || first_page(region(1024))],
    );
    for (name, ns) in [("1 GiB", small), ("64 GiB", middle), ("1 TiB", large)] {
        let row = Row::new(name, time(ns)).beside(format!("1 GiB {}", time(small)), ns / small);
        table.add(row.target("<= 4 us", ns <= 4e3));
    }
    for gib in [1, 64, 1024] {
        let faults = faults_of(region(gib));
        table
            .add(Row::new(format!("page faults, {gib} GiB"), faults.to_string()).target("<= 3", faults <= 3));
    }
    let warm = |gib: u64| Spec { warm: true, ..region(gib) };
    let ns = median((0..ROUNDS).map(|_| first_page(warm(1))).collect());
    table.add(Row::new("1 GiB, memmap populated", time(ns)).target("<= 2 us", ns <= 2e3));
    for (name, work) in
        [("add 1 GiB that nobody wants", "plug-1"), ("add 64 GiB that nobody wants", "plug-64")]
    {
        table.add(match instructions(work) {
            Ok(count) => Row::new(name, format!("{count} instr.")),
            Err(error) => Row::new(name, error),
        });
    }
    let per_block = median((0..5).map(|_| all_blocks(warm(16))).collect()) / 128.0;
    table.add(Row::new("each memory block that is wanted", time(per_block)));
    match instructions("online") {
        Ok(count) => {
            let row = Row::new(
                "online a memory block that is wanted, memory management only",
                format!("{count} instr."),
            );
            table.add(row.target("< 2000", count < 2000));
        }
        Err(error) => table.add(Row::new("online a memory block that is wanted", error)),
    }
    debt(table);
}

fn booted<R: 'static>(spec: Spec, work: impl FnOnce(&PlainMachine) -> R) -> R {
    spec.with(|machine| {
        machine.boot();
        work(machine)
    })
}

fn first_page(spec: Spec) -> f64 {
    booted(spec, |machine| wall(|| add_and_take(machine)))
}

fn add_and_take(machine: &PlainMachine) -> Pfn {
    machine.plug_all();
    machine.mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page")
}

/// Page faults of adding the region and taking its first page.
fn faults_of(spec: Spec) -> u64 {
    booted(spec, |machine| {
        let before = page_faults();
        add_and_take(machine);
        page_faults() - before
    })
}

fn count_plug(gib: u64) {
    let spec = Spec { region: gib * GIB, warm: false, ..Spec::new(GIB) };
    booted(spec, |machine| counted(|| machine.plug_all()));
}

fn all_blocks(spec: Spec) -> f64 {
    booted(spec, |machine| {
        machine.plug_all();
        cpu(|| while machine.mm.init_deferred() {})
    })
}

/// Initialises a memory block in the middle of a region after others.
fn count_online() {
    let spec = Spec { region: GIB, warm: false, ..Spec::new(GIB) };
    booted(spec, |machine| {
        machine.plug_all();
        (0..4).for_each(|_| assert!(machine.mm.init_deferred()));
        counted(|| machine.mm.init_deferred());
    });
}

/// Times of using every page of 1 GiB: to add it, to take all pages, and to take all of them again.
struct Use {
    add: f64,
    first: f64,
    second: f64,
    worst: f64,
    nines: f64,
}

fn all_used(init: InitPolicy) -> Use {
    let content = if init == InitPolicy::Lazy { MemoryContent::Zero } else { MemoryContent::Unknown };
    booted(Spec { region: GIB, init, content, ..Spec::new(GIB) }, |machine| {
        let add = cpu(|| machine.plug_all());
        let mut pages = Vec::with_capacity((2 * GIB / PAGE_SIZE) as usize);
        let mut times = Vec::with_capacity(pages.capacity());
        // Only pages of Movable count: pages of boot memory are not new.
        let count = (GIB / PAGE_SIZE) as usize - 8 * 512;
        pages.resize(count, Pfn::new(0));
        times.resize(count, 0.0);
        let first = cpu(|| take(machine, &mut pages));
        pages.iter().for_each(|&page| machine.mm.free_pages(page, Order::PAGE));
        let second = cpu(|| take(machine, &mut pages));
        pages.iter().for_each(|&page| machine.mm.free_pages(page, Order::PAGE));
        for time in &mut times {
            *time = wall(|| machine.mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page"));
        }
        times.sort_by(f64::total_cmp);
        Use { add, first, second, worst: times[count - 1], nines: times[count - 1 - count / 10_000] }
    })
}

fn take(machine: &PlainMachine, pages: &mut [Pfn]) {
    for page in pages {
        *page = machine.mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page");
    }
}

fn debt(table: &mut Table) {
    table.section("No debt: 1 GiB added, and every page of it used (c2, S2.10, S2.11)");
    let pages = (GIB / PAGE_SIZE) as f64;
    let mut uses: [Vec<Use>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..7 {
        for (init, uses) in [InitPolicy::Lazy, InitPolicy::Eager].into_iter().zip(&mut uses) {
            uses.push(all_used(init));
        }
    }
    let of = |get: fn(&Use) -> f64| [0, 1].map(|at| median(uses[at].iter().map(get).collect()));
    let mut add = |what: &str, [lazy, eager]: [f64; 2], most: f64| {
        let row = Row::new(what, time(lazy)).beside(format!("eager {}", time(eager)), lazy / eager);
        table.add(row.target(format!("<= {most:.2}"), lazy / eager <= most));
    };
    add("add, then take every page", of(|u| u.add + u.first), 1.05);
    add("the second pass, a page", of(|u| u.second).map(|ns| ns / pages), 1.02);
    let [first, eager] = of(|u| u.first).map(|ns| ns / pages);
    let row = Row::new("the first pass, a page", time(first));
    table.add(row.beside(format!("eager {}", time(eager)), first / eager));
    // The wall clock includes time in which other threads have the CPU, so the fastest round counts.
    let least = |get: fn(&Use) -> f64| uses[0].iter().map(get).fold(f64::INFINITY, f64::min);
    let worst = least(|u| u.worst);
    table.add(
        Row::new("worst single allocation, quietest round", time(worst)).target("<= 5 us", worst <= 5e3),
    );
    let nines = least(|u| u.nines);
    table
        .add(Row::new("99.99 % of them within, quietest round", time(nines)).target("<= 2 us", nines <= 2e3));
}
