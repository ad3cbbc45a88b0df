//! A VM's devices, and the event descriptors between them, KVM and the event loop.
//!
//! Devices belong to the VMM and outlive the KVM machine: a reset registers the same descriptors with the
//! next one.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::config::Config;
use crate::disk::Disk;
use crate::error::{StartError, host, kvm};
use crate::memory::{Memory, layout};
use crate::serial::{Serial, Sink};
use crate::state::SharedState;
use crate::sync::lock;
use crate::virtio::RegisterDevice;
use crate::virtio::balloon::{Asks, Balloon, QUEUES, ReportCounters};
use crate::virtio::block::{Block, DiskCounters};
use crate::virtio::control::Control;
use crate::virtio::mem::{Mem, RegionMemory, RequestCounters, Target};
use crate::virtio::mmio::QUEUE_NOTIFY;

/// All devices. virtio-mmio device 0 is the control channel; device `n + 1` serves hotplug region `n`; then come the balloon and
/// the disks.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) control: Arc<Mutex<Control>>,
    /// Written when the control channel's queue with the same index has new buffers, or the one that is two behind it.
    pub(super) control_kicks: [EventFd; 2],
    /// One entry per hotplug region.
    pub(super) mem: Vec<MemDevice>,
    pub(super) balloon: Option<BalloonDevice>,
    pub(super) disks: Vec<DiskDevice>,
    pub(super) serial: Arc<Serial>,
    /// Written when the serial port has room for input again.
    pub(super) serial_drained: EventFd,
    serial_interrupt: EventFd,
    /// Interrupt of the virtio-mmio device with the same index.
    interrupts: Vec<EventFd>,
}

/// A virtio-mem device.
#[derive(Debug)]
pub(super) struct MemDevice {
    pub(super) device: Arc<Mutex<Mem>>,
    /// Held while requests are served. It is locked before `device`.
    pub(super) backing: Arc<Mutex<RegionMemory>>,
    /// Set without a wait for the mutex of `device`.
    pub(super) target: Arc<Target>,
    /// What is counted of its requests.
    pub(super) counters: Arc<RequestCounters>,
    /// Written when the queue has requests.
    pub(super) kick: EventFd,
}

/// The virtio-balloon device.
#[derive(Debug)]
pub(super) struct BalloonDevice {
    pub(super) device: Arc<Mutex<Balloon>>,
    /// Used without the mutex of `device`, which is held while memory is given back.
    pub(super) asks: Arc<Asks>,
    /// What is counted of its reports.
    pub(super) counters: Arc<ReportCounters>,
    /// Written when a queue has chains, and when statistics are wanted.
    pub(super) kick: EventFd,
}

/// A virtio-blk device. Its own thread serves it.
#[derive(Debug)]
pub(super) struct DiskDevice {
    /// Never locked while the medium works.
    pub(super) device: Arc<Mutex<Block>>,
    /// The medium.
    pub(super) disk: Arc<Disk>,
    /// What is counted of its requests.
    pub(super) counters: Arc<DiskCounters>,
    /// Written when the queue has requests, when the guest goes on, and when the VM ends. A read waits until then. A write
    /// would wait only if none of 2^64 - 2 had been read.
    pub(super) kick: EventFd,
}

/// A new event descriptor.
pub(super) fn event() -> Result<EventFd, StartError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("make an eventfd"))
}

/// Another descriptor of the same event.
pub(super) fn share(event: &EventFd) -> Result<EventFd, StartError> {
    event.try_clone().map_err(host("share an eventfd"))
}

impl Devices {
    /// The devices of `config`, whose disks are `disks`. The serial port's output goes to both sinks; a vCPU does not wait for
    /// them while `stop` is set.
    pub(super) fn new(
        config: &Config,
        memory: &Arc<Memory>,
        state: &Arc<SharedState>,
        disks: Vec<Disk>,
        (sink, copy): (Sink, Option<Sink>),
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, StartError> {
        let (serial_interrupt, serial_drained) = (event()?, event()?);
        let lines = Arc::clone(state);
        let serial = Serial::new(sink, share(&serial_interrupt)?, share(&serial_drained)?, Arc::clone(stop))
            .watched(&config.watch, copy, move || lines.change(|state| state.console_lines += 1));

        let mut interrupts = vec![event()?];
        let control_kicks = [event()?, event()?];
        let kicks = [share(&control_kicks[0])?, share(&control_kicks[1])?];
        let interrupt = share(&interrupts[0])?;
        let control = Control::new(Arc::clone(memory), Arc::clone(state), interrupt, kicks, config.agent)
            .map_err(host("make the control channel"))?;

        let mut mem = Vec::new();
        for (index, hotplug) in config.hotplug.iter().enumerate() {
            let (interrupt, kick) = (event()?, event()?);
            let (memory, state) = (Arc::clone(memory), Arc::clone(state));
            let device = Mem::new(index, hotplug, memory, state, share(&interrupt)?, share(&kick)?)
                .map_err(host("make a virtio-mem device"))?;
            interrupts.push(interrupt);
            let (target, counters, backing) = (device.target(), device.counters(), device.backing());
            mem.push(MemDevice { device: Arc::new(Mutex::new(device)), backing, target, counters, kick });
        }
        let mut balloon = None;
        if let Some(config) = config.balloon {
            let (interrupt, kick) = (event()?, event()?);
            let (memory, state) = (Arc::clone(memory), Arc::clone(state));
            let device = Balloon::new(config, memory, state, share(&interrupt)?, share(&kick)?)
                .map_err(host("make the balloon"))?;
            interrupts.push(interrupt);
            let (asks, counters) = (device.asks(), device.counters());
            balloon = Some(BalloonDevice { device: Arc::new(Mutex::new(device)), asks, counters, kick });
        }
        let make = |(index, disk)| DiskDevice::new(index, disk, memory, state, &mut interrupts);
        let disks = disks.into_iter().enumerate().map(make).collect::<Result<_, _>>()?;
        Ok(Self {
            control: Arc::new(Mutex::new(control)),
            control_kicks,
            mem,
            balloon,
            disks,
            serial: Arc::new(serial),
            serial_drained,
            serial_interrupt,
            interrupts,
        })
    }

    /// The virtio-mmio devices in the order of their registers.
    pub(super) fn in_order(&self) -> Vec<Arc<Mutex<dyn RegisterDevice>>> {
        let mem = self.mem.iter().map(|mem| Arc::clone(&mem.device) as _);
        let balloon = self.balloon.iter().map(|balloon| Arc::clone(&balloon.device) as _);
        let disks = self.disks.iter().map(|disk| Arc::clone(&disk.device) as _);
        std::iter::once(Arc::clone(&self.control) as _).chain(mem).chain(balloon).chain(disks).collect()
    }

    /// First part of a system reset, before memory is reset: no device writes to the old guest's buffers any
    /// more. No vCPU runs, and the event loop serves no queue, so that only a call and the threads of disks could. What others see of the guest stays.
    pub(super) fn disconnect(&self) {
        lock(&self.control).disconnect();
        self.balloon.iter().for_each(|balloon| lock(&balloon.device).disconnect());
        self.disks.iter().for_each(|disk| lock(&disk.device).disconnect());
        self.serial.reset();
    }

    /// Last part of a system reset, after memory was reset: the devices are as at the start, and so they and the
    /// guest are seen in `state`, in one step. No call comes between, as the locks of all devices are held, and no
    /// target, as the lock of the state is held.
    pub(super) fn reset(&self, state: &SharedState) {
        let mut control = lock(&self.control);
        let mut devices: Vec<_> = self.mem.iter().map(|mem| lock(&mem.device)).collect();
        control.forget_calls();
        state.restart(|| devices.iter_mut().map(|device| device.reset()).collect());
    }

    /// Memory of virtio-mem device `index` was unplugged. Mappings and memslots of the host are there for all devices, so
    /// drivers that wait for the host are told to try again.
    pub(super) fn tell_others(&self, index: usize) {
        let others = self.mem.iter().enumerate().filter(|(other, _)| *other != index);
        others.for_each(|(_, other)| lock(&other.device).cause_gone());
    }

    /// A limit of the host was raised: drivers that wait for the host are told to try again.
    pub(super) fn tell_all(&self) {
        self.mem.iter().for_each(|mem| lock(&mem.device).cause_gone());
    }

    /// Has the event loop look at all queues, as if each driver had notified.
    pub(super) fn kick_all(&self) {
        let mem = self.mem.iter().map(|mem| &mem.kick);
        let balloon = self.balloon.iter().map(|balloon| &balloon.kick);
        self.control_kicks.iter().chain(mem).chain(balloon).for_each(raise);
        self.kick_disks();
    }

    /// Has the threads of all disks look at their queues, and at what is wanted of them.
    pub(super) fn kick_disks(&self) {
        self.disks.iter().map(|disk| &disk.kick).for_each(raise);
    }

    /// A disk that is carrying out a request.
    pub(super) fn busy_disk(&self) -> Option<usize> {
        self.disks.iter().position(|disk| !lock(&disk.device).is_idle())
    }

    /// Has KVM turn writes to the notify registers into events, without an exit to a vCPU thread.
    pub(super) fn register_kicks(&self, vm: &VmFd) -> Result<(), StartError> {
        let queues = lock(&self.control).queues();
        let control = self.control_kicks.iter().cycle().take(queues).enumerate();
        let control = control.map(|(queue, kick)| (0, queue, kick));
        let mem = self.mem.iter().enumerate().map(|(index, mem)| (index + 1, 0, &mem.kick));
        let last = self.mem.len() + 1;
        let queues = |balloon| (0..QUEUES).map(move |queue| (last, queue, balloon));
        let balloon = self.balloon.iter().flat_map(|balloon| queues(&balloon.kick));
        let first = last + usize::from(self.balloon.is_some());
        let disks = self.disks.iter().enumerate().map(|(index, disk)| (first + index, 0, &disk.kick));
        for (device, queue, kick) in control.chain(mem).chain(balloon).chain(disks) {
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

impl DiskDevice {
    /// Disk `index`, whose interrupt is the next one of `interrupts`.
    fn new(
        index: usize,
        disk: Disk,
        memory: &Arc<Memory>,
        state: &Arc<SharedState>,
        interrupts: &mut Vec<EventFd>,
    ) -> Result<Self, StartError> {
        let interrupt = event()?;
        let kick = EventFd::new(libc::EFD_CLOEXEC).map_err(host("make an eventfd"))?;
        let shape = (disk.sectors(), disk.is_read_only());
        let (memory, state) = (Arc::clone(memory), Arc::clone(state));
        let device = Block::new(index, shape, memory, state, share(&interrupt)?, share(&kick)?)
            .map_err(host("make a disk"))?;
        interrupts.push(interrupt);
        let counters = device.counters();
        Ok(Self { device: Arc::new(Mutex::new(device)), disk: Arc::new(disk), counters, kick })
    }
}

/// Raises an event.
fn raise(event: &EventFd) {
    // Fails only when the counter is full. The event is pending then.
    if let Err(error) = event.write(1) {
        log::debug!("event: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tidevm_abi::Size;
    use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG;
    use virtio_mem::wire::{F_UNPLUGGED_INACCESSIBLE, Request, RequestKind};

    use super::*;
    use crate::config::HotplugConfig;
    use crate::memory::fake::memory;
    use crate::state::MemStatus;
    use crate::virtio::fake::{Buffer, Ring, initialise, interrupts};

    #[test]
    fn drivers_of_other_regions_are_told_when_memory_was_unplugged() {
        let region = HotplugConfig { requested: Size::mib(2), ..HotplugConfig::new(Size::mib(128)) };
        let config = Config { hotplug: vec![region; 3], ..Config::default() };
        let (memory, slots) = memory(64 << 20, &[128 << 20; 3]);
        let memory = Arc::new(memory);
        let state = Arc::new(SharedState::new(Instant::now(), vec![MemStatus::default(); 3]));
        let sinks = (Sink::Bytes(Box::new(std::io::sink())), None);
        let devices = Devices::new(&config, &memory, &state, Vec::new(), sinks, &Arc::default()).unwrap();
        let rings: Vec<_> = (1..4).map(|mib| Ring::new(&memory, mib << 20)).collect();
        for (index, (device, mut ring)) in devices.mem.iter().zip(rings).enumerate() {
            let mut mem = lock(&device.device);
            initialise(&mut *mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&ring]);
            let addr = memory.regions()[index].start().0;
            ring.fill(ring.place(0), &Request { kind: RequestKind::Plug, addr, nb_blocks: 1 }.to_bytes());
            let request = Buffer { address: ring.place(0), size: 24, writable: false };
            let (address, size) = (ring.place(1), 10);
            ring.offer(0, &[request, Buffer { address, size, writable: true }]);
            slots.fail_add_after(0);
            // The driver of the second region does not wait.
            assert!(index == 1 || mem.serve().retry_after.is_some());
            interrupts(&mut *mem);
        }
        let told = || [0, 1, 2].map(|index| interrupts(&mut *lock(&devices.mem[index].device)));
        devices.tell_others(0);
        assert_eq!(told(), [0, 0, VIRTIO_MMIO_INT_CONFIG]);
        devices.tell_others(1);
        assert_eq!(told(), [VIRTIO_MMIO_INT_CONFIG, 0, 0], "each is told once");
    }
}
