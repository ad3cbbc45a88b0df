//! Parts of the VMM without KVM, and failures of the host on demand, for the tests of other packages.
//!
//! Takes the place that `tidevm-mm-sim` has for the guest: the code is that of the VMM, and only KVM is missing.
//! It is there with the feature `hosted`, with which no program is built.
//!
//! Invariant: what a caller reaches through [`Devices`] is what a guest and the event loop reach in a VM.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidevm_abi::{Answer, Call, Op, Size};
use virtio_mem::device::ResizeError;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BootError, Image};
use crate::config::{BalloonConfig, Config, HotplugConfig};
use crate::memory::layout::HOLE_END;
use crate::memory::mapping::Mapping;
use crate::memory::range::OffsetRange;
use crate::memory::slots::Slots;
use crate::memory::{LOOKUPS, Memory, MemoryError};
use crate::state::{MemStatus, SharedState, State};
use crate::virtio::RegisterDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::control::Control;
use crate::virtio::mem::Mem;

pub use crate::boot::Entry;
pub use crate::memory::host_calls::{HostCall, fail, failed};
pub use crate::symbols::name_at;
pub use crate::virtio::mmio::{Effect, Registers};

/// Where the hotplug region of [`Devices`] begins.
pub const REGION: u64 = HOLE_END;

/// A device of [`Devices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The virtio-mem device.
    Mem,
    /// The control channel.
    Control,
    /// The balloon, with reports and statistics.
    Balloon,
}

/// The table of memslots of a machine without KVM. Nothing looks at it.
#[derive(Debug, Default)]
struct NoKvm {
    next: u32,
}

impl Slots for NoKvm {
    fn add_slot(&mut self, _: GuestAddress, _: &Arc<Mapping>, _: OffsetRange) -> io::Result<u32> {
        self.next += 1;
        Ok(self.next)
    }

    fn remove_slot(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }
}

/// A virtio-mem device, a control channel and a balloon on memory of their own. The caller is the guest.
#[derive(Debug)]
pub struct Devices {
    memory: Arc<Memory>,
    state: Arc<SharedState>,
    mem: Mem,
    control: Control,
    balloon: Balloon,
    calls: u32,
}

impl Devices {
    /// Devices on `boot` bytes of boot memory and one hotplug region.
    ///
    /// # Errors
    /// The host has not enough address space, memory or file descriptors.
    pub fn new(boot: Size, config: &HotplugConfig) -> io::Result<Self> {
        let memory = Memory::new(boot, &[config.place()], &[], Box::new(NoKvm::default()));
        let memory = Arc::new(memory.map_err(io::Error::other)?);
        let state = Arc::new(SharedState::new(Instant::now(), vec![MemStatus::default()]));
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let mut mem = Mem::new(0, config, Arc::clone(&memory), Arc::clone(&state), event()?, event()?)?;
        mem.serve_singly();
        let kicks = [event()?, event()?];
        let control = Control::new(Arc::clone(&memory), Arc::clone(&state), event()?, kicks, false)?;
        let config = BalloonConfig { reporting: true, stats_interval: Some(Duration::from_secs(1)) };
        let (on_memory, on_state) = (Arc::clone(&memory), Arc::clone(&state));
        let mut balloon = Balloon::new(config, on_memory, on_state, event()?, event()?)?;
        balloon.serve_singly();
        Ok(Self { memory, state, mem, control, balloon, calls: 0 })
    }

    /// A vCPU reads registers.
    pub fn read(&mut self, which: Which, offset: u64, data: &mut [u8]) {
        match which {
            Which::Mem => self.mem.read(offset, data),
            Which::Control => self.control.read(offset, data),
            Which::Balloon => self.balloon.read(offset, data),
        }
    }

    /// A vCPU writes registers.
    pub fn write(&mut self, which: Which, offset: u64, data: &[u8]) {
        // Fails only when the counter of an event is full. The event is pending then.
        let _ = match which {
            Which::Mem => self.mem.write(offset, data),
            Which::Control => self.control.write(offset, data),
            Which::Balloon => self.balloon.write(offset, data),
        };
    }

    /// The registers of a device as its transport has them.
    #[must_use]
    pub fn registers(&self, which: Which) -> &Registers {
        match which {
            Which::Mem => self.mem.registers(),
            Which::Control => self.control.registers(),
            Which::Balloon => self.balloon.registers(),
        }
    }

    /// One turn of the event loop for a device: at most one request of the virtio-mem device, one round of the balloon,
    /// or a batch of the control channel. Returns whether there may be more.
    pub fn serve(&mut self, which: Which) -> bool {
        match which {
            Which::Mem => {
                let more = self.mem.serve().more;
                self.memory.remove_empty_slots();
                more
            }
            Which::Control => self.control.serve_calls() | self.control.serve_reports(),
            Which::Balloon => self.balloon.serve(),
        }
    }

    /// The time after a BUSY is over: the device tells its driver to try again.
    pub fn retry(&mut self) {
        self.mem.retry();
    }

    /// Asks the guest for statistics, at the balloon's next turn.
    pub fn ask(&mut self) {
        self.balloon.asks().ask();
    }

    /// Sets the target of the virtio-mem device, which takes it at its next turn.
    ///
    /// # Errors
    /// The size is not possible.
    pub fn resize(&mut self, size: Size) -> Result<(), ResizeError> {
        self.mem.target().set_later(size)
    }

    /// Calls the guest. Returns the id of the call, or `None` when the guest has not read earlier calls.
    pub fn call(&mut self, op: Op) -> Option<u32> {
        self.calls += 1;
        let id = self.calls;
        self.state.expect_answer(id);
        if self.control.call(Call { id, op }).is_err() {
            self.state.forget_answer(id);
            return None;
        }
        Some(id)
    }

    /// The answer to call `id` if it came. The call is forgotten, whether it came or not.
    pub fn take_answer(&mut self, id: u32) -> Option<Answer> {
        self.state.take_answer(id, Duration::ZERO, "the answer").ok()
    }

    /// The state of the guest as the embedder of a VM sees it.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.snapshot()
    }

    /// System reset, in the order of a VM's.
    ///
    /// # Errors
    /// The host refuses.
    pub fn reset(&mut self) -> Result<(), MemoryError> {
        self.control.disconnect();
        self.balloon.disconnect();
        self.memory.reset(Box::new(NoKvm::default()))?;
        self.control.forget_calls();
        let (state, mem) = (&self.state, &mut self.mem);
        state.restart(|| vec![mem.reset()]);
        Ok(())
    }

    /// Reads guest memory, all of it in memory that the guest may use. Returns whether it could.
    pub fn read_memory(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.memory.view().read_slice(bytes, GuestAddress(address)).is_ok()
    }

    /// Writes guest memory, all of it in memory that the guest may use. Returns whether it could; the first part
    /// may be written if not.
    pub fn write_memory(&self, address: u64, bytes: &[u8]) -> bool {
        self.memory.view().write_slice(bytes, GuestAddress(address)).is_ok()
    }

    /// Bytes of the hotplug region that the VMM can reach.
    #[must_use]
    pub fn reachable(&self) -> u64 {
        let view = self.memory.view();
        view.iter().filter(|window| window.start_addr().0 >= REGION).map(GuestMemoryRegion::len).sum()
    }
}

/// How often this thread has looked up an address of guest memory: the measure of a device's work.
#[must_use]
pub fn lookups() -> u64 {
    LOOKUPS.get()
}

/// Guest memory into which a kernel is loaded.
#[derive(Debug)]
pub struct Loaded {
    memory: Memory,
    /// Where the kernel would start.
    pub entry: Entry,
}

impl Loaded {
    /// Reads guest memory. Returns whether all of it is there.
    pub fn read_memory(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.memory.view().read_slice(bytes, GuestAddress(address)).is_ok()
    }
}

/// Loads the kernel file `kernel` and an initrd for the machine that `config` describes, as a start of a VM does.
///
/// # Errors
/// The kernel cannot be loaded.
///
/// # Panics
/// When the host has not enough address space for the machine.
pub fn load(config: &Config, kernel: Vec<u8>, initrd: Option<&[u8]>) -> Result<Loaded, BootError> {
    let places: Vec<_> = config.hotplug.iter().map(HotplugConfig::place).collect();
    let memory = Memory::new(config.memory, &places, &config.pmem, Box::new(NoKvm::default()));
    let memory = memory.expect("address space for a machine");
    let image = Image::new("kernel".to_owned(), kernel.into());
    let entry = boot::load(config, &image, initrd, 1_000_000, &memory.view())?;
    Ok(Loaded { memory, entry })
}
