//! Instructions of the booted guest, counted by QEMU's emulator: `cargo bench -p tidevm-tests`.

use std::env;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tidevm_bench::table::{Row, Table};
use tidevm_lab::qemu::{Hotplug, QemuConfig, QemuMachine, missing};
use tidevm_machine::{GUEST_IMAGE, Size};

const MEMORY_BLOCK_MIB: u64 = 128;
const BLOCKS: u64 = 9;
/// The most instructions per memory block, without the requests to the device.
const MOST: u64 = 2000;
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Some(missing) = missing() {
        println!("nothing is counted: {missing}");
        return ExitCode::SUCCESS;
    }
    let mut table = Table::default();
    table.section("Add and online a memory block of 128 MiB in the booted guest, page tables included");
    for init in ["lazy", "eager"] {
        match onlining(init) {
            Ok(counts) => add(&mut table, init, &counts),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
    print!("{table}");
    ExitCode::SUCCESS
}

fn add(table: &mut Table, init: &str, counts: &[u64]) {
    let (first, others) = counts.split_first().expect("some blocks");
    let most = others.iter().max().expect("more than one block");
    for (which, count) in [("the first, which takes a page table", first), ("the others, at most", most)] {
        let row = Row::new(format!("{init}: {which}"), format!("{count} instr."));
        table.add(if init == "lazy" { row.target(format!("< {MOST}"), *count < MOST) } else { row });
    }
}

/// The instructions of each of the first memory blocks.
fn onlining(init: &str) -> Result<Vec<u64>, String> {
    let kernel = env::temp_dir().join(format!("tidevm-bench-{}", std::process::id()));
    fs::write(&kernel, GUEST_IMAGE).map_err(|error| format!("cannot write {}: {error}", kernel.display()))?;
    let mut options = QemuConfig::new(kernel.clone(), Size::mib(512));
    options.hotplug = vec![Hotplug::new(Size::gib(2))];
    options.icount = true;
    // QEMU's memory is zero, although QEMU does not promise it.
    options.cmdline = format!("tidevm.zeroed=on tidevm.init={init}");
    let counts = QemuMachine::start(&options).and_then(|mut machine| {
        (1..=BLOCKS).map(|blocks| one_more(&mut machine, Size::mib(blocks * MEMORY_BLOCK_MIB))).collect()
    });
    drop(fs::remove_file(&kernel));
    counts
}

/// Plugs one more memory block, up to `size`. Returns the instructions that the guest reports.
fn one_more(machine: &mut QemuMachine, size: Size) -> Result<u64, String> {
    let before = stat(machine, "blocks.online")?;
    machine.resize(0, size)?;
    machine.wait_plugged(0, size)?;
    // The device counts it as plugged before the guest is done.
    let deadline = Instant::now() + LIMIT;
    while stat(machine, "blocks.online")? == before {
        if Instant::now() > deadline {
            return Err(format!("waited {LIMIT:?} for a memory block to be online"));
        }
    }
    stat(machine, "last_add_ticks")
}

/// The number for `name` in the guest's `stats`.
fn stat(machine: &mut QemuMachine, name: &str) -> Result<u64, String> {
    let stats = machine.command("stats")?;
    let number = |line: &String| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok();
    stats.iter().find_map(number).ok_or_else(|| format!("the guest does not tell its {name}: {stats:?}"))
}
