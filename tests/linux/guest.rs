//! A stock Linux in a machine, and what it prints of itself.

use std::env;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size, State, Vm};

pub const MIB: u64 = 1 << 20;
pub const KIB_PER_MIB: u64 = 1024;
pub const PAGES_PER_MIB: u64 = 256;
/// QEMU's emulator does not tell KVM when a guest sets XCR0, so the sizes that CPUID gives are wrong
/// there.
const QUIRKS: &str = "noxsave";
/// Generous, since everything is emulated twice.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A booted Linux.
pub struct Linux {
    pub vm: Vm,
    console: PathBuf,
}

/// What the guest printed last.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub kib_more: u64,
    pub movable_pages: u64,
    pub kib_on_node_1: u64,
    pub data: String,
    pub distances: String,
}

/// The file that a variable of the environment names.
pub fn file(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(env::var_os(name).expect("checked by main")))
}

/// A machine that boots Linux with `words` on its command line, once: a kernel that panics shall not
/// boot again. Its console is the file at the path.
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
    /// Boots, and waits for the driver.
    pub fn boot(words: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(words);
        let console = config.0.clone();
        change(&mut config.1);
        let vm = Vm::start(config.1).unwrap_or_else(|error| panic!("no machine: {error}"));
        let linux = Self { vm, console };
        linux.await_state("Linux's driver", |state| state.mem[0].driver.then_some(()));
        linux
    }

    /// Waits until `find` finds something in what is known of the machine.
    #[track_caller]
    pub fn await_state<T>(&self, what: &str, find: impl FnMut(&State) -> Option<T>) -> T {
        let found = self.vm.wait(LIMIT, what, find);
        found.unwrap_or_else(|error| panic!("{error}; the console:\n{}", self.text()))
    }

    /// All that was printed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The last complete line of the guest's own.
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
        let arrived = |plugged: u64| (plugged == mib * MIB).then_some(());
        self.await_state(&format!("Linux at {mib} MiB"), |state| arrived(state.mem[device].plugged));
    }

    /// Waits until the guest sees what `is_it` wants.
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

    /// The counters of the guest, to the page.
    #[track_caller]
    pub fn await_size(&self, mib: u64) {
        self.await_seen(&format!("{mib} MiB more"), |seen| seen.kib_more == mib * KIB_PER_MIB);
    }

    /// No complaint in all that the kernel printed.
    #[track_caller]
    pub fn assert_content(&self) {
        let text = self.text();
        let bad = |line: &&str| {
            let driver = line.contains("virtio_mem") && (line.contains("failed") || line.contains("error"));
            // Said of a device whose memory is still in use from an earlier driver, and right.
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
