//! Addresses and ports lead to their devices; without a device, reads are all ones.

use std::io;
use std::sync::{Arc, Mutex};

use tidevm_abi::{EXIT_PORT, SERIAL_PORT};
use vmm_sys_util::eventfd::EventFd;

use super::{Access, Bus, I8042, I8042_RESET, PANICKED, POWER_OFF, PVPANIC, SLEEP_CONTROL, SLEEP_TYPE_OFF};
use crate::config::ConsoleWatch;
use crate::memory::layout::{HOLE_END, MMIO_SIZE, mmio};
use crate::serial::{Serial, Sink};
use crate::virtio::RegisterDevice;

/// A device that reads as its number and keeps the offset of the last write.
struct Numbered(u8, u64);

impl RegisterDevice for Numbered {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&mut self, offset: u64, _: &[u8]) -> io::Result<()> {
        self.1 = offset;
        Ok(())
    }
}

fn bus() -> (Bus, Arc<Mutex<Numbered>>) {
    bus_with(true)
}

/// A bus of a machine whose embedder wants `alarms`, or does not.
fn bus_with(alarms: bool) -> (Bus, Arc<Mutex<Numbered>>) {
    let event = || EventFd::new(0).unwrap();
    let watch = ConsoleWatch { alarms, ..ConsoleWatch::default() };
    let serial = Serial::new(Sink::Lines(Box::new(io::sink())), event(), event(), Arc::default()).watched(
        &watch,
        None,
        || (),
    );
    let second = Arc::new(Mutex::new(Numbered(2, 0)));
    let devices: Vec<Arc<Mutex<dyn RegisterDevice>>> =
        vec![Arc::new(Mutex::new(Numbered(1, 0))), Arc::clone(&second) as _];
    (Bus::new(devices, Arc::new(serial), alarms), second)
}

#[test]
fn an_address_leads_to_its_device() {
    let (bus, second) = bus();
    let mut data = [0; 4];
    assert_eq!((bus.mmio_read(mmio(0).0 + 0x100, &mut data), data), (Access::Done, [1; 4]));
    assert_eq!((bus.mmio_read(mmio(1).0, &mut data), data), (Access::Done, [2; 4]));
    assert_eq!(bus.mmio_write(mmio(1).0 + 0x50, &[0; 4]), Access::Done);
    assert_eq!(second.lock().unwrap().1, 0x50);
}

#[test]
fn without_a_device_reads_are_all_ones() {
    let (bus, _) = bus();
    let across_the_end = mmio(1).0 + MMIO_SIZE - 2;
    for address in [0, mmio(0).0 - 1, mmio(2).0, across_the_end, HOLE_END, u64::MAX] {
        let mut data = [0; 4];
        assert_eq!((bus.mmio_read(address, &mut data), data), (Access::Stray, [0xff; 4]), "{address:#x}");
        assert_eq!(bus.mmio_write(address, &data), Access::Stray);
    }
}

#[test]
fn ports_write_text_and_end_the_machine() {
    let (bus, _) = bus();
    assert_eq!(bus.io_write(SERIAL_PORT, 1, b"hello"), Access::Done);
    assert_eq!(bus.serial_tail(), "hello");
    let mut data = [0];
    assert_eq!((bus.io_read(SERIAL_PORT + 5, 1, &mut data), data[0] & 0x20), (Access::Done, 0x20));
    assert_eq!((bus.io_read(0x80, 1, &mut data), data[0]), (Access::Done, 0xff));
    assert_eq!((bus.io_read(I8042, 1, &mut data), data[0]), (Access::Done, 0));
    assert_eq!(bus.io_write(EXIT_PORT, 2, &[7, 0]), Access::Exit(7));
    assert_eq!(bus.io_write(I8042, 1, &[I8042_RESET]), Access::Reset);
    assert_eq!(bus.io_write(I8042, 1, &[0xd1]), Access::Done);
    assert_eq!(bus.io_write(SLEEP_CONTROL, 1, &[POWER_OFF]), Access::PowerOff);
    assert_eq!(bus.io_write(SLEEP_CONTROL, 1, &[SLEEP_TYPE_OFF << 2]), Access::Done);
}

#[test]
fn a_panic_is_told_by_its_last_line_by_a_reset_and_by_a_device() {
    let say = |bus: &Bus, text: &str| {
        text.bytes().map(|byte| bus.io_write(SERIAL_PORT, 1, &[byte])).find(|access| *access != Access::Done)
    };
    let mut events = [0];
    for (alarms, panic) in [(true, Some(Access::Panic)), (false, None)] {
        let (bus, _) = bus_with(alarms);
        assert_eq!(say(&bus, "Kernel panic - not syncing: x\r\n"), None);
        let reset = bus.io_write(I8042, 1, &[I8042_RESET]);
        assert_eq!(reset, panic.unwrap_or(Access::Reset));
        assert_eq!(say(&bus, "---[ end Kernel panic - not syncing: x ]---\r\n"), panic);
        assert_eq!(bus.io_read(PVPANIC, 1, &mut events), Access::Done);
        assert_eq!(events[0], if alarms { PANICKED } else { 0xff }, "no device, no answer");
        assert_eq!(bus.io_write(PVPANIC, 1, &[PANICKED]), panic.unwrap_or(Access::Done));
        assert_eq!(bus.io_write(PVPANIC, 1, &[2]), Access::Done, "an event that was not offered");
    }
}

/// The scratch register is port 7 of the serial port, and its line control is port 3.
#[test]
fn each_byte_of_an_access_goes_to_a_port_of_its_own() {
    const SCRATCH: u16 = SERIAL_PORT + 7;
    let (bus, _) = bus();
    // The data of the port, the interrupts that are enabled, and two more ports: one letter is text.
    assert_eq!(bus.io_write(SERIAL_PORT, 2, b"a\0b\0c\0"), Access::Done);
    assert_eq!(bus.serial_tail(), "abc");
    assert_eq!(bus.io_write(SCRATCH - 3, 4, &[0, 0, 0, 0x5a]), Access::Done);
    let mut wide = [0; 4];
    assert_eq!((bus.io_read(SCRATCH, 4, &mut wide), wide), (Access::Done, [0x5a, 0xff, 0xff, 0xff]));
    assert_eq!((bus.io_read(SCRATCH - 1, 2, &mut wide), wide[1], wide[3]), (Access::Done, 0x5a, 0x5a));
    // Repeated accesses of one byte stay at their port.
    assert_eq!((bus.io_read(SCRATCH, 1, &mut wide), wide), (Access::Done, [0x5a; 4]));
    // Ports that end the machine lie at their own addresses, in whatever access.
    assert_eq!(bus.io_write(EXIT_PORT - 1, 2, &[7, 9]), Access::Exit(9));
    assert_eq!(bus.io_write(EXIT_PORT - 1, 1, &[7, 9]), Access::Done);
    assert_eq!(bus.io_write(I8042, 2, &[I8042_RESET, 0]), Access::Reset);
    assert_eq!(bus.io_write(I8042 - 1, 1, &[0, I8042_RESET]), Access::Done);
    assert_eq!(bus.io_write(SLEEP_CONTROL, 4, &[POWER_OFF, 0, 0, 0]), Access::PowerOff);
    // Behind the last port there is none.
    assert_eq!((bus.io_read(u16::MAX, 4, &mut wide), wide), (Access::Done, [0xff; 4]));
    assert_eq!(bus.io_write(u16::MAX - 1, 4, &[0; 4]), Access::Done);
}
