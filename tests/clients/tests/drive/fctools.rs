//! `fctools`, an SDK for Firecracker in Rust: it spawns the program, configures it, and drives the machine.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::{VmApi, VmApiError};
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BootSource, CreateSnapshot, LoggerSystem, MachineConfiguration, MemoryHotplugConfiguration,
    MemoryHotplugStatus, MetricsSystem, UpdateMemoryHotplugConfiguration,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments, VmmLogLevel};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, ResourceType};
use serde_json::Value;

use super::{PATIENCE, folder, program};

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

const FILE: ResourceType = ResourceType::Created(CreatedResourceType::File);

/// A machine with 1 GiB of hotplug memory, and the folder of its files.
async fn machine(name: &str, init_method: InitMethod, folder: PathBuf) -> Machine {
    let mut resources = ResourceSystem::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared);
    let mut resource =
        |path: PathBuf, kind| resources.create_resource(path, kind).expect("a resource of the SDK");
    // The word for tidevm's own guest. The SDK moves no file whose place is right.
    let kernel_image = resource("builtin".into(), ResourceType::Moved(MovedResourceType::Copied));
    let data = VmConfigurationData {
        boot_source: BootSource { kernel_image, boot_args: None, initrd: None },
        drives: Vec::new(),
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: Some(false),
            track_dirty_pages: None,
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: Vec::new(),
        balloon_device: None,
        vsock_device: None,
        logger_system: Some(LoggerSystem {
            logs: Some(resource(folder.join("second.log"), FILE)),
            level: Some(VmmLogLevel::Warn),
            ..LoggerSystem::default()
        }),
        metrics_system: Some(MetricsSystem { metrics: resource(folder.join("metrics"), FILE) }),
        memory_hotplug_configuration: Some(MemoryHotplugConfiguration {
            total_size_mib: 1024,
            block_size_mib: Some(4),
            slot_size_mib: None,
        }),
        mmds_configuration: None,
        entropy_device: None,
    };
    let arguments = VmmArguments::new(VmmApiSocket::Enabled(folder.join("api.sock")))
        .log_level(VmmLogLevel::Info)
        .log_module("vmm")
        .show_log_level()
        .show_log_origin()
        .logs(resource(folder.join("first.log"), FILE));
    let executor = UnrestrictedVmmExecutor::new(arguments).id(VmmId::new(name).expect("a name"));
    let installation = VmmInstallation::new(program(), &folder.join("jailer"), &folder.join("editor"));
    let configuration = VmConfiguration::New { init_method, data };
    let mut machine =
        Vm::prepare(executor, resources, installation, configuration).await.expect("it is prepared");
    machine.start(PATIENCE).await.expect("it starts");
    machine
}

/// Runs one machine.
fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

async fn status(machine: &mut Machine) -> MemoryHotplugStatus {
    machine.get_memory_hotplug_status().await.expect("its memory")
}

/// Asks for a size until the guest's driver is there, and then waits until as much is plugged.
async fn resize(machine: &mut Machine, mib: usize) {
    let start = Instant::now();
    let pause = || tokio::time::sleep(Duration::from_millis(20));
    let update = || UpdateMemoryHotplugConfiguration { requested_size_mib: mib };
    while let Err(error) = machine.update_memory_hotplug_configuration(update()).await {
        let text = fault(error);
        assert!(text.ends_with("Device is not active"), "{text}");
        assert!(start.elapsed() < PATIENCE, "no driver within {PATIENCE:?}");
        pause().await;
    }
    loop {
        let memory = status(machine).await;
        assert_eq!(memory.requested_size_mib, mib, "{memory:?}");
        if memory.plugged_size_mib == mib {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {memory:?}");
        pause().await;
    }
}

/// The text of a fault that the API told.
fn fault(error: VmApiError) -> String {
    match error {
        VmApiError::ReceivedErrorResponse { status_code, fault_message } if status_code == 400 => {
            fault_message
        }
        error => panic!("{error}"),
    }
}

/// Asks the guest to power off. The SDK's own `cleanup` is not called: it removes a log that the arguments name twice, and
/// fails.
async fn end(machine: &mut Machine) {
    let action =
        VmShutdownAction { method: VmShutdownMethod::CtrlAltDel, timeout: Some(PATIENCE), graceful: true };
    let outcome = machine.shutdown([action]).await.expect("it ends");
    assert!(outcome.is_fully_graceful(), "{outcome:?}");
}

/// The calls of the SDK, each answered as by Firecracker.
pub fn by_calls() {
    run(async {
        let folder = folder("fctools");
        let mut machine = machine("fctools-1", InitMethod::ViaApiCalls, folder.clone()).await;
        let info = machine.get_info().await.expect("its state");
        assert_eq!(
            (info.id.as_str(), info.is_paused, info.app_name.as_str()),
            ("fctools-1", false, "tidevm")
        );
        assert_eq!(machine.get_firecracker_version().await.expect("a version"), "1.14.0");
        let config = machine.get_machine_configuration().await.expect("its configuration");
        assert_eq!((config.vcpu_count, config.mem_size_mib, config.smt), (1, 128, Some(false)));
        let memory = status(&mut machine).await;
        assert_eq!((memory.total_size_mib, memory.block_size_mib, memory.slot_size_mib), (1024, 4, 128));
        resize(&mut machine, 256).await;
        resize(&mut machine, 128).await;
        let odd = UpdateMemoryHotplugConfiguration { requested_size_mib: 3 };
        let refused = machine.update_memory_hotplug_configuration(odd).await.expect_err("no block of 4 MiB");
        assert!(fault(refused).contains("Size 3145728 is invalid"));

        machine.pause().await.expect("it stands still");
        assert!(machine.get_info().await.expect("its state").is_paused);
        let mut resource = |name: &str| {
            let resources = machine.get_resource_system_mut();
            resources
                .create_resource(folder.join(name), ResourceType::Produced)
                .expect("a resource of the SDK")
        };
        let snapshot =
            CreateSnapshot { snapshot_type: None, snapshot: resource("state"), mem_file: resource("memory") };
        let refused = machine.create_snapshot(snapshot).await.expect_err("tidevm has none");
        assert_eq!(
            fault(refused),
            "The requested operation is not supported: tidevm makes snapshots by its option --save"
        );
        machine.resume().await.expect("it goes on");
        assert_eq!(machine.get_state(), VmState::Running);

        machine.flush_metrics().await.expect("a line of metrics");
        let lines = std::fs::read_to_string(folder.join("metrics")).expect("the file");
        let line: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        assert_eq!(
            line["patch_api_requests"]["hotplug_memory_fails"].as_u64().map(|fails| fails >= 1),
            Some(true)
        );
        assert_eq!(line["memory_hotplug"]["plugged_bytes"], 128 << 20);
        end(&mut machine).await;
        assert!(!folder.join("api.sock").exists(), "its socket is gone");
        std::fs::remove_dir_all(folder).expect("it was there");
    });
}

/// The file that the SDK writes starts the machine at once.
pub fn from_a_file() {
    run(async {
        let folder = folder("fctools-file");
        let init = InitMethod::ViaJsonConfiguration(folder.join("machine.json"));
        let mut machine = machine("fctools-2", init, folder.clone()).await;
        assert_eq!(machine.get_info().await.expect("its state").id, "fctools-2");
        resize(&mut machine, 512).await;
        end(&mut machine).await;
        std::fs::remove_dir_all(folder).expect("it was there");
    });
}
