//! Measures one session on two guests and compares them. `cargo xtask compare` runs it. See
//! [`tidevm_lab::compare`].

use std::env;
use std::fs;
use std::process::ExitCode;

use tidevm_lab::compare::measured_vm::Linux;
use tidevm_lab::compare::{Guest, Host, Measurement, measure, table};

const USAGE: &str = "\
usage: compare measure linux|tidevm KERNEL INITRD
           runs the session on tidevm here, with Linux or with tidevm's own guest, and prints a
           record of it, a line of JSON
       compare run KERNEL INITRD FILE
           runs the session under QEMU with both guests, adds the records to those that FILE has,
           and shows them all; status 1 when there is a difference between the guests that nothing
           explains, or a session that did not end
";

const GUESTS: [(&str, Guest); 2] = [("linux", Guest::Linux), ("tidevm", Guest::Tidevm)];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let linux = |kernel: &str, initrd: &str| Linux { kernel: kernel.into(), initrd: initrd.into() };
    let result = match words[..] {
        ["measure", guest, kernel, initrd] => measure_here(guest, &linux(kernel, initrd)),
        ["run", kernel, initrd, file] => run(&linux(kernel, initrd), file),
        _ => Err(USAGE.to_owned()),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(2)
    })
}

/// Prints an error, which can repeat what a guest wrote to its console.
fn complain(error: &str) {
    eprintln!("{}", tidevm_machine::printable(error.as_bytes()));
}

fn measure_here(guest: &str, linux: &Linux) -> Result<ExitCode, String> {
    let (_, guest) = GUESTS.into_iter().find(|(name, _)| *name == guest).ok_or(USAGE)?;
    let measurement = measure::session(Host::Tidevm, guest, linux);
    println!("{}", line(&measurement)?);
    Ok(if measurement.error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(linux: &Linux, file: &str) -> Result<ExitCode, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    let measurements = text.lines().map(serde_json::from_str).collect::<Result<Vec<Measurement>, _>>();
    let mut measurements = measurements.map_err(|error| format!("{file}: {error}"))?;
    for (host, emulator) in [(Host::Qemu, "QEMU"), (Host::QemuCounting, "QEMU, counting instructions")] {
        for (name, guest) in GUESTS {
            eprintln!("{name} on {emulator}");
            measurements.push(measure::session(host, guest, linux));
        }
    }
    for error in measurements.iter().filter_map(|measurement| measurement.error.as_ref()) {
        complain(error);
    }
    let lines = measurements.iter().map(line).collect::<Result<Vec<_>, _>>()?;
    fs::write(file, lines.join("\n") + "\n").map_err(|error| format!("cannot write {file}: {error}"))?;
    let (text, agree) = table::show(&measurements);
    print!("{text}");
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A measurement as one line of JSON.
fn line(measurement: &Measurement) -> Result<String, String> {
    serde_json::to_string(measurement).map_err(|error| error.to_string())
}
