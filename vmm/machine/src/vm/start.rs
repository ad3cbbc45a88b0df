//! Starting a machine, and what can be in the way.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::eventfd::EventFd;

use super::board::{self, Board};
use super::devices::Devices;
use super::{FIRST_CALL, Vm, lock};
use crate::boot::{BootError, Files};
use crate::config::{Config, ConfigError, ConsoleMode, Size};
use crate::cpuid;
use crate::events::{EventLoop, Sources};
use crate::memory::slots::KvmSlots;
use crate::memory::{Memory, MemoryError, layout};
use crate::process::{Signals, Terminal, standard_input};
use crate::serial::Sink;
use crate::vcpu::{Counters, Machine};

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
    /// More memory than the vCPUs can address.
    #[error(
        "boot memory, hotplug regions and device memory end at {}, beyond the {} that this host's CPU can \
         address: make --memory, --hotplug size= or --pmem size= smaller",
        Size(*.end), Size(*.limit)
    )]
    Unaddressable {
        /// Where the last of them would end.
        end: u64,
        /// Where addresses end.
        limit: u64,
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
            | Self::Unaddressable { .. }
            | Self::Console { .. } => 2,
            Self::NoKvm { .. } | Self::Capability(_) | Self::Kvm { .. } | Self::Host { .. } => 3,
        }
    }
}

/// For `map_err`: KVM failed at `what`.
pub(super) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StartError {
    move |error| StartError::Kvm { what, error: io::Error::from_raw_os_error(error.errno()) }
}

/// For `map_err`: the host failed at `what`.
pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::Host { what, error }
}

pub(super) fn event() -> Result<EventFd, StartError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("make an eventfd"))
}

pub(super) fn share(event: &EventFd) -> Result<EventFd, StartError> {
    event.try_clone().map_err(host("share an eventfd"))
}

pub(super) fn start(config: Config) -> Result<Vm, StartError> {
    let started = Instant::now();
    config.validate()?;
    let Files { kernel, initrd } = Files::open(&config)?;
    let has_agent = kernel.is_own_guest();
    if has_agent {
        config.validate_cpus(tidevm_abi::MAX_CPUS as u8)?;
    }
    let kvm_device = open_kvm(&config)?;
    let (signals, blocked_signals) = Signals::take().map_err(host("take over signals"))?;
    let vm = board::new_vm(&kvm_device)?;
    let sizes: Vec<_> = config.hotplug.iter().map(|hotplug| hotplug.size).collect();
    let slots = Box::new(KvmSlots::new(Arc::clone(&vm)));
    let memory = Arc::new(Memory::new(config.memory, &sizes, &config.pmem, slots)?);
    let stop = Arc::default();
    let mut devices = Devices::new(&config, &memory, started, &stop)?;
    let shared = Arc::clone(&devices.shared);
    let console = Arc::clone(&devices.console);
    let mem: Vec<_> = devices.mem.iter().map(|mem| Arc::clone(&mem.device)).collect();
    let serial = Arc::clone(&devices.serial);
    let boot_memory = config.memory;
    let device_memory = config.pmem.iter().sum();

    let stdio = config.console == ConsoleMode::Stdio;
    let reset = event()?;
    let machine = Arc::new(Machine {
        bus: devices.bus(),
        memory,
        shared: Arc::clone(&shared),
        kernel,
        reset: share(&reset)?,
        stop,
        over: AtomicBool::new(false),
        counters: (0..config.cpus).map(|_| Counters::default()).collect(),
    });
    let input = devices.input.take();
    let kicks = devices.kicks()?;
    let mut board = Board::new(config, kvm_device, devices, Arc::clone(&machine), initrd);
    let vcpus = board.assemble(vm)?;
    let terminal = if stdio { Terminal::take().map_err(host("take over the terminal"))? } else { None };
    let terminal = terminal.map(Arc::new);
    let board = Arc::new(Mutex::new(board));
    let resetting = Arc::clone(&board);
    let sources = Sources {
        shared,
        mem: mem.iter().cloned().zip(kicks.mem).collect(),
        console: Arc::clone(&console),
        console_kicks: kicks.console,
        reset: (reset, Box::new(move || lock(&resetting).reset())),
        signals,
        terminal: terminal.as_ref().map_or_else(Weak::new, Arc::downgrade),
        input,
    };
    let events = EventLoop::start(sources).map_err(host("start the event loop"))?;
    lock(&board).run(vcpus)?;
    Ok(Vm {
        machine,
        board,
        console,
        mem,
        serial,
        boot_memory,
        device_memory,
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
    let cpuid = cpuid::supported_cpuid(&kvm).map_err(self::kvm("tell its CPUID"))?;
    check_reach(config, cpuid::address_bits(&cpuid))?;
    Ok(kvm)
}

/// Whether all memory has addresses of so many bits.
pub(super) fn check_reach(config: &Config, bits: u32) -> Result<(), StartError> {
    let limit = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
    match layout::end(config.memory, config.region_sizes()).unwrap_or(u64::MAX) {
        end if end > limit => Err(StartError::Unaddressable { end, limit }),
        _ => Ok(()),
    }
}

/// Where the serial port's output goes, and where its input comes from.
pub(super) fn console(mode: &ConsoleMode) -> Result<(Sink, Option<File>), StartError> {
    let failed = |kind, path: &PathBuf| {
        let path = path.clone();
        move |error| StartError::Console { kind, path, error }
    };
    Ok(match mode {
        ConsoleMode::Off => (Sink::Lines(Box::new(io::sink())), None),
        ConsoleMode::Stderr => (Sink::Lines(Box::new(io::stderr())), None),
        ConsoleMode::Stdio => {
            let input = standard_input().map_err(host("open standard input"))?;
            let output = io::stdout().as_fd().try_clone_to_owned().map_err(host("share standard output"))?;
            (Sink::Bytes(Box::new(File::from(output))), Some(input))
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
