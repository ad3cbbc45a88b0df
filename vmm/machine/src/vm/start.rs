//! Starting a VM.

use std::sync::{Arc, Mutex, Weak};

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;
use tidevm_abi::Size;

use super::companion::{self, Companion};
use super::console::clients::Clients;
use super::console::{self, Console};
use super::devices::{event, share};
use super::disks;
use super::events::{self, Sources, Subscriber};
use super::hardware::{self, Hardware};
use super::input::Input;
use super::restore::{restore_devices, restore_memory, restored_cpuid};
use super::saver::{Saver, sums};
use super::shared::VmShared;
use super::signals::Ending;
use super::{Vm, VmHandle, signals};
use crate::boot::Files;
use crate::clock;
use crate::config::{Config, ConsoleMode, HotplugConfig};
use crate::confine::rules::Kind;
use crate::cpuid;
use crate::disk::Disk;
use crate::error::{StartError, host, kvm, no_kvm};
use crate::memory::slots::KvmSlots;
use crate::memory::{Memory, layout};
use crate::process::{Signals, Terminal, prepare_grace, room_for_threads};
use crate::requirements;
use crate::snapshot::opened::Snapshot;
use crate::sync::lock;

/// Descriptors of a running VM that are opened late, besides one timer per device: each of the two loops' stop
/// event, twice, and epoll, the pause of the event loop. A few more let the embedder open a file.
const SPARE_DESCRIPTORS: usize = 10;

/// [`Vm::start_with`].
pub(super) fn start(mut config: Config, companions: Vec<Companion>) -> Result<Vm, StartError> {
    let started = clock::now();
    config.validate()?;
    let Files { kernel, initrd } = Files::open(&config)?;
    if kernel.is_own_guest() {
        config.validate_cpus(tidevm_abi::MAX_CPUS as u8)?;
    }
    let disks = config.disks.iter().map(Disk::open).collect::<Result<Vec<_>, _>>()?;
    let (kvm, mut cpuid) = open_kvm(&config)?;
    let sums = || sums(&kernel, initrd.as_deref());
    let restored = config.restore.as_ref().map(Snapshot::restored).transpose()?;
    if let Some(restored) = &restored {
        restored.check_machine(&config, sums())?;
        restored.check_disks(&disks)?;
        cpuid = restored_cpuid(restored, &cpuid)?;
    }
    let saver = config.save.clone().map(|place| Saver::new(place, &kvm, sums())).transpose()?;
    // Before any thread is started: threads inherit the blocked signals.
    let (taken_signals, blocked_signals) =
        Signals::take(config.interactive).map_err(host("take over signals"))?;
    let machine = hardware::new_machine(&kvm)?;
    let places: Vec<_> = config.hotplug.iter().map(HotplugConfig::place).collect();
    let slots = Box::new(KvmSlots::new(Arc::clone(&machine)));
    let memory = Memory::new(config.memory, &places, &config.pmem, slots)?;
    if let Some(restored) = &restored {
        restore_memory(restored, &memory)?;
    }
    let Console { sink, copy, input, clients } = console::open(&mut config.console, &config.watch)?;
    let shared = Arc::new(VmShared::new(config, kernel, memory, disks, (sink, copy), saver, started)?);
    let clients: Option<Subscriber> =
        clients.map(|clients| Box::new(Clients::new(Arc::clone(&shared), clients)) as _);
    let mut hardware = Hardware::new((kvm, cpuid), Arc::clone(&shared), initrd);
    let vcpus = hardware.assemble(machine, restored.as_ref())?;
    if let Some(restored) = restored {
        restore_devices(&restored, &shared)?;
    }
    let hardware = Arc::new(Mutex::new(hardware));
    let config = &shared.config;
    let terminal = match config.console {
        ConsoleMode::Stdio => Terminal::take().map_err(host("take over the terminal"))?,
        _ if config.interactive => Terminal::remember().map_err(host("look at the terminal"))?,
        _ => None,
    };
    let terminal = terminal.map(Arc::new);
    check_descriptors(shared.config.mmio_devices())?;
    room_for_threads(2 + shared.config.disks.len() + companions.len())
        .map_err(host("map a thread's stack"))?;
    // Every file is open now. What a thread gives away, the threads that it starts do not have either.
    let confinement = shared.config.confinement;
    if let Some(jail) = &shared.config.jail {
        jail.lock()?;
    }
    confinement.before_threads()?;
    prepare_grace(confinement)?;
    let to_restore = terminal.as_ref().map_or_else(Weak::new, Arc::downgrade);
    let ending = Ending::new(Arc::clone(&shared.state), to_restore);
    let signal_loop = signals::start(confinement, taken_signals, ending.clone())?;
    let at_terminal = terminal.is_some() && shared.config.console == ConsoleMode::Stdio;
    let ending = at_terminal.then_some(ending);
    let input = input.map(|source| Box::new(Input::new(Arc::clone(&shared), source, ending)) as _);
    let console = input.into_iter().chain(clients).collect();
    let sources = Sources { shared: Arc::clone(&shared), hardware: Arc::clone(&hardware), console };
    let events = events::start(sources)?;
    let disks = (0..shared.config.disks.len()).map(|index| disks::start(&shared, index));
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    shared.check_budget();
    lock(&hardware).prepare()?;
    let handle = VmHandle { shared, hardware };
    let companions = companions.into_iter().map(|companion| companion::start(companion, &handle));
    let companions = companions.collect::<Result<Vec<_>, _>>()?;
    confinement.filter(Kind::Session { saves: handle.shared.saver.is_some() })?;
    lock(&handle.hardware).run(vcpus);
    let Config { cpus, memory, .. } = handle.shared.config;
    log::info!("the machine runs: vCPUs {cpus}, boot memory {memory}");
    Ok(Vm {
        handle,
        _companions: companions,
        _disks: disks,
        _events: events,
        _signal_loop: signal_loop,
        _terminal: terminal,
        _signals: blocked_signals,
    })
}

/// Checks that the process may open what the event loop and a look at the memory need. Their threads can only
/// die of a limit, so it is met here.
fn check_descriptors(devices: usize) -> Result<(), StartError> {
    // Copies of one event count as much as files of their own, and cost less.
    let first = event()?;
    let spare = (1..devices + SPARE_DESCRIPTORS).map(|_| share(&first));
    spare.collect::<Result<Vec<_>, _>>().map(drop)
}

/// KVM, and what its vCPUs have in common.
fn open_kvm(config: &Config) -> Result<(Kvm, CpuId), StartError> {
    let kvm = Kvm::new().map_err(|error| no_kvm(std::io::Error::from_raw_os_error(error.errno())))?;
    if let Some(missing) = requirements::missing(&kvm) {
        return Err(StartError::Capability(missing));
    }
    let most = kvm.get_max_vcpus();
    if usize::from(config.cpus) > most {
        return Err(StartError::TooManyCpus { asked: config.cpus, most });
    }
    let cpuid = cpuid::supported_cpuid(&kvm).map_err(self::kvm("tell its CPUID"))?;
    check_reach(config, cpuid::address_bits(&cpuid))?;
    Ok((kvm, cpuid))
}

/// Checks that addresses of `bits` bits reach all memory.
pub(super) fn check_reach(config: &Config, bits: u32) -> Result<(), StartError> {
    let limit = Size(1_u64.checked_shl(bits).unwrap_or(u64::MAX));
    match Size(layout::end(config.memory, config.places()).unwrap_or(u64::MAX)) {
        end if end > limit => Err(StartError::Unaddressable { end, limit }),
        _ => Ok(()),
    }
}
