//! The driver's view, register by register. Numbers are sections of virtio 1.3.

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_QUEUE_ALIGN, VIRTIO_MMIO_QUEUE_PFN, VIRTIO_MMIO_SHM_LEN_HIGH,
};

use super::*;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// A device of type 24 with two queues, which offers bits 0 and 1 and insists on bit 1.
fn registers() -> Registers {
    Registers::new(24, 0b11, 0b10, &[128, 64], &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap()
}

fn read(registers: &Registers, register: u32) -> u32 {
    let mut data = [0; 4];
    registers.read(register.into(), &mut data);
    u32::from_le_bytes(data)
}

fn write(registers: &mut Registers, register: u32, value: u32) -> Effect {
    registers.write(register.into(), &value.to_le_bytes(), |_, _| true)
}

fn status(registers: &mut Registers, value: u32) -> u32 {
    write(registers, VIRTIO_MMIO_STATUS, value);
    read(registers, VIRTIO_MMIO_STATUS)
}

fn accept(registers: &mut Registers, features: u64) {
    for word in 0..2 {
        write(registers, VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
        write(registers, VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * word)) as u32);
    }
}

fn negotiated() -> Registers {
    let mut registers = registers();
    assert_eq!(status(&mut registers, ACKNOWLEDGE), ACKNOWLEDGE);
    assert_eq!(status(&mut registers, DRIVER), DRIVER);
    accept(&mut registers, 1 << 32 | 0b10);
    assert_eq!(status(&mut registers, FEATURES_OK), FEATURES_OK);
    registers
}

/// 4.2.2: identification.
#[test]
fn the_device_says_what_it_is() {
    let registers = registers();
    let mut magic = [0; 4];
    registers.read(0, &mut magic);
    assert_eq!(&magic, b"virt");
    assert_eq!((read(&registers, VIRTIO_MMIO_VERSION), read(&registers, VIRTIO_MMIO_DEVICE_ID)), (2, 24));
    // 2.10: there is no shared memory region.
    assert_eq!(read(&registers, VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(read(&registers, VIRTIO_MMIO_SHM_LEN_HIGH), u32::MAX);
}

/// 2.2: feature bits are read in words of 32, and are 0 above the defined ones.
#[test]
fn features_are_read_by_words() {
    let mut registers = registers();
    let words: Vec<_> = (0..4)
        .map(|word| {
            write(&mut registers, VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
            read(&registers, VIRTIO_MMIO_DEVICE_FEATURES)
        })
        .collect();
    assert_eq!(words, [0b11, 1, 0, 0]);
}

/// 3.1.1: `FEATURES_OK` reads back only when the device can work with the accepted features.
#[test]
fn features_must_be_offered_and_enough() {
    let version_1 = 1 << 32;
    for (features, agreed) in [
        (version_1 | 0b10, true),
        (version_1 | 0b11, true),
        (version_1, false),
        (0b10, false),
        (version_1 | 0b110, false),
        (version_1 | 0b10 | 1 << 63, false),
    ] {
        let mut registers = registers();
        status(&mut registers, DRIVER);
        accept(&mut registers, features);
        let expected = if agreed { FEATURES_OK } else { DRIVER };
        assert_eq!(status(&mut registers, FEATURES_OK), expected, "{features:#x}");
    }
    let mut registers = registers();
    status(&mut registers, DRIVER);
    accept(&mut registers, version_1 | 0b10);
    write(&mut registers, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
    write(&mut registers, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert_eq!(status(&mut registers, FEATURES_OK), DRIVER, "a bit above 63");
    accept(&mut registers, version_1 | 0b10);
    assert_eq!(status(&mut registers, FEATURES_OK), DRIVER, "a bit above 63, and others after it");
    status(&mut registers, 0);
    status(&mut registers, DRIVER);
    accept(&mut registers, version_1 | 0b10);
    assert_eq!(status(&mut registers, FEATURES_OK), FEATURES_OK, "a reset forgets it");
}

/// 4.2.2: each word can be written again, in any order. There are no features above bit 63, and none to refuse.
#[test]
fn the_last_write_of_each_word_of_features_counts() {
    let mut registers = registers();
    status(&mut registers, DRIVER);
    for (word, value) in [(1, 0b11), (0, 0b111), (1, 1), (0, 0b10), (2, 0), (3, 0)] {
        write(&mut registers, VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
        write(&mut registers, VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
    assert_eq!(status(&mut registers, FEATURES_OK), FEATURES_OK);
}

/// 3.1.1: a driver says that it is one before it accepts features.
#[test]
fn features_are_accepted_by_drivers_only() {
    let mut registers = registers();
    accept(&mut registers, 1 << 32 | 0b10);
    assert_eq!(status(&mut registers, FEATURES_OK), DRIVER, "no features were accepted");
}

/// 3.1.1 and 2.2.1: features are fixed after `FEATURES_OK`.
#[test]
fn features_cannot_change_later() {
    let mut registers = negotiated();
    accept(&mut registers, 0);
    assert_eq!(status(&mut registers, DRIVER_OK), DRIVER_OK);
    assert!(registers.running());
}

/// 2.1.1: bits are set in order, and only a reset clears them.
#[test]
fn status_only_ever_grows() {
    let mut registers = registers();
    assert_eq!(status(&mut registers, VIRTIO_CONFIG_S_DRIVER_OK), 0);
    assert_eq!(status(&mut registers, DRIVER_OK), DRIVER, "no features were accepted");
    accept(&mut registers, 1 << 32 | 0b10);
    assert_eq!(write(&mut registers, VIRTIO_MMIO_STATUS, DRIVER_OK), Effect::StatusChanged);
    assert_eq!(status(&mut registers, ACKNOWLEDGE), DRIVER_OK);
    assert_eq!(write(&mut registers, VIRTIO_MMIO_STATUS, DRIVER_OK), Effect::None);
    assert_eq!(
        write(&mut registers, VIRTIO_MMIO_STATUS, DRIVER_OK | VIRTIO_CONFIG_S_FAILED),
        Effect::StatusChanged
    );
    assert!(!registers.running());
    status(&mut registers, DRIVER_OK | VIRTIO_CONFIG_S_FAILED);
    assert!(!registers.running(), "a driver that failed does not go on");
}

/// 2.4.1 and 4.2.2.1: a reset restores everything except the configuration.
#[test]
fn reset_forgets_the_driver() {
    let mut registers = negotiated();
    write(&mut registers, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    write(&mut registers, VIRTIO_MMIO_QUEUE_SEL, 1);
    set_up(&mut registers, 8, ADDRESSES);
    assert_eq!(write_ready(&mut registers), 1);
    status(&mut registers, DRIVER_OK);
    assert!(registers.set_used_buffer_interrupt());
    registers.set_config(&[9; 8]);
    let generation = read(&registers, VIRTIO_MMIO_CONFIG_GENERATION);
    assert_eq!(write(&mut registers, VIRTIO_MMIO_STATUS, 0), Effect::StatusChanged);
    assert_eq!(read(&registers, VIRTIO_MMIO_STATUS), 0);
    assert_eq!(read(&registers, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    // The first queue and the first words of features are selected.
    assert_eq!(read(&registers, VIRTIO_MMIO_QUEUE_NUM_MAX), 128);
    assert_eq!(read(&registers, VIRTIO_MMIO_DEVICE_FEATURES), 0b11);
    assert_eq!(status(&mut registers, FEATURES_OK), DRIVER, "no features were accepted");
    write(&mut registers, VIRTIO_MMIO_DRIVER_FEATURES, 0b10);
    write(&mut registers, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    write(&mut registers, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert_eq!(status(&mut registers, FEATURES_OK), FEATURES_OK);
    write(&mut registers, VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(read(&registers, VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(write_ready(&mut registers), 0, "the queue of the driver before");
    assert_eq!(registers.queue(1).unwrap().size(), 64);
    assert_eq!(read(&registers, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(read(&registers, VIRTIO_MMIO_CONFIG), 0x0909_0909);
}

/// 4.2.3.2: queue set-up.
#[test]
fn queues_are_set_up_one_by_one() {
    let mut registers = negotiated();
    for (index, most) in [(0, 128), (1, 64), (2, 0), (u32::MAX, 0)] {
        write(&mut registers, VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(read(&registers, VIRTIO_MMIO_QUEUE_NUM_MAX), most, "queue {index}");
    }
    write(&mut registers, VIRTIO_MMIO_QUEUE_SEL, 1);
    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_NUM, 16),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000),
        (VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000),
        (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 2),
        (VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000),
        (VIRTIO_MMIO_QUEUE_USED_HIGH, 3),
        (VIRTIO_MMIO_QUEUE_READY, 1),
    ] {
        assert_eq!(write(&mut registers, register, value), Effect::None);
    }
    let expected = (16, 0x1_0000_1000, 0x2_0000_2000, 0x3_0000_3000, true);
    let seen = |registers: &Registers| {
        let queue = registers.queue(1).unwrap();
        (queue.size(), queue.desc_table(), queue.avail_ring(), queue.used_ring(), queue.ready())
    };
    assert_eq!(seen(&registers), expected);
    // Not while it is ready.
    write(&mut registers, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x8000);
    write(&mut registers, VIRTIO_MMIO_QUEUE_NUM, 8);
    write(&mut registers, VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(write_ready(&mut registers), 1);
    assert_eq!(seen(&registers), expected);
    assert!(!registers.queue(0).unwrap().ready());
}

/// The selected queue gets a size and addresses.
fn set_up(registers: &mut Registers, size: u32, [desc, avail, used]: [u64; 3]) {
    write(registers, VIRTIO_MMIO_QUEUE_NUM, size);
    for (low, high, address) in [
        (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, desc),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, avail),
        (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, used),
    ] {
        write(registers, high, (address >> 32) as u32);
        write(registers, low, address as u32);
    }
}

/// Makes the selected queue ready, and returns whether it is.
fn write_ready(registers: &mut Registers) -> u32 {
    write(registers, VIRTIO_MMIO_QUEUE_READY, 1);
    read(registers, VIRTIO_MMIO_QUEUE_READY)
}

const ADDRESSES: [u64; 3] = [0x1_0000_1000, 0x1_0000_2000, 0x2_0000_3000];

/// 4.2.2.2: a driver reads `QueueReady` back. A device that goes on with another size or address than the driver's
/// reads and writes memory that is no queue.
#[test]
fn a_queue_that_cannot_be_used_is_not_ready() {
    let mut registers = negotiated();
    assert_eq!(write_ready(&mut registers), 0, "nothing was written");
    for size in [0, 3, 17, 129, 256, 0x1_0008, u32::MAX] {
        set_up(&mut registers, size, ADDRESSES);
        assert_eq!(write_ready(&mut registers), 0, "{size} entries");
    }
    for (part, unaligned) in [(0, 8), (1, 1), (2, 2)] {
        for address in [0, ADDRESSES[part] + unaligned, !0xf] {
            let mut addresses = ADDRESSES;
            addresses[part] = address;
            set_up(&mut registers, 16, addresses);
            assert_eq!(write_ready(&mut registers), 0, "part {part} at {address:#x}");
        }
    }
    set_up(&mut registers, 16, ADDRESSES);
    assert_eq!(write_ready(&mut registers), 1, "after all these");
    assert_eq!(write_ready(&mut registers), 1, "it is ready already");
    let queue = registers.queue(0).unwrap();
    assert_eq!((queue.size(), [queue.desc_table(), queue.avail_ring(), queue.used_ring()]), (16, ADDRESSES));
    write(&mut registers, VIRTIO_MMIO_QUEUE_READY, 2);
    assert_eq!(read(&registers, VIRTIO_MMIO_QUEUE_READY), 0);
    let mut early = self::registers();
    set_up(&mut early, 16, ADDRESSES);
    assert_eq!(write_ready(&mut early), 0, "before FEATURES_OK");
    assert_eq!(status(&mut early, DRIVER), DRIVER);
    accept(&mut early, 1 << 32 | 0b10);
    assert_eq!(status(&mut early, FEATURES_OK), FEATURES_OK);
    assert_eq!(write_ready(&mut early), 0, "what was written before FEATURES_OK is ignored");
}

/// 2.7: the sizes of the three parts, with flags, index and event index.
#[test]
fn each_part_of_a_queue_lies_in_memory_as_a_whole() {
    for (part, size) in [(0, 16 * 16), (1, 6 + 2 * 16), (2, 6 + 8 * 16)] {
        for (end, ready) in [(ADDRESSES[part] + size, 1), (ADDRESSES[part] + size - 1, 0)] {
            let mut registers = negotiated();
            set_up(&mut registers, 16, ADDRESSES);
            let usable = |start: u64, bytes: usize| start != ADDRESSES[part] || start + bytes as u64 <= end;
            registers.write(VIRTIO_MMIO_QUEUE_READY.into(), &1_u32.to_le_bytes(), usable);
            assert_eq!(read(&registers, VIRTIO_MMIO_QUEUE_READY), ready, "part {part} up to {end:#x}");
        }
    }
}

/// 2.1.2 and 2.4.1: nothing before `DRIVER_OK`, and nothing after a reset. A driver reads the configuration when it has
/// said that it is one; what changes from then on, it learns.
#[test]
fn a_driver_is_told_nothing_before_it_is_ready() {
    let mut registers = registers();
    let pending = |registers: &Registers| read(registers, VIRTIO_MMIO_INTERRUPT_STATUS);
    assert!(!registers.set_config_interrupt() && !registers.set_used_buffer_interrupt());
    status(&mut registers, DRIVER);
    accept(&mut registers, 1 << 32 | 0b10);
    status(&mut registers, DRIVER_OK);
    assert_eq!(pending(&registers), 0, "the change came before the driver");
    status(&mut registers, 0);
    status(&mut registers, DRIVER);
    accept(&mut registers, 1 << 32 | 0b10);
    assert!(!registers.set_config_interrupt() && !registers.set_used_buffer_interrupt());
    status(&mut registers, FEATURES_OK);
    assert_eq!(pending(&registers), 0);
    status(&mut registers, DRIVER_OK);
    assert_eq!(pending(&registers), VIRTIO_MMIO_INT_CONFIG);
    write(&mut registers, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    status(&mut registers, DRIVER_OK);
    assert_eq!(pending(&registers), 0, "it is told once");
    status(&mut registers, 0);
    assert!(!registers.set_config_interrupt() && !registers.set_needs_reset());
    status(&mut registers, 0);
    status(&mut registers, DRIVER);
    assert!(!registers.set_config_interrupt());
    status(&mut registers, 0);
    status(&mut registers, DRIVER);
    accept(&mut registers, 1 << 32 | 0b10);
    status(&mut registers, DRIVER_OK);
    assert_eq!(pending(&registers), 0, "a reset forgets it");
}

/// 4.2.2: notification and interrupts.
#[test]
fn notifications_name_a_queue_and_interrupts_are_acknowledged_by_bit() {
    let mut registers = negotiated();
    status(&mut registers, DRIVER_OK);
    assert_eq!(write(&mut registers, VIRTIO_MMIO_QUEUE_NOTIFY, 1), Effect::Notify(1));
    assert_eq!(write(&mut registers, VIRTIO_MMIO_QUEUE_NOTIFY, 2), Effect::None);
    // Raised twice before the driver acknowledges it once.
    for _ in 0..2 {
        assert!(registers.set_used_buffer_interrupt() && registers.set_config_interrupt());
    }
    assert_eq!(read(&registers, VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert!(registers.set_used_buffer_interrupt());
    assert_eq!(read(&registers, VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    write(&mut registers, VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(read(&registers, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
}

/// 2.1.2 and 2.5.3: a broken device reports it, which is a change of configuration.
#[test]
fn a_broken_device_asks_for_a_reset() {
    let mut registers = negotiated();
    status(&mut registers, DRIVER_OK);
    // Each of two queues may break.
    assert!(registers.set_needs_reset() && registers.set_needs_reset());
    assert!(!registers.running());
    assert_eq!(read(&registers, VIRTIO_MMIO_STATUS), DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(read(&registers, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
}

/// 2.5.1 and 4.2.2: the configuration is read in any width; a generation detects changes between two reads.
#[test]
fn configuration_is_read_in_any_width_and_never_written() {
    let mut registers = registers();
    let config = u64::from(VIRTIO_MMIO_CONFIG);
    let mut eight = [0; 8];
    registers.read(config, &mut eight);
    assert_eq!(eight, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut two = [0; 2];
    registers.read(config + 7, &mut two);
    assert_eq!(two, [8, 0], "beyond the end");
    registers.read(u64::MAX, &mut two);
    assert_eq!(two, [0, 0]);
    let before = read(&registers, VIRTIO_MMIO_CONFIG_GENERATION);
    registers.write(config, &[0xff; 4], |_, _| true);
    registers.set_config(&[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read(&registers, VIRTIO_MMIO_CONFIG_GENERATION), before, "nothing changed");
    registers.set_config(&[1, 2, 3, 4, 5, 6, 7, 9]);
    assert_ne!(read(&registers, VIRTIO_MMIO_CONFIG_GENERATION), before);
}

#[test]
fn registers_are_32_bits_wide() {
    let mut registers = registers();
    let mut byte = [0xee];
    registers.read(0, &mut byte);
    assert_eq!(byte, [0]);
    assert_eq!(registers.write(VIRTIO_MMIO_STATUS.into(), &[1], |_, _| true), Effect::None);
    assert_eq!(read(&registers, VIRTIO_MMIO_STATUS), 0);
    for register in [VIRTIO_MMIO_QUEUE_ALIGN, VIRTIO_MMIO_QUEUE_PFN, 0x1f, 0xf8] {
        assert_eq!(write(&mut registers, register, u32::MAX), Effect::None);
        assert_eq!(read(&registers, register), 0, "{register:#x}");
    }
}
