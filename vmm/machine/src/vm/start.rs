//! Starting a VM.

use std::sync::{Arc, Mutex, Weak};

use kvm_ioctls::{Cap, Kvm};
use tidevm_abi::Size;

use super::companion::{self, Companion};
use super::devices::event;
use super::events::{self, Sources};
use super::hardware::{self, Hardware};
use super::shared::VmShared;
use super::{Vm, VmHandle, console, signals};
use crate::boot::Files;
use crate::clock;
use crate::config::{Config, ConsoleMode};
use crate::confine::rules::Kind;
use crate::cpuid;
use crate::error::{StartError, host, kvm, no_kvm};
use crate::memory::slots::KvmSlots;
use crate::memory::{Memory, layout};
use crate::process::{Signals, Terminal, prepare_grace, room_for_threads};
use crate::sync::lock;

/// The version of KVM's interface. It has been the only one since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// The extensions of KVM that this VMM relies on.
const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];

/// Descriptors of a running VM that are opened late, besides one timer per device: each of the two loops' stop
/// event, twice, and epoll, the pause of the event loop. A few more let the embedder open a file.
const SPARE_DESCRIPTORS: usize = 10;

/// [`Vm::start_with`].
pub(super) fn start(config: Config, companions: Vec<Companion>) -> Result<Vm, StartError> {
    let started = clock::now();
    config.validate()?;
    let Files { kernel, initrd } = Files::open(&config)?;
    if kernel.is_own_guest() {
        config.validate_cpus(tidevm_abi::MAX_CPUS as u8)?;
    }
    let kvm = open_kvm(&config)?;
    // Before any thread is started: threads inherit the blocked signals.
    let (taken_signals, blocked_signals) = Signals::take().map_err(host("take over signals"))?;
    let machine = hardware::new_machine(&kvm)?;
    let sizes: Vec<_> = config.hotplug.iter().map(|hotplug| hotplug.size).collect();
    let slots = Box::new(KvmSlots::new(Arc::clone(&machine)));
    let memory = Memory::new(config.memory, &sizes, &config.pmem, slots)?;
    let (sink, input) = console::open(&config.console)?;
    let shared = Arc::new(VmShared::new(config, kernel, memory, sink, started)?);
    let mut hardware = Hardware::new(kvm, Arc::clone(&shared), initrd);
    let vcpus = hardware.assemble(machine)?;
    let hardware = Arc::new(Mutex::new(hardware));
    let terminal = match shared.config.console {
        ConsoleMode::Stdio => Terminal::take().map_err(host("take over the terminal"))?.map(Arc::new),
        _ => None,
    };
    check_descriptors(shared.config.hotplug.len())?;
    room_for_threads(2 + companions.len()).map_err(host("map a thread's stack"))?;
    // Every file is open now. What a thread gives away, the threads that it starts do not have either.
    let confinement = shared.config.confinement;
    if let Some(jail) = &shared.config.jail {
        jail.lock()?;
    }
    confinement.before_threads()?;
    prepare_grace(confinement)?;
    let for_signals = terminal.as_ref().map_or_else(Weak::new, Arc::downgrade);
    let signal_loop = signals::start(confinement, Arc::clone(&shared.state), taken_signals, for_signals)?;
    let sources = Sources { shared: Arc::clone(&shared), hardware: Arc::clone(&hardware), input };
    let events = events::start(sources)?;
    shared.check_budget();
    lock(&hardware).prepare()?;
    let handle = VmHandle { shared, hardware };
    let companions = companions.into_iter().map(|companion| companion::start(companion, &handle));
    let companions = companions.collect::<Result<Vec<_>, _>>()?;
    confinement.filter(Kind::Session)?;
    lock(&handle.hardware).run(vcpus);
    let Config { cpus, memory, .. } = handle.shared.config;
    log::info!("the machine runs: vCPUs {cpus}, boot memory {memory}");
    Ok(Vm {
        handle,
        _companions: companions,
        _events: events,
        _signal_loop: signal_loop,
        _terminal: terminal,
        _signals: blocked_signals,
    })
}

/// Checks that the process may open what the event loop and a look at the memory need. Their threads can only
/// die of a limit, so it is met here.
fn check_descriptors(devices: usize) -> Result<(), StartError> {
    let spare = (0..devices + SPARE_DESCRIPTORS).map(|_| event());
    spare.collect::<Result<Vec<_>, _>>().map(drop)
}

fn open_kvm(config: &Config) -> Result<Kvm, StartError> {
    let kvm = Kvm::new().map_err(|error| no_kvm(std::io::Error::from_raw_os_error(error.errno())))?;
    if kvm.get_api_version() != KVM_API_VERSION {
        return Err(StartError::Capability("version 12 of its interface"));
    }
    if let Some((_, name)) =
        CAPABILITIES.into_iter().find(|&(capability, _)| !kvm.check_extension(capability))
    {
        return Err(StartError::Capability(name));
    }
    let most = kvm.get_max_vcpus();
    if usize::from(config.cpus) > most {
        return Err(StartError::TooManyCpus { asked: config.cpus, most });
    }
    let cpuid = cpuid::supported_cpuid(&kvm).map_err(self::kvm("tell its CPUID"))?;
    check_reach(config, cpuid::address_bits(&cpuid))?;
    Ok(kvm)
}

/// Checks that addresses of `bits` bits reach all memory.
pub(super) fn check_reach(config: &Config, bits: u32) -> Result<(), StartError> {
    let limit = Size(1_u64.checked_shl(bits).unwrap_or(u64::MAX));
    match Size(layout::end(config.memory, config.region_sizes()).unwrap_or(u64::MAX)) {
        end if end > limit => Err(StartError::Unaddressable { end, limit }),
        _ => Ok(()),
    }
}
