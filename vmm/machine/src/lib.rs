//! A virtual machine on KVM whose memory grows and shrinks, as a library.
//!
//! A [`Config`] describes the VM, [`Vm::start`] starts it, and [`Vm`] resizes it, waits for its guest, calls
//! the guest, and stops it. Unless the configuration names a kernel, the VM boots [`GUEST_IMAGE`].
//! `examples/resize.rs` does all of it once.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`config`] | the description of a VM, and whether such a VM is possible | the host |
//! | `vm` | a running VM: its API, KVM, vCPU threads, event loop | scripts, tables |
//! | `state` | the guest's state as known from outside, and waiting for changes | KVM, queues |
//! | `memory` | guest RAM: host mappings, memslots, the VMM's own view | virtio |
//! | `boot` | loading a kernel, and the memory map, tables and command line it reads | devices |
//! | `cpuid` | what CPUID tells the guest about its vCPUs | kernels |
//! | `virtio` | MMIO transport, virtio-mem, the balloon, disks and the control channel | KVM |
//! | `disk` | the file behind a disk of the guest | virtio queues |
//! | `bus`, `serial` | from port and MMIO addresses to devices; the serial port | memory |
//! | `output` | makes files that others read | what is written |
//! | `transcript` | what the guest wrote to its console, and a kernel's lines of trouble | who reads it |
//! | [`socket`] | a socket in the file system, and its removal | what is served there |
//! | `process`, `termination` | termination signals and the terminal | guests |
//! | `confine` | what the process gives away before the guest runs | what its threads do |
//! | `snapshot` | a machine in a folder: its description, its state, and the content of its memory | when and in which order |
//! | `death`, `symbols`, `printable` | the text about a guest's death; text that a terminal may show | why it died |
//! | `registers` | the registers of a vCPU, as they are shown | why they are shown |
//! | `budget`, `limits` | the memory that the process's control group allows; limits that can be raised meanwhile | who uses it |
//! | `requirements`, [`survey`] | what a VM needs of KVM; what a host has, for people | VMs |
//! | `clock` | the time in which this process has run | what it is measured for |
//! | `hosted` (a feature) | parts without KVM, and failures of the host on demand, for tests of other packages | KVM |
//! | `error`, `hint`, `sync` | why a VM does not start, and what helps; how this crate locks | |
//!
//! Threads: the embedder's; one event loop for queues, timers, signals, terminal input and resets; one per
//! vCPU and per disk. Lock order: the hardware (what a reset makes anew), a device, guest memory, the state.
//!
//! No action of a guest panics the VMM: a value from the guest is checked where it is read; an invalid one is
//! counted and ignored.

mod boot;
mod budget;
mod bus;
mod clock;
pub mod config;
mod confine;
mod cpuid;
mod death;
mod disk;
mod error;
mod hint;
#[cfg(feature = "hosted")]
pub mod hosted;
mod limits;
mod memory;
mod output;
mod printable;
mod process;
mod registers;
mod requirements;
mod serial;
mod snapshot;
pub mod socket;
mod state;
pub mod survey;
mod symbols;
mod sync;
mod termination;
mod transcript;
mod virtio;
mod vm;

pub use boot::{BootError, GUEST_IMAGE};
pub use config::{
    BalloonConfig, BalloonError, Config, ConfigError, ConsoleMode, ConsoleWatch, DiskConfig, DiskConfigError,
    HotplugConfig, InitPolicy, NodeConfig,
};
pub use confine::jail::{Jail, JailError};
pub use confine::{Confinement, ConfinementError, FORBIDDEN, Seccomp};
pub use death::{Death, DeathKind};
pub use disk::DiskError;
pub use error::{StartError, is_refusal};
pub use memory::MemoryError;
pub use output::create_file;
pub use printable::printable;
pub use process::{GRACE, fail_at_file_limit, give_code_back, room_to_start};
pub use snapshot::folder::{Destination, FolderError};
pub use snapshot::opened::{RestoreError, Snapshot};
pub use snapshot::vcpu::VcpuError;
pub use snapshot::write::{SaveError, Saved};
pub use state::{
    BalloonStats, BalloonStatus, Changes, DiskStatus, HostFault, MemStatus, Obstacle, Ready, Refusal,
    Settled, State, WaitError,
};
pub use tidevm_abi::Size;
pub use transcript::{Alarms, CONSOLE_KEPT, Heard};
pub use virtio::balloon::ReportCounts;
pub use virtio::block::{DISK_ANSWERS, DISK_REQUEST_KINDS, DiskCounts};
pub use virtio::mem::{ANSWERS, LATENCY_BOUNDS, Latency, REQUEST_KINDS, RequestCounts};
pub use vm::{
    Activity, Beside, CallsUnread, Companion, End, ExitCounts, IntervalRefused, LookResult, NoStatistics,
    NothingToPause, Nudger, Purpose, ResetRefused, ResizeError, STOP_LIMIT, VcpuReport, VcpuState, Vm,
    VmHandle,
};
