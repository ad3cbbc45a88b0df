//! Putting a machine together.
//!
//! Order of the KVM calls: boot memslots, ioeventfds, interrupt chip, vCPUs. A change of slots or
//! of ioeventfds after the interrupt chip was made waits for a grace period of KVM, which makes
//! the same calls 50 times slower in another order. There is no PIT: guests have their local
//! APIC's timer.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{FIRST_CALL, Vm};
use crate::boot::{self, BootError, Image};
use crate::bus::Bus;
use crate::config::{Config, ConfigError, ConsoleMode};
use crate::cpu;
use crate::events::{EventLoop, Input, Sources};
use crate::memory::slots::KvmSlots;
use crate::memory::{Memory, MemoryError, layout};
use crate::process::{Signals, Terminal, standard_input};
use crate::serial::{self, Sink};
use crate::state::Shared;
use crate::vcpu::{Machine, Vcpus};
use crate::virtio::RegisterDevice;
use crate::virtio::console::Console;
use crate::virtio::mem::Mem;
use crate::virtio::mmio::QUEUE_NOTIFY;

/// The only version of the KVM interface there will be.
const KVM_API_VERSION: i32 = 12;

/// What this VMM needs of KVM, beside what every KVM has.
const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// More memory than the host can map.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// More vCPUs than KVM has.
    #[error("--cpus {asked}: this host's KVM has at most {most}")]
    TooManyCpus {
        /// vCPUs wanted.
        asked: u8,
        /// vCPUs possible.
        most: usize,
    },
    /// The console file cannot be written, or nobody listens at its socket.
    #[error("--console {kind}:{path}: {error}")]
    Console {
        /// `file` or `socket`.
        kind: &'static str,
        /// The file or the socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// There is no KVM, or not for this user.
    #[error("cannot open /dev/kvm: {error}. {}", advice(.error))]
    NoKvm {
        /// What the system says.
        error: io::Error,
    },
    /// KVM is too old, or not really KVM.
    #[error("/dev/kvm lacks {0}; a Linux kernel of this decade has it")]
    Capability(&'static str),
    /// A step of setting up KVM failed.
    #[error("KVM cannot {what}: {error}")]
    Kvm {
        /// The step.
        what: &'static str,
        /// What KVM says.
        error: io::Error,
    },
    /// The host gives no thread, descriptor or the like.
    #[error("the host cannot {what}: {error}")]
    Host {
        /// The step.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "Load the module of your CPU (modprobe kvm_intel or kvm_amd) and enable virtualization in the \
             firmware; inside a virtual machine or container, have it give you nested virtualization or the device. \
             From tidevm's sources, `cargo xtask nested -- tidevm ...` runs it on an emulated host"
        }
        io::ErrorKind::PermissionDenied => {
            "Add your user to the device's group (usermod -aG kvm USER, then log in again), or run as root"
        }
        _ => "See whether another hypervisor uses the CPU",
    }
}

impl StartError {
    /// The process's exit status: 2 when something else must be asked for, 3 when the host cannot.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Boot(_)
            | Self::Memory(_)
            | Self::TooManyCpus { .. }
            | Self::Console { .. } => 2,
            Self::NoKvm { .. } | Self::Capability(_) | Self::Kvm { .. } | Self::Host { .. } => 3,
        }
    }
}

/// For `map_err`: KVM failed at `what`.
fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StartError {
    move |error| StartError::Kvm { what, error: io::Error::from_raw_os_error(error.errno()) }
}

/// For `map_err`: the host failed at `what`.
fn host(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::Host { what, error }
}

fn event() -> Result<EventFd, StartError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("make an eventfd"))
}

fn share(event: &EventFd) -> Result<EventFd, StartError> {
    event.try_clone().map_err(host("share an eventfd"))
}

pub(super) fn start(config: &Config) -> Result<Vm, StartError> {
    let started = Instant::now();
    config.validate()?;
    let image = Image::open(config.kernel.as_deref())?;
    let has_agent = image.is_own_guest();
    let kvm_device = open_kvm(config)?;
    let (signals, blocked_signals) = Signals::take().map_err(host("take over signals"))?;
    let vm = Arc::new(kvm_device.create_vm().map_err(kvm("make a machine"))?);

    let sizes: Vec<_> = config.hotplug.iter().map(|hotplug| hotplug.size).collect();
    let memory = Arc::new(Memory::new(config.memory, &sizes, Box::new(KvmSlots::new(Arc::clone(&vm))))?);
    let devices = Devices::new(config, &memory, started)?;
    devices.register_kicks(&vm)?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm("place its own pages"))?;
    vm.create_irq_chip().map_err(kvm("make an interrupt chip"))?;
    let vcpus = make_vcpus(config, &kvm_device, &vm)?;
    devices.register_interrupts(&vm)?;

    let tsc_khz = vcpus[0].get_tsc_khz().map_err(kvm("tell the frequency of the TSC"))?;
    let entry = boot::load(config, &image, tsc_khz, &memory.view())?;
    cpu::enter_kernel(&vcpus[0], entry).map_err(kvm("set registers"))?;

    let stdio = config.console == ConsoleMode::Stdio;
    let terminal = if stdio { Terminal::take().map_err(host("take over the terminal"))? } else { None };
    let terminal = terminal.map(Arc::new);
    let machine = Arc::new(Machine {
        bus: devices.bus(),
        memory: Arc::clone(&memory),
        shared: Arc::clone(&devices.shared),
        kernel: image,
        stop: AtomicBool::new(false),
    });
    let sources = Sources {
        shared: Arc::clone(&devices.shared),
        mem: devices
            .mem
            .iter()
            .map(|mem| Ok((Arc::clone(&mem.device), share(&mem.kick)?)))
            .collect::<Result<_, StartError>>()?,
        console: Arc::clone(&devices.console),
        console_kicks: devices.console_kicks,
        signals,
        terminal: terminal.as_ref().map_or_else(Weak::new, Arc::downgrade),
        input: devices.input,
    };
    let events = EventLoop::start(sources).map_err(host("start the event loop"))?;
    let vcpus = Vcpus::start(vcpus, &machine).map_err(host("start a vCPU thread"))?;
    Ok(Vm {
        shared: devices.shared,
        vcpus,
        console: devices.console,
        mem: devices.mem.into_iter().map(|mem| mem.device).collect(),
        memory,
        serial: devices.serial,
        boot_memory: config.memory,
        has_agent,
        next_call: AtomicU32::new(FIRST_CALL),
        _events: events,
        _terminal: terminal,
        _signals: blocked_signals,
    })
}

fn open_kvm(config: &Config) -> Result<Kvm, StartError> {
    let kvm = Kvm::new()
        .map_err(|error| StartError::NoKvm { error: io::Error::from_raw_os_error(error.errno()) })?;
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
    Ok(kvm)
}

fn make_vcpus(config: &Config, kvm_device: &Kvm, vm: &VmFd) -> Result<Vec<VcpuFd>, StartError> {
    let cpuid = cpu::supported_cpuid(kvm_device).map_err(kvm("tell its CPUID"))?;
    (0..config.cpus)
        .map(|id| {
            let vcpu = vm.create_vcpu(id.into()).map_err(kvm("make a vCPU"))?;
            cpu::set_cpuid(&vcpu, &cpuid, id, config.cpus).map_err(kvm("set CPUID"))?;
            Ok(vcpu)
        })
        .collect()
}

/// Where the serial port's output goes, and where its input comes from.
fn console(mode: &ConsoleMode) -> Result<(Sink, Option<File>), StartError> {
    let failed = |kind, path: &PathBuf| {
        let path = path.clone();
        move |error| StartError::Console { kind, path, error }
    };
    Ok(match mode {
        ConsoleMode::Off => (Sink::Lines(Box::new(io::sink())), None),
        ConsoleMode::Stderr => (Sink::Lines(Box::new(io::stderr())), None),
        ConsoleMode::Stdio => {
            let input = standard_input().map_err(host("open standard input"))?;
            (Sink::Bytes(Box::new(io::stdout())), Some(input))
        }
        ConsoleMode::File(path) => {
            let file = File::create(path).map_err(failed("file", path))?;
            (Sink::RawLines(Box::new(file)), None)
        }
        ConsoleMode::Socket(path) => {
            let output = UnixStream::connect(path).map_err(failed("socket", path))?;
            let input = output.try_clone().map_err(host("share a socket"))?;
            (Sink::Bytes(Box::new(output)), Some(File::from(OwnedFd::from(input))))
        }
    })
}

/// All devices, and the events between them and KVM.
struct Devices {
    shared: Arc<Shared>,
    console: Arc<Mutex<Console>>,
    console_kicks: [EventFd; 2],
    mem: Vec<MemDevice>,
    serial: Arc<serial::Port>,
    serial_interrupt: EventFd,
    input: Option<Input>,
    /// Interrupt of the virtio-mmio device with the same index.
    interrupts: Vec<EventFd>,
}

struct MemDevice {
    device: Arc<Mutex<Mem>>,
    kick: EventFd,
}

impl Devices {
    /// virtio-mmio device 0 is the control channel, device `n + 1` runs hotplug region `n`.
    fn new(config: &Config, memory: &Arc<Memory>, started: Instant) -> Result<Self, StartError> {
        let regions = memory.regions().iter();
        let status = config
            .hotplug
            .iter()
            .zip(regions)
            .map(|(hotplug, region)| Mem::status_at_start(hotplug, region.start));
        let shared = Arc::new(Shared::new(started, status.collect()));

        let (serial_interrupt, serial_drained) = (event()?, event()?);
        let (sink, input) = console(&config.console)?;
        let serial = serial::Port::new(sink, share(&serial_interrupt)?, share(&serial_drained)?);
        let serial = Arc::new(serial);
        let input =
            input.map(|source| Input { source, serial: Arc::clone(&serial), drained: serial_drained });

        let mut interrupts = vec![event()?];
        let console_kicks = [event()?, event()?];
        let kicks = [share(&console_kicks[0])?, share(&console_kicks[1])?];
        let console = Console::new(Arc::clone(memory), Arc::clone(&shared), share(&interrupts[0])?, kicks)
            .map_err(host("make the control channel"))?;

        let mut mem = Vec::new();
        for (index, hotplug) in config.hotplug.iter().enumerate() {
            let (interrupt, kick) = (event()?, event()?);
            let (memory, shared) = (Arc::clone(memory), Arc::clone(&shared));
            let device = Mem::new(index, hotplug, memory, shared, share(&interrupt)?, share(&kick)?)
                .map_err(host("make a virtio-mem device"))?;
            interrupts.push(interrupt);
            mem.push(MemDevice { device: Arc::new(Mutex::new(device)), kick });
        }
        Ok(Self {
            shared,
            console: Arc::new(Mutex::new(console)),
            console_kicks,
            mem,
            serial,
            serial_interrupt,
            input,
            interrupts,
        })
    }

    fn bus(&self) -> Bus {
        let mut devices: Vec<Arc<Mutex<dyn RegisterDevice>>> = vec![Arc::clone(&self.console) as _];
        devices.extend(self.mem.iter().map(|mem| Arc::clone(&mem.device) as _));
        Bus::new(devices, Arc::clone(&self.serial))
    }

    /// Has KVM turn writes to the notify registers into events, without an exit to a vCPU thread.
    fn register_kicks(&self, vm: &VmFd) -> Result<(), StartError> {
        let console = self.console_kicks.iter().enumerate().map(|(queue, kick)| (0, queue, kick));
        let mem = self.mem.iter().enumerate().map(|(index, mem)| (index + 1, 0, &mem.kick));
        for (device, queue, kick) in console.chain(mem) {
            let address = IoEventAddress::Mmio(layout::mmio(device).0 + QUEUE_NOTIFY);
            vm.register_ioevent(kick, &address, queue as u32).map_err(kvm("register an ioeventfd"))?;
        }
        Ok(())
    }

    /// Has KVM turn events into interrupts.
    fn register_interrupts(&self, vm: &VmFd) -> Result<(), StartError> {
        let register = |event, gsi| vm.register_irqfd(event, gsi).map_err(kvm("register an irqfd"));
        register(&self.serial_interrupt, layout::SERIAL_GSI)?;
        for (index, interrupt) in self.interrupts.iter().enumerate() {
            register(interrupt, layout::gsi(index))?;
        }
        Ok(())
    }
}
