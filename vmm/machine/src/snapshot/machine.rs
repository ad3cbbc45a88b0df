//! The state of a machine: what the file `state` says.
//!
//! A part that knows how to save itself has its state beside it. Here they are put together.

use std::time::Duration;

use kvm_bindings::{kvm_clock_data, kvm_cpuid_entry2, kvm_irqchip};
use serde::{Deserialize, Serialize};
use tidevm_abi::Resize;

use super::description::Description;
use super::vcpu::VcpuState;
use crate::serial::SerialState;
use crate::virtio::balloon::BalloonState;
use crate::virtio::block::BlockState;
use crate::virtio::control::ControlState;
use crate::virtio::mem::MemState;

/// Everything but the content of memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// The machine.
    pub description: Description,
    /// The kernel, and the RAM disk if there is one.
    pub files: [Sum; 2],
    /// What all vCPUs have in common.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// The frequency of the time stamp counter.
    pub tsc_khz: u32,
    /// The vCPUs, by their index.
    pub vcpus: Vec<VcpuState>,
    /// Both PICs and the IO-APIC.
    pub chips: Vec<kvm_irqchip>,
    /// The clock of KVM's paravirtual clocks.
    pub clock: kvm_clock_data,
    /// The devices.
    pub devices: DevicesState,
    /// What is known about the guest.
    pub guest: GuestState,
    /// What the embedder has to remember of it.
    pub embedder: Vec<u8>,
    /// What is in the file `memory`.
    pub content: Content,
}

/// The devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    /// The control channel.
    pub control: ControlState,
    /// By hotplug region.
    pub mem: Vec<MemState>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonState>,
    /// The disks, whose content is in their files.
    pub disks: Vec<BlockState>,
    /// The serial port.
    pub serial: SerialState,
}

/// What the VMM knows about a guest from its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestState {
    /// The message that it is up: CPUs, virtio-mem devices, and the time that it took.
    pub ready: Option<(u32, u32, Duration)>,
    /// The last report of the driver of each hotplug region.
    pub reports: Vec<Option<Resize>>,
    /// The id of the next call.
    pub next_call: u32,
    /// The calls that the guest has not answered.
    pub open_calls: Vec<u32>,
}

/// Length and checksum of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    length: u64,
    crc: u32,
}

impl Sum {
    /// Of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, crc: crc32fast::hash(bytes) }
    }
}

/// What is in the file `memory`: a place for each byte of guest memory, and holes where there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes of the file.
    pub places: u64,
    /// The pieces that are not zero, ascending, with their checksums.
    pub pieces: Vec<(u64, u32)>,
}
