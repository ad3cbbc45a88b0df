//! CPU time and page faults of a process, from `exec` to the first byte that its guest writes to the serial port.
//!
//! The guest is a kernel of one page that writes the byte and halts. The process's clock stands still then.
#![expect(unsafe_code, reason = "asks the system for the clock of another process")]

use std::fs;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tidevm_bench::clock::median;
use tidevm_bench::table::{Row, Table, time};

use crate::floor;
use crate::guest::{BYTE, Scratch, kernel};

/// Turns of each program.
const ROUNDS: usize = 21;
/// The most milliseconds to the first byte.
const MOST: f64 = 2.0;
/// A process whose guest has written its byte. Dropping it ends it.
pub struct Started(pub Child);

impl Drop for Started {
    fn drop(&mut self) {
        // Fails when it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Started {
    /// Starts `command` and waits for the byte.
    pub fn new(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let output: ChildStdout = child.stdout.take().expect("a pipe");
        let started = Self(child);
        let written = BufReader::new(output).bytes().map_while(Result::ok).any(|byte| byte == BYTE);
        assert!(written, "{command:?} ends without the byte");
        started
    }

    /// Nanoseconds of CPU time.
    fn cpu(&self) -> f64 {
        let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: both are local variables that the calls may write.
        let status = unsafe {
            libc::clock_getcpuclockid(self.0.id() as libc::pid_t, &raw mut clock)
                | libc::clock_gettime(clock, &raw mut time)
        };
        assert_eq!(status, 0, "no clock of the process");
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    }

    /// Page faults that needed no file to be read.
    fn faults(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("its state");
        let fields = stat.rsplit_once(')').expect("its name").1;
        fields.split_ascii_whitespace().nth(7).and_then(|faults| faults.parse().ok()).expect("a number")
    }
}

/// The command that runs `kernel` in a machine like the one of [`firecracker`].
fn tidevm(program: &Path, kernel: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--memory", "128M", "--hotplug", "size=8G", "--console", "stdio", "--kernel"]);
    command.arg(kernel);
    command
}

/// The command that runs the machine of `configuration`.
pub fn firecracker(program: &Path, configuration: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--no-api", "--no-seccomp", "--config-file"]).arg(configuration);
    command
}

/// What Firecracker is told of the machine.
pub fn configuration(kernel: &Path) -> Scratch {
    let text = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "drives": [],
            "machine-config": {{"vcpu_count": 1, "mem_size_mib": 128}},
            "memory-hotplug": {{"total_size_mib": 8192, "slot_size_mib": 128, "block_size_mib": 2}}}}"#,
        kernel.display()
    );
    Scratch::new("firecracker.json", text.as_bytes())
}

/// Adds the rows of the start.
pub fn measure(table: &mut Table, program: &Path, other: Option<&Path>) {
    table.section("From exec to the first byte of a guest of one page, 1 vCPU, 128 MiB, a region of 8 GiB");
    let kernel = kernel();
    let configuration = configuration(&kernel.0);
    let mut figures = [const { (Vec::new(), Vec::new()) }; 3];
    for _ in 0..ROUNDS {
        let own = tidevm(program, &kernel.0);
        let other = other.map(|program| firecracker(program, &configuration.0));
        for (command, (cpu, faults)) in
            [Some(own), Some(floor::command()), other].into_iter().zip(&mut figures)
        {
            if let Some(mut command) = command {
                let started = Started::new(&mut command);
                cpu.push(started.cpu());
                faults.push(started.faults());
            }
        }
    }
    let [own, floor, other] =
        figures.map(|(cpu, faults)| (!cpu.is_empty()).then(|| (median(cpu), median(faults))));
    let ((cpu, faults), (least, fewest)) = own.zip(floor).expect("both were measured");
    let target = format!("<= {MOST} ms");
    let row = |name: &str| Row::new(name, time(cpu)).target(target.clone(), cpu <= MOST * 1e6);
    let beside = format!("KVM alone {}", time(least));
    table.add(row("CPU time").beside(beside, cpu / least));
    if let Some((theirs, _)) = other {
        table.add(row("CPU time").beside(format!("Firecracker {}", time(theirs)), cpu / theirs));
    }
    let beside = format!("KVM alone {fewest}");
    table.add(Row::new("page faults", format!("{faults}")).beside(beside, faults / fewest));
}
