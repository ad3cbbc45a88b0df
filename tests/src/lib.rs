//! Runs sessions on real machines for tests.
//!
//! What a test needs and a host does not have, a usable /dev/kvm for one, [`run_if`] says by name and
//! reason, and the test counts as ignored, never as passed.

use std::fs::OpenOptions;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use tidevm_abi::{MEMORY_BLOCK_SIZE, ZoneName};
use tidevm_machine::{Config, ConsoleMode, HotplugConfig, Size, Vm};
use tidevm_session::script::Script;
use tidevm_session::{BootReport, Ended, Record, Sample, StepReport, Summary, Verdict};

/// A test that boots a guest.
pub type Test = (&'static str, fn());

/// Runs `tests` one after another, as a test binary's `main`: sessions share the host's CPUs, and
/// have deadlines. Skips those for which something is `missing`.
pub fn run_if(tests: &[Test], missing: impl Fn(&str) -> Option<String>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let trial = |&(name, test): &Test| {
        let missing = missing(name);
        if let Some(reason) = missing.as_deref().filter(|_| !arguments.list) {
            eprintln!("SKIP {name}: {reason}");
        }
        let run = move || {
            test();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    let trials = tests.iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Why this host cannot run a machine, if it cannot.
pub fn missing_kvm() -> Option<String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.err().map(|error| format!("/dev/kvm cannot be used: {error}"))
}

/// Why this host cannot run two CPUs of a machine at the same time, if it cannot.
pub fn missing_cpus() -> Option<String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus < 2).then(|| format!("two CPUs of a machine have to run at once, and this host has {cpus}"))
}

/// Memory blocks that are online in a [`machine`] before anything is plugged.
pub const BOOT_BLOCKS: u64 = 1;

/// A machine with one hotplug region of `region` bytes and the least that a guest is comfortable
/// with besides.
pub fn machine(region: u64) -> Config {
    Config {
        memory: Size(BOOT_BLOCKS * MEMORY_BLOCK_SIZE),
        hotplug: vec![HotplugConfig::new(Size(region))],
        console: ConsoleMode::Off,
        ..Config::default()
    }
}

/// Everything a session told.
#[derive(Debug)]
pub struct Session {
    /// When the guest was up.
    pub boot: BootReport,
    /// Step by step, checks left out.
    pub steps: Vec<StepReport>,
    /// How it ended.
    pub summary: Summary,
}

/// Runs `script` on a machine.
///
/// # Panics
/// When the script is wrong, or the machine does not start.
pub fn run(config: Config, script: &str) -> Session {
    let script = Script::parse("test", script).unwrap_or_else(|errors| panic!("{errors}"));
    script.fit(&config).unwrap_or_else(|errors| panic!("{errors}"));
    let vm = Vm::start(config).unwrap_or_else(|error| panic!("no machine: {error}"));
    let Record { boot, steps, summary } = tidevm_session::record(vm, &script);
    let boot = boot.unwrap_or_else(|| panic!("the guest never came up: {:?}", summary.ended));
    Session { boot, steps, summary }
}

/// Runs `script` with a `check` of every invariant in the guest after each of its commands.
///
/// # Panics
/// As [`run`], and when a check fails.
pub fn run_checked(config: Config, script: &str) -> Session {
    let mut checked = String::new();
    for line in script.lines().map(str::trim) {
        checked.push_str(line);
        checked.push('\n');
        if !(line.is_empty() || line.starts_with('#') || line.ends_with(['{', '}'])) {
            checked.push_str("check\n");
        }
    }
    let mut session = run(config, &checked);
    let checks = |step: &StepReport| step.command == tidevm_session::command::Command::Check;
    for check in session.steps.iter().filter(|step| checks(step)) {
        assert!(matches!(check.verdict, Verdict::Done { .. }), "{check:?}\n{:?}", session.summary.ended);
    }
    session.steps.retain(|step| !checks(step));
    session
}

impl Session {
    /// Asserts that every step did what it says.
    ///
    /// # Panics
    /// When one did not, with its reason.
    #[track_caller]
    pub fn assert_done(&self) {
        self.assert_alive();
        assert_eq!(self.summary.ended, Ended::Done, "{:#?}", self.failures());
    }

    /// Asserts that the guest did not die.
    ///
    /// # Panics
    /// When it did, with its report.
    #[track_caller]
    pub fn assert_alive(&self) {
        if let Ended::Died { report } = &self.summary.ended {
            let last = self.steps.last().map(|step| step.command.to_string());
            panic!("died in {last:?}: {report}");
        }
    }

    /// Steps that failed, with their reasons.
    pub fn failures(&self) -> Vec<(String, String)> {
        let failure = |step: &StepReport| match &step.verdict {
            Verdict::Failed { reason } => Some((step.command.to_string(), reason.clone())),
            Verdict::Done { .. } => None,
        };
        self.steps.iter().filter_map(failure).collect()
    }

    /// The machine after the first step whose text is `command`.
    ///
    /// # Panics
    /// When there is no such step.
    #[track_caller]
    pub fn after(&self, command: &str) -> Account {
        let step = self.steps.iter().find(|step| step.command.to_string() == command);
        account(&step.unwrap_or_else(|| panic!("no step `{command}`")).sample)
    }

    /// The machine after the last step.
    ///
    /// # Panics
    /// When there was no step.
    #[track_caller]
    pub fn at_the_end(&self) -> Account {
        account(&self.steps.last().expect("a step").sample)
    }
}

/// What has to be the same before and after what undoes itself. Free pages include those on per-CPU
/// lists: which of the two a page lies on is nobody's promise.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    /// A zone each: spanned, present, managed, free; in pages.
    pub zones: Vec<(ZoneName, u64, u64, u64, u64)>,
    /// Memmap pages in boot memory and in hot-added memory.
    pub memmap: (u64, u64),
    /// Memory blocks online, those of boot memory included.
    pub blocks_online: u64,
    /// Bytes plugged, a device each.
    pub plugged: Vec<u64>,
    /// Bytes of host memory held, a device each.
    pub held: Vec<Option<u64>>,
}

impl Account {
    /// The managed pages of a zone.
    pub fn managed(&self, name: ZoneName) -> u64 {
        self.zones.iter().filter(|zone| zone.0 == name).map(|zone| zone.3).sum()
    }

    /// The present pages of a zone.
    pub fn present(&self, name: ZoneName) -> u64 {
        self.zones.iter().filter(|zone| zone.0 == name).map(|zone| zone.2).sum()
    }
}

/// The account of a sample that has a guest.
///
/// # Panics
/// When there was no guest to ask.
#[track_caller]
pub fn account(sample: &Sample) -> Account {
    let guest = sample.guest.expect("a guest to ask");
    let zones = guest.zones.iter();
    Account {
        zones: zones
            .map(|zone| (zone.name, zone.spanned, zone.present, zone.managed, zone.free + zone.pcp))
            .collect(),
        memmap: (guest.memmap_boot_pages, guest.memmap_altmap_pages),
        blocks_online: guest.blocks_online,
        plugged: sample.devices.iter().map(|device| device.plugged).collect(),
        held: sample.devices.iter().map(|device| device.held).collect(),
    }
}
