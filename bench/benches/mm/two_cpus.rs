//! The page allocator on two CPUs at once, beside others: what one CPU's work costs the other.
//!
//! Two threads must really run at the same time, or locks look free: each round waits for a quiet moment, and a machine
//! that has none is said to be busy instead of measured.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;

use tidevm_bench::clock::{cpu, median};
use tidevm_bench::machine::{PlainMachine, Spec, become_cpu};
use tidevm_bench::quiet;
use tidevm_bench::random::Random;
use tidevm_bench::rivals::{Bitmap, BuddyAllocator, PageAlloc};
use tidevm_bench::table::{Row, Table, time};

const GIB: u64 = 1 << 30;
const PAGES: usize = 1 << 20;
/// Pages that each CPU takes at once.
const EACH: usize = 1 << 17;
const ROUNDS: usize = 5;
const LARGE: u8 = 9;

/// Work with an allocator that gives two times.
type Work<A> = fn(&A) -> [f64; 2];

pub fn run(table: &mut Table) {
    table.section("Two CPUs at once: ns per operation of each, thread CPU time");
    pair::<0>(table, "order 0: take and give back, against one CPU");
    pair::<LARGE>(table, "order 9: take and give back, against one CPU");
    bulk(table);
}

/// The medians of both times, each round on a new allocator.
///
/// # Errors
/// Why nothing was measured.
fn measured<A>(make: impl Fn(Work<A>) -> [f64; 2], work: Work<A>) -> Result<[f64; 2], String> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        quiet::wait()?;
        times.iter_mut().zip(make(work)).for_each(|(times, time)| times.push(time));
    }
    Ok(times.map(median))
}

fn ours(work: Work<PlainMachine>) -> [f64; 2] {
    Spec { region: 4 * GIB, cpus: 2, ..Spec::new(GIB) }.with(move |machine| {
        machine.boot();
        machine.plug_all();
        work(machine)
    })
}

/// Runs `job` on two CPUs at the same time, each with its own input.
fn at_once<I: Send, O: Send>(inputs: [I; 2], job: impl Fn(I) -> O + Sync) -> [O; 2] {
    let start = Barrier::new(2);
    let mut cpus = 0..;
    thread::scope(|scope| {
        let threads = inputs.map(|input| {
            let (start, job, cpu) = (&start, &job, cpus.next().expect("numbers do not end"));
            scope.spawn(move || {
                become_cpu(cpu);
                start.wait();
                job(input)
            })
        });
        threads.map(|thread| thread.join().expect("no thread panics"))
    })
}

fn pair<const ORDER: u8>(table: &mut Table, what: &str) {
    let ours = measured(ours, pair_on_two::<_, ORDER>);
    let theirs = measured(|work| work(&BuddyAllocator::new(PAGES)), pair_on_two::<_, ORDER>);
    table.add(match (ours, theirs) {
        (Ok([alone, together]), Ok([other, others])) => {
            let (ratio, theirs) = (together / alone, others / other);
            Row::new(what, format!("{ratio:.2} ({})", time(together)))
                .beside(format!("{} {theirs:.2} ({})", BuddyAllocator::NAME, time(others)), ratio / theirs)
                .target("<= 1.05", ratio <= 1.05)
        }
        (Err(reason), _) | (_, Err(reason)) => Row::new(what, reason),
    });
}

/// Time of a pair on one CPU, and then on two at once, of the slower one.
fn pair_on_two<A: PageAlloc + Sync, const ORDER: u8>(of: &A) -> [f64; 2] {
    const PAIRS: u32 = 500_000;
    let pairs = |()| {
        cpu(|| {
            for _ in 0..PAIRS {
                let page = of.alloc(ORDER).expect("a block");
                of.free(black_box(page), ORDER);
            }
        }) / f64::from(PAIRS)
    };
    let alone = pairs(());
    let [one, other] = at_once([(), ()], pairs);
    [alone, one.max(other)]
}

fn bulk(table: &mut Table) {
    let ours = measured(ours, bulk_on_two);
    let theirs = measured(|work| work(&Bitmap::new(PAGES)), bulk_on_two);
    let rows =
        [("order 0: 512 MiB each in bulk", 20.0), ("order 0: freed at random, half of it the other's", 60.0)];
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            for (((what, most), ours), theirs) in rows.into_iter().zip(ours).zip(theirs) {
                let row = Row::new(what, time(ours)).target(format!("<= {most} ns"), ours <= most);
                table.add(row.beside(format!("{} {}", Bitmap::NAME, time(theirs)), ours / theirs));
            }
        }
        (Err(reason), _) | (_, Err(reason)) => {
            rows.into_iter().for_each(|(what, _)| table.add(Row::new(what, reason.clone())));
        }
    }
}

/// Times per page of the slower CPU: to take pages, and to give back as many, half of them the other's.
fn bulk_on_two<A: PageAlloc + Sync>(of: &A) -> [f64; 2] {
    let taken = at_once([(), ()], |()| {
        let mut pages = vec![0; EACH];
        let time = cpu(|| pages.iter_mut().for_each(|page| *page = of.alloc(0).expect("a page")));
        (pages, time / EACH as f64)
    });
    let [(mut one, first), (mut other, second)] = taken;
    for at in (0..EACH).step_by(2) {
        std::mem::swap(&mut one[at], &mut other[at]);
    }
    let mut random = Random::new(7);
    let pages = [one, other].map(|mut pages| {
        random.shuffle(&mut pages);
        pages
    });
    let freed = at_once(pages, |pages| cpu(|| pages.iter().for_each(|&page| of.free(page, 0))) / EACH as f64);
    [first.max(second), freed[0].max(freed[1])]
}
