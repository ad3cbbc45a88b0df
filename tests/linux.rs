//! Stock Linux as a guest. Its virtio_mem driver is the judge of our device: nobody here wrote it.
//!
//! The kernel and its initrd are named by TIDEVM_LINUX_KERNEL and TIDEVM_LINUX_INITRD, which the nested
//! host sets; on other hosts these tests are skipped. The initrd prints, a few times a second, how
//! much memory the kernel has more than at boot, how many pages its Movable zones manage, how much
//! lies on node 1, and whether a file that it keeps in memory is intact.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidevm::{Config, ConsoleMode, HotplugConfig, Vm};
use tidevm_tests::{Test, run_if};

const MIB: u64 = 1 << 20;
const KIB_PER_MIB: u64 = 1024;
const PAGES_PER_MIB: u64 = 256;
/// QEMU's emulator does not tell KVM when a guest sets XCR0, so the sizes that CPUID gives are wrong
/// there.
const QUIRKS: &str = "noxsave";
/// Generous, since everything is emulated twice.
const LIMIT: Duration = Duration::from_secs(120);

const TESTS: &[Test] = &[
    ("linux_follows_odd_sizes", linux_follows_odd_sizes),
    ("linux_follows_a_target_that_moves", linux_follows_a_target_that_moves),
    ("linux_moves_its_data", linux_moves_its_data),
    ("linux_cycles", linux_cycles),
    ("linux_onlines_to_the_kernel_zones", || grows("policy=online_kernel")),
    ("linux_onlines_as_it_likes", || grows("policy=auto-movable")),
    ("linux_on_four_cpus", linux_on_four_cpus),
    ("linux_drives_two_devices_on_two_nodes", linux_drives_two_devices_on_two_nodes),
];

fn main() -> ExitCode {
    let names = ["TIDEVM_LINUX_KERNEL", "TIDEVM_LINUX_INITRD"];
    let unset = names.into_iter().find(|name| env::var_os(name).is_none());
    let missing = unset.map(|name| format!("{name} names no file (the nested host has one)"));
    run_if(TESTS, missing.or_else(tidevm_tests::missing_kvm))
}

/// A booted Linux.
struct Linux {
    vm: Vm,
    console: PathBuf,
}

/// What the guest printed last.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kib_more: u64,
    movable_pages: u64,
    kib_on_node_1: u64,
    data: String,
}

impl Drop for Linux {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.console));
    }
}

impl Linux {
    fn boot(words: &str, change: impl FnOnce(&mut Config)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let console = env::temp_dir().join(format!("tidevm-linux-{}-{number}", std::process::id()));
        let file = |name| Some(PathBuf::from(env::var_os(name).expect("checked by main")));
        let mut config = Config {
            cpus: 2,
            memory: 512 * MIB,
            hotplug: vec![HotplugConfig::new(2048 * MIB)],
            kernel: file("TIDEVM_LINUX_KERNEL"),
            initrd: file("TIDEVM_LINUX_INITRD"),
            cmdline: Some(format!("console=ttyS0 panic=-1 {QUIRKS} {words}")),
            console: ConsoleMode::File(console.clone()),
            ..Config::default()
        };
        change(&mut config);
        let vm = Vm::start(config).unwrap_or_else(|error| panic!("no machine: {error}"));
        let linux = Self { vm, console };
        linux
            .vm
            .wait(LIMIT, "Linux's driver", |state| state.mem[0].driver.then_some(()))
            .unwrap_or_else(|error| panic!("{error}; the console:\n{}", linux.text()));
        linux
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The last complete line of the guest's own.
    fn seen(&self) -> Option<Seen> {
        let text = self.text();
        let (complete, _) = text.rsplit_once('\n')?;
        let line = complete.lines().rev().find_map(|line| line.trim().strip_prefix("guest: "))?;
        let mut parts = line.split(", ");
        let mut number = || parts.next()?.split(' ').next()?.parse().ok();
        let (kib_more, movable_pages, kib_on_node_1) = (number()?, number()?, number()?);
        let data = parts.next()?.strip_prefix("data ")?.to_owned();
        Some(Seen { kib_more, movable_pages, kib_on_node_1, data })
    }

    fn resize(&self, device: usize, mib: u64) {
        self.vm.resize(device, mib * MIB).unwrap();
        let arrived = |plugged: u64| (plugged == mib * MIB).then_some(());
        let result = self.vm.wait(LIMIT, "Linux to follow", |state| arrived(state.mem[device].plugged));
        result.unwrap_or_else(|error| panic!("{mib} MiB: {error}; the console:\n{}", self.text()));
    }

    /// Waits until the guest sees what `is_it` wants.
    #[track_caller]
    fn await_seen(&self, what: &str, is_it: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !self.seen().is_some_and(|seen| is_it(&seen)) {
            assert!(
                Instant::now() < deadline,
                "waited for {what}; the guest sees {:?}; the console:\n{}",
                self.seen(),
                self.text()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The counters of the guest, to the page.
    #[track_caller]
    fn await_size(&self, mib: u64) {
        self.await_seen(&format!("{mib} MiB more"), |seen| seen.kib_more == mib * KIB_PER_MIB);
    }

    /// No complaint in all that the kernel printed.
    #[track_caller]
    fn assert_content(&self) {
        let text = self.text();
        let bad = |line: &&str| {
            let driver = line.contains("virtio_mem") && (line.contains("failed") || line.contains("error"));
            driver
                || ["BUG:", "WARNING: CPU", "Oops", "Call Trace", "data LOST"]
                    .iter()
                    .any(|bad| line.contains(bad))
        };
        let bad: Vec<_> = text.lines().filter(bad).collect();
        assert!(bad.is_empty(), "{bad:#?}\n{text}");
        assert_eq!(self.vm.state().stray_accesses, 0);
    }
}

/// To each of `sizes` in turn, and the counters of the guest each time.
fn follow(linux: &Linux, sizes: &[u64]) {
    for &mib in sizes {
        linux.resize(0, mib);
        linux.await_size(mib);
        linux.await_seen("the pages in Movable", |seen| seen.movable_pages == mib * PAGES_PER_MIB);
    }
    linux.assert_content();
}

fn linux_follows_odd_sizes() {
    let linux = Linux::boot("", |_| ());
    follow(&linux, &[2, 126, 128, 130, 1026, 0, 1026, 126, 2, 0]);
    assert_eq!(linux.vm.held(0).unwrap(), 0);
}

fn linux_follows_a_target_that_moves() {
    let linux = Linux::boot("", |_| ());
    for round in 0..20 {
        linux.vm.resize(0, (round * 7 % 12) * 128 * MIB).unwrap();
        std::thread::sleep(Duration::from_millis(30 * (round % 5)));
    }
    follow(&linux, &[384, 0]);
}

fn linux_moves_its_data() {
    let linux = Linux::boot("data=64", |_| ());
    linux.resize(0, 512);
    linux.await_seen("the data", |seen| seen.data == "intact");
    for mib in [256, 512, 0, 512] {
        linux.resize(0, mib);
        linux.await_size(mib);
        let before = linux.text().len();
        linux.await_seen("another look at the data", |seen| {
            linux.text().len() > before + 200 && seen.data == "intact"
        });
    }
    linux.assert_content();
}

fn linux_cycles() {
    let linux = Linux::boot("", |_| ());
    for _ in 0..50 {
        linux.resize(0, 258);
        linux.resize(0, 0);
    }
    linux.await_size(0);
    linux.assert_content();
    assert_eq!(linux.vm.held(0).unwrap(), 0);
}

/// Linux decides which zone the memory goes to; it can only be told that it is there.
fn grows(words: &str) {
    let linux = Linux::boot(words, |_| ());
    linux.resize(0, 1026);
    linux.await_size(1026);
    // How far it follows down is its own affair.
    linux.vm.resize(0, 0).unwrap();
    linux.resize(0, 1026);
    linux.await_size(1026);
    linux.assert_content();
}

fn linux_on_four_cpus() {
    let linux = Linux::boot("", |config| config.cpus = 4);
    follow(&linux, &[512, 130, 0]);
    assert!(linux.text().contains("Brought up 1 node, 4 CPUs"), "{}", linux.text());
}

fn linux_drives_two_devices_on_two_nodes() {
    let linux = Linux::boot("", |config| {
        config.hotplug.push(HotplugConfig { block: 4 * MIB, node: Some(1), ..HotplugConfig::new(512 * MIB) });
    });
    linux.resize(0, 258);
    linux.resize(1, 132);
    linux.await_size(390);
    linux.await_seen("the second device on its node", |seen| seen.kib_on_node_1 == 132 * KIB_PER_MIB);
    linux.resize(0, 0);
    linux.await_size(132);
    linux.await_seen("all of it there", |seen| seen.kib_on_node_1 == 132 * KIB_PER_MIB);
    linux.resize(1, 0);
    linux.await_size(0);
    linux.assert_content();
}
