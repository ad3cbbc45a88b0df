//! Eager initialisation: are all struct pages of a section written as fast as memory allows? (S2.5)
#![expect(unsafe_code, reason = "writes to a mapping by instructions that Rust does not have")]

use std::arch::asm;
use std::cell::RefCell;

use tidevm_bench::clock::{cpu, in_turns};
use tidevm_bench::machine::{MEMMAP_SIZE, Mapping, Spec};
use tidevm_bench::table::{Row, Table, time};
use tidevm_mm::{InitPolicy, MemoryContent, PAGE_SIZE, SECTION_SIZE};

const ROUNDS: usize = 7;
const PAGE: usize = size_of::<tidevm_mm::Page>();

pub fn run(table: &mut Table) {
    table.section("Eager initialisation, a struct page (S2.5)");
    for gib in [1, 32] {
        at(table, gib << 30);
    }
}

fn at(table: &mut Table, managed: u64) {
    let pages = (managed / PAGE_SIZE) as f64;
    let sections = (managed / SECTION_SIZE) as usize;
    let memory = RefCell::new(Mapping::populated(sections * MEMMAP_SIZE));
    let write = |how: fn(&mut [u8])| cpu(|| how(memory.borrow_mut().bytes()));
    let [ours, movnti, memset, word] = in_turns(
        ROUNDS,
        [&mut || eager(managed), &mut || write(stream), &mut || write(|bytes| bytes.fill(1)), &mut || {
            write(one_word_a_line)
        }],
    )
    .map(|ns| ns / pages);
    let fastest = movnti.min(memset).min(word);
    let name = format!("{} GiB managed", managed >> 30);
    let met = fastest / ours >= 0.9;
    table.add(
        Row::new(format!("{name}: eager"), time(ours))
            .beside(format!("fastest {}", time(fastest)), fastest / ours)
            .target(">= 0.90", met),
    );
    let rate = |ns: f64| format!("{:.1} GB/s", PAGE as f64 / ns);
    let others = [("8 x movnti a page", movnti), ("memset", memset), ("one word a page", word)];
    for (what, ns) in others {
        let row = Row::new(format!("{name}: {what}"), time(ns));
        table.add(row.beside(format!("{}, ours {}", rate(ns), rate(ours)), ns / ours));
    }
}

/// Time to initialise and free all sections, extrapolated from all but the first.
fn eager(managed: u64) -> f64 {
    let spec = Spec { init: InitPolicy::Deferred, content: MemoryContent::Unknown, ..Spec::new(managed) };
    spec.with(|machine| {
        machine.boot();
        let sections = (managed / SECTION_SIZE) as f64;
        cpu(|| while machine.mm.init_deferred() {}) * sections / (sections - 1.0)
    })
}

/// The fastest way for one core to write without SSE.
fn stream(bytes: &mut [u8]) {
    for word in bytes.as_chunks_mut::<8>().0 {
        // SAFETY: `word` is eight writable bytes, and aligned because the mapping is.
        unsafe { asm!("movnti [{}], {}", in(reg) word, in(reg) 1_u64, options(nostack, preserves_flags)) };
    }
    // SAFETY: the instruction only orders stores.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
}

fn one_word_a_line(bytes: &mut [u8]) {
    for line in bytes.as_chunks_mut::<PAGE>().0 {
        // SAFETY: the line has at least eight bytes, and is aligned because the mapping is.
        unsafe { line.as_mut_ptr().cast::<u64>().write_volatile(1) };
    }
}
