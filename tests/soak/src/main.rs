//! The program `soak`: runs one level and prints progress, a table, and a line for the record.
//!
//! `cargo xtask soak` calls it; on the nested host it runs by itself. Usage: `soak LEVEL CYCLES SEED`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use tidevm_soak::hosted::{self, Plan};
use tidevm_soak::{Tally, booted};

/// Longest time without a line.
const QUIET: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [level, cycles, seed] = words[..] else { return usage() };
    let (Ok(cycles), Ok(seed)) = (cycles.parse(), seed.parse()) else { return usage() };
    println!("soak: level {level}, {cycles} cycles, seed {seed}");
    let (start, mut last) = (Instant::now(), Instant::now());
    let mut progress = |tally: &Tally| {
        if last.elapsed() > QUIET {
            last = Instant::now();
            let Tally { cycles, resets, lost, corrupt, faults, .. } = tally;
            println!(
                "soak: {cycles} cycles, {resets} resets, {lost} pages lost, {corrupt} corrupt, {faults} other faults"
            );
        }
    };
    let tally = match level {
        "device" => hosted::run(Plan { cycles, seed, guest: false }, progress),
        "hosted" => hosted::run(Plan { cycles, seed, guest: true }, progress),
        "booted" => {
            let tell = |what: &str, tally: &Tally| {
                println!("soak: {what}");
                progress(tally);
            };
            match booted::run(cycles, seed, tell) {
                Ok(tally) => tally,
                Err(error) => {
                    eprintln!("soak: {error}");
                    return ExitCode::from(3);
                }
            }
        }
        _ => return usage(),
    };
    print!("\n{tally}");
    println!("{:32}{:>12}", "seconds", start.elapsed().as_secs());
    println!("record: {}", tally.cells());
    if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("usage: soak device|hosted|booted CYCLES SEED");
    ExitCode::from(2)
}
