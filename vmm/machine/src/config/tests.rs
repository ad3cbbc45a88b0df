//! Configurations that are accepted, and ones that are refused with advice.

use super::{Config, ConfigError, DEFAULT_DEVICE_BLOCK, HotplugConfig, NodeConfig, Size};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn with(hotplug: HotplugConfig) -> Config {
    Config { hotplug: vec![HotplugConfig::new(Size(GIB)), hotplug], ..Config::default() }
}

/// 512 MiB of boot memory and 4 vCPUs, on nodes with the given MiB and vCPUs.
fn on_nodes(nodes: &[(u64, u8)]) -> Config {
    let numa = nodes.iter().map(|&(mib, cpus)| NodeConfig { memory: Size(mib * MIB), cpus }).collect();
    Config { cpus: 4, memory: Size(512 * MIB), numa, ..Config::default() }
}

#[test]
fn possible_configurations_are_accepted() {
    let good = [
        Config::default(),
        Config { cpus: 64, memory: Size(32 * MIB), cmdline: Some("a=b c".to_owned()), ..Config::default() },
        Config { memory: Size(5 * GIB + 2 * MIB), ..Config::default() },
        Config { memory_block: Size(2 * GIB), ..with(HotplugConfig::new(Size(128 * MIB))) },
        with(HotplugConfig::new(Size(128 * MIB))),
        with(HotplugConfig {
            size: Size(2 * GIB),
            device_block: Size(128 * MIB),
            requested: Size(2 * GIB),
            node: Some(1),
            extent: Size(4 * GIB),
            offset: Size(128 * MIB),
        }),
        with(HotplugConfig {
            device_block: Size(4 * MIB),
            requested: Size(12 * MIB),
            ..HotplugConfig::new(Size(GIB))
        }),
        Config { hotplug: vec![HotplugConfig::new(Size(128 * MIB)); 16], ..Config::default() },
        on_nodes(&[(512, 4)]),
        on_nodes(&[(0, 1), (128, 0), (384, 3), (0, 0)]),
        Config { memory: Size(514 * MIB), ..on_nodes(&[(128, 4), (386, 0), (0, 0)]) },
        Config { pmem: vec![Size(128 * MIB); 8], ..Config::default() },
    ];
    for config in good {
        assert_eq!(config.validate(), Ok(()), "{config:?}");
    }
}

/// Every error names its place and what would be right.
#[test]
fn impossible_configurations_are_refused_with_advice() {
    let hotplug = |size, block, requested| {
        with(HotplugConfig {
            device_block: Size(block),
            requested: Size(requested),
            ..HotplugConfig::new(Size(size))
        })
    };
    let table: [(Config, &str); 27] = [
        (Config { cpus: 0, ..Config::default() }, "--cpus 0: there can be 1 to 64 vCPUs"),
        (Config { cpus: 65, ..Config::default() }, "--cpus 65: there can be 1 to 64 vCPUs"),
        (
            Config { cpus: 255, kernel: Some("vmlinux".into()), ..Config::default() },
            "--cpus 255: there can be 1 to 254 vCPUs",
        ),
        (
            Config { memory: Size(30 * MIB), ..Config::default() },
            "--memory 30M: the guest needs at least 32M",
        ),
        (Config { memory: Size(33 * MIB), ..Config::default() }, "--memory 33M: must be a multiple of 2M"),
        (
            Config { memory_block: Size(64 * MIB), ..Config::default() },
            "--memory-block 64M: must be a power of two from 128M to 2G",
        ),
        (
            Config { memory_block: Size(384 * MIB), ..Config::default() },
            "--memory-block 384M: must be a power of two from 128M to 2G",
        ),
        (
            hotplug(1000 * MIB, DEFAULT_DEVICE_BLOCK.0, 0),
            "--hotplug #1 size=1000M: must be a multiple of the guest's memory block, 128M (try 896M or 1G)",
        ),
        (
            hotplug(0, DEFAULT_DEVICE_BLOCK.0, 0),
            "--hotplug #1 size=0: must be a multiple of the guest's memory block, 128M (try 128M)",
        ),
        (hotplug(GIB, 3 * MIB, 0), "--hotplug #1 block=3M: must be a power of two from 1M to 1G"),
        (hotplug(GIB, MIB / 2, 0), "--hotplug #1 block=512K: must be a power of two from 1M to 1G"),
        (hotplug(2 * GIB, 2 * GIB, 0), "--hotplug #1 block=2G: must be a power of two from 1M to 1G"),
        (
            hotplug(384 * MIB, 256 * MIB, 0),
            "--hotplug #1 size=384M: must be a multiple of its block, 256M (try 256M or 512M)",
        ),
        (
            with(HotplugConfig { offset: Size(MIB), ..HotplugConfig::new(Size(GIB)) }),
            "--hotplug #1 offset=1M: must be a multiple of its block, 2M, and less than 1G",
        ),
        (
            with(HotplugConfig { offset: Size(GIB), ..HotplugConfig::new(Size(GIB)) }),
            "--hotplug #1 offset=1G: must be a multiple of its block, 2M, and less than 1G",
        ),
        (
            hotplug(GIB, DEFAULT_DEVICE_BLOCK.0, 3 * MIB),
            "--hotplug #1 requested=3M: must be a multiple of its block, 2M (try 2M or 4M)",
        ),
        (hotplug(GIB, DEFAULT_DEVICE_BLOCK.0, 2 * GIB), "--hotplug #1 requested=2G: the region has only 1G"),
        (
            with(HotplugConfig { node: Some(64), ..HotplugConfig::new(Size(GIB)) }),
            "--hotplug #1 node=64: nodes are numbered from 0 to 63",
        ),
        (
            Config { hotplug: vec![HotplugConfig::new(Size(GIB)); 19], ..Config::default() },
            "--hotplug given 19 times: the guest drives 16 devices at most",
        ),
        (
            Config { memory: Size(3 << 40), ..Config::default() },
            "boot memory, hotplug regions and device memory end at 3073G, beyond the 2T that a guest can address: \
             make --memory, --hotplug size= or --pmem size= smaller",
        ),
        (
            Config { pmem: vec![Size(GIB), Size(2 << 40)], ..Config::default() },
            "boot memory, hotplug regions and device memory end at 2053G, beyond the 2T that a guest can address: \
             make --memory, --hotplug size= or --pmem size= smaller",
        ),
        (
            Config { pmem: vec![Size(GIB), Size(130 * MIB)], ..Config::default() },
            "--pmem #1 size=130M: must be a multiple of the guest's memory block, 128M (try 128M or 256M)",
        ),
        (
            Config { pmem: vec![Size(0)], ..Config::default() },
            "--pmem #0 size=0: must be a multiple of the guest's memory block, 128M (try 128M)",
        ),
        (
            Config { pmem: vec![Size(GIB); 9], ..Config::default() },
            "--pmem given 9 times: the guest looks for 8 at most",
        ),
        (
            Config { cmdline: Some("a\nb".to_owned()), ..Config::default() },
            "--cmdline: byte 1 is not printable ASCII",
        ),
        (
            Config { cmdline: Some("quiet tidevm.innit=lazy".to_owned()), ..Config::default() },
            "--cmdline: `tidevm.innit=lazy` is no word of the built-in guest, whose own are \
             tidevm.memory_block=VALUE, tidevm.memmap_removal=VALUE, tidevm.pcp_disable=VALUE, tidevm.init=VALUE, \
             tidevm.deferred_grow=VALUE, tidevm.numa=VALUE, tidevm.deferred_workers=VALUE, \
             tidevm.device_init=VALUE, tidevm.zeroed=VALUE, tidevm.judge=VALUE",
        ),
        (
            Config { initrd: Some("initrd".into()), ..Config::default() },
            "--initrd: the built-in guest has no use for an initial RAM disk; leave it out, or give --kernel too",
        ),
    ];
    for (config, message) in table {
        assert_eq!(config.validate().unwrap_err().to_string(), message);
    }
}

#[test]
fn impossible_nodes_are_refused_with_advice() {
    for (config, message) in [
        (on_nodes(&[(0, 0); 65]), "--numa given 65 times: there can be 64 nodes"),
        (
            on_nodes(&[(256, 4), (128, 0)]),
            "--numa memory=: the nodes have 384M together, and --memory is 512M",
        ),
        (
            on_nodes(&[(1 << 43, 4), (1 << 43, 0)]),
            "--numa memory=: the nodes have 18446744073709551615 together",
        ),
        (on_nodes(&[(256, 4), (256, 1)]), "--numa cpus=: the nodes have 5 vCPUs together, and --cpus is 4"),
        (
            on_nodes(&[(0, 0), (200, 4), (312, 0)]),
            "--numa #1 memory=200M: must be a multiple of the guest's memory block, 128M (try 128M or 256M), \
             because another node's memory follows",
        ),
    ] {
        let text = config.validate().unwrap_err().to_string();
        assert!(text.starts_with(message), "{text}");
    }
}

#[test]
fn cpus_are_on_nodes_in_their_order() {
    assert!(on_nodes(&[(0, 1), (128, 0), (384, 3)]).cpu_nodes().eq([0, 2, 2, 2]));
    assert!(on_nodes(&[]).cpu_nodes().eq([0; 4]));
}

#[test]
fn sizes_near_the_end_of_64_bits_do_not_wrap() {
    let huge = !(128 * MIB - 1);
    for config in [
        Config { memory: Size(huge), ..Config::default() },
        with(HotplugConfig::new(Size(huge))),
        Config { memory: Size(huge), hotplug: vec![HotplugConfig::new(Size(huge)); 2], ..Config::default() },
    ] {
        assert!(matches!(config.validate(), Err(ConfigError::TooLarge { .. })), "{config:?}");
    }
}

#[test]
fn sizes_are_shown_as_they_are_given() {
    for (bytes, text) in
        [(0, "0"), (1536, "1536"), (2048, "2K"), (3 << 20, "3M"), (1 << 40, "1T"), (1025, "1025")]
    {
        assert_eq!(Size(bytes).to_string(), text);
    }
}
