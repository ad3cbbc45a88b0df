//! Addresses and ports lead to their devices; without a device, reads are all ones.

use std::io;
use std::sync::{Arc, Mutex};

use tidevm_abi::{EXIT_PORT, SERIAL_PORT};
use vmm_sys_util::eventfd::EventFd;

use super::{Access, Bus, I8042, I8042_RESET, POWER_OFF, SLEEP_CONTROL, SLEEP_TYPE_OFF};
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
    let event = || EventFd::new(0).unwrap();
    let serial = Serial::new(Sink::Lines(Box::new(io::sink())), event(), event(), Arc::default());
    let second = Arc::new(Mutex::new(Numbered(2, 0)));
    let devices: Vec<Arc<Mutex<dyn RegisterDevice>>> =
        vec![Arc::new(Mutex::new(Numbered(1, 0))), Arc::clone(&second) as _];
    (Bus::new(devices, Arc::new(serial)), second)
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
    assert_eq!(bus.io_write(SERIAL_PORT, b"hello"), Access::Done);
    assert_eq!(bus.serial_tail(), "hello");
    let mut data = [0];
    assert_eq!((bus.io_read(SERIAL_PORT + 5, &mut data), data[0] & 0x20), (Access::Done, 0x20));
    assert_eq!((bus.io_read(0x80, &mut data), data[0]), (Access::Done, 0xff));
    assert_eq!((bus.io_read(I8042, &mut data), data[0]), (Access::Done, 0));
    assert_eq!(bus.io_write(EXIT_PORT, &[7, 0]), Access::Exit(7));
    assert_eq!(bus.io_write(I8042, &[I8042_RESET]), Access::Reset);
    assert_eq!(bus.io_write(I8042, &[0xd1]), Access::Done);
    assert_eq!(bus.io_write(SLEEP_CONTROL, &[POWER_OFF]), Access::PowerOff);
    assert_eq!(bus.io_write(SLEEP_CONTROL, &[SLEEP_TYPE_OFF << 2]), Access::Done);
}
