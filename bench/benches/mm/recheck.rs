//! The cost per free of a variant that was not chosen (S3.14).
//!
//! The variant closes the race between a free and isolation in the free path: it reads the pageblock's type again
//! under the lock of the list. Linux rejected it and disables the lists instead, which keeps the hot path short. No
//! allocator here has the variant, so this is a model of a free to a per-CPU list, with and without it.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidevm_bench::clock::{cpu, in_turns};
use tidevm_bench::count::{counted, instructions};
use tidevm_bench::table::{Row, Table, time};
use tidevm_mm::{PAGEBLOCK_ORDER, SECTION_PAGEBLOCKS};

use crate::Counted;

const FREES: u32 = 2_000_000;
const COUNTED_FREES: u32 = 1000;
/// Number of pages in 8 GiB.
const PAGES: u32 = 1 << 21;

pub const COUNTED: &[Counted] = &[
    ("free once", || count_frees(Types::is_open_once)),
    ("free twice", || count_frees(Types::is_open_twice)),
];

/// One bit per pageblock: whether it is isolated.
struct Types(Vec<AtomicU64>);

impl Types {
    fn new() -> Self {
        let sections = (PAGES >> PAGEBLOCK_ORDER) / SECTION_PAGEBLOCKS;
        Self((0..sections).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    fn is_open(&self, pfn: u32) -> bool {
        let block = pfn >> PAGEBLOCK_ORDER;
        let section = &self.0[(block / SECTION_PAGEBLOCKS) as usize];
        section.load(Ordering::Relaxed) >> (block % SECTION_PAGEBLOCKS) & 1 == 0
    }

    #[inline]
    fn is_open_once(&self, _: u32) -> bool {
        true
    }

    #[inline]
    fn is_open_twice(&self, pfn: u32) -> bool {
        self.is_open(pfn)
    }
}

/// Frees pages from all over memory to a list. `again` reads the type under the lock of the list.
fn frees(types: &Types, count: u32, again: impl Fn(&Types, u32) -> bool) {
    let lock = AtomicBool::new(false);
    let mut list = Vec::with_capacity(count as usize);
    for index in 0..count {
        let pfn = black_box(index.wrapping_mul(0x9e37_79b1) % PAGES);
        assert!(types.is_open(pfn));
        assert!(!lock.swap(true, Ordering::Acquire));
        assert!(again(types, pfn));
        list.push(pfn);
        lock.store(false, Ordering::Release);
    }
    black_box(list);
}

fn count_frees(again: impl Fn(&Types, u32) -> bool) {
    let types = Types::new();
    counted(|| frees(&types, COUNTED_FREES, again));
}

pub fn run(table: &mut Table) {
    table.section("The pageblock's type read again in every free, a model (S3.14)");
    let types = Types::new();
    let [once, twice] = in_turns(
        9,
        [&mut || cpu(|| frees(&types, FREES, Types::is_open_once)) / f64::from(FREES), &mut || {
            cpu(|| frees(&types, FREES, Types::is_open_twice)) / f64::from(FREES)
        }],
    );
    table.add(
        Row::new("free, type read twice", time(twice)).beside(format!("once {}", time(once)), twice / once),
    );
    match (instructions("free once"), instructions("free twice")) {
        (Ok(once), Ok(twice)) => {
            let each = |count: u64| count as f64 / f64::from(COUNTED_FREES);
            let beside = format!("once {:.1} instr.", each(once));
            let row = Row::new("free, type read twice", format!("{:.1} instr.", each(twice)));
            table.add(row.beside(beside, twice as f64 / once as f64));
        }
        (Err(error), _) | (_, Err(error)) => table.add(Row::new("free, instructions", error)),
    }
}
