//! The two ends of virtio-mem without KVM: the real driver, and the VMM's device on host memory, with a queue in
//! guest memory between them.
//!
//! Takes the place of `guest/kernel/src/virtio/` with the smallest queue: one request at a time, at fixed places.
//!
//! Invariant: a plugged device block is zero when it comes, and cannot be reached when it is not plugged. Some device
//! blocks get a mark, so that their memory has to be given back for that.

use tidevm_abi::Size;
use tidevm_machine::HotplugConfig;
use tidevm_machine::hosted::{Devices, REGION, Which};
use virtio_mem::wire::{CONFIG_SIZE, RESPONSE_SIZE};
use virtio_mem::{Config, Driver, DriverConfig, Outcome, Request, RequestKind, Response, ResponseType};

/// Size of the region, unless it is said: four memory blocks.
pub const REGION_SIZE: u64 = 512 << 20;
/// Size of a device block.
pub const BLOCK: u64 = 2 << 20;
/// Size of a memory block.
pub const MEMORY_BLOCK: u64 = 128 << 20;
const BOOT: u64 = 64 << 10;

const TABLE: u64 = 0x1000;
const RING: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x4000;
const ANSWER: u64 = 0x5000;
const QUEUE_SIZE: u32 = 16;

const STATUS: u64 = 0x70;
const CONFIG_CHANGED: u32 = 2;
/// What the guest writes to some of the device blocks that it was given.
const MARK: u64 = 0x7469_6465_7469_6465;

/// One device block in this many gets a mark.
const MARKED: u64 = 16;

/// Device and driver.
pub struct DeviceAndDriver {
    devices: Devices,
    /// The driver's state machine.
    pub driver: Driver,
    geometry: DriverConfig,
    sent: u16,
    /// Device blocks that were not zero when they came.
    pub not_zero: u64,
}

impl DeviceAndDriver {
    /// A device with nothing plugged and its driver. `memmap_size` as in [`DriverConfig`].
    pub fn new(memmap_size: u64) -> Self {
        Self::with_region(REGION_SIZE, memmap_size)
    }

    /// The same with a region of `size` bytes.
    pub fn with_region(size: u64, memmap_size: u64) -> Self {
        let devices = Devices::new(Size(BOOT), &HotplugConfig::new(Size(size)));
        let mut devices = devices.expect("address space for a small machine");
        let geometry = DriverConfig::new(MEMORY_BLOCK, BLOCK).with_memmap_size(memmap_size);
        initialise(&mut devices);
        let driver = driver(&mut devices, geometry);
        Self { devices, driver, geometry, sent: 0, not_zero: 0 }
    }

    /// Sets the target.
    pub fn resize(&mut self, size: u64) {
        self.devices.resize(Size(size)).expect("whole device blocks of the region");
        // The event loop applies it. There is no request in the queue.
        self.devices.serve(Which::Mem);
    }

    /// What the device interrupts for.
    pub fn take_interrupt(&mut self) {
        let pending = self.read(0x60);
        self.write(0x64, pending);
        if pending & CONFIG_CHANGED != 0 {
            self.driver.config_changed();
        }
    }

    /// The pause after a failure is over, on both ends.
    pub fn retry(&mut self) {
        self.devices.retry();
        self.driver.retry();
    }

    /// The driver reads the configuration.
    pub fn read_config(&mut self) -> Outcome {
        let (config, generation) = config(&mut self.devices);
        Outcome::Config(config, generation)
    }

    /// Sends `request`, waits for the answer, and looks at host memory after it.
    pub fn send(&mut self, request: Request) -> Outcome {
        let response = self.ask(request);
        self.check(request, response);
        Outcome::Response(response)
    }

    /// Sends `request` and waits for the answer.
    pub fn ask(&mut self, request: Request) -> Response {
        self.sent = self.sent.wrapping_add(1);
        let mut bytes = vec![0; 32];
        bytes[..8].copy_from_slice(&REQUEST.to_le_bytes());
        bytes[8] = 24;
        // NEXT, and the next one.
        (bytes[12], bytes[14]) = (1, 1);
        bytes[16..24].copy_from_slice(&ANSWER.to_le_bytes());
        // WRITE.
        (bytes[24], bytes[28]) = (RESPONSE_SIZE as u8, 2);
        self.fill(TABLE, &bytes);
        self.fill(REQUEST, &request.to_bytes());
        self.fill(RING + 2, &self.sent.to_le_bytes());
        self.write(0x50, 0);
        self.devices.serve(Which::Mem);
        let mut used = [0; 2];
        assert!(self.devices.read_memory(USED + 2, &mut used));
        assert_eq!(u16::from_le_bytes(used), self.sent, "the device answers {request:x?}");
        let mut answer = [0; RESPONSE_SIZE];
        assert!(self.devices.read_memory(ANSWER, &mut answer));
        Response::from_bytes(&answer)
    }

    /// Looks at host memory after a request.
    fn check(&mut self, request: Request, response: Response) {
        let blocks = (0..u64::from(request.nb_blocks)).map(|block| request.addr + block * BLOCK);
        // The host clears a huge page for each mark.
        let mut blocks = blocks.filter(|block| (block / BLOCK).is_multiple_of(MARKED));
        match (request.kind, response.kind) {
            (RequestKind::Plug, ResponseType::Ack) => {
                for block in blocks {
                    let mut word = [0; 8];
                    assert!(self.devices.read_memory(block, &mut word), "{block:#x} is plugged");
                    self.not_zero += u64::from(word != [0; 8]);
                    self.fill(block, &MARK.to_le_bytes());
                }
            }
            (RequestKind::Unplug, ResponseType::Ack) => {
                let reached = blocks.find(|&block| self.devices.read_memory(block, &mut [0; 8]));
                assert_eq!(reached, None, "an unplugged device block");
            }
            _ => {}
        }
        let plugged = self.plugged();
        assert_eq!(self.devices.reachable(), plugged, "bytes that the VMM reaches, and plugged bytes");
    }

    /// Bytes that are plugged.
    pub fn plugged(&self) -> u64 {
        self.devices.state().mem[0].plugged.0
    }

    /// System reset, and the driver of the next guest.
    pub fn reset(&mut self) {
        self.devices.reset().expect("the host takes memory back");
        assert_eq!((self.plugged(), self.devices.reachable()), (0, 0), "after a reset");
        self.restart();
    }

    /// A new guest kernel starts without a system reset, as by kexec. Its driver finds memory plugged.
    pub fn restart(&mut self) {
        initialise(&mut self.devices);
        self.sent = 0;
        self.driver = driver(&mut self.devices, self.geometry);
    }

    fn fill(&self, address: u64, bytes: &[u8]) {
        assert!(self.devices.write_memory(address, bytes), "{address:#x} is memory of the guest");
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.devices.read(Which::Mem, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.devices.write(Which::Mem, offset, &value.to_le_bytes());
    }
}

/// The steps of virtio 1.3, section 3.1.1.
fn initialise(devices: &mut Devices) {
    let mut write = |offset, value: u32| devices.write(Which::Mem, offset, &value.to_le_bytes());
    for (offset, value) in
        [(STATUS, 0), (STATUS, 3), (0x24, 0), (0x20, 2), (0x24, 1), (0x20, 1), (STATUS, 11)]
    {
        write(offset, value);
    }
    for (offset, value) in [(0x30, 0), (0x38, QUEUE_SIZE), (0x80, TABLE as u32), (0x90, RING as u32)] {
        write(offset, value);
    }
    write(0xa0, USED as u32);
    write(0x44, 1);
    write(STATUS, 15);
    assert!(devices.write_memory(RING, &[0; 64]) && devices.write_memory(USED, &[0; 4]));
}

fn config(devices: &mut Devices) -> (Config, u32) {
    let (mut bytes, mut generation) = ([0; CONFIG_SIZE], [0; 4]);
    devices.read(Which::Mem, 0xfc, &mut generation);
    devices.read(Which::Mem, 0x100, &mut bytes);
    let config = Config::from_bytes(&bytes);
    assert_eq!(config.addr, REGION);
    (config, u32::from_le_bytes(generation))
}

fn driver(devices: &mut Devices, geometry: DriverConfig) -> Driver {
    let (config, generation) = config(devices);
    Driver::new(geometry, config, generation).expect("the device's configuration is good")
}
