//! Single pages and pageblocks, allocated and freed by way of per-CPU lists (S3.2).

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

use tidevm_bench::clock::{cpu, in_turns};
use tidevm_bench::count::{counted, instructions};
use tidevm_bench::machine::{PlainMachine, Spec};
use tidevm_bench::table::{Row, Table, time};
use tidevm_mm::{Gfp, Order, PAGEBLOCK_ORDER};

use crate::Counted;

const GIB: u64 = 1 << 30;
const PAIRS: u32 = 2_000_000;
const COUNTED_PAIRS: u32 = 1000;

pub const COUNTED: &[Counted] =
    &[("pair", count_pairs::<0>), ("pageblock pair", count_pairs::<PAGEBLOCK_ORDER>)];

pub fn run(table: &mut Table) {
    table.section("Pages taken and given back, per-CPU lists (S3.2)");
    let [page, block, stack, lock] = Spec { region: GIB, ..Spec::new(GIB) }.with(|machine| {
        prepare(machine);
        let mut floor = Vec::from_iter(0..4096_u32);
        let locked = AtomicBool::new(false);
        in_turns(
            9,
            [
                &mut || pairs::<0>(machine, PAIRS),
                &mut || pairs::<PAGEBLOCK_ORDER>(machine, PAIRS),
                &mut || cpu(|| stack_pairs(&mut floor)) / f64::from(PAIRS),
                &mut || cpu(|| lock_pairs(&locked)) / f64::from(PAIRS),
            ],
        )
    });
    let floor = || format!("floor, a stack of numbers: {}", time(stack));
    table.add(
        Row::new("a page, pair", time(page)).beside(floor(), page / stack).target("<= 6 ns", page <= 6.0),
    );
    table.add(
        Row::new("a pageblock, pair", time(block))
            .beside(floor(), block / stack)
            .target("<= 10 ns", block <= 10.0),
    );
    table.add(Row::new("two uncontended locks alone", time(lock)).beside(time(page), lock / page));
    for (what, work) in [("a page", "pair"), ("a pageblock", "pageblock pair")] {
        match instructions(work) {
            Ok(count) => {
                let each = count as f64 / f64::from(COUNTED_PAIRS);
                table.add(Row::new(format!("{what}, pair"), format!("{each:.1} instr.")));
            }
            Err(error) => table.add(Row::new(format!("{what}, pair, instructions"), error)),
        }
    }
}

fn prepare(machine: &PlainMachine) {
    machine.boot();
    machine.blocks().for_each(|block| machine.plug(block));
    pairs::<0>(machine, 1000);
    pairs::<PAGEBLOCK_ORDER>(machine, 1000);
}

/// Nanoseconds for a buddy block of order `ORDER`, which is a constant as in a kernel, that is taken and given back.
fn pairs<const ORDER: u8>(machine: &PlainMachine, count: u32) -> f64 {
    let pairs = || {
        for _ in 0..count {
            let order = const { Order::new(ORDER) };
            let block = machine.mm.alloc_pages(order, Gfp::Movable).expect("a block");
            machine.mm.free_pages(black_box(block), order);
        }
    };
    cpu(pairs) / f64::from(count)
}

fn stack_pairs(stack: &mut Vec<u32>) {
    for _ in 0..PAIRS {
        let page = black_box(stack.pop()).expect("not empty");
        stack.push(black_box(page));
    }
}

fn lock_pairs(lock: &AtomicBool) {
    for _ in 0..2 * PAIRS {
        assert!(!lock.swap(true, Ordering::Acquire));
        lock.store(false, Ordering::Release);
    }
}

fn count_pairs<const ORDER: u8>() {
    Spec { region: GIB, ..Spec::new(GIB) }.with(|machine| {
        prepare(machine);
        counted(|| pairs::<ORDER>(machine, COUNTED_PAIRS));
    });
}
