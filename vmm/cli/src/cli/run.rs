//! The options of `tidevm run`, and the [`Config`] that they are.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tidevm_abi::Size;
use tidevm_machine::{
    BalloonConfig, Config, ConsoleMode, ConsoleWatch, DiskConfig, HotplugConfig, InitPolicy, Jail,
    NodeConfig, Snapshot,
};
use tidevm_sizer::Wish;

use super::confine::{Filter, confinement};
use super::results::Results;
use super::values::{DEFAULT_ID, console, hotplug, id, init_policy, metrics_address, node, pmem, size};

/// `tidevm run`.
#[derive(Debug, Args)]
pub struct Run {
    /// vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Boot memory: 512M, 2G, 2GiB or bytes [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<Size>,
    /// A NUMA node and its part of boot memory and vCPUs; once per node, in their order
    #[arg(long, value_name = "memory=SIZE[,cpus=0]", value_parser = node)]
    numa: Vec<NodeConfig>,
    /// A hotplug region and its virtio-mem device; may be given several times
    #[arg(long, value_name = "size=SIZE[,block=2M][,requested=0][,node=0][,extent=256M][,offset=0]", value_parser = hotplug)]
    hotplug: Vec<HotplugConfig>,
    /// Size the machine by what its guest uses: boot memory and hotplug memory together
    #[arg(long, value_name = "min=SIZE,max=SIZE[,headroom=10%]", value_parser = str::parse::<Wish>)]
    pub auto: Option<Wish>,
    /// A range of device memory; may be given several times
    #[arg(long, value_name = "size=SIZE", value_parser = pmem)]
    pmem: Vec<Size>,
    /// A virtio-balloon device that is never inflated: the guest reports free memory, which the host takes back, and gives
    /// statistics
    #[arg(long, value_name = "reporting[,stats=1s]", value_parser = str::parse::<BalloonConfig>)]
    balloon: Option<BalloonConfig>,
    /// A disk on a raw image or on a block device of the host; may be given up to four times
    #[arg(long, value_name = "PATH[,ro]", value_parser = str::parse::<DiskConfig>)]
    disk: Vec<DiskConfig>,
    /// A bzImage or an ELF kernel with a PVH entry, instead of the built-in guest
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Put an agent in front of the initial RAM disk of a Linux kernel, so that its guest carries out steps of scripts
    #[arg(long)]
    agent: bool,
    /// Appended to the kernel's command line
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// When the guest initialises struct pages: eager, deferred or lazy [default: lazy]
    #[arg(long, value_name = "POLICY", value_parser = init_policy)]
    init: Option<InitPolicy>,
    /// The unit in which the guest adds and removes memory: a power of two from 128M to 2G [default: 128M]
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<Size>)]
    memory_block: Option<Size>,
    /// Whether the memmap of added memory lies in the added memory [default: on]
    #[arg(long, value_name = "on|off", value_enum, hide_possible_values = true)]
    memmap_on_memory: Option<Switch>,
    /// Whether per-CPU lists are disabled while a range goes offline [default: on]
    #[arg(long, value_name = "on|off", value_enum, hide_possible_values = true)]
    pcp_disable: Option<Switch>,
    /// Save the machine in this folder in place of its end; the folder is not there yet, or is empty
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Start from the snapshot in this folder. The machine is that of the snapshot: options that describe another one are refused
    #[arg(long, value_name = "DIR")]
    pub restore: Option<PathBuf>,
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
    /// Where to write a page about the session at its end
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// What CI wants of it.
    #[command(flatten)]
    pub results: Results,
    /// Where the guest's serial port leads: stderr, or off with a prompt, unless it is given; stdio reads terminals and
    /// pipes, not files; a file gets 64 MiB
    #[arg(long, value_name = "off|stderr|stdio|file:PATH|socket:PATH|connect:PATH", value_parser = console)]
    console: Option<ConsoleMode>,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Run {
    /// Whether a person at the terminal gets a prompt: nothing else reads it, and nothing but rows is written.
    pub fn allows_prompt(&self) -> bool {
        let stdout_is_free = !self.json && !self.results.take_stdout();
        self.script.is_none() && stdout_is_free && self.console != Some(ConsoleMode::Stdio)
    }

    /// The VM that the options describe, with or without a `prompt`. With a `snapshot` it is the saved one, except for what the
    /// options say.
    ///
    /// # Errors
    /// Two options use the same stream.
    pub fn config(&self, prompt: bool, snapshot: Option<&Snapshot>) -> Result<Config, String> {
        let usual = if prompt { ConsoleMode::Off } else { ConsoleMode::Stderr };
        let console = self.console.clone().unwrap_or(usual);
        let tap = self.results.take_stdout();
        if tap && self.json {
            return Err("--tap without a file and --json both write standard output".to_owned());
        }
        if console == ConsoleMode::Stdio {
            if tap {
                return Err("--console stdio and --tap without a file both write standard output".to_owned());
            }
            if self.json {
                return Err("--console stdio and --json both write standard output".to_owned());
            }
            if self.script.as_deref().is_some_and(|file| file.as_os_str() == "-") {
                return Err("--console stdio and --script - both read standard input".to_owned());
            }
        }
        let process = Config {
            console,
            watch: ConsoleWatch {
                kept: prompt || self.script.is_some(),
                alarms: !self.results.allow_warnings,
                copy: self.results.console(),
            },
            timeout: self.results.timeout,
            reboot: !self.no_reboot,
            // The script says whether it resets the machine, and is not read yet.
            resets: false,
            interactive: false,
            confinement: confinement(self.seccomp),
            jail: self.jail(),
            restore: snapshot.cloned(),
            ..Config::default()
        };
        Ok(self.machine(match snapshot {
            Some(snapshot) => snapshot.config(process).map_err(|error| error.to_string())?,
            None => process,
        }))
    }

    /// `base`, with what the options say of the machine.
    fn machine(&self, base: Config) -> Config {
        fn given<T: Clone>(list: &[T], base: Vec<T>) -> Vec<T> {
            if list.is_empty() { base } else { list.to_vec() }
        }
        let is_on = |switch: Option<Switch>, base| switch.map_or(base, |switch| switch == Switch::On);
        Config {
            cpus: self.cpus.unwrap_or(base.cpus),
            memory: self.memory.unwrap_or(base.memory),
            numa: given(&self.numa, base.numa),
            hotplug: given(&self.hotplug, base.hotplug),
            pmem: given(&self.pmem, base.pmem),
            balloon: self.balloon.or(base.balloon),
            disks: given(&self.disk, base.disks),
            kernel: self.kernel.clone().or(base.kernel),
            initrd: self.initrd.clone().or(base.initrd),
            agent: self.agent || base.agent,
            cmdline: self.cmdline.clone().or(base.cmdline),
            memory_block: self.memory_block.unwrap_or(base.memory_block),
            memmap_on_memory: is_on(self.memmap_on_memory, base.memmap_on_memory),
            pcp_disable: is_on(self.pcp_disable, base.pcp_disable),
            init: self.init.unwrap_or(base.init),
            ..base
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use tidevm_abi::Size;
    use tidevm_machine::{
        BalloonConfig, Config, Confinement, ConsoleMode, ConsoleWatch, DiskConfig, HotplugConfig, Jail,
        NodeConfig, Seccomp,
    };

    use crate::cli::{Action, Cli};

    fn config(options: &str) -> Result<Config, String> {
        let words = ["tidevm", "run"].into_iter().chain(options.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.action {
            Some(Action::Run(run)) => run.config(false, None),
            action => panic!("{action:?}"),
        }
    }

    #[test]
    fn without_options_it_is_the_default_machine() {
        let watch = ConsoleWatch { alarms: true, ..ConsoleWatch::default() };
        let locked_in = Config { confinement: Confinement::STRICT, watch, ..Config::default() };
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
                    extent: Size::gib(4),
                    offset: Size::mib(64),
                },
            ],
            pmem: vec![Size::gib(1), Size::mib(128)],
            balloon: Some(BalloonConfig { reporting: true, stats_interval: Some(Duration::from_secs(2)) }),
            disks: vec![
                DiskConfig { path: "/d.img".into(), read_only: false },
                DiskConfig { path: "seed,1".into(), read_only: true },
            ],
            kernel: Some("k".into()),
            initrd: Some("i".into()),
            agent: true,
            cmdline: Some("-a=b".to_owned()),
            memory_block: Size::gib(1),
            memmap_on_memory: false,
            init: tidevm_machine::InitPolicy::Eager,
            pcp_disable: false,
            console: ConsoleMode::File("a:b".into()),
            watch: ConsoleWatch { kept: true, alarms: false, copy: Some("d/console.log".into()) },
            timeout: Some(Duration::from_secs(300)),
            reboot: false,
            resets: false,
            interactive: false,
            confinement: Confinement { seccomp: Seccomp::Log, ..Confinement::STRICT },
            jail: Some(Jail { folder: "/j".into(), uid: 7, gid: 8 }),
            save: None,
            restore: None,
        };
        let options = "--cpus 2 --memory 512M --numa cpus=2,memory=512M --numa memory=0 \
                       --hotplug size=8G --hotplug requested=128M,size=1GiB,block=4M,node=1,extent=4G,offset=64M \
                       --pmem size=1G --pmem size=128M --balloon reporting,stats=2s \
                       --disk /d.img --disk seed,1,ro --kernel k --initrd i --agent --cmdline -a=b --init eager --memory-block 1G --memmap-on-memory off --pcp-disable off \
                       --console file:a:b --no-reboot --seccomp log --jail /j --uid 7 --gid 8 --script - --json \
                       --junit j --tap t --artifacts d --timeout 5m --allow-warnings";
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
            ("--hotplug size=8G,slots=2", "the keys are size, block, requested, node, extent and offset"),
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
            ("--console connect:", "socket:PATH, connect:PATH"),
            ("--console stdio --json", "both write standard output"),
            ("--console stdio --script -", "both read standard input"),
            ("--console stdio --tap", "--tap without a file both write standard output"),
            ("--tap --json", "both write standard output"),
            ("--timeout 5", "not a duration above 0 such as 200ms, 5s or 2m"),
            ("--timeout 0s", "not a duration above 0"),
            ("--balloon inflate", "not one of reporting and stats=INTERVAL"),
            ("--balloon stats=1ms", "from 100ms to"),
            ("--disk ,ro", "needs the path of a raw image"),
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
