//! A virtual machine on KVM whose memory rises and falls, as a library.
//!
//! A [`Config`] says what the machine is made of, [`Vm::start`] starts it, and [`Vm`] resizes it, waits for
//! its guest, calls the guest, and stops it. Without a kernel of the embedder's the machine boots
//! [`GUEST_IMAGE`]. `examples/resize.rs` does all of it once.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`config`] | what a machine is made of, and whether that can be | the host |
//! | `vm` | a running machine: start, resize, call, wait, stop | scripts, tables |
//! | `state` | what is known of the guest from outside, and waiting for it | KVM, queues |
//! | `memory` | guest RAM: host mappings, memslots, the VMM's own view | virtio |
//! | `boot` | PVH: kernel, start info, memory map, command line | devices |
//! | `virtio` | MMIO transport, virtio-mem and the control channel | KVM |
//! | `bus`, `serial` | port and MMIO addresses to devices; the serial port | memory |
//! | `vcpu`, `cpuid` | one thread per vCPU: exits to devices, deaths to texts; what CPUID says | what devices do |
//! | `events`, `process` | the event loop; signals and the terminal | the guest's memory |
//! | `death`, `symbols` | the text on a guest's death | why it died |
//!
//! Threads: the caller's; one event loop for queues, timers, signals, terminal input and resets; one per
//! vCPU. Lock order: the board (what a reset makes anew), a device's transport, guest memory, the state.
//! Nothing that a guest does panics the VMM: what it writes is checked where it is read, or counted and
//! ignored.

mod boot;
mod bus;
pub mod config;
mod cpuid;
mod death;
mod events;
mod memory;
mod process;
mod serial;
mod state;
mod symbols;
mod vcpu;
mod virtio;
mod vm;

pub use boot::{BootError, GUEST_IMAGE};
pub use config::{Config, ConfigError, ConsoleMode, HotplugConfig, InitPolicy, NodeConfig, Size};
pub use memory::MemoryError;
pub use process::GRACE;
pub use state::{Death, DeathKind, MemStatus, Ready, State, WaitError};
pub use vcpu::{ExitCounts, STOP_LIMIT};
pub use vm::{CallsUnread, End, ResizeError, StartError, Vm};
