//! A machine's devices, and the events between them and KVM.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::lock;
use super::start::{StartError, console, event, host, kvm, share};
use crate::bus::Bus;
use crate::config::Config;
use crate::events::Input;
use crate::memory::{Memory, layout};
use crate::serial::Serial;
use crate::state::SharedState;
use crate::virtio::RegisterDevice;
use crate::virtio::control::Control;
use crate::virtio::mem::Mem;
use crate::virtio::mmio::QUEUE_NOTIFY;

/// All devices, and the events between them and KVM.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) shared: Arc<SharedState>,
    pub(super) console: Arc<Mutex<Control>>,
    pub(super) console_kicks: [EventFd; 2],
    pub(super) mem: Vec<MemDevice>,
    pub(super) serial: Arc<Serial>,
    /// For the event loop, which takes it.
    pub(super) input: Option<Input>,
    serial_interrupt: EventFd,
    /// Interrupt of the virtio-mmio device with the same index.
    interrupts: Vec<EventFd>,
}

#[derive(Debug)]
pub(super) struct MemDevice {
    pub(super) device: Arc<Mutex<Mem>>,
    pub(super) kick: EventFd,
}

/// What is written when a queue has requests.
pub(super) struct Kicks {
    /// One a virtio-mem device.
    pub(super) mem: Vec<EventFd>,
    /// One a queue of the control channel.
    pub(super) console: [EventFd; 2],
}

impl Devices {
    /// virtio-mmio device 0 is the control channel, device `n + 1` runs hotplug region `n`. vCPUs do not
    /// wait for the console once `stop` is set.
    pub(super) fn new(
        config: &Config,
        memory: &Arc<Memory>,
        started: Instant,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, StartError> {
        let regions = memory.regions().iter();
        let status = config
            .hotplug
            .iter()
            .zip(regions)
            .map(|(hotplug, region)| Mem::status_at_start(hotplug, region.start));
        let shared = Arc::new(SharedState::new(started, status.collect()));

        let (serial_interrupt, serial_drained) = (event()?, event()?);
        let (sink, input) = console(&config.console)?;
        let serial = Serial::new(sink, share(&serial_interrupt)?, share(&serial_drained)?, Arc::clone(stop));
        let serial = Arc::new(serial);
        let input =
            input.map(|source| Input { source, serial: Arc::clone(&serial), drained: serial_drained });

        let mut interrupts = vec![event()?];
        let console_kicks = [event()?, event()?];
        let kicks = [share(&console_kicks[0])?, share(&console_kicks[1])?];
        let console = Control::new(Arc::clone(memory), Arc::clone(&shared), share(&interrupts[0])?, kicks)
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
            input,
            serial_interrupt,
            interrupts,
        })
    }

    /// The events by which drivers tell of requests, for who serves them.
    pub(super) fn kicks(&self) -> Result<Kicks, StartError> {
        Ok(Kicks {
            mem: self.mem.iter().map(|mem| share(&mem.kick)).collect::<Result<_, _>>()?,
            console: [share(&self.console_kicks[0])?, share(&self.console_kicks[1])?],
        })
    }

    pub(super) fn bus(&self) -> Bus {
        let mut devices: Vec<Arc<Mutex<dyn RegisterDevice>>> = vec![Arc::clone(&self.console) as _];
        devices.extend(self.mem.iter().map(|mem| Arc::clone(&mem.device) as _));
        Bus::new(devices, Arc::clone(&self.serial))
    }

    /// System reset, without a running vCPU.
    pub(super) fn reset(&self) {
        // First, since this one tells that the guest is gone.
        lock(&self.console).reset();
        for mem in &self.mem {
            lock(&mem.device).reset();
        }
        self.serial.reset();
    }

    /// Has KVM turn writes to the notify registers into events, without an exit to a vCPU thread.
    pub(super) fn register_kicks(&self, vm: &VmFd) -> Result<(), StartError> {
        let console = self.console_kicks.iter().enumerate().map(|(queue, kick)| (0, queue, kick));
        let mem = self.mem.iter().enumerate().map(|(index, mem)| (index + 1, 0, &mem.kick));
        for (device, queue, kick) in console.chain(mem) {
            let address = IoEventAddress::Mmio(layout::mmio(device).0 + QUEUE_NOTIFY);
            vm.register_ioevent(kick, &address, queue as u32).map_err(kvm("register an ioeventfd"))?;
        }
        Ok(())
    }

    /// Has KVM turn events into interrupts.
    pub(super) fn register_interrupts(&self, vm: &VmFd) -> Result<(), StartError> {
        let register = |event, gsi| vm.register_irqfd(event, gsi).map_err(kvm("register an irqfd"));
        register(&self.serial_interrupt, layout::SERIAL_GSI)?;
        for (index, interrupt) in self.interrupts.iter().enumerate() {
            register(interrupt, layout::gsi(index))?;
        }
        Ok(())
    }
}
