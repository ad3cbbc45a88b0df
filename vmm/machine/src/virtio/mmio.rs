//! The MMIO registers of a virtio device: values in, values and [`Effect`]s out, no I/O.
//!
//! Mirrors virtio 1.3, section 4.2.2 (version 2, no legacy interface) and the status steps of section 3.1. A
//! write that breaks the rules is ignored, so a driver cannot bring the device into a wrong state. Stricter
//! on purpose: queues can be set up only between `FEATURES_OK` and `QueueReady`. A queue whose size or addresses cannot
//! be used does not become ready: `QueueReady` reads 0 then.
//!
//! Invariants: a queue's addresses and size do not change while it is ready. The configuration generation
//! changes whenever a byte of the configuration does. No interrupt is pending before `DRIVER_OK` or after a reset
//! (2.1.2, 2.4.1). A change of configuration that a driver may have missed while it started is told at `DRIVER_OK`.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Error, Queue, QueueT};

mod set_up;
mod state;

use set_up::SetUp;
pub use state::{RegistersError, RegistersState};

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;

/// "tide", little endian.
const VENDOR: u32 = 0x6564_6974;

/// Offset of the register to which a driver writes the index of a queue with new buffers.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// What has to follow a write, beside the new register value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The driver became ready, or is no longer ready: see [`Registers::running`].
    StatusChanged,
    /// There are new buffers in this queue.
    Notify(usize),
}

/// A device's registers.
#[derive(Debug)]
pub struct Registers {
    device_id: u32,
    device_features: u64,
    required_features: u64,
    driver_features: u64,
    /// The driver accepted a feature above bit 63.
    accepted_too_high: bool,
    device_features_word: u32,
    driver_features_word: u32,
    queues: Vec<Queue>,
    /// What the driver has written about the queue with the same index.
    set_ups: Vec<SetUp>,
    queue: usize,
    status: u32,
    interrupt: u32,
    /// The configuration changed while a driver was starting.
    config_due: bool,
    config: Vec<u8>,
    generation: u32,
}

impl Registers {
    /// Registers of a device that offers `features` (`VERSION_1` is added) and insists on `required`. It has
    /// one queue for each of `queue_sizes`, of at most so many entries.
    ///
    /// # Errors
    /// A queue size is not a power of two, or too large.
    pub fn new(
        device_id: u32,
        features: u64,
        required: u64,
        queue_sizes: &[u16],
        config: &[u8],
    ) -> Result<Self, Error> {
        let version_1 = 1 << VIRTIO_F_VERSION_1;
        Ok(Self {
            device_id,
            device_features: features | version_1,
            required_features: required | version_1,
            driver_features: 0,
            accepted_too_high: false,
            device_features_word: 0,
            driver_features_word: 0,
            queues: queue_sizes.iter().map(|&size| Queue::new(size)).collect::<Result<_, _>>()?,
            set_ups: queue_sizes.iter().map(|&size| SetUp::new(size)).collect(),
            queue: 0,
            status: 0,
            interrupt: 0,
            config_due: false,
            config: config.to_vec(),
            generation: 0,
        })
    }

    /// The device's type.
    #[must_use]
    pub fn device_id(&self) -> u32 {
        self.device_id
    }

    /// Whether a driver runs the device.
    #[must_use]
    pub fn running(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK)
            && self.status & (VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED) == 0
    }

    /// Whether the driver and the device agreed on `feature`, a number of a bit.
    #[must_use]
    pub fn agreed(&self, feature: u32) -> bool {
        self.has(VIRTIO_CONFIG_S_FEATURES_OK) && self.driver_features >> feature & 1 == 1
    }

    /// The number of queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// A queue, set up or not.
    #[must_use]
    pub fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index)
    }

    /// A queue, set up or not.
    #[must_use]
    pub fn queue_mut(&mut self, index: usize) -> Option<&mut Queue> {
        self.queues.get_mut(index)
    }

    /// Changes the content of the configuration space; the length stays.
    pub fn set_config(&mut self, config: &[u8]) {
        if self.config != config {
            self.config.copy_from_slice(config);
            self.next_generation();
        }
    }

    /// Begins a new configuration generation, even if no byte of the configuration changes, and returns it. The
    /// caller does that for what a driver has to look at anew.
    pub fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// The configuration generation.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Records that buffers were used, if there is a driver to tell. The caller raises the interrupt if this returns
    /// true.
    #[must_use]
    pub fn set_used_buffer_interrupt(&mut self) -> bool {
        let told = self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        if told {
            self.interrupt |= VIRTIO_MMIO_INT_VRING;
        }
        told
    }

    /// Records that the configuration changed. The caller raises the interrupt if this returns true. A driver that is
    /// starting is told at `DRIVER_OK`, and without a driver there is nobody to tell.
    #[must_use]
    pub fn set_config_interrupt(&mut self) -> bool {
        let told = self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        if told {
            self.interrupt |= VIRTIO_MMIO_INT_CONFIG;
        } else {
            self.config_due = self.has(VIRTIO_CONFIG_S_DRIVER);
        }
        told
    }

    /// Records that the device cannot go on before a reset. That is a change of configuration, for which the
    /// caller raises the interrupt if this returns true.
    #[must_use]
    pub fn set_needs_reset(&mut self) -> bool {
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.set_config_interrupt()
    }

    /// Whether the device cannot go on before a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    /// Whether an interrupt is pending.
    #[must_use]
    pub fn is_interrupt_pending(&self) -> bool {
        self.interrupt != 0
    }

    /// The driver reads. Registers are 32 bits wide; accesses of other widths read as zero. The configuration
    /// can be read in any width, and is zero beyond its end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(start) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            for (index, byte) in (start..).zip(data) {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                *byte = self.config.get(index).copied().unwrap_or(0);
            }
            return;
        }
        data.fill(0);
        if let (Ok(register), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.read_register(register).to_le_bytes());
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        let queue = self.queues.get(self.queue);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => 2,
            VIRTIO_MMIO_DEVICE_ID => self.device_id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => word(self.device_features, self.device_features_word),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(Queue::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt,
            VIRTIO_MMIO_STATUS => self.status,
            // The length and the address of a shared memory region that does not exist are -1.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    /// The driver writes. Registers are 32 bits wide. Accesses of other widths are ignored, as are writes to
    /// the configuration, which has no field that the driver may write. `usable` says whether so many bytes of memory
    /// from an address on can be used for a queue.
    pub fn write(&mut self, offset: u64, data: &[u8], usable: impl Fn(u64, usize) -> bool) -> Effect {
        let (Ok(register), Ok(bytes)) = (u32::try_from(offset), data.try_into()) else {
            return Effect::None;
        };
        let value = u32::from_le_bytes(bytes);
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_word = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_word = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue = value as usize,
            VIRTIO_MMIO_QUEUE_NOTIFY if (value as usize) < self.queues.len() => {
                return Effect::Notify(value as usize);
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt &= !value,
            VIRTIO_MMIO_STATUS => return self.write_status(value),
            _ => self.write_queue(register, value, usable),
        }
        Effect::None
    }

    fn accept_features(&mut self, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        match self.driver_features_word {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            // Features above 63 are not offered. Accepting one must fail at FEATURES_OK, whatever else the driver
            // accepts later.
            _ => self.accepted_too_high |= value != 0,
        }
    }

    /// The steps of section 3.1.1: bits are only added, in their order; 0 resets.
    fn write_status(&mut self, value: u32) -> Effect {
        let was_running = self.running();
        if value == 0 {
            self.reset();
            return if was_running { Effect::StatusChanged } else { Effect::None };
        }
        let order = [
            VIRTIO_CONFIG_S_ACKNOWLEDGE,
            VIRTIO_CONFIG_S_DRIVER,
            VIRTIO_CONFIG_S_FEATURES_OK,
            VIRTIO_CONFIG_S_DRIVER_OK,
        ];
        for bit in order {
            if value & bit == 0 || bit == VIRTIO_CONFIG_S_FEATURES_OK && !self.features_agreed() {
                break;
            }
            self.status |= bit;
        }
        self.status |= value & VIRTIO_CONFIG_S_FAILED;
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) && std::mem::take(&mut self.config_due) {
            self.interrupt |= VIRTIO_MMIO_INT_CONFIG;
        }
        if was_running == self.running() { Effect::None } else { Effect::StatusChanged }
    }

    fn features_agreed(&self) -> bool {
        !self.accepted_too_high
            && self.driver_features & !self.device_features == 0
            && self.driver_features & self.required_features == self.required_features
    }

    /// Device reset, as by writing 0 to the status: everything is as at the start except the configuration.
    pub fn reset(&mut self) {
        for (queue, set_up) in self.queues.iter_mut().zip(&mut self.set_ups) {
            queue.reset();
            *set_up = SetUp::new(queue.max_size());
        }
        self.driver_features = 0;
        self.accepted_too_high = false;
        self.device_features_word = 0;
        self.driver_features_word = 0;
        self.queue = 0;
        self.status = 0;
        self.interrupt = 0;
        self.config_due = false;
    }

    fn write_queue(&mut self, register: u32, value: u32, usable: impl Fn(u64, usize) -> bool) {
        let negotiated = self.has(VIRTIO_CONFIG_S_FEATURES_OK);
        let Some(queue) = self.queues.get_mut(self.queue).filter(|_| negotiated) else { return };
        let set_up = &mut self.set_ups[self.queue];
        if register == VIRTIO_MMIO_QUEUE_READY {
            let ready = value == 1 && (queue.ready() || set_up.apply(queue, usable));
            queue.set_ready(ready);
            return;
        }
        if queue.ready() {
            return;
        }
        match register {
            VIRTIO_MMIO_QUEUE_NUM => set_up.set_size(value),
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_up.set_address(0, false, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_up.set_address(0, true, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_up.set_address(1, false, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_up.set_address(1, true, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_up.set_address(2, false, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_up.set_address(2, true, value),
            _ => {}
        }
    }

    /// Queue `index` as it was when it was last ready: its largest and its chosen size, whether it is ready, and the
    /// addresses of the descriptor table, of the driver's ring and of the device's ring.
    #[cfg(feature = "hosted")]
    #[must_use]
    pub fn set_up(&self, index: usize) -> Option<(u16, u16, bool, [u64; 3])> {
        let queue = self.queue(index)?;
        let addresses = [queue.desc_table(), queue.avail_ring(), queue.used_ring()];
        Some((queue.max_size(), queue.size(), queue.ready(), addresses))
    }

    /// The number of chains of queue `index` that went back to the driver since it was reset, modulo 2^16.
    #[cfg(feature = "hosted")]
    #[must_use]
    pub fn given_back(&self, index: usize) -> Option<u16> {
        self.queue(index).map(Queue::next_used)
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }
}

/// 32-bit word `index` of a feature set. There are no features above the second word.
fn word(features: u64, index: u32) -> u32 {
    match index {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
