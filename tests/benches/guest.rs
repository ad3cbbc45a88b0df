//! Instructions of the booted guest, counted by QEMU's emulator: `cargo bench -p tidevm-tests`.

use std::env;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tidevm_bench::table::{Row, Table};
use tidevm_lab::qemu::{Hotplug, QemuConfig, QemuMachine, missing};
use tidevm_machine::{GUEST_IMAGE, Size};

const LIMIT: Duration = Duration::from_secs(60);
/// The most instructions to follow a target of 1 GiB up and down. For `LARGE_GIB` they may be twice as many.
const MOST: [u64; 2] = [6_000, 10_000];
const LARGE_GIB: u64 = 64;
/// The most instructions to boot.
const MOST_TO_BOOT: u64 = 20_000;
const LARGE_BOOT_GIB: u64 = 512;

fn main() -> ExitCode {
    if let Some(missing) = missing() {
        println!("nothing is counted: {missing}");
        return ExitCode::SUCCESS;
    }
    let mut table = Table::default();
    match run(&mut table) {
        Ok(()) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(table: &mut Table) -> Result<(), String> {
    table
        .section("A new target, from its notification to the report: driver, memory management, page tables");
    let [small, large] = [targets("lazy", 1)?, targets("lazy", LARGE_GIB)?];
    for (at, what) in [(0, "first plug"), (2, "plug again")] {
        rows(table, what, MOST[0], [small[at], large[at]]);
    }
    rows(table, "unplug what nobody wanted", MOST[1], [small[1], large[1]]);
    let [eager, ..] = targets("eager", 1)?;
    table.add(Row::new("plug 1 GiB, eager", format!("{eager} instr.")));
    table.section("Boot, from the first instruction to ready, on QEMU's microvm");
    let boot = |gib, cpu_features: &[&str]| {
        let mut options = options("lazy", Size::gib(gib));
        options.microvm = true;
        options.cpu_features = cpu_features.iter().map(ToString::to_string).collect();
        with_machine(&options, |machine| stat(machine, "boot_ticks"))
    };
    let small = boot(1, &[])?;
    let row = Row::new("boot with 1 GiB", format!("{small} instr."));
    table.add(row.target(format!("<= {MOST_TO_BOOT}"), small <= MOST_TO_BOOT));
    let pages: [(&str, &[&str]); 2] =
        [("boot with 512 GiB", &[]), ("the same, no pages of 1 GiB", &["pdpe1gb=off"])];
    for (what, cpu_features) in pages {
        let large = boot(LARGE_BOOT_GIB, cpu_features)?;
        let ratio = large as f64 / small as f64;
        let row = Row::new(what, format!("{large} instr.")).beside(format!("1 GiB {small}"), ratio);
        table.add(row.target("<= 1.20", ratio <= 1.2));
    }
    let boot = with_machine(&with_region("lazy", 1), |machine| stat(machine, "boot_ticks"))?;
    table.add(Row::new("boot on a q35, which has PCI", format!("{boot} instr.")));
    Ok(())
}

fn rows(table: &mut Table, what: &str, most: u64, [small, large]: [u64; 2]) {
    let row = Row::new(format!("{what}, 1 GiB"), format!("{small} instr."));
    table.add(row.target(format!("<= {most}"), small <= most));
    let row = Row::new(format!("{what}, {LARGE_GIB} GiB"), format!("{large} instr."));
    let ratio = large as f64 / small as f64;
    table.add(
        row.beside(format!("1 GiB {small}"), ratio).target(format!("<= {}", 2 * most), large <= 2 * most),
    );
}

/// The instructions of a target of `gib` GiB, of 0, and of `gib` GiB again.
fn targets(init: &str, gib: u64) -> Result<[u64; 3], String> {
    with_machine(&with_region(init, gib), |machine| {
        let mut counts = [0; 3];
        for (count, target) in counts.iter_mut().zip([gib, 0, gib]) {
            *count = follow(machine, Size::gib(target))?;
        }
        Ok(counts)
    })
}

/// A machine whose instructions are its clock.
fn options(init: &str, memory: Size) -> QemuConfig {
    let kernel = env::temp_dir().join(format!("tidevm-bench-{}", std::process::id()));
    let mut options = QemuConfig::new(kernel, memory);
    options.icount = true;
    // As on tidevm's own machine, the command line says how many CPUs there are. QEMU's memory is zero, although QEMU does
    // not promise it.
    options.cmdline = format!("nr_cpus=1 tsc_early_khz=1000000 tidevm.zeroed=on tidevm.init={init}");
    options
}

/// The same with a region of `gib` GiB.
fn with_region(init: &str, gib: u64) -> QemuConfig {
    QemuConfig { hotplug: vec![Hotplug::new(Size::gib(gib))], ..options(init, Size::mib(512)) }
}

/// Runs `work` with a guest.
fn with_machine<R>(
    options: &QemuConfig,
    work: impl FnOnce(&mut QemuMachine) -> Result<R, String>,
) -> Result<R, String> {
    let kernel = &options.kernel;
    fs::write(kernel, GUEST_IMAGE).map_err(|error| format!("cannot write {}: {error}", kernel.display()))?;
    let result = QemuMachine::start(options).and_then(|mut machine| work(&mut machine));
    drop(fs::remove_file(kernel));
    result
}

/// Sets a new target. Returns the instructions that the guest needed to follow it.
fn follow(machine: &mut QemuMachine, size: Size) -> Result<u64, String> {
    let before = stat(machine, "last_resize_ticks")?;
    machine.resize(0, size)?;
    machine.wait_plugged(0, size)?;
    // The device counts it as plugged before the guest is done.
    let deadline = Instant::now() + LIMIT;
    loop {
        let ticks = stat(machine, "last_resize_ticks")?;
        if ticks != before {
            return Ok(ticks);
        }
        if Instant::now() > deadline {
            return Err(format!("waited {LIMIT:?} for the guest to reach its target"));
        }
    }
}

/// The number for `name` in the guest's `stats`.
fn stat(machine: &mut QemuMachine, name: &str) -> Result<u64, String> {
    let stats = machine.command("stats")?;
    let number = |line: &String| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok();
    stats.iter().find_map(number).ok_or_else(|| format!("the guest does not tell its {name}: {stats:?}"))
}
