//! Machines before they start: bounds, defaults, order of calls. The texts are Firecracker's.

use serde_json::json;
use tidevm_abi::Size;
use tidevm_machine::{Config, HotplugConfig};

use super::{
    BUILTIN, Balloon, BootSource, Draft, HugePages, LoggerConfig, MachineUpdate, MemoryConfig, MetricsConfig,
};
use crate::body::Level;

fn boot(kernel: &str) -> BootSource {
    BootSource { kernel_image_path: kernel.to_owned(), ..BootSource::default() }
}

fn memory(total: u32, block: u32, slot: u32) -> Result<(), String> {
    let config = MemoryConfig { total_size_mib: total, block_size_mib: block, slot_size_mib: slot };
    Draft::default().set_memory(config)
}

#[test]
fn a_machine_that_is_configured_is_the_one_that_starts() {
    let mut draft = Draft::default();
    let base = Config { reboot: false, ..Config::default() };
    let missing = draft.config(&base).unwrap_err();
    assert_eq!(missing, "Start microvm error: Cannot start microvm without kernel configuration.");
    draft.set_boot(BootSource { boot_args: Some("a=b".to_owned()), ..boot(BUILTIN) }).unwrap();
    let defaults = draft.config(&base).unwrap();
    assert_eq!((defaults.cpus, defaults.memory, defaults.kernel), (1, Size::mib(128), None));
    let update = MachineUpdate { vcpu_count: Some(2), mem_size_mib: Some(512), ..MachineUpdate::default() };
    draft.set_machine(&update).unwrap();
    draft.set_memory(MemoryConfig { total_size_mib: 1024, block_size_mib: 4, slot_size_mib: 512 }).unwrap();
    let expected = Config {
        cpus: 2,
        memory: Size::mib(512),
        hotplug: vec![HotplugConfig { device_block: Size::mib(4), ..HotplugConfig::new(Size::gib(1)) }],
        cmdline: Some("a=b".to_owned()),
        reboot: false,
        ..Config::default()
    };
    assert_eq!(draft.config(&base), Ok(expected.clone()));
    assert_eq!(draft.slot_size_mib(), 512);
    let mut again = Draft::of(&expected);
    assert_eq!(again.config(&base), Ok(expected));
    // The second is 128 MiB behind 64 bits.
    for mib in [usize::MAX, (1 << 44) + 128] {
        again.set_machine(&MachineUpdate { mem_size_mib: Some(mib), ..MachineUpdate::default() }).unwrap();
        assert!(again.config(&base).unwrap().validate().is_err(), "a size beyond 64 bits is no small one");
    }
}

#[test]
fn bounds_of_a_machine_are_firecrackers() {
    let machine = |update| Draft::default().set_machine(&update);
    let none = MachineUpdate::default;
    let count = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an \
                 even number if SMT is enabled.";
    for (vcpu_count, smt) in [(0, false), (33, false), (3, true)] {
        let update = MachineUpdate { vcpu_count: Some(vcpu_count), smt: Some(smt), ..none() };
        assert_eq!(machine(update), Err(count.to_owned()), "{vcpu_count}");
    }
    assert_eq!(machine(MachineUpdate { vcpu_count: Some(32), ..none() }), Ok(()));
    let size = "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page \
                size.";
    assert_eq!(machine(MachineUpdate { mem_size_mib: Some(0), ..none() }), Err(size.to_owned()));
    let odd = MachineUpdate { mem_size_mib: Some(3), huge_pages: Some(HugePages::Transparent), ..none() };
    assert_eq!(machine(odd), Err(size.to_owned()));
    for update in [
        MachineUpdate { smt: Some(true), ..none() },
        MachineUpdate { track_dirty_pages: Some(true), ..none() },
        MachineUpdate { huge_pages: Some(HugePages::Hugetlbfs2M), ..none() },
        MachineUpdate { cpu_template: Some(super::CpuTemplate::T2), ..none() },
    ] {
        let mut draft = Draft::default();
        let fault = draft.set_machine(&update).unwrap_err();
        assert!(fault.starts_with("The requested operation is not supported: "), "{fault}");
        assert_eq!(draft.machine(), Draft::default().machine(), "nothing changed");
    }
}

#[test]
fn bounds_of_a_region_are_firecrackers() {
    let fault = |text: &str| Err(format!("Memory hotplug config error: {text}"));
    assert_eq!(memory(1024, 1, 128), fault("Block size must not be lower than 2 MiB"));
    assert_eq!(memory(1024, 6, 128), fault("Block size must be a power of 2"));
    assert_eq!(memory(1024, 2, 64), fault("Slot size must not be lower than 128 MiB"));
    assert_eq!(memory(1024, 64, 160), fault("Slot size must be a multiple of block size (64 MiB)"));
    assert_eq!(memory(64, 2, 128), fault("Total size must not be lower than slot size (128 MiB)"));
    assert_eq!(memory(200, 2, 128), fault("Total size must be a multiple of slot size (128 MiB)"));
    assert_eq!(memory(u32::MAX, 2, 128), fault("Total size must be a multiple of slot size (128 MiB)"));
    assert_eq!(memory(1024, 128, 1024), Ok(()));
    assert!(memory(1024, 256, 256).unwrap_err().contains("a block size of more than 128 MiB"));
    assert!(memory(144, 2, 144).unwrap_err().contains("no multiple of 128 MiB"));
}

#[test]
fn a_balloon_reports_and_gives_statistics_and_is_not_inflated() {
    let mut draft = Draft::default();
    draft.set_boot(boot(BUILTIN)).unwrap();
    let balloon = Balloon { free_page_reporting: true, stats_polling_interval_s: 2, ..Balloon::default() };
    draft.set_balloon(balloon).unwrap();
    let inflated = draft.set_balloon(Balloon { amount_mib: 8, ..balloon }).unwrap_err();
    assert_eq!(
        inflated,
        "The requested operation is not supported: a balloon that is inflated (amount_mib other than 0)"
    );
    assert_eq!((draft.balloon(), draft.full().balloon), (Some(balloon), Some(balloon)), "nothing changed");
    let config = draft.config(&Config::default()).unwrap();
    assert_eq!(config.balloon.unwrap().stats_interval, Some(std::time::Duration::from_secs(2)));
    assert_eq!(Draft::of(&config).balloon(), Some(balloon));
    let file = json!({
        "boot-source": { "kernel_image_path": "builtin" },
        "drives": [],
        "balloon": { "amount_mib": 0, "deflate_on_oom": true },
    });
    assert!(Draft::from_json(&file.to_string()).unwrap_err().ends_with("deflate_on_oom: true"));
}

#[test]
fn a_kernel_has_to_be_there() {
    let set = |boot| Draft::default().set_boot(boot).unwrap_err();
    assert_eq!(
        set(boot("foo.bar")),
        "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"
    );
    let initrd =
        BootSource { initrd_path: Some("foo.bar".to_owned()), ..boot(&file!().replace("vmm/api/", "")) };
    assert_eq!(
        set(initrd.clone()),
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. No such file \
         or directory (os error 2)"
    );
    assert!(set(boot("/dev/null")).ends_with("it is no regular file"), "a pipe would make the start wait");
    assert!(set(BootSource { kernel_image_path: BUILTIN.to_owned(), ..initrd }).contains("built-in guest"));
    let args = BootSource { boot_args: Some("a\n".to_owned()), ..boot(BUILTIN) };
    assert!(set(args).ends_with("byte 1 is not printable ASCII"));
}

#[test]
fn a_file_is_a_machine_in_firecrackers_words() {
    let file = json!({
        "boot-source": { "kernel_image_path": "builtin" },
        "drives": [],
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 256 },
        "memory-hotplug": { "total_size_mib": 1024 },
    });
    let windows = format!("\u{feff}{file:#}").replace('\n', "\r\n");
    let draft = Draft::from_json(&windows).unwrap();
    let config = draft.config(&Config::default()).unwrap();
    assert_eq!((config.cpus, config.hotplug.len()), (2, 1));
    let full = serde_json::to_value(draft.full()).unwrap();
    let expected = json!({
        "balloon": null, "drives": [], "cpu-config": null, "logger": null, "metrics": null, "mmds-config": null,
        "boot-source": { "kernel_image_path": "builtin", "initrd_path": null, "boot_args": null },
        "machine-config": {
            "vcpu_count": 2, "mem_size_mib": 256, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
        },
        "network-interfaces": [], "vsock": null, "entropy": null, "pmem": [],
        "memory-hotplug": { "total_size_mib": 1024, "block_size_mib": 2, "slot_size_mib": 128 },
    });
    assert_eq!(full, expected);
    let with = |key: &str, value| {
        let mut file = file.clone();
        file[key] = value;
        Draft::from_json(&file.to_string()).unwrap_err()
    };
    assert!(with("drives", json!([{}])).contains("tidevm does not have drives"));
    assert!(with("vsock", json!({})).contains("vsock"));
    assert!(Draft::from_json("{}").unwrap_err().contains("missing field `drives`"));
}

#[test]
fn a_file_wins_over_the_command_line() {
    let log = |path: Option<&str>, level| LoggerConfig {
        log_path: path.map(Into::into),
        level,
        ..LoggerConfig::default()
    };
    let mut draft = Draft { logger: Some(log(None, Some(Level::Info))), ..Draft::default() };
    draft.add_command_line(Some(log(Some("a"), Some(Level::Error))), None).unwrap();
    assert_eq!(draft.logger, Some(log(Some("a"), Some(Level::Info))));
    let mut alone = Draft::default();
    let metrics = || MetricsConfig { metrics_path: "m".into(), emit_id: false, properties: None };
    alone.add_command_line(Some(log(Some("a"), None)), Some(metrics())).unwrap();
    assert_eq!((&alone.logger, &alone.metrics), (&Some(log(Some("a"), None)), &Some(metrics())));
    assert!(alone.add_command_line(None, Some(metrics())).unwrap_err().contains("Reinitialization"));
    assert_eq!(alone.metrics, Some(metrics()));
}
