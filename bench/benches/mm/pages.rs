//! Single pages, allocated and freed on one CPU (S3.2).

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

use tidevm_bench::clock::{cpu, in_turns};
use tidevm_bench::count::{counted, instructions};
use tidevm_bench::machine::{PlainMachine, Spec};
use tidevm_bench::table::{Row, Table, time};
use tidevm_mm::{Gfp, Order};

use crate::Counted;

const GIB: u64 = 1 << 30;
const PAIRS: u32 = 2_000_000;
const COUNTED_PAIRS: u32 = 1000;

pub const COUNTED: &[Counted] = &[("pair", count_pairs)];

pub fn run(table: &mut Table) {
    table.section("One page taken and given back, per-CPU list (S3.2)");
    let [ours, stack, lock] = Spec { region: GIB, ..Spec::new(GIB) }.with(|machine| {
        prepare(machine);
        let mut floor = Vec::from_iter(0..4096_u32);
        let locked = AtomicBool::new(false);
        in_turns(
            9,
            [
                &mut || cpu(|| pairs(machine, PAIRS)) / f64::from(PAIRS),
                &mut || cpu(|| stack_pairs(&mut floor)) / f64::from(PAIRS),
                &mut || cpu(|| lock_pairs(&locked)) / f64::from(PAIRS),
            ],
        )
    });
    table.add(
        Row::new("allocate and free", time(ours))
            .beside(format!("floor, a stack of numbers: {}", time(stack)), ours / stack)
            .target("<= 6 ns", ours <= 6.0),
    );
    table.add(Row::new("two uncontended locks alone", time(lock)).beside(time(ours), lock / ours));
    match instructions("pair") {
        Ok(count) => {
            let each = count as f64 / f64::from(COUNTED_PAIRS);
            table.add(Row::new("allocate and free", format!("{each:.1} instr.")));
        }
        Err(error) => table.add(Row::new("allocate and free, instructions", error)),
    }
}

fn prepare(machine: &PlainMachine) {
    machine.boot();
    machine.blocks().for_each(|block| machine.plug(block));
    pairs(machine, 1000);
}

fn pairs(machine: &PlainMachine, count: u32) {
    for _ in 0..count {
        let page = machine.mm.alloc_pages(Order::PAGE, Gfp::Movable).expect("a page");
        machine.mm.free_pages(black_box(page), Order::PAGE);
    }
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

fn count_pairs() {
    Spec { region: GIB, ..Spec::new(GIB) }.with(|machine| {
        prepare(machine);
        counted(|| pairs(machine, COUNTED_PAIRS));
    });
}
