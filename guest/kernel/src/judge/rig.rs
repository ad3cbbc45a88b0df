//! The device before its judge: how it is started, asked and watched.
//!
//! Mirrors virtio 1.3, sections 3.1.1 (the start of a driver) and 5.15.6 (requests). Differs from a driver on purpose: a row
//! may stop between any two steps, and an answer is a value, never an error.
//!
//! Invariants: no wait for the device is longer than [`PATIENCE`]. Every row begins with a driver that runs the device, a
//! target of [`BASE_BLOCKS`] blocks, and nothing plugged ([`Rig::prepare`]).

use alloc::format;
use alloc::string::String;

use virtio_drivers::transport::InterruptStatus;
use virtio_mem::wire::{CONFIG_SIZE, Config};

use super::answer::{Answer, PLUG, STATE, Stop, UNPLUG, UNPLUG_ALL, fail, name, skip};
use super::line::{Talk, wait};
use super::memory::Window;
use super::queue::{Descriptor, MOST_ENTRIES, NEXT, Queue, WRITE};
use super::registers::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, INACCESSIBLE, Registers, VERSION_1};
use crate::virtio::source::Source;

/// Longest wait for the device, in milliseconds.
pub const PATIENCE: u64 = 3000;
/// How long a row looks for something that must not come, in milliseconds.
pub const SILENCE: u64 = 50;
/// Device blocks of the target with which a row begins.
pub const BASE_BLOCKS: u64 = 32;

/// Offset of `plugged_size`.
pub const PLUGGED_SIZE: u64 = 40;
/// Offset of `requested_size`.
pub const REQUESTED_SIZE: u64 = 48;

/// The device, its queue, and the line to the host.
pub struct Rig {
    /// The device's registers.
    pub registers: Registers,
    /// Its queue.
    pub queue: Queue,
    /// The line to the host.
    pub talk: Talk,
    /// The machine was reset since the row began.
    pub again: bool,
    /// Interrupts of the device. None when it has none.
    source: Option<Source>,
    /// The device's block size, and the address and the size of its region.
    fixed: [u64; 3],
    /// The state in the last answer to STATE.
    state: u16,
    /// `plugged_size` when the guest booted.
    at_boot: u64,
}

impl Rig {
    /// The device behind `registers`, whose interrupts come from `source`.
    pub fn new(registers: Registers, source: Option<Source>, talk: Talk) -> Self {
        let queue = Queue::new();
        let word = |offset| u64::from(registers.config_32(PLUGGED_SIZE + offset));
        let at_boot = word(0) | word(4) << 32;
        Self { registers, queue, talk, again: false, source, fixed: [0; 3], state: 0, at_boot }
    }

    /// `plugged_size` when the guest booted, in bytes.
    pub fn plugged_at_boot(&self) -> u64 {
        self.at_boot
    }

    /// Brings the device to where each row begins.
    ///
    /// # Errors
    /// The device does not start or does not answer, or the host cannot set the target.
    pub fn prepare(&mut self) -> Result<(), Stop> {
        self.start()?;
        let config = self.config()?;
        self.fixed = [config.block_size, config.addr, config.region_size];
        if !config.block_size.is_power_of_two() {
            return fail!("block_size is {:#x}", config.block_size);
        }
        if config.requested_size != BASE_BLOCKS * config.block_size {
            self.resize(BASE_BLOCKS)?;
        }
        self.expect(UNPLUG_ALL, 0, 0, Answer::Ack)
    }

    /// Bytes of a device block.
    pub fn block(&self) -> u64 {
        self.fixed[0]
    }

    /// The physical address of device block `index`.
    pub fn address(&self, index: u64) -> u64 {
        self.fixed[1] + index * self.block()
    }

    /// The number of device blocks of the region.
    pub fn blocks(&self) -> u64 {
        self.fixed[2] / self.block()
    }

    /// Resets the device and waits until it is.
    ///
    /// # Errors
    /// The status does not become 0.
    pub fn reset(&mut self) -> Result<(), Stop> {
        self.registers.set_status(0);
        let registers = &self.registers;
        if !wait(PATIENCE, || registers.status() == 0) {
            return fail!("after a reset the status is {:#x}", self.registers.status());
        }
        self.interrupts();
        Ok(())
    }

    /// Resets the device and agrees on features: what `wanted` has of those that are offered.
    ///
    /// # Errors
    /// The device does not agree.
    pub fn negotiate(&mut self, wanted: u64) -> Result<(), Stop> {
        self.reset()?;
        self.registers.set_status(ACKNOWLEDGE);
        self.registers.set_status(ACKNOWLEDGE | DRIVER);
        self.source.take_if(|source| !source.start());
        let features = self.registers.features() & wanted;
        self.registers.accept(features);
        self.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.registers.status() & FEATURES_OK == 0 {
            return fail!("FEATURES_OK is refused for features {features:#x}");
        }
        Ok(())
    }

    /// Sets up the queue with so many entries.
    pub fn set_up_queue(&mut self, entries: u16) {
        self.queue.restart(entries);
        self.registers.select(0);
        self.registers.set_entries(entries);
        self.registers.set_rings(self.queue.rings());
        self.registers.set_ready();
    }

    /// Says that the driver is ready.
    pub fn go(&self) {
        self.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Starts the device from a reset, as a driver does it.
    ///
    /// # Errors
    /// The device does not start.
    pub fn start(&mut self) -> Result<(), Stop> {
        self.start_with(VERSION_1 | INACCESSIBLE, MOST_ENTRIES)
    }

    /// The same with other features and another number of entries, which the device has room for.
    ///
    /// # Errors
    /// The device does not start.
    pub fn start_with(&mut self, wanted: u64, entries: u16) -> Result<(), Stop> {
        self.negotiate(wanted)?;
        self.registers.select(0);
        let most = self.registers.most_entries();
        self.set_up_queue(entries.min(u16::try_from(most).unwrap_or(entries)));
        self.go();
        Ok(())
    }

    /// The configuration, of one generation.
    ///
    /// # Errors
    /// The generation changes with every read.
    pub fn config(&self) -> Result<Config, Stop> {
        for _ in 0..100 {
            let before = self.registers.generation();
            let mut bytes = [0; CONFIG_SIZE];
            for (word, offset) in bytes.chunks_exact_mut(4).zip((0..).step_by(4)) {
                word.copy_from_slice(&self.registers.config_32(offset).to_le_bytes());
            }
            if self.registers.generation() == before {
                return Ok(Config::from_bytes(&bytes));
            }
        }
        fail!("the generation of the configuration changes all the time")
    }

    /// Has the host set a target of `blocks` device blocks.
    ///
    /// # Errors
    /// The VMM refuses it.
    pub fn resize(&mut self, blocks: u64) -> Result<(), Stop> {
        let bytes = blocks * self.block();
        match self.talk.resize(bytes) {
            Ok(()) => Ok(()),
            Err(reason) => skip!("the VMM refuses a target of {bytes} bytes: {reason}"),
        }
    }

    /// Has the host set a target, and waits until the configuration has it.
    ///
    /// # Errors
    /// The VMM refuses it, or it does not come.
    pub fn resize_and_see(&mut self, blocks: u64) -> Result<Config, Stop> {
        self.resize(blocks)?;
        let wanted = blocks * self.block();
        let mut seen = None;
        wait(PATIENCE, || {
            seen = self.config().ok();
            seen.is_some_and(|config| config.requested_size == wanted)
        });
        match seen {
            Some(config) if config.requested_size == wanted => Ok(config),
            Some(config) => {
                fail!("requested_size stays {} blocks of {blocks}", config.requested_size / self.block())
            }
            None => fail!("the configuration cannot be read"),
        }
    }

    /// The reasons of interrupts that came since the last call; acknowledges them.
    pub fn interrupts(&mut self) -> u32 {
        let registers = &self.registers;
        let acknowledge = || {
            let reasons = registers.interrupt_status();
            registers.acknowledge(reasons);
            InterruptStatus::from_bits_retain(reasons)
        };
        self.source.as_mut().map_or(0, |source| source.reasons(acknowledge).bits())
    }

    /// For rows on interrupts.
    ///
    /// # Errors
    /// The device has none.
    pub fn must_hear(&self) -> Result<(), Stop> {
        match self.source {
            Some(_) => Ok(()),
            None => skip!("the device can interrupt neither by messages (MSI-X) nor by a pin"),
        }
    }

    /// For rows on the interrupt status.
    ///
    /// # Errors
    /// The device has none, or no interrupts.
    pub fn must_have_status(&self) -> Result<(), Stop> {
        self.must_hear()?;
        match self.source {
            Some(Source::Messages(_)) => skip!("there is no interrupt status with messages (MSI-X)"),
            _ => Ok(()),
        }
    }

    /// Waits until an interrupt comes for `reason`, at most `millis` milliseconds. Returns whether it came.
    pub fn interrupted(&mut self, reason: u32, millis: u64) -> bool {
        wait(millis, || self.interrupts() & reason != 0)
    }

    /// Offers a request of one readable and one writable buffer in slot `slot`, without a notification. Each slot has two
    /// descriptors.
    pub fn offer(&mut self, slot: u16, request: &[u8], room: u32) {
        let (head, end) = (slot * 2, slot * 2 + 1);
        let addr = self.queue.put_request(slot, request);
        let answer = self.queue.clear_response(slot);
        self.queue.describe(head, Descriptor { addr, len: request.len() as u32, flags: NEXT, next: end });
        self.queue.describe(end, Descriptor { addr: answer, len: room, flags: WRITE, next: 0 });
        self.queue.offer(head);
    }

    /// Tells the device of the queue's new buffers.
    pub fn notify(&self) {
        self.registers.notify(0);
    }

    /// Waits until all chains are back, at most [`PATIENCE`]. Returns whether they are.
    pub fn all_back(&self) -> bool {
        let queue = &self.queue;
        wait(PATIENCE, || queue.used() == queue.offered())
    }

    /// Sends one request in slot 0, and returns the answer and the bytes that the device says it has written.
    pub fn send(&mut self, request: &[u8]) -> (Answer, u32) {
        self.offer(0, request, 10);
        self.notify();
        self.take(0)
    }

    /// The answer in slot `slot`, once all chains are back.
    pub fn take(&mut self, slot: u16) -> (Answer, u32) {
        if !self.all_back() {
            return (Answer::Nothing, 0);
        }
        let (_, written) = self.queue.used_entry(self.queue.used().wrapping_sub(1));
        let response = self.queue.response(slot);
        self.state = u16::from_le_bytes([response[8], response[9]]);
        (Answer::of(&response, written), written)
    }

    /// Sends one request of the given fields.
    pub fn ask(&mut self, kind: u16, addr: u64, count: u16) -> Answer {
        self.send(&request(kind, addr, count)).0
    }

    /// Sends a request about `count` blocks from block `index` on, which must be answered by `wanted`.
    ///
    /// # Errors
    /// It is answered otherwise.
    pub fn expect(&mut self, kind: u16, index: u64, count: u16, wanted: Answer) -> Result<(), Stop> {
        let answer = self.ask(kind, self.address(index), count);
        self.must_be(answer, wanted, || format!("{} of {count} blocks from block {index}", name(kind)))
    }

    /// Fails unless `answer` is `wanted`.
    ///
    /// # Errors
    /// It is not.
    pub fn must_be(&self, answer: Answer, wanted: Answer, what: impl FnOnce() -> String) -> Result<(), Stop> {
        if answer == wanted { Ok(()) } else { fail!("{}: {answer}, not {wanted}", what()) }
    }

    /// Plugs blocks.
    ///
    /// # Errors
    /// The answer is not ACK.
    pub fn plug(&mut self, index: u64, count: u16) -> Result<(), Stop> {
        self.expect(PLUG, index, count, Answer::Ack)
    }

    /// Unplugs blocks.
    ///
    /// # Errors
    /// The answer is not ACK.
    pub fn unplug(&mut self, index: u64, count: u16) -> Result<(), Stop> {
        self.expect(UNPLUG, index, count, Answer::Ack)
    }

    /// The state of blocks: 0 is plugged, 1 unplugged, 2 mixed.
    ///
    /// # Errors
    /// The answer is not ACK.
    pub fn state_of(&mut self, index: u64, count: u16) -> Result<u16, Stop> {
        self.expect(STATE, index, count, Answer::Ack)?;
        Ok(self.state)
    }

    /// Fails unless blocks have a state.
    ///
    /// # Errors
    /// They have another one.
    pub fn must_have(&mut self, index: u64, count: u16, state: u16) -> Result<(), Stop> {
        let found = self.state_of(index, count)?;
        if found == state {
            return Ok(());
        }
        let word =
            |state: u16| ["PLUGGED", "UNPLUGGED", "MIXED"].get(usize::from(state)).copied().unwrap_or("?");
        fail!("{count} blocks from block {index} are {}, not {}", word(found), word(state))
    }

    /// Fails unless `plugged_size` is so many blocks.
    ///
    /// # Errors
    /// It is another size.
    pub fn must_have_plugged(&self, blocks: u64) -> Result<(), Stop> {
        let plugged = self.config()?.plugged_size;
        if plugged == blocks * self.block() {
            return Ok(());
        }
        fail!("plugged_size is {plugged:#x}, not {blocks} blocks")
    }

    /// A window onto plugged blocks.
    ///
    /// # Errors
    /// There is no memory for page tables.
    pub fn window(&self, index: u64, count: u64) -> Result<Window, Stop> {
        match Window::new(self.address(index), count * self.block()) {
            Ok(window) => Ok(window),
            Err(_) => skip!("the guest has no memory for page tables"),
        }
    }

    /// Whether the device works after a reset: it starts, and answers STATE.
    ///
    /// # Errors
    /// It does not.
    pub fn must_live(&mut self) -> Result<(), Stop> {
        self.start()?;
        let answer = self.ask(STATE, self.address(0), 1);
        self.must_be(answer, Answer::Ack, || "after a reset, STATE of block 0".into())
    }
}

/// The bytes of a request (5.15.6).
pub fn request(kind: u16, addr: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}
