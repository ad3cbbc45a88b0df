//! Saving a machine: what is saved when.
//!
//! Mirrors Firecracker's `create_snapshot` (`vmm/src/persist.rs`). Differs on purpose: a guest that runs is paused and goes on after the save, and a vCPU has completed its last exit before it is saved.
//!
//! Disks are idle from the moment at which the guest stands still. What was written to them is brought to the disk before a lock is
//! taken, because the guest's memory, which is saved, may no longer have it.
//!
//! A save holds the locks of the hardware and of all devices, in their order, from the first state to the last byte of memory.
//! So no reset, no queue and no plug comes between. The event loop and threads that want a device wait meanwhile; signals have a
//! thread of their own, and end a save before the next piece of memory. What a guest writes to its queues while it stands
//! still is nothing, and what it wrote before is in its memory: a restored device looks at its queues.
//!
//! Invariant: after a save that failed the machine is as before, and there is no snapshot.

use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};

use super::devices::Devices;
use super::saver::Saver;
use super::{STOP_LIMIT, Vm, VmHandle};
use crate::clock;
use crate::snapshot::description::Description;
use crate::snapshot::machine::{DevicesState, MachineState};
use crate::snapshot::write::{SaveError, Saved};
use crate::sync::lock;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::block::medium::Medium;
use crate::virtio::control::Control;
use crate::virtio::mem::{Mem, RegionMemory};

/// The time between two looks whether all vCPUs are out of the guest.
const LOOK: Duration = Duration::from_millis(1);

/// The chips whose states a machine of KVM has.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// All devices, which do nothing while this lives. No request of a virtio-mem device or of a disk is under way.
struct Held<'d> {
    /// Locked before the devices.
    _backings: Vec<MutexGuard<'d, RegionMemory>>,
    control: MutexGuard<'d, Control>,
    mem: Vec<MutexGuard<'d, Mem>>,
    balloon: Option<MutexGuard<'d, Balloon>>,
    disks: Vec<MutexGuard<'d, Block>>,
}

impl<'d> Held<'d> {
    fn new(devices: &'d Devices) -> Self {
        Self {
            _backings: devices.mem.iter().map(|mem| lock(&mem.backing)).collect(),
            control: lock(&devices.control),
            mem: devices.mem.iter().map(|mem| lock(&mem.device)).collect(),
            balloon: devices.balloon.as_ref().map(|balloon| lock(&balloon.device)),
            disks: devices.disks.iter().map(|disk| lock(&disk.device)).collect(),
        }
    }

    fn state(&mut self, devices: &Devices) -> Result<DevicesState, SaveError> {
        let mem = self
            .mem
            .iter_mut()
            .enumerate()
            .map(|(device, mem)| mem.state().map_err(|error| SaveError::Device { device, error }));
        Ok(DevicesState {
            mem: mem.collect::<Result<_, _>>()?,
            control: self.control.state(),
            balloon: self.balloon.as_ref().map(|balloon| balloon.state()),
            disks: self.disks.iter().map(|disk| disk.state()).collect(),
            serial: devices.serial.state(),
        })
    }
}

impl VmHandle {
    /// Saves the machine in [`Config::save`](crate::Config::save), once, with `embedder`: what the embedder has to remember of
    /// it. The guest stands still meanwhile, and goes on if it did not stand still before.
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as before, and there is no snapshot.
    pub fn save(&self, embedder: &[u8]) -> Result<Saved, SaveError> {
        let saver = self.shared.saver.as_ref().ok_or(SaveError::NotAsked)?;
        let _turn = saver.turn();
        let destination = &saver.destination;
        if destination.is_complete() {
            return Err(SaveError::AlreadySaved(destination.path().to_owned()));
        }
        let stood_still = self.state().paused;
        let saved = self.stand_still().and_then(|()| self.flush()).and_then(|()| self.write(saver, embedder));
        if !stood_still {
            self.resume();
        }
        let saved = saved.and_then(|saved| destination.finish().map(|()| saved));
        if saved.is_err() {
            destination.empty();
        }
        saved
    }

    /// Waits until the guest stands still.
    fn stand_still(&self) -> Result<(), SaveError> {
        let start = clock::now();
        while !self.pause().map_err(|_| SaveError::Ended)? {
            if clock::now() - start > STOP_LIMIT {
                return Err(match self.shared.devices.busy_disk() {
                    Some(disk) => SaveError::DiskBusy { disk, limit: STOP_LIMIT },
                    None => SaveError::StillRunning(STOP_LIMIT),
                });
            }
            clock::sleep(LOOK);
        }
        Ok(())
    }

    /// Brings to the disks what the guest has written to them.
    fn flush(&self) -> Result<(), SaveError> {
        for (index, device) in self.shared.devices.disks.iter().enumerate() {
            device.disk.flush().map_err(|error| SaveError::Disk { disk: index, error })?;
        }
        Ok(())
    }

    /// Writes the files of a snapshot of the guest, which stands still.
    fn write(&self, saver: &Saver, embedder: &[u8]) -> Result<Saved, SaveError> {
        let shared = &self.shared;
        let hardware = lock(&self.hardware);
        let mut held = Held::new(&shared.devices);
        // A reset may have come before the lock of the hardware.
        if shared.resets() || shared.over.load(Ordering::Acquire) || shared.state.snapshot().ended() {
            return Err(SaveError::Ended);
        }
        if let Some(disk) = held.disks.iter().position(|disk| !disk.is_idle()) {
            return Err(SaveError::DiskBusy { disk, limit: STOP_LIMIT });
        }
        let vcpus = saver.collect(STOP_LIMIT, shared.exits.len(), || shared.pause.look_up())?;
        let machine = hardware.machine().ok_or(SaveError::Ended)?;
        let tell = |what| {
            move |error: kvm_ioctls::Error| SaveError::Kvm {
                what,
                error: io::Error::from_raw_os_error(error.errno()),
            }
        };
        let chip = |&chip_id: &u32| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            machine.get_irqchip(&mut chip).map(|()| chip).map_err(tell("state of an interrupt chip"))
        };
        let chips = CHIPS.iter().map(chip).collect::<Result<_, _>>()?;
        let clock = machine.get_clock().map_err(tell("clock"))?;
        let devices = held.state(&shared.devices)?;
        let signal = shared.state.signal();
        let (content, size) = saver.destination.write_memory(&shared.memory, &saver.pagemap, || {
            if shared.over.load(Ordering::Acquire) {
                Err(SaveError::Ended)
            } else if shared.state.signal() != signal {
                Err(SaveError::Signal)
            } else {
                Ok(())
            }
        })?;
        let saved = Saved { path: saver.destination.path().to_owned(), content: size };
        saver.destination.write_state(&MachineState {
            description: Description::of(&shared.config),
            files: saver.files,
            cpuid: hardware.cpuid().to_vec(),
            tsc_khz: hardware.tsc_khz(),
            vcpus,
            chips,
            clock,
            devices,
            guest: shared.state.guest(shared.next_call.load(Ordering::Relaxed)),
            embedder: embedder.to_vec(),
            content,
        })?;
        Ok(saved)
    }
}

impl Vm {
    /// Saves the machine in place of its end: the guest runs no further instruction. See [`VmHandle::save`].
    ///
    /// # Errors
    /// [`SaveError`], with the VM, which goes on.
    pub fn end_saved(self, embedder: &[u8]) -> Result<Saved, Box<(Self, SaveError)>> {
        let stood_still = self.state().paused;
        match self.stand_still().and_then(|()| self.save(embedder)) {
            Ok(saved) => {
                self.end();
                Ok(saved)
            }
            Err(error) => {
                if !stood_still {
                    self.resume();
                }
                Err(Box::new((self, error)))
            }
        }
    }
}
