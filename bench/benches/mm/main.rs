//! Figures of `guest/mm` on this machine: `cargo bench -p tidevm-bench`.
//!
//! An argument runs the groups whose names begin with it. Instruction counts need valgrind. In all files,
//! identifiers such as S2.9 are claims of `docs/features.toml`.

mod boot;
mod hotadd;
mod memmap;
mod offline;
mod pages;
mod recheck;
mod rivals;
mod two_cpus;

use tidevm_bench::count;
use tidevm_bench::table::Table;

/// A group of figures.
type Group = (&'static str, fn(&mut Table));
/// Work whose instructions are counted.
pub type Counted = (&'static str, fn());

const GROUPS: [Group; 8] = [
    ("memmap", memmap::run),
    ("boot", boot::run),
    ("hotadd", hotadd::run),
    ("pages", pages::run),
    ("rivals", rivals::run),
    ("two_cpus", two_cpus::run),
    ("recheck", recheck::run),
    ("offline", offline::run),
];

fn main() {
    if let Some(name) = count::wanted() {
        let mut works =
            [hotadd::COUNTED, pages::COUNTED, recheck::COUNTED, offline::COUNTED].into_iter().flatten();
        let (_, work) = works.find(|(known, _)| *known == name).expect("work of this name");
        return work();
    }
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut table = Table::default();
    for (name, run) in GROUPS.into_iter().filter(|(name, _)| name.starts_with(&wanted)) {
        eprintln!("{name}");
        run(&mut table);
    }
    print!("{table}");
}
