//! The command line: its options become a [`Config`] and the name of the session's script.
//!
//! Only syntax is checked here. [`Config::validate`] refuses a VM that cannot be built.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tidevm_abi::cmdline::INIT_POLICIES;
use tidevm_abi::{MEMORY_BLOCK_SIZE, Size};
use tidevm_lab::experiment;
use tidevm_machine::config::DEFAULT_MEMORY;
use tidevm_machine::{
    BalloonConfig, Config, Confinement, ConsoleMode, HotplugConfig, InitPolicy, Jail, NodeConfig, Seccomp,
};

/// A microVM whose memory rises and falls.
#[derive(Debug, Parser)]
#[command(name = "tidevm", version, arg_required_else_help = true, after_help = STATUSES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// What to do without a subcommand.
    #[command(flatten)]
    pub spawn: Spawn,
}

/// `tidevm` without a subcommand: Firecracker's form.
#[derive(Debug, Args)]
pub struct Spawn {
    /// Firecracker's form: a socket for its API, by which a machine is configured and started
    #[arg(long, value_name = "PATH", required_unless_present = "no_api")]
    pub api_sock: Option<PathBuf>,
    /// The name of the machine: letters, digits and hyphens, at most 64
    #[arg(long, value_name = "ID", default_value = DEFAULT_ID, value_parser = id)]
    pub id: String,
    /// A machine in Firecracker's JSON, which starts at once
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// No socket
    #[arg(long, requires = "config_file", conflicts_with = "api_sock")]
    pub no_api: bool,
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
    /// The same as --seccomp off, as Firecracker spells it
    #[arg(long, conflicts_with = "seccomp")]
    no_seccomp: bool,
}

impl Spawn {
    /// What Firecracker's interface does not say about a machine.
    pub fn base(&self) -> Config {
        let filter = if self.no_seccomp { Filter::Off } else { self.seccomp };
        Config { console: ConsoleMode::Stdio, confinement: confinement(filter), ..Config::default() }
    }
}

/// The name of a machine that was given none, as in Firecracker.
const DEFAULT_ID: &str = "anonymous-instance";

fn id(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("not 1 to 64 letters, digits and hyphens".to_owned())
    }
}

const STATUSES: &str = "\
Exit status:
  0  the session did what it asked
  1  an expectation failed, a resize was refused, blocked or too late, or an experiment did not
     show what it should
  2  bad usage, configuration or script
  3  the host cannot run it, or refuses what it needs to go on
  4  the guest died, or reset the machine under --no-reboot
  128 + N  a script was ended by signal N
  159  a thread made a system call that it has no use for: a fault of tidevm, or an attack";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Boot, grow, use, shrink under use, verify, power off
    Demo(Demo),
    /// Run a machine, with a script or until it is ended
    Run(Box<Run>),
    /// Resize, watch or end a running machine
    Ctl(Ctl),
    /// Show what a mechanism prevents: the guest with it off and on, side by side
    Experiment(Experiment),
    /// Work with scripts, without a machine
    Script {
        /// What to do with one.
        #[command(subcommand)]
        action: ScriptAction,
    },
}

/// `tidevm ctl`.
#[derive(Debug, Args)]
#[command(after_help = crate::ctl::COMMANDS)]
pub struct Ctl {
    /// The socket of the machine's API
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
    /// One JSON object per line on standard output
    #[arg(long)]
    pub json: bool,
    /// What to do, as in a script
    #[arg(required = true, value_name = "COMMAND")]
    pub words: Vec<String>,
}

/// `tidevm demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
}

/// `tidevm script`.
#[derive(Debug, Subcommand)]
pub enum ScriptAction {
    /// Parse a script and report every error with its line and column
    Check {
        /// The script, - for standard input
        file: PathBuf,
    },
}

/// `tidevm experiment`.
#[derive(Debug, Args)]
pub struct Experiment {
    /// Which one, or all of them
    #[arg(value_name = "NAME|all", value_parser = experiments())]
    pub name: String,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Where to write experiments.txt, experiments.json and experiments.html; with `all` the current
    /// directory by default
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
}

impl Experiment {
    /// What the process and each session give away.
    pub fn confinement(&self) -> Confinement {
        confinement(self.seccomp)
    }
}

fn experiments() -> PossibleValuesParser {
    PossibleValuesParser::new(experiment::ALL.iter().map(|experiment| experiment.name).chain(["all"]))
}

/// `tidevm run`.
#[derive(Debug, Args)]
pub struct Run {
    /// vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Boot memory: 512M, 2G, 2GiB or bytes
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_MEMORY, value_parser = size)]
    memory: Size,
    /// A NUMA node and its part of boot memory and vCPUs; once per node, in their order
    #[arg(long, value_name = "memory=SIZE[,cpus=0]", value_parser = node)]
    numa: Vec<NodeConfig>,
    /// A hotplug region and its virtio-mem device; may be given several times
    #[arg(long, value_name = "size=SIZE[,block=2M][,requested=0][,node=0]", value_parser = hotplug)]
    hotplug: Vec<HotplugConfig>,
    /// A range of device memory; may be given several times
    #[arg(long, value_name = "size=SIZE", value_parser = pmem)]
    pmem: Vec<Size>,
    /// A virtio-balloon device: the guest reports free memory, which the host takes back, and gives statistics
    #[arg(long, value_name = "reporting[,stats=1s]", value_parser = str::parse::<BalloonConfig>)]
    balloon: Option<BalloonConfig>,
    /// A bzImage or an ELF kernel with a PVH entry, instead of the built-in guest
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Appended to the kernel's command line
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// When the guest initialises struct pages: eager, deferred or lazy
    #[arg(long, value_name = "POLICY", default_value_t, value_parser = init_policy)]
    init: InitPolicy,
    /// The unit in which the guest adds and removes memory: a power of two from 128M to 2G
    #[arg(long, value_name = "SIZE", default_value_t = Size(MEMORY_BLOCK_SIZE), value_parser = str::parse::<Size>)]
    memory_block: Size,
    /// Whether the memmap of added memory lies in the added memory
    #[arg(long, value_name = "on|off", value_enum, hide_possible_values = true, default_value_t = Switch::On)]
    memmap_on_memory: Switch,
    /// Whether per-CPU lists are disabled while a range goes offline
    #[arg(long, value_name = "on|off", value_enum, hide_possible_values = true, default_value_t = Switch::On)]
    pcp_disable: Switch,
    /// What to do with the machine, one command per line; - for standard input
    #[arg(long, value_name = "FILE|-")]
    pub script: Option<PathBuf>,
    /// A socket for Firecracker's API, beside the script
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,
    /// Where Prometheus reads metrics, and nothing else; a port alone is one of this host's own address, 127.0.0.1
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics_address, requires = "api_sock")]
    pub metrics_listen: Option<SocketAddr>,
    /// The machine's name in the API
    #[arg(long, value_name = "ID", default_value = DEFAULT_ID, value_parser = id, requires = "api_sock")]
    pub id: String,
    /// One JSON object per line on standard output
    #[arg(long)]
    pub json: bool,
    /// Where the guest's serial port leads; stdio reads terminals and pipes, not files; a file gets 64 MiB
    #[arg(long, value_name = "off|stderr|stdio|file:PATH|socket:PATH", default_value = "stderr", value_parser = console)]
    console: ConsoleMode,
    /// Take a reset for a death of the guest (status 4), instead of booting it again
    #[arg(long)]
    no_reboot: bool,
    /// At a system call that a thread has no use for: nothing, let the kernel log it, or end with a report (status 159)
    #[arg(long, value_name = "off|log|on", value_enum, hide_possible_values = true, default_value_t = Filter::On)]
    seccomp: Filter,
    /// For root: a folder that becomes the root of the process, which is alone in it
    #[arg(long, value_name = "DIR", requires_all = ["uid", "gid"])]
    jail: Option<PathBuf>,
    /// The user that the process in the jail becomes
    #[arg(long, value_name = "N", requires = "jail", value_parser = clap::value_parser!(u32).range(1..))]
    uid: Option<u32>,
    /// The group that the process in the jail becomes
    #[arg(long, value_name = "N", requires = "jail", value_parser = clap::value_parser!(u32).range(1..))]
    gid: Option<u32>,
}

impl Run {
    /// The jail, which clap gives all three or none of its options.
    fn jail(&self) -> Option<Jail> {
        Some(Jail { folder: self.jail.clone()?, uid: self.uid?, gid: self.gid? })
    }
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Filter {
    Off,
    Log,
    On,
}

/// Everything is given away, system calls as `filter` says.
fn confinement(filter: Filter) -> Confinement {
    let seccomp = match filter {
        Filter::Off => Seccomp::Off,
        Filter::Log => Seccomp::Log,
        Filter::On => Seccomp::On,
    };
    Confinement { seccomp, ..Confinement::STRICT }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Run {
    /// The VM that the options describe.
    ///
    /// # Errors
    /// Two options use the same stream.
    pub fn config(&self) -> Result<Config, String> {
        if self.console == ConsoleMode::Stdio {
            if self.json {
                return Err("--console stdio and --json both write standard output".to_owned());
            }
            if self.script.as_deref().is_some_and(|file| file.as_os_str() == "-") {
                return Err("--console stdio and --script - both read standard input".to_owned());
            }
        }
        Ok(Config {
            cpus: self.cpus,
            memory: self.memory,
            numa: self.numa.clone(),
            hotplug: self.hotplug.clone(),
            pmem: self.pmem.clone(),
            balloon: self.balloon,
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            memory_block: self.memory_block,
            memmap_on_memory: self.memmap_on_memory == Switch::On,
            pcp_disable: self.pcp_disable == Switch::On,
            init: self.init,
            console: self.console.clone(),
            reboot: !self.no_reboot,
            // The script says whether it resets the machine, and is not read yet.
            resets: false,
            confinement: confinement(self.seccomp),
            jail: self.jail(),
        })
    }
}

impl Demo {
    /// The VM of `tidevm demo`.
    pub fn config(&self) -> Config {
        Config {
            cpus: 2,
            memory: Size::mib(256),
            hotplug: vec![HotplugConfig::new(Size::gib(8))],
            console: ConsoleMode::Off,
            confinement: confinement(self.seccomp),
            ..Config::default()
        }
    }
}

fn init_policy(text: &str) -> Result<InitPolicy, String> {
    tidevm_abi::value_of(INIT_POLICIES, text).ok_or_else(|| {
        let words: Vec<_> = INIT_POLICIES.iter().map(|(word, _)| *word).collect();
        format!("unknown; the policies are: {}", words.join(", "))
    })
}

fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let port = || text.parse().ok().map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    text.parse()
        .ok()
        .or_else(port)
        .ok_or_else(|| "not a port, or an address and a port such as 127.0.0.1:9100".to_owned())
}

fn size(text: &str) -> Result<Size, String> {
    text.parse::<Size>().map_err(|error| error.to_string())
}

fn hotplug(text: &str) -> Result<HotplugConfig, String> {
    let mut config = HotplugConfig::new(Size(0));
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
        let read = || size(value).map_err(|error| format!("{key}={value}: {error}"));
        match key {
            "size" => config.size = read()?,
            "block" => config.device_block = read()?,
            "requested" => config.requested = read()?,
            "node" => config.node = Some(value.parse().map_err(|error| format!("node={value}: {error}"))?),
            _ => return Err(format!("unknown key `{key}`; the keys are size, block, requested and node")),
        }
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
    }
    if seen.contains(&"size") { Ok(config) } else { Err("size=SIZE is missing".to_owned()) }
}

fn node(text: &str) -> Result<NodeConfig, String> {
    let mut config = NodeConfig::default();
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
        match key {
            "memory" => config.memory = size(value).map_err(|error| format!("memory={value}: {error}"))?,
            "cpus" => config.cpus = value.parse().map_err(|error| format!("cpus={value}: {error}"))?,
            _ => return Err(format!("unknown key `{key}`; the keys are memory and cpus")),
        }
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
    }
    if seen.contains(&"memory") { Ok(config) } else { Err("memory=SIZE is missing (0 for none)".to_owned()) }
}

fn pmem(text: &str) -> Result<Size, String> {
    let value = text.strip_prefix("size=").ok_or_else(|| format!("`{text}` is not size=SIZE"))?;
    size(value).map_err(|error| format!("size={value}: {error}"))
}

fn console(text: &str) -> Result<ConsoleMode, String> {
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleMode::File(PathBuf::from(path))),
        Some(("socket", path)) if !path.is_empty() => Ok(ConsoleMode::Socket(PathBuf::from(path))),
        None if text == "off" => Ok(ConsoleMode::Off),
        None if text == "stderr" => Ok(ConsoleMode::Stderr),
        None if text == "stdio" => Ok(ConsoleMode::Stdio),
        _ => Err("not one of off, stderr, stdio, file:PATH, socket:PATH".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, BalloonConfig, Cli, Confinement, HotplugConfig, Jail, NodeConfig, Seccomp, Size};
    use clap::{CommandFactory, Parser};
    use std::time::Duration;
    use tidevm_machine::{Config, ConsoleMode};

    fn config(options: &str) -> Result<Config, String> {
        let words = ["tidevm", "run"].into_iter().chain(options.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.action {
            Some(Action::Run(run)) => run.config(),
            action => panic!("{action:?}"),
        }
    }

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_options_it_is_the_default_machine() {
        let locked_in = Config { confinement: Confinement::STRICT, ..Config::default() };
        assert_eq!(config(""), Ok(locked_in));
    }

    #[test]
    fn every_option_arrives() {
        let expected = Config {
            cpus: 2,
            memory: Size::mib(512),
            numa: vec![NodeConfig { memory: Size::mib(512), cpus: 2 }, NodeConfig::default()],
            hotplug: vec![
                HotplugConfig::new(Size::gib(8)),
                HotplugConfig {
                    size: Size::gib(1),
                    device_block: Size::mib(4),
                    requested: Size::mib(128),
                    node: Some(1),
                },
            ],
            pmem: vec![Size::gib(1), Size::mib(128)],
            balloon: Some(BalloonConfig { reporting: true, stats_interval: Some(Duration::from_secs(2)) }),
            kernel: Some("k".into()),
            initrd: Some("i".into()),
            cmdline: Some("-a=b".to_owned()),
            memory_block: Size::gib(1),
            memmap_on_memory: false,
            init: tidevm_machine::InitPolicy::Eager,
            pcp_disable: false,
            console: ConsoleMode::File("a:b".into()),
            reboot: false,
            resets: false,
            confinement: Confinement { seccomp: Seccomp::Log, ..Confinement::STRICT },
            jail: Some(Jail { folder: "/j".into(), uid: 7, gid: 8 }),
        };
        let options = "--cpus 2 --memory 512M --numa cpus=2,memory=512M --numa memory=0 \
                       --hotplug size=8G --hotplug requested=128M,size=1GiB,block=4M,node=1 \
                       --pmem size=1G --pmem size=128M --balloon reporting,stats=2s \
                       --kernel k --initrd i --cmdline -a=b --init eager --memory-block 1G --memmap-on-memory off --pcp-disable off \
                       --console file:a:b --no-reboot --seccomp log --jail /j --uid 7 --gid 8 --script - --json";
        assert_eq!(config(options), Ok(expected));
    }

    #[test]
    fn bad_options_are_refused_with_what_would_be_right() {
        let bad = [
            ("--memory 2X", "not a size such as 512M"),
            ("--memory 99999999T", "not a size"),
            ("--cpus 300", "300 is not in 0..=255"),
            ("--hotplug 8G", "`8G` is not KEY=VALUE"),
            ("--hotplug block=2M", "size=SIZE is missing"),
            ("--hotplug size=8G,size=9G", "size is given twice"),
            ("--hotplug size=8G,slots=2", "the keys are size, block, requested and node"),
            ("--hotplug size=8Q", "size=8Q: not a size"),
            ("--hotplug size=8G,node=x", "node=x: invalid digit"),
            ("--numa 512M", "`512M` is not KEY=VALUE"),
            ("--numa cpus=2", "memory=SIZE is missing (0 for none)"),
            ("--numa memory=1G,memory=1G", "memory is given twice"),
            ("--numa memory=1G,node=1", "the keys are memory and cpus"),
            ("--numa memory=1X", "memory=1X: not a size"),
            ("--numa memory=1G,cpus=-1", "cpus=-1: invalid digit"),
            ("--init sloth", "the policies are: eager, deferred, lazy"),
            ("--memmap-on-memory yes", "possible values: on, off"),
            ("--seccomp yes", "possible values: off, log, on"),
            ("--jail /j --uid 7", "--gid <N>"),
            ("--uid 7", "--jail <DIR>"),
            ("--jail /j --uid 0 --gid 7", "0 is not in 1.."),
            ("--console tty", "off, stderr, stdio, file:PATH"),
            ("--console file:", "off, stderr, stdio, file:PATH, socket:PATH"),
            ("--console socket:", "off, stderr, stdio, file:PATH, socket:PATH"),
            ("--console stdio --json", "both write standard output"),
            ("--console stdio --script -", "both read standard input"),
            ("--balloon inflate", "not one of reporting and stats=INTERVAL"),
            ("--balloon stats=1ms", "from 100ms to"),
            ("--pmem 1G", "`1G` is not size=SIZE"),
            ("--pmem size=1Q", "size=1Q: not a size"),
            ("--pmem size=1G,path=x", "not a size"),
        ];
        for (options, message) in bad {
            let error = config(options).expect_err(options);
            assert!(error.contains(message), "{options}: {error}");
        }
    }
}
