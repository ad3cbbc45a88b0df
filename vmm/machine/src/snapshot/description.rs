//! What a snapshot says of the machine that was saved: the part of [`Config`] that a guest can see.
//!
//! Where the console leads, how the process is locked in, and what a reset does belong to the process and not to the machine.
//! Kernel and RAM disk are read again at a restore, because a reset loads them again: they have to be the same files.

use std::ffi::OsString;
use std::fmt::Debug;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidevm_abi::cmdline::INIT_POLICIES;
use tidevm_abi::{Size, value_of, word_for};

use crate::config::{BalloonConfig, Config, DiskConfig, HotplugConfig, NodeConfig};

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    cpus: u8,
    memory: u64,
    /// Memory and vCPUs of each node.
    numa: Vec<(u64, u8)>,
    hotplug: Vec<Region>,
    pmem: Vec<u64>,
    /// Whether free memory is reported, and how often statistics come.
    balloon: Option<(bool, Option<Duration>)>,
    /// Bytes of the path of each disk, and whether it is read-only.
    disks: Vec<(Vec<u8>, bool)>,
    /// Bytes of the path.
    kernel: Option<Vec<u8>>,
    initrd: Option<Vec<u8>>,
    agent: bool,
    cmdline: Option<String>,
    memory_block: u64,
    memmap_on_memory: bool,
    pcp_disable: bool,
    init: String,
}

/// A hotplug region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Region {
    size: u64,
    device_block: u64,
    requested: u64,
    node: Option<u16>,
    extent: u64,
    offset: u64,
}

impl Description {
    /// The machine of `config`.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let region = |region: &HotplugConfig| Region {
            size: region.size.0,
            device_block: region.device_block.0,
            requested: region.requested.0,
            node: region.node,
            extent: region.extent.0,
            offset: region.offset.0,
        };
        let path = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
        Self {
            cpus: config.cpus,
            memory: config.memory.0,
            numa: config.numa.iter().map(|node| (node.memory.0, node.cpus)).collect(),
            hotplug: config.hotplug.iter().map(region).collect(),
            pmem: config.pmem.iter().map(|size| size.0).collect(),
            balloon: config.balloon.map(|balloon| (balloon.reporting, balloon.stats_interval)),
            disks: config.disks.iter().map(|disk| (path(&disk.path), disk.read_only)).collect(),
            kernel: config.kernel.as_ref().map(path),
            initrd: config.initrd.as_ref().map(path),
            agent: config.agent,
            cmdline: config.cmdline.clone(),
            memory_block: config.memory_block.0,
            memmap_on_memory: config.memmap_on_memory,
            pcp_disable: config.pcp_disable,
            init: word_for(INIT_POLICIES, &config.init).to_owned(),
        }
    }

    /// This machine, in a process as `base` has it.
    #[must_use]
    pub fn config(&self, base: Config) -> Config {
        let region = |region: &Region| HotplugConfig {
            size: Size(region.size),
            device_block: Size(region.device_block),
            requested: Size(region.requested),
            node: region.node,
            extent: Size(region.extent),
            offset: Size(region.offset),
        };
        let path = |bytes: &Vec<u8>| PathBuf::from(OsString::from_vec(bytes.clone()));
        let balloon = |(reporting, stats_interval)| BalloonConfig { reporting, stats_interval };
        let disk =
            |(bytes, read_only): &(Vec<u8>, bool)| DiskConfig { path: path(bytes), read_only: *read_only };
        Config {
            cpus: self.cpus,
            memory: Size(self.memory),
            numa: self.numa.iter().map(|&(memory, cpus)| NodeConfig { memory: Size(memory), cpus }).collect(),
            hotplug: self.hotplug.iter().map(region).collect(),
            pmem: self.pmem.iter().copied().map(Size).collect(),
            balloon: self.balloon.map(balloon),
            disks: self.disks.iter().map(disk).collect(),
            kernel: self.kernel.as_ref().map(path),
            initrd: self.initrd.as_ref().map(path),
            agent: self.agent,
            cmdline: self.cmdline.clone(),
            memory_block: Size(self.memory_block),
            memmap_on_memory: self.memmap_on_memory,
            pcp_disable: self.pcp_disable,
            init: value_of(INIT_POLICIES, &self.init).unwrap_or_default(),
            ..base
        }
    }

    /// The first thing in which the machine of `config` is another one, in words. Paths may differ: the files are compared.
    #[must_use]
    pub fn difference(&self, config: &Config) -> Option<String> {
        let other = Self::of(config);
        let size = |size: &u64| Size(*size).to_string();
        let file = |path: &Option<Vec<u8>>| path.as_ref().map(|_| "a file");
        let disks = |disks: &[(Vec<u8>, bool)]| -> Vec<_> {
            disks.iter().map(|(_, read_only)| if *read_only { "ro" } else { "writable" }).collect()
        };
        let regions = |regions: &[Region]| -> Vec<_> { regions.iter().map(Region::fixed).collect() };
        let differences = [
            differ("--cpus", &self.cpus, &other.cpus),
            differ("--memory", &size(&self.memory), &size(&other.memory)),
            differ("--numa", &self.numa, &other.numa),
            differ("--hotplug", &regions(&self.hotplug), &regions(&other.hotplug)),
            differ("--pmem", &self.pmem, &other.pmem),
            differ("--balloon", &self.balloon, &other.balloon),
            differ("--disk", &disks(&self.disks), &disks(&other.disks)),
            differ("--kernel", &file(&self.kernel), &file(&other.kernel)),
            differ("--initrd", &file(&self.initrd), &file(&other.initrd)),
            differ("--agent", &self.agent, &other.agent),
            differ("--cmdline", &self.cmdline, &other.cmdline),
            differ("--memory-block", &size(&self.memory_block), &size(&other.memory_block)),
            differ("--memmap-on-memory", &self.memmap_on_memory, &other.memmap_on_memory),
            differ("--pcp-disable", &self.pcp_disable, &other.pcp_disable),
            differ("--init", &self.init, &other.init),
        ];
        differences.into_iter().flatten().next()
    }

    /// Where the kernel was.
    #[must_use]
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_ref().map(|bytes| Path::new(std::ffi::OsStr::from_bytes(bytes)))
    }
}

impl Region {
    /// What cannot change while the machine lives, as text. The target can.
    fn fixed(&self) -> String {
        let node = self.node.map_or_else(String::new, |node| format!(",node={node}"));
        format!(
            "size={},block={}{node},extent={},offset={}",
            Size(self.size),
            Size(self.device_block),
            Size(self.extent),
            Size(self.offset)
        )
    }
}

fn differ<T: Debug + PartialEq>(option: &str, saved: &T, given: &T) -> Option<String> {
    (saved != given).then(|| format!("{option}: the saved machine has {saved:?}, and this one {given:?}"))
}

#[cfg(test)]
mod tests {
    use super::{Config, Description, HotplugConfig, Size};
    use crate::config::{BalloonConfig, DiskConfig, InitPolicy, NodeConfig};

    fn full() -> Config {
        Config {
            cpus: 2,
            memory: Size::mib(512),
            numa: vec![NodeConfig { memory: Size::mib(256), cpus: 1 }; 2],
            hotplug: vec![HotplugConfig { node: Some(1), ..HotplugConfig::new(Size::gib(2)) }],
            pmem: vec![Size::mib(128)],
            balloon: Some(BalloonConfig { reporting: true, stats_interval: None }),
            disks: vec![DiskConfig { path: "d".into(), read_only: true }],
            kernel: Some("k".into()),
            initrd: Some("i".into()),
            agent: true,
            cmdline: Some("quiet".to_owned()),
            memory_block: Size::mib(256),
            memmap_on_memory: false,
            pcp_disable: false,
            init: InitPolicy::Eager,
            ..Config::default()
        }
    }

    #[test]
    fn a_machine_comes_back_as_it_was_and_the_process_is_another_one() {
        let description = Description::of(&full());
        let base = Config { reboot: false, ..Config::default() };
        assert_eq!(description.config(base), Config { reboot: false, ..full() });
        assert_eq!(description.difference(&full()), None);
        let disk = DiskConfig { path: "elsewhere".into(), read_only: true };
        let moved = Config { kernel: Some("elsewhere".into()), disks: vec![disk], ..full() };
        assert_eq!(description.difference(&moved), None, "the content is compared");
    }

    #[test]
    fn another_machine_is_told_by_what_differs() {
        let differ = |change: fn(&mut Config)| {
            let mut config = full();
            change(&mut config);
            Description::of(&full()).difference(&config).unwrap_or_default()
        };
        let text = differ(|config| config.cpus = 4);
        assert_eq!(text, "--cpus: the saved machine has 2, and this one 4");
        let text = differ(|config| config.hotplug[0].size = Size::gib(4));
        assert!(text.contains("size=2G,block=2M,node=1,extent=256M") && text.contains("size=4G"), "{text}");
        let text = differ(|config| config.hotplug[0].offset = Size::mib(2));
        assert!(text.contains("offset=0") && text.contains("offset=2M"), "{text}");
        assert_eq!(differ(|config| config.hotplug[0].requested = Size::mib(2)), "", "the target changes");
        for (option, change) in [
            ("--memory:", (|config| config.memory = Size::gib(1)) as fn(&mut Config)),
            ("--numa:", |config| config.numa.truncate(1)),
            ("--hotplug:", |config| config.hotplug.clear()),
            ("--pmem:", |config| config.pmem.clear()),
            ("--balloon:", |config| config.balloon = None),
            ("--disk:", |config| config.disks.clear()),
            ("--disk:", |config| config.disks[0].read_only = false),
            ("--kernel:", |config| config.kernel = None),
            ("--initrd:", |config| config.initrd = None),
            ("--agent:", |config| config.agent = false),
            ("--cmdline:", |config| config.cmdline = None),
            ("--memory-block:", |config| config.memory_block = Size::mib(128)),
            ("--memmap-on-memory:", |config| config.memmap_on_memory = true),
            ("--pcp-disable:", |config| config.pcp_disable = true),
            ("--init:", |config| config.init = InitPolicy::Lazy),
        ] {
            let text = differ(change);
            assert!(text.starts_with(option), "{option} {text}");
        }
    }
}
