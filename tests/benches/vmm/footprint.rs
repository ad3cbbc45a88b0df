//! What a VMM takes beside the memory of its guest: the program's file without symbols, and the resident memory.
//!
//! The rule for memory is Firecracker's: the resident size of all mappings but the guest's, which are larger than any
//! other. tidevm's own guest is up and idle. For Firecracker the kernel of one page has written its byte.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidevm_bench::clock::median;
use tidevm_bench::table::{Row, Table};

use crate::guest::{Scratch, kernel};
use crate::start::{Started, configuration, firecracker};

/// Machines of each kind.
const ROUNDS: usize = 5;
/// Mappings of at least this size are the guest's memory.
const GUEST_KIB: u64 = 32 << 10;
/// The most memory, in KiB, and the largest file, in bytes.
const MOST_KIB: f64 = 3.0 * 1024.0;
const LARGEST: f64 = 2.6e6;
/// When a guest is up, and its VMM has done all that follows.
const IDLE: Duration = Duration::from_secs(3);
/// Longest time until a guest is up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Adds the rows.
pub fn measure(table: &mut Table, program: &Path, other: Option<&Path>) {
    table.section("Beside the guest's memory: 1 vCPU, 128 MiB, a region of 8 GiB");
    match stripped(program) {
        Ok(size) => {
            let row = Row::new("file without symbols", format!("{:.2} MB", size / 1e6));
            let row = match other.map(stripped) {
                Some(Ok(theirs)) => row.beside(format!("Firecracker {:.2} MB", theirs / 1e6), size / theirs),
                _ => row,
            };
            table.add(row.target(format!("<= {} MB", LARGEST / 1e6), size <= LARGEST));
        }
        Err(error) => table.add(Row::new("file without symbols", format!("not measured: {error}"))),
    }
    let theirs = other.map(|program| median((0..ROUNDS).map(|_| firecracker_resident(program)).collect()));
    for (name, with_api) in [("resident, plain", false), ("resident, with --api-sock", true)] {
        let kib = median((0..ROUNDS).map(|_| resident_of_own(program, with_api)).collect());
        let row = Row::new(name, mib(kib)).target(format!("<= {}", mib(MOST_KIB)), kib <= MOST_KIB);
        table.add(match theirs {
            Some(theirs) => row.beside(format!("Firecracker {}", mib(theirs)), kib / theirs),
            None => row,
        });
    }
}

fn mib(kib: f64) -> String {
    format!("{:.2} MiB", kib / 1024.0)
}

/// Bytes of a program without symbols and debug information.
fn stripped(program: &Path) -> Result<f64, String> {
    let copy = Scratch::new("stripped", b"");
    let status = Command::new("strip").arg("-o").arg(&copy.0).arg(program).status();
    match status {
        Ok(status) if status.success() => Ok(fs::metadata(&copy.0).map_or(0, |file| file.len()) as f64),
        Ok(status) => Err(format!("strip: {status}")),
        Err(error) => Err(format!("strip: {error}")),
    }
}

/// A machine. Dropping it ends it.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails when it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// KiB of a tidevm whose guest is up.
fn resident_of_own(program: &Path, with_api: bool) -> f64 {
    // Each machine has a path of its own: the child of an earlier one removes the socket of that one late.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("tidevm-bench-{}-{}.sock", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let socket = std::env::temp_dir().join(name);
    let mut command = Command::new(program);
    command.args(["run", "--memory", "128M", "--hotplug", "size=8G", "--console", "off"]);
    if with_api {
        command.arg("--api-sock").arg(&socket);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let machine = Machine(command.spawn().expect("the program runs"));
    if with_api {
        let start = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "no socket within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
    thread::sleep(IDLE);
    let kib = resident(machine.0.id());
    drop(machine);
    drop(fs::remove_file(&socket));
    kib
}

/// Resident KiB of Firecracker beside its guest.
fn firecracker_resident(program: &Path) -> f64 {
    let kernel = kernel();
    let configuration = configuration(&kernel.0);
    let started = Started::new(&mut firecracker(program, &configuration.0));
    resident(started.0.id())
}

/// Resident KiB in mappings that are not the guest's.
fn resident(process: u32) -> f64 {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps")).expect("its mappings");
    let (mut sum, mut size) = (0, 0);
    for line in maps.lines() {
        let value = || line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        if line.starts_with("Size:") {
            size = value();
        } else if line.starts_with("Rss:") && size < GUEST_KIB {
            sum += value();
        }
    }
    sum as f64
}
