//! Runs sessions in booted guests for tests.
//!
//! Invariant: a test that this host cannot run is reported as `SKIP` with its name and the reason, and counts as
//! ignored, never as passed ([`run_if`]).

use std::fs::OpenOptions;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tidevm_abi::{Answer, MEMORY_BLOCK_SIZE, Op, ZoneName};
use tidevm_machine::{
    Companion, Config, Confinement, ConsoleMode, HotplugConfig, Size, StartError, Vm, VmHandle,
};
use tidevm_session::script::Script;
use tidevm_session::{Booted, Ended, Observer, Record, Sample, StepRun, Summary};

/// A test that boots a guest.
pub type Test = (&'static str, fn());

/// Runs `tests` one after another, as the `main` of a test program: sessions have deadlines, so they do not share
/// the host's CPUs. Skips a test for which `missing` returns a reason.
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

/// Why this host cannot run a VM, or `None`.
pub fn missing_kvm() -> Option<String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.err().map(|error| format!("/dev/kvm cannot be used: {error}"))
}

/// Number of memory blocks that are online in a [`machine`] before anything is plugged.
pub const BOOT_BLOCKS: u64 = 1;

/// A configuration with one hotplug region of `region` bytes, and as little else as a guest needs.
pub fn machine(region: u64) -> Config {
    Config {
        memory: Size(BOOT_BLOCKS * MEMORY_BLOCK_SIZE),
        hotplug: vec![HotplugConfig::new(Size(region))],
        console: ConsoleMode::Off,
        ..Config::default()
    }
}

/// The reports of a session.
#[derive(Debug)]
pub struct Session {
    /// The report of the boot.
    pub boot: Booted,
    /// The report of each step; [`run_checked`] leaves out its checks.
    pub steps: Vec<StepRun>,
    /// The end of the session.
    pub summary: Summary,
}

/// Starts a VM that is locked in as `tidevm` does it. The calling thread is not: a thread that ends starts the VM.
///
/// # Panics
/// When the VM does not start.
pub fn start(config: Config) -> Vm {
    start_with(config, Vec::new())
}

/// [`start`], with `companions` beside the VM.
///
/// # Panics
/// When the VM does not start.
pub fn start_with(config: Config, companions: Vec<Companion>) -> Vm {
    locked_in(config, companions, |vm| vm).unwrap_or_else(|error| panic!("no machine: {error}"))
}

/// How long a guest may take to come up, or to answer a call. Generous, for slow hosts.
const LIMIT: Duration = Duration::from_secs(120);

/// [`start`], and waits for the guest.
///
/// # Panics
/// When the VM does not start, or its guest does not come up.
pub fn ready(config: Config) -> Vm {
    let vm = start(config);
    vm.wait(LIMIT, "the guest", |state| state.ready).unwrap_or_else(|error| panic!("{error}"));
    vm
}

/// The guest's answer to `op`.
///
/// # Panics
/// When there is none.
pub fn ask(vm: &VmHandle, op: Op) -> Answer {
    let id = vm.call(op).expect("the guest reads calls");
    vm.answer(id, LIMIT, "an answer").unwrap_or_else(|error| panic!("{op:?}: {error}"))
}

/// Calls a function with each step of a session.
pub struct EachStep<F>(pub F);

impl<F: FnMut(&StepRun)> Observer for EachStep<F> {
    fn boot(&mut self, _: &Booted) -> io::Result<()> {
        Ok(())
    }

    fn step(&mut self, step: &StepRun) -> io::Result<()> {
        (self.0)(step);
        Ok(())
    }

    fn end(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}

/// Starts a VM and passes it to `session`, in a thread that is locked in with the VM.
///
/// # Errors
/// The VM does not start.
pub fn locked_in<T: Send>(
    config: Config,
    companions: Vec<Companion>,
    session: impl FnOnce(Vm) -> T + Send,
) -> Result<T, StartError> {
    Vm::apart_with(Config { confinement: Confinement::STRICT, ..config }, companions, session)
}

/// Runs `script` in a VM. The VM and its session are locked in as `tidevm` does it.
///
/// # Panics
/// When the script has an error, or the VM or its guest does not start.
pub fn run(config: Config, script: &str) -> Session {
    let script = Script::parse("test", script).unwrap_or_else(|errors| panic!("{errors}"));
    run_script(config, &script)
}

/// [`run`], of a script that was read.
///
/// # Panics
/// When the script does not fit the machine, or the VM or its guest does not start.
pub fn run_script(config: Config, script: &Script) -> Session {
    script.fit(&config).unwrap_or_else(|errors| panic!("{errors}"));
    let record = locked_in(config, Vec::new(), |vm| tidevm_session::record(vm, script));
    let Record { boot, steps, summary } = record.unwrap_or_else(|error| panic!("no machine: {error}"));
    let boot = boot.unwrap_or_else(|| panic!("the guest never came up: {:?}", summary.ended));
    Session { boot, steps, summary }
}

/// Runs `script` with a `check` after each of its commands, which verifies every invariant in the guest.
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
    let checks = |step: &StepRun| step.command == tidevm_abi::Command::Check;
    for check in session.steps.iter().filter(|step| checks(step)) {
        assert!(check.is_done(), "{check:?}\n{:?}", session.summary.ended);
    }
    session.steps.retain(|step| !checks(step));
    session
}

impl Session {
    /// Asserts that every step succeeded.
    ///
    /// # Panics
    /// When a step failed, with its reason.
    #[track_caller]
    pub fn assert_done(&self) {
        self.assert_alive();
        assert_eq!(self.summary.ended, Ended::Done, "{:#?}", self.failures());
    }

    /// Asserts that the guest did not die.
    ///
    /// # Panics
    /// When the guest died, with the text about its death.
    #[track_caller]
    pub fn assert_alive(&self) {
        if let Ended::Died(death) = &self.summary.ended {
            let last = self.steps.last().map(|step| step.command.to_string());
            panic!("died in {last:?}: {death}");
        }
    }

    /// The steps that failed, with their reasons.
    pub fn failures(&self) -> Vec<(String, String)> {
        let failure = |step: &StepRun| {
            let failure = step.result.as_ref().err()?;
            Some((step.command.to_string(), failure.to_string()))
        };
        self.steps.iter().filter_map(failure).collect()
    }

    /// The account after the first step whose text is `command`.
    ///
    /// # Panics
    /// When there is no such step.
    #[track_caller]
    pub fn after(&self, command: &str) -> Account {
        let step = self.steps.iter().find(|step| step.command.to_string() == command);
        account(&step.unwrap_or_else(|| panic!("no step `{command}`")).sample)
    }

    /// The account after the last step.
    ///
    /// # Panics
    /// When there was no step.
    #[track_caller]
    pub fn at_the_end(&self) -> Account {
        account(&self.steps.last().expect("a step").sample)
    }
}

/// The counters that must be the same before and after steps that undo each other. Free pages include pages on
/// per-CPU lists, because the list on which a free page lies is not defined.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    /// Per zone: spanned, present, managed, free; in pages.
    pub zones: Vec<(ZoneName, u64, u64, u64, u64)>,
    /// Number of memmap pages in boot memory and in hot-added memory.
    pub memmap: (u64, u64),
    /// Number of online memory blocks, including those of boot memory.
    pub blocks_online: u64,
    /// Plugged bytes per device.
    pub plugged: Vec<u64>,
    /// Bytes of host memory held per device.
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

/// The account of a sample.
///
/// # Panics
/// When the sample has no answer of a guest.
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
        plugged: sample.devices.iter().map(|device| device.plugged.0).collect(),
        held: sample.devices.iter().map(|device| device.held.map(|size| size.0)).collect(),
    }
}
