//! The page allocator beside others that a kernel author could take: pairs, bulk, aged memory, other CPUs' pages.
//!
//! All run in one process, in turns, on thread CPU time. Each row shows the best other allocator, and the floor: a
//! stack of page numbers, which any per-CPU list has at least to pay for. An allocator that cannot do what a row asks
//! for is left out of the row.

use std::cell::RefCell;
use std::hint::black_box;

use tidevm_bench::clock::{cpu, median};
use tidevm_bench::machine::{PlainMachine, Spec, become_cpu};
use tidevm_bench::random::Random;
use tidevm_bench::rivals::{Bitmap, BuddyAllocator, BuddySystem, PageAlloc, Ranges, TalcAllocator};
use tidevm_bench::table::{Row, Table, time};

const GIB: u64 = 1 << 30;
/// Pages that the allocators have: 4 GiB, and ours as many without its memmaps.
const PAGES: usize = 1 << 20;
/// Pages of 1 GiB.
const BULK: usize = 1 << 18;
const ROUNDS: usize = 7;
const LARGE: u8 = 9;
/// Half of the smallest difference between two percentages that is shown.
const SHOWN: f64 = 0.05;

/// Work with an allocator: nanoseconds per operation, or `None` if it cannot do it.
trait Work {
    fn run<A: PageAlloc>(&self, of: &A) -> Option<f64>;
}

pub fn run(table: &mut Table) {
    table.section("Beside other page allocators, one CPU: ns per operation, thread CPU time");
    row(table, "order 0: take and give back", &Pair(0), 6.0);
    row(table, "order 0: 1 GiB in bulk, then freed in random order, sum", &Bulk(0, BULK, Part::Both), 16.0);
    row(table, "order 9: take and give back", &Pair(LARGE), 10.0);
    row(table, "order 9: 2 GiB in bulk", &Bulk(LARGE, 1024, Part::Alloc), 11.0);
    row(table, "order 9: freed in random order", &Bulk(LARGE, 1024, Part::Free), 12.0);
    row(table, "order 0: free of a page of another CPU", &Remote, 20.0);
    row(table, "order 0: churn, half full and aged", &Aged, 20.0);
    availability(table);
}

/// Adds the row of `work`, with all allocators that can do it.
fn row(table: &mut Table, what: &str, work: &impl Work, most: f64) {
    let mut times: [(&str, Vec<f64>); 7] = Default::default();
    for _ in 0..ROUNDS {
        let found = [
            ours(|of| timed(of, work)),
            timed(&BuddySystem::new(PAGES), work),
            timed(&Bitmap::new(PAGES), work),
            timed(&Ranges::new(PAGES), work),
            timed(&BuddyAllocator::new(PAGES), work),
            timed(&TalcAllocator::new(PAGES), work),
            ("floor", work.run(&Stack::new())),
        ];
        for ((name, times), (of, time)) in times.iter_mut().zip(found) {
            *name = of;
            times.extend(time);
        }
    }
    let medians = times.map(|(name, times)| (name, (times.len() == ROUNDS).then(|| median(times))));
    let [(_, ours), others @ .., (_, floor)] = medians;
    let others = others.into_iter().filter_map(|(name, time)| Some((name, time?)));
    let best = others.min_by(|one, other| one.1.total_cmp(&other.1));
    let ours = ours.expect("ours can do all of it");
    let mut row = Row::new(what, time(ours)).target(format!("<= {most} ns"), ours <= most);
    if let Some((name, best)) = best {
        let floor = floor.map_or(String::new(), |floor| format!("; floor {}", time(floor)));
        row = row.beside(format!("{name} {}{floor}", time(best)), ours / best);
    }
    table.add(row);
}

fn timed<A: PageAlloc>(of: &A, work: &impl Work) -> (&'static str, Option<f64>) {
    (A::NAME, work.run(of))
}

/// Our allocator with 4 GiB of plugged memory.
fn ours<R: 'static>(work: impl FnOnce(&PlainMachine) -> R) -> R {
    Spec { region: 4 * GIB, cpus: 2, ..Spec::new(GIB) }.with(|machine| {
        machine.boot();
        machine.plug_all();
        work(machine)
    })
}

/// The floor: page numbers on a stack that one CPU has to itself. It keeps blocks of one order only.
struct Stack(RefCell<Vec<u32>>);

impl Stack {
    fn new() -> Self {
        Self(RefCell::new((0..PAGES as u32).rev().collect()))
    }
}

impl PageAlloc for Stack {
    const NAME: &'static str = "floor";

    #[inline]
    fn alloc(&self, _order: u8) -> Option<usize> {
        self.0.borrow_mut().pop().map(|page| page as usize)
    }

    #[inline]
    fn free(&self, page: usize, _order: u8) {
        self.0.borrow_mut().push(page as u32);
    }
}

/// A block taken and given back at once, again and again.
struct Pair(u8);

impl Work for Pair {
    fn run<A: PageAlloc>(&self, of: &A) -> Option<f64> {
        const PAIRS: u32 = 200_000;
        let pairs = |count| {
            for _ in 0..count {
                let page = of.alloc(self.0)?;
                of.free(black_box(page), self.0);
            }
            Some(())
        };
        pairs(1000)?;
        // Far too slow to be the best: not worth the time.
        let first = cpu(|| pairs(100)) / 100.0;
        let count = if first > 1000.0 { 1000 } else { PAIRS };
        Some(cpu(|| pairs(count)) / f64::from(count))
    }
}

/// Which time of [`Bulk`] counts.
enum Part {
    Alloc,
    Free,
    Both,
}

/// Many blocks taken, and then given back in random order: time per block. Order, number of blocks, time.
struct Bulk(u8, usize, Part);

impl Work for Bulk {
    fn run<A: PageAlloc>(&self, of: &A) -> Option<f64> {
        let &Self(order, count, ref part) = self;
        if !A::SCATTERS && !matches!(part, Part::Alloc) {
            return None;
        }
        let mut pages = vec![0_u32; count];
        // All memory of the allocator's own is there before the clock starts.
        let fill = |pages: &mut [u32]| -> Option<f64> {
            let mut failed = false;
            let time = cpu(|| {
                for page in &mut *pages {
                    match of.alloc(order) {
                        Some(taken) => *page = taken as u32,
                        None => failed = true,
                    }
                }
            });
            (!failed).then_some(time)
        };
        fill(&mut pages)?;
        pages.iter().for_each(|&page| of.free(page as usize, order));
        let alloc = fill(&mut pages)?;
        Random::new(1).shuffle(&mut pages);
        if matches!(part, Part::Alloc) {
            return Some(alloc / count as f64);
        }
        let free = cpu(|| pages.iter().for_each(|&page| of.free(page as usize, order)));
        // One that lost memory on the way cannot do this.
        let again = fill(&mut pages).is_some();
        let each = count as f64;
        again.then_some(match part {
            Part::Free => free / each,
            Part::Alloc | Part::Both => (alloc + free) / each,
        })
    }
}

/// Pages that one CPU took, given back by another.
struct Remote;

impl Work for Remote {
    fn run<A: PageAlloc>(&self, of: &A) -> Option<f64> {
        let mut pages = Vec::with_capacity(BULK);
        for _ in 0..BULK {
            pages.push(of.alloc(0)?);
        }
        become_cpu(1);
        let time = cpu(|| pages.iter().for_each(|&page| of.free(page, 0)));
        become_cpu(0);
        Some(time / BULK as f64)
    }
}

/// Pages given back and taken at random where half of the pages are in use, all over memory.
struct Aged;

impl Work for Aged {
    fn run<A: PageAlloc>(&self, of: &A) -> Option<f64> {
        const PAIRS: usize = 200_000;
        if !A::SCATTERS {
            return None;
        }
        let mut held: Vec<u32> =
            std::iter::from_fn(|| of.alloc(0).map(|page| page as u32)).take(PAGES).collect();
        Random::new(2).shuffle(&mut held);
        for page in held.split_off(held.len() / 2) {
            of.free(page as usize, 0);
        }
        let mut random = Random::new(3);
        let mut churn = |count: usize| {
            for _ in 0..count {
                let slot = &mut held[random.below(PAGES / 4)];
                of.free(*slot as usize, 0);
                *slot = of.alloc(0)? as u32;
            }
            Some(())
        };
        // Far too slow to be the best: not worth the time.
        if cpu(|| churn(100)) > 100.0 * 2000.0 {
            return None;
        }
        churn(PAIRS)?;
        let mut done = None;
        let time = cpu(|| done = churn(PAIRS));
        done.map(|()| time / PAIRS as f64)
    }
}

/// 2 MiB blocks that are still to be had after a trace of mixed lifetimes that leaves 70 % in use.
fn availability(table: &mut Table) {
    let found = [
        ("ours", ours(blocks_left)),
        (BuddySystem::NAME, blocks_left(&BuddySystem::new(PAGES))),
        (Bitmap::NAME, blocks_left(&Bitmap::new(PAGES))),
        (BuddyAllocator::NAME, blocks_left(&BuddyAllocator::new(PAGES))),
        (TalcAllocator::NAME, blocks_left(&TalcAllocator::new(PAGES))),
    ];
    let [(_, ours), others @ ..] = found;
    let ours = ours.expect("ours can do all of it");
    let others = others.into_iter().filter_map(|(name, share)| Some((name, share?)));
    let (name, best) = others.max_by(|one, other| one.1.total_cmp(&other.1)).expect("others can too");
    table.add(
        Row::new("2 MiB blocks to be had after aging, of the free memory", format!("{ours:.1} %"))
            .beside(format!("{name} {best:.1} %"), ours / best.max(0.01))
            .target(">= the best", ours + SHOWN >= best),
    );
}

/// Plays the trace: pages of short lives among pages of long ones. Returns the percentage of the free memory that can be
/// taken as 2 MiB blocks afterwards.
fn blocks_left(of: &impl PageAlloc) -> Option<f64> {
    const STEPS: usize = 8 * PAGES;
    let mut random = Random::new(5);
    // Pages that live until the end, and a window of pages that live for a while.
    let (mut kept, mut window) = (Vec::new(), std::collections::VecDeque::new());
    for _ in 0..STEPS {
        let used = kept.len() + window.len();
        let is_kept = random.below(16) == 0 && kept.len() < PAGES / 2;
        let page = of.alloc(0)?;
        if is_kept {
            kept.push(page)
        } else {
            window.push_back(page)
        }
        // A fifth of memory is in the window.
        while window.len() > PAGES / 5 || used > PAGES * 7 / 10 && !window.is_empty() {
            let at = random.below(window.len().min(4096));
            window.swap(0, at);
            of.free(window.pop_front()?, 0);
            if used <= PAGES * 7 / 10 {
                break;
            }
        }
    }
    let blocks = std::iter::from_fn(|| of.alloc(LARGE)).count() << LARGE;
    let rest = std::iter::from_fn(|| of.alloc(0)).count();
    Some(100.0 * blocks as f64 / (blocks + rest) as f64)
}
