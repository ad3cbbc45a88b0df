//! What the API costs: `cargo bench -p tidevm --bench api`. With `-- --record` the figures go into `docs/api.md`.
//!
//! Two figures: how long a client waits for an answer while a resize runs, and the private memory of the VMM with and without
//! an API. Memory of the guest does not count: mappings as large as it are left out.
//!
//! The times are those of the host that runs this, with all its other work.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Calls of each kind.
const CALLS: usize = 2000;
/// Clients that come at once.
const CLIENTS: usize = 100;
/// Longest time until the guest is up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Mappings of at least this size are the guest's memory.
const GUEST_KIB: u64 = 32 << 10;

/// Where the figures stand in the document.
const BEGIN: &str = "<!-- figures: cargo bench -p tidevm --bench api -- --record -->\n";
const END: &str = "<!-- end of figures -->\n";

fn main() -> ExitCode {
    if !Path::new("/dev/kvm").exists() {
        println!("nothing is measured: there is no /dev/kvm");
        return ExitCode::SUCCESS;
    }
    let figures = format!("{}\n{}", latencies(), memory());
    print!("{figures}");
    if std::env::args().any(|argument| argument == "--record") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
        let document = fs::read_to_string(&path).expect("the document");
        let (head, rest) = document.split_once(BEGIN).expect("the begin of the figures");
        let (_, tail) = rest.split_once(END).expect("the end of the figures");
        fs::write(path, format!("{head}{BEGIN}\n{figures}\n{END}{tail}"))
            .expect("the document can be written");
    }
    ExitCode::SUCCESS
}

/// A machine. Dropping it ends it.
struct Machine {
    child: Child,
    socket: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails when it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.socket));
    }
}

impl Machine {
    fn start(with_api: bool) -> Self {
        let socket = std::env::temp_dir().join(format!("tidevm-bench-{}.sock", std::process::id()));
        drop(fs::remove_file(&socket));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidevm"));
        command.args(["run", "--memory", "128M", "--hotplug", "size=8G", "--console", "off"]);
        if with_api {
            command.arg("--api-sock").arg(&socket);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let machine = Self { child: command.spawn().expect("the program runs"), socket };
        if with_api {
            until("the socket", || UnixStream::connect(&machine.socket).is_ok());
            let mut client = machine.connect();
            until("the driver", || client.get().contains("\"driver\":true"));
        } else {
            // Nothing tells when this guest is up. The other one took less.
            thread::sleep(Duration::from_secs(5));
        }
        machine
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        Client { stream, bytes: Vec::new() }
    }

    /// KiB of private memory in mappings that are not the guest's.
    fn private_kib(&self) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", self.child.id())).expect("its mappings");
        let (mut sum, mut size) = (0, 0);
        for line in maps.lines() {
            let value =
                || line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            if line.starts_with("Size:") {
                size = value();
            } else if line.starts_with("Private_") && size < GUEST_KIB {
                sum += value();
            }
        }
        sum
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A client that keeps its connection, as Firecracker's SDKs do.
struct Client {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Client {
    fn get(&mut self) -> String {
        self.call("GET /hotplug/memory HTTP/1.1\r\n\r\n")
    }

    fn patch(&mut self, mib: u32) -> String {
        let body = format!("{{\"requested_size_mib\":{mib}}}");
        self.call(&format!("PATCH /hotplug/memory HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// Makes a call, and reads its answer.
    fn call(&mut self, request: &str) -> String {
        self.stream.write_all(request.as_bytes()).expect("it reads");
        self.bytes.clear();
        let mut part = [0; 4096];
        loop {
            let size = self.stream.read(&mut part).expect("it answers");
            assert!(size > 0, "the connection ended");
            self.bytes.extend_from_slice(&part[..size]);
            let text = String::from_utf8_lossy(&self.bytes);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length =
                    head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
                if body.len() == length.unwrap_or(0) {
                    assert!(head.starts_with("HTTP/1.1 20"), "{text}");
                    return text.into_owned();
                }
            }
        }
    }
}

/// The table of latencies.
fn latencies() -> String {
    let machine = Machine::start(true);
    let mut client = machine.connect();
    let (mut gets, mut patches) = (Vec::new(), Vec::new());
    let mut under_way = 0;
    for number in 0..CALLS {
        // Each target is far from what is plugged, so that a resize runs all the time.
        let mib = if number.is_multiple_of(2) { 8192 } else { 0 };
        patches.push(time(|| drop(client.patch(mib))));
        let mut answer = String::new();
        gets.push(time(|| answer = client.get()));
        under_way += usize::from(answer.contains("\"converged\":false"));
        thread::sleep(Duration::from_millis(2));
    }
    let row = |name: &str, times: &mut Vec<Duration>| {
        times.sort_unstable();
        let at = |percent: usize| format!("{:.2} ms", times[times.len() * percent / 100].as_secs_f64() * 1e3);
        format!("| `{name} /hotplug/memory` | {} | {} |\n", at(50), at(99))
    };
    format!(
        "{CALLS} calls of each kind on one connection; at {under_way} of the answers a resize between 0 and 8 GiB was under \
         way. {}\n\n| call | p50 | p99 |\n| --- | ---: | ---: |\n{}{}",
        host(),
        row("GET", &mut gets),
        row("PATCH", &mut patches)
    )
}

fn time(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

/// When and on what this was measured.
fn host() -> String {
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output().map(|output| output.stdout);
    let date = String::from_utf8_lossy(&date.unwrap_or_default()).trim().to_owned();
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!("On {date}, on a host of {cpus} CPUs with a load average of {load}.")
}

/// The table of memory.
fn memory() -> String {
    let without = Machine::start(false).private_kib();
    let machine = Machine::start(true);
    let idle = machine.private_kib();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| machine.connect()).collect();
    clients.iter_mut().for_each(|client| drop(client.get()));
    let connected = machine.private_kib();
    drop(clients);
    // The connections are closed when another client is served.
    let mut last = machine.connect();
    (0..10).for_each(|_| drop(last.get()));
    let after = machine.private_kib();
    let mut table = String::from("| VMM | private memory |\n| --- | ---: |\n");
    for (name, kib) in [
        ("without an API", without),
        ("with an API, its guest up", idle),
        ("100 clients have asked for `/hotplug/memory` and stay", connected),
        ("they are gone", after),
    ] {
        table.push_str(&format!("| {name} | {kib} KiB |\n"));
    }
    table
}
