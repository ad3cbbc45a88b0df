//! Measures one session on two guests and holds them against each other; `cargo xtask compare` runs
//! it. See [`tidevm_lab::compare`].

use std::env;
use std::process::ExitCode;

use tidevm_lab::compare::machine::Linux;
use tidevm_lab::compare::{Guest, Host, Record, measure, table};

const USAGE: &str = "\
usage: compare measure qemu|qemu-counting|tidevm linux|tidevm KERNEL INITRD
           runs the session there and prints a record of it, a line of JSON
       compare table FILE
           shows the records of FILE, a JSON array; status 1 when there is a difference between the
           guests that nothing explains, or a session that did not end
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["measure", host, guest, kernel, initrd] => measure(host, guest, kernel, initrd),
        ["table", file] => show(file),
        _ => Err(USAGE.to_owned()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn measure(host: &str, guest: &str, kernel: &str, initrd: &str) -> Result<ExitCode, String> {
    let host = match host {
        "qemu" => Host::Qemu,
        "qemu-counting" => Host::QemuCounting,
        "tidevm" => Host::Tidevm,
        _ => return Err(USAGE.to_owned()),
    };
    let guest = match guest {
        "linux" => Guest::Linux,
        "tidevm" => Guest::Tidevm,
        _ => return Err(USAGE.to_owned()),
    };
    let linux = Linux { kernel: kernel.into(), initrd: initrd.into() };
    let record = measure::session(host, guest, &linux);
    println!("{}", serde_json::to_string(&record).map_err(|error| error.to_string())?);
    Ok(if record.error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(file: &str) -> Result<ExitCode, String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    let records: Vec<Record> = serde_json::from_slice(&text).map_err(|error| format!("{file}: {error}"))?;
    let (text, agree) = table::show(&records);
    print!("{text}");
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
