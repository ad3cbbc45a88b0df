//! Instructions per allocation do not depend on how struct pages were initialised, nor on mechanisms that are
//! switched on but idle.
//!
//! This program runs itself under valgrind, once per machine, and callgrind counts instructions. Counts are
//! exact, so they are compared for equality. They are counts of this build with the hosted platform, whose
//! locks check their order, so only the difference between two machines means something.
//!
//! Identifiers such as S3.1 are claims of `docs/features.toml`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::Range;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use tidevm_mm::{
    Gfp, InitPolicy, MemoryContent, Mm, NodeId, Order, PageblockSet, PcpPolicy, Pfn, SECTION_PAGES,
    SectionNr, ZoneType,
};
use tidevm_mm_sim::{Sim, SimMachine};

const BLOCK: SectionNr = SectionNr::new(32);
const PAGES: usize = 2000;
const BLOCKS: usize = 20;

/// The work whose instructions are counted, in this order.
const WORK: [(&str, usize); 4] = [
    ("first use of a page, and freeing it", 2 * PAGES),
    ("later uses of a page, and freeing it", 2 * PAGES),
    ("the same page again and again", 2 * PAGES),
    ("buddy blocks of 512 pages", 2 * BLOCKS),
];
const FIRST_USE: usize = 0;
const LATER_USES: Range<usize> = 1..4;

fn machine(name: &str) -> SimMachine {
    let machine = SimMachine { memory: [(0, 3 * SECTION_PAGES)].into(), ..SimMachine::default() };
    match name {
        "eager" => machine,
        "lazy" => SimMachine {
            options: SimMachine::OPTIONS.with_init(InitPolicy::Lazy).with_content(MemoryContent::Zero),
            ..machine
        },
        "deferred" => SimMachine { options: SimMachine::OPTIONS.with_init(InitPolicy::Deferred), ..machine },
        "drains" => SimMachine { options: SimMachine::OPTIONS.with_pcp(PcpPolicy::DrainAgain), ..machine },
        _ => panic!("no machine is called {name}"),
    }
}

/// Instructions of `work` are counted.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

/// Allocates and frees pages of Movable memory, which was hot-added, and of boot memory.
fn use_pages(mm: &Mm<Sim>, held: &mut Vec<Pfn>, order: Order, count: usize) {
    for gfp in [Gfp::Movable, Gfp::Kernel] {
        held.extend((0..count).map(|_| mm.alloc_pages(order, gfp).expect("enough memory")));
    }
    held.drain(..).for_each(|pfn| mm.free_pages(pfn, order));
}

/// Does all of [`WORK`] on one machine.
fn work(name: &str) {
    let machine = machine(name);
    let mm = machine.boot();
    while mm.init_deferred() {}
    assert!(mm.is_all_initialised());
    mm.hotplug().add_memory(NodeId::FIRST, BLOCK, PageblockSet::ALL, machine.options.content).expect("added");
    mm.hotplug().online(BLOCK, ZoneType::Movable).expect("online");
    let written = mm.stats().memmaps_written;
    assert_eq!(written == 0, machine.options.init == InitPolicy::Lazy, "{name} wrote {written} memmaps");
    let mut held = Vec::with_capacity(2 * PAGES);
    counted(&mut || use_pages(mm, &mut held, Order::PAGE, PAGES));
    counted(&mut || use_pages(mm, &mut held, Order::PAGE, PAGES));
    counted(&mut || (0..PAGES).for_each(|_| use_pages(mm, &mut held, Order::PAGE, 1)));
    counted(&mut || use_pages(mm, &mut held, Order::PAGEBLOCK, BLOCKS));
    // Each count is written when the next call begins.
    counted(&mut || ());
}

/// Counts the instructions of each of [`WORK`] on a machine.
fn count(name: &str) -> Vec<u64> {
    let folder = env::temp_dir().join(format!("tidevm-instructions-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for counts");
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--toggle-collect=instructions::counted",
            "--dump-before=instructions::counted",
        ])
        .arg(format!("--callgrind-out-file={}", folder.join("out").display()))
        .arg(env::current_exe().expect("this program has a name"))
        .args(["work", name])
        .output()
        .expect("valgrind runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The first part is the time before the first call.
    let counts = (0..WORK.len()).map(|work| {
        let text = fs::read_to_string(folder.join(format!("out.{}", work + 2))).expect("a count");
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
        total.trim().parse().expect("a number")
    });
    let counts: Vec<u64> = counts.collect();
    drop(fs::remove_dir_all(folder));
    for ((what, times), count) in WORK.iter().zip(&counts) {
        println!("{name}: {what}: {} instructions each", count / *times as u64);
    }
    counts
}

/// As [`count`], once for each machine.
fn counts(name: &'static str) -> Vec<u64> {
    static COUNTS: Mutex<BTreeMap<&str, Vec<u64>>> = Mutex::new(BTreeMap::new());
    // Locked while counting, so that a machine that two tests need is counted once.
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    counts.entry(name).or_insert_with(|| count(name)).clone()
}

/// Both machines take the same number of instructions.
fn same(one: &'static str, other: &'static str, work: Range<usize>) {
    let [one_counts, other_counts] = [one, other].map(counts);
    for at in work {
        let (what, _) = WORK[at];
        assert!(one_counts[at] > 0, "{what} took no instructions");
        assert_eq!(one_counts[at], other_counts[at], "{one}, {other}: {what}");
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    if let [_, command, name] = &arguments[..]
        && command == "work"
    {
        work(name);
        return ExitCode::SUCCESS;
    }
    let missing = Command::new("valgrind").arg("--version").output().is_err();
    let tests: [(&str, fn()); 4] = [
        // S2.1, S2.11.
        ("lazily_initialised_pages_cost_nothing_later", || same("eager", "lazy", LATER_USES)),
        // S2.10: the store that initialises a page costs nothing extra: allocation makes that store in any
        // case.
        ("lazily_initialised_pages_cost_nothing_at_first", || {
            same("eager", "lazy", FIRST_USE..FIRST_USE + 1);
        }),
        // S1.14.
        ("deferred_memory_costs_nothing_once_it_is_initialised", || same("eager", "deferred", LATER_USES)),
        // S3.2.
        ("disabling_lists_costs_nothing_while_they_are_not", || same("eager", "drains", LATER_USES)),
    ];
    let mut arguments = Arguments::from_args();
    // Tests that run at the same time would print into each other's results.
    arguments.test_threads.get_or_insert(1);
    let trial = |(name, test): (&'static str, fn())| {
        if missing && !arguments.list {
            eprintln!("SKIP {name}: valgrind is missing (Debian's package is valgrind)");
        }
        let run = move || {
            test();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(missing)
    };
    let trials = tests.map(trial).into();
    libtest_mimic::run(&arguments, trials).exit_code()
}
