//! A stock Linux as a guest, and the state that it prints.

use std::env;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidevm_machine::{Companion, Config, ConsoleMode, HotplugConfig, Size, State, Vm};

pub const MIB: u64 = 1 << 20;
pub const KIB_PER_MIB: u64 = 1024;
pub const PAGES_PER_MIB: u64 = 256;
/// Avoids XSAVE: QEMU's emulator does not tell KVM when a guest sets XCR0, so the sizes in CPUID are wrong there.
const QUIRKS: &str = "noxsave";
/// A generous limit, because everything is emulated twice.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A booted Linux.
pub struct Linux {
    pub vm: Vm,
    console: PathBuf,
}

/// The last state that the guest printed.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub kib_more: u64,
    pub movable_pages: u64,
    pub kib_on_node_1: u64,
    pub data: String,
    pub distances: String,
}

/// The file that an environment variable names.
pub fn file(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(env::var_os(name).expect("checked by main")))
}

/// A VM that boots Linux with `words` on its command line. It boots once, so that a kernel that panics does not boot
/// again. Its console is the file at the path.
pub fn config(words: &str) -> (PathBuf, Config) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let console = env::temp_dir().join(format!("tidevm-linux-{}-{number}", std::process::id()));
    let config = Config {
        cpus: 2,
        memory: Size::mib(512),
        hotplug: vec![HotplugConfig::new(Size::gib(2))],
        kernel: file("TIDEVM_LINUX_KERNEL"),
        initrd: file("TIDEVM_LINUX_INITRD"),
        cmdline: Some(format!("console=ttyS0 panic=-1 {QUIRKS} {words}")),
        console: ConsoleMode::File(console.clone()),
        reboot: false,
        ..Config::default()
    };
    (console, config)
}

impl Drop for Linux {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.console));
    }
}

impl Linux {
    /// Boots Linux, and waits for its driver.
    pub fn boot(words: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(words);
        let console = config.0.clone();
        change(&mut config.1);
        Self::start(console, config.1, Vec::new())
    }

    /// Starts `config`, whose console is the file `console`, with `companions`, and waits for Linux's driver.
    pub fn start(console: PathBuf, config: Config, companions: Vec<Companion>) -> Self {
        let vm = tidevm_tests::start_with(config, companions);
        let linux = Self { vm, console };
        linux.await_state("Linux's driver", |state| state.mem[0].driver.then_some(()));
        linux
    }

    /// Waits until `find` finds something in the state of the VM.
    #[track_caller]
    pub fn await_state<T>(&self, what: &str, find: impl FnMut(&State) -> Option<T>) -> T {
        let found = self.vm.wait(LIMIT, what, find);
        found.unwrap_or_else(|error| panic!("{error}; the console:\n{}", self.text()))
    }

    /// The whole console output.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The last complete line of the guest's initrd.
    pub fn seen(&self) -> Option<Seen> {
        let text = self.text();
        let (complete, _) = text.rsplit_once('\n')?;
        let line = complete.lines().rev().find_map(|line| line.trim().strip_prefix("guest: "))?;
        let mut parts = line.split(", ");
        let mut number = || parts.next()?.split(' ').next()?.parse().ok();
        let (kib_more, movable_pages, kib_on_node_1) = (number()?, number()?, number()?);
        let mut text = |prefix| Some(parts.next()?.strip_prefix(prefix)?.to_owned());
        let (data, distances) = (text("data ")?, text("distances ")?);
        Some(Seen { kib_more, movable_pages, kib_on_node_1, data, distances })
    }

    #[track_caller]
    pub fn resize(&self, device: usize, mib: u64) {
        self.vm.resize(device, Size::mib(mib)).unwrap();
        let arrived = |plugged: Size| (plugged == Size::mib(mib)).then_some(());
        self.await_state(&format!("Linux at {mib} MiB"), |state| arrived(state.mem[device].plugged));
    }

    /// Waits until `is_it` accepts the state of the guest.
    #[track_caller]
    pub fn await_seen(&self, what: &str, is_it: impl Fn(&Seen) -> bool) {
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

    /// Waits until the guest has printed `part`.
    #[track_caller]
    pub fn await_text(&self, part: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.text().contains(part) {
            assert!(Instant::now() < deadline, "no `{part}` on the console:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the guest has exactly `mib` MiB more than at boot.
    #[track_caller]
    pub fn await_size(&self, mib: u64) {
        self.await_seen(&format!("{mib} MiB more"), |seen| seen.kib_more == mib * KIB_PER_MIB);
    }

    /// Asserts that the kernel printed no complaint.
    #[track_caller]
    pub fn assert_content(&self) {
        let text = self.text();
        let bad = |line: &&str| {
            let driver = line.contains("virtio_mem") && (line.contains("failed") || line.contains("error"));
            // The kernel prints this for a device whose memory is in use since an earlier driver, and is right.
            let busy = line.ends_with("failed with error -16");
            driver && !busy
                || ["BUG:", "WARNING: CPU", "Oops", "Call Trace", "data LOST"]
                    .iter()
                    .any(|bad| line.contains(bad))
        };
        let bad: Vec<_> = text.lines().filter(bad).collect();
        assert!(bad.is_empty(), "{bad:#?}\n{text}");
        assert_eq!(self.vm.state().stray_accesses, 0);
    }
}
