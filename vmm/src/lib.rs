//! tidevm: a microVM on KVM whose memory rises and falls.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`config`] | what a machine is made of, and whether that can be | the host |
//! | [`vm`] | a running machine: start, resize, call, wait, stop | scripts, tables |
//! | [`state`] | what is known of the guest from outside, and waiting for it | KVM, queues |
//! | [`memory`] | guest RAM: host mappings, memslots, the VMM's own view | virtio |
//! | [`boot`] | PVH: kernel, start info, memory map, command line | devices |
//! | [`virtio`] | MMIO transport, virtio-mem and the control channel | KVM |
//! | `vcpu` | one thread a vCPU: exits to devices, deaths to reports | what devices do |
//! | [`session`] | a script's steps on a running machine | how anything is shown |
//! | [`script`], [`command`] | text to steps, every error with its place | machines |
//! | [`experiment`] | sessions with a mechanism off and on, and what they show | KVM |
//! | [`table`], [`json`] | what a session tells, for people and for programs | machines |
//!
//! Threads: the caller's; one event loop for queues, timers, signals, terminal input and resets; one a
//! vCPU. Lock order: the board (what a reset makes anew), a device's transport, guest memory, the state.
//! Nothing that a guest does panics the VMM: what it writes is checked where it is read, or counted and
//! ignored.

pub mod boot;
mod bus;
pub mod command;
pub mod config;
mod cpu;
mod events;
pub mod experiment;
pub mod json;
pub mod memory;
mod process;
mod report;
pub mod script;
mod serial;
pub mod session;
pub mod state;
mod symbols;
pub mod table;
mod vcpu;
pub mod virtio;
pub mod vm;

pub use config::{Config, ConfigError, ConsoleMode, HotplugConfig, InitPolicy, NodeConfig};
pub use state::{Death, DeathKind, MemStatus, Ready, State, WaitError};
pub use vm::{CallsUnread, End, ExitCounts, ResizeError, StartError, Vm};
