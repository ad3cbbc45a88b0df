//! The registers of a virtio-mmio device against a model, written from the table of virtio 1.3, section 4.2.2,
//! and from the steps of section 3.1.1.
//!
//! The model has the numbers of the specification and shares no constant with the device. It knows the rules that
//! the device adds on purpose: see `vmm/machine/src/virtio/mmio.rs`.

use tidevm_machine::hosted::{Effect, Registers};

use crate::input::Input;

/// Most operations of one input.
const OPERATIONS: usize = 300;
const QUEUES: [u16; 2] = [128, 16];
const FEATURES: u64 = 0b11;
const REQUIRED: u64 = 0b10;
const VERSION_1: u64 = 1 << 32;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// Registers that the specification names, and neighbours.
const OFFSETS: [u64; 44] = [
    0x0, 0x4, 0x8, 0xc, 0x10, 0x14, 0x20, 0x24, 0x28, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x50, 0x60, 0x64,
    0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xf8, 0xfc, 0x100, 0x104,
    0x107, 0x108, 0x1, 0x71, 0xfff, 0x30, 0x44, 0x70, 0x20,
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Queue {
    most: u16,
    size: u16,
    ready: bool,
    /// The descriptor table, the driver's ring, the device's ring.
    addresses: [u64; 3],
}

/// What the driver has written of a queue. The device takes it when the queue becomes ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Written {
    size: u32,
    addresses: [u64; 3],
}

struct Model {
    status: u32,
    interrupt: u32,
    generation: u32,
    device_word: u32,
    driver_word: u32,
    driver_features: u64,
    /// A feature above bit 63 was accepted.
    too_high: bool,
    selected: u32,
    queues: [Queue; 2],
    written: [Written; 2],
    /// A change of configuration waits for the driver to be ready.
    config_due: bool,
    config: [u8; 8],
}

/// The alignments of a queue's parts (2.7).
const PARTS: [u64; 3] = [16, 2, 4];

/// The memory in which queues may lie.
const MEMORY: u64 = 64 << 20;

fn usable(start: u64, size: usize) -> bool {
    start.checked_add(size as u64).is_some_and(|end| end <= MEMORY)
}

impl Model {
    fn new(config: [u8; 8], start: [u64; 3]) -> Self {
        let queue = |most| Queue { most, size: most, ready: false, addresses: start };
        Self {
            status: 0,
            interrupt: 0,
            generation: 0,
            device_word: 0,
            driver_word: 0,
            driver_features: 0,
            too_high: false,
            selected: 0,
            queues: QUEUES.map(queue),
            written: QUEUES.map(|most| Written { size: most.into(), addresses: [0; 3] }),
            config_due: false,
            config,
        }
    }

    fn running(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & (NEEDS_RESET | FAILED) == 0
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.selected as usize)
    }

    fn read(&mut self, offset: u64, width: usize) -> Vec<u8> {
        if offset >= 0x100 {
            let at = |index: u64| self.config.get((offset - 0x100 + index) as usize).copied().unwrap_or(0);
            return (0..width as u64).map(at).collect();
        }
        if width != 4 {
            return vec![0; width];
        }
        let word = |features: u64, word: u32| if word < 2 { (features >> (32 * word)) as u32 } else { 0 };
        let value = match offset {
            0x00 => u32::from_le_bytes(*b"virt"),
            0x04 => 2,
            0x08 => 24,
            0x0c => u32::from_le_bytes(*b"tide"),
            0x10 => word(FEATURES | VERSION_1, self.device_word),
            0x34 => self.queue().map_or(0, |queue| queue.most.into()),
            0x44 => self.queue().is_some_and(|queue| queue.ready).into(),
            0x60 => self.interrupt,
            0x70 => self.status,
            0xb0..=0xbc if offset.is_multiple_of(4) => u32::MAX,
            0xb0..=0xbc => u32::MAX,
            0xfc => self.generation,
            _ => 0,
        };
        value.to_le_bytes().to_vec()
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Some(&value) = data.first_chunk().filter(|_| data.len() == 4) else { return Effect::None };
        let value = u32::from_le_bytes(value);
        let (negotiating, set_up) =
            (self.status & (DRIVER | FEATURES_OK) == DRIVER, self.status & FEATURES_OK != 0);
        match offset {
            0x14 => self.device_word = value,
            0x24 => self.driver_word = value,
            0x20 if negotiating => match self.driver_word {
                0 => self.driver_features = self.driver_features >> 32 << 32 | u64::from(value),
                1 => self.driver_features = u64::from(value) << 32 | self.driver_features & 0xffff_ffff,
                _ => self.too_high |= value != 0,
            },
            0x30 => self.selected = value,
            0x50 if value < QUEUES.len() as u32 => return Effect::Notify(value as usize),
            0x64 => self.interrupt &= !value,
            0x70 => return self.write_status(value),
            0x38..=0xa4 if set_up => self.set_up_queue(offset, value),
            _ => {}
        }
        Effect::None
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let Some(written) = self.written.get_mut(self.selected as usize) else { return };
        let queue = &mut self.queues[self.selected as usize];
        match offset {
            0x44 if value == 1 && queue.ready => {}
            0x44 => {
                let Written { size, addresses } = *written;
                let entries = u64::from(size);
                let bytes = [16 * entries, 6 + 2 * entries, 6 + 8 * entries];
                let fits = size.is_power_of_two() && size <= u32::from(queue.most);
                queue.ready = value == 1
                    && fits
                    && (0..3).all(|part| {
                        let address = addresses[part];
                        let end = address.checked_add(bytes[part]);
                        address > 0 && address % PARTS[part] == 0 && end.is_some_and(|end| end <= MEMORY)
                    });
                if queue.ready {
                    (queue.size, queue.addresses) = (size as u16, addresses);
                }
            }
            _ if queue.ready => {}
            0x38 => written.size = value,
            0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => {
                let address = &mut written.addresses[(offset as usize - 0x80) / 0x10];
                *address = if offset.is_multiple_of(0x10) {
                    *address >> 32 << 32 | u64::from(value)
                } else {
                    u64::from(value) << 32 | *address & 0xffff_ffff
                };
            }
            _ => {}
        }
    }

    /// The device tells of something, by a bit of the interrupt status. Returns whether there is a driver to tell.
    fn tell(&mut self, bit: u32) -> bool {
        let told = self.status & DRIVER_OK != 0;
        if told {
            self.interrupt |= bit;
        } else if bit == 2 {
            self.config_due = self.status & DRIVER != 0;
        }
        told
    }

    fn agreed(&self) -> bool {
        let offered = FEATURES | VERSION_1;
        let required = REQUIRED | VERSION_1;
        !self.too_high
            && self.driver_features | offered == offered
            && self.driver_features & required == required
    }

    fn write_status(&mut self, value: u32) -> Effect {
        let before = self.running();
        if value == 0 {
            let start = Self::new(self.config, START);
            *self = Self { generation: self.generation, ..start };
        } else {
            let mut complete = true;
            for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
                complete &= value & bit != 0 && (bit != FEATURES_OK || self.agreed());
                self.status |= if complete { bit } else { 0 };
            }
            self.status |= value & FAILED;
            if self.status & DRIVER_OK != 0 && std::mem::take(&mut self.config_due) {
                self.interrupt |= 2;
            }
        }
        if before == self.running() { Effect::None } else { Effect::StatusChanged }
    }
}

/// Where `virtio-queue` has the parts of a queue that is not set up. The specification does not say.
const START: [u64; 3] = [0, 0, 0];

/// Plays one device.
///
/// # Panics
/// When the registers differ from the model.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let config = input.u64().to_le_bytes();
    let mut registers = Registers::new(24, FEATURES, REQUIRED, &QUEUES, &config).expect("good queue sizes");
    let mut model = Model::new(config, START);
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        match input.byte() {
            choice @ 0..140 => {
                let offset = offset(&mut input);
                let data = value(&mut input, choice);
                let effect = registers.write(offset, &data, usable);
                assert_eq!(effect, model.write(offset, &data), "{data:02x?} to {offset:#x}");
            }
            140..150 => step(&mut registers, &mut model, &mut input),
            150..240 => {
                let offset = offset(&mut input);
                compare(&registers, &mut model, offset, input.pick(&[4, 4, 4, 1, 2, 8, 3]));
            }
            240..244 => {
                let config = input.u64().to_le_bytes();
                model.generation = model.generation.wrapping_add(u32::from(config != model.config));
                model.config = config;
                registers.set_config(&config);
            }
            244..247 => {
                assert_eq!(registers.set_used_buffer_interrupt(), model.tell(1));
            }
            247..250 => {
                assert_eq!(registers.set_config_interrupt(), model.tell(2));
            }
            250..252 => {
                model.status |= NEEDS_RESET;
                assert_eq!(registers.set_needs_reset(), model.tell(2));
            }
            _ => {
                model.generation = model.generation.wrapping_add(1);
                assert_eq!(registers.next_generation(), model.generation);
            }
        }
        assert_eq!(registers.running(), model.running(), "status {:#x}", model.status);
        for offset in [0x70, 0x60, 0x44, 0xfc] {
            compare(&registers, &mut model, offset, 4);
        }
        for (index, &queue) in model.queues.iter().enumerate() {
            assert_eq!(set_up(&registers, index), queue, "queue {index}");
        }
    }
}

/// The steps of a driver up to `DRIVER_OK`, which random accesses seldom find.
fn step(registers: &mut Registers, model: &mut Model, input: &mut Input<'_>) {
    for (offset, value) in
        [(0x70, 3), (0x24, 0), (0x20, input.pick(&[2, 3, 0])), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15)]
    {
        let data = u32::to_le_bytes(value);
        assert_eq!(
            registers.write(offset, &data, usable),
            model.write(offset, &data),
            "{value} to {offset:#x}"
        );
    }
}

fn compare(registers: &Registers, model: &mut Model, offset: u64, width: usize) {
    let mut data = vec![0xee; width];
    registers.read(offset, &mut data);
    assert_eq!(data, model.read(offset, width), "{width} bytes at {offset:#x}");
}

fn offset(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        255 => input.u64(),
        252..255 => u64::from(input.u16() % 0x1000),
        choice => OFFSETS[usize::from(choice) % OFFSETS.len()],
    }
}

fn value(input: &mut Input<'_>, choice: u8) -> Vec<u8> {
    let bytes = match choice {
        0..8 => return input.bytes(usize::from(choice)).to_vec(),
        8..40 => input.u32(),
        40..70 => u32::from(input.u16()) << 4,
        70..100 => input.pick(&[0, 1, 2, 3, 4, 8, 11, 15, 16, 32, 64, 128, 143, 256]),
        _ => u32::from(input.byte()),
    };
    bytes.to_le_bytes().to_vec()
}

fn set_up(registers: &Registers, index: usize) -> Queue {
    let (most, size, ready, addresses) = registers.set_up(index).expect("a queue of the device");
    Queue { most, size, ready, addresses }
}
