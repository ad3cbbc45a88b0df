//! Queues in guest memory against bounds: a virtio-mem device, a control channel and a balloon whose driver writes
//! anything anywhere.
//!
//! After each turn of a device these hold, whatever is in memory:
//! - only buffers that the descriptor table calls device-writable, and the device's ring, have changed;
//! - at most one chain of the virtio-mem device went back, two of the balloon, and a batch of the control channel;
//! - its length is at most that of the answer, and its head is in the table;
//! - a chain that follows all rules is served as one: see `chains/served.rs`;
//! - the device looked up a bounded number of addresses, and took a bounded part of the heap;
//! - what the VMM reaches of the region is what is plugged.
//!
//! Guest memory is 64 KiB of boot memory, all of which is compared, and the region.

use tidevm_abi::{Op, Size};
use tidevm_machine::HotplugConfig;
use tidevm_machine::hosted::{Devices, HostCall, Which, fail, failed, lookups};

use crate::heap;
use crate::input::Input;
use drawn::{BLOCK, BOOT, address, request};
use served::{ANSWER, Chain, Part, WRITE};

mod drawn;
mod served;

const REGION_SIZE: u64 = 128 << 20;
/// Boot memory is compared in parts of this size.
const CHUNK: usize = 256;
/// Most operations of one input.
const OPERATIONS: usize = 100;

const NEEDS_RESET: u32 = 64;

/// A queue: its largest and its chosen size, whether it is ready, its table, the driver's ring, the device's ring.
type SetUp = (u16, u16, bool, [u64; 3]);

/// Where a driver that behaves puts the parts of queue `n`: the table, its own ring, the device's ring.
fn places(queue: usize) -> [u64; 3] {
    let start = 0x1000 + 0x3000 * queue as u64;
    [start, start + 0x1000, start + 0x2000]
}

/// The number of one of the two queues of a device: those of the balloon are statistics and reports.
fn number(which: Which, queue: usize) -> usize {
    if which == Which::Balloon { [2, 4][queue] } else { queue }
}

/// The guest, and what it knows of its devices.
struct Guest {
    devices: Devices,
    which: Which,
    /// Chains that were offered, by queue.
    offered: [u16; 2],
    /// An unplug failed and the host did not open the memory again.
    opens_failed: u64,
}

/// Plays one guest.
///
/// # Panics
/// When a bound does not hold.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    HostCall::ALL.iter().for_each(|&call| fail(call, None));
    let which = input.pick(&[Which::Mem, Which::Mem, Which::Control, Which::Balloon]);
    let config = HotplugConfig { requested: Size(16 * BLOCK), ..HotplugConfig::new(Size(REGION_SIZE)) };
    let devices = Devices::new(Size(BOOT as u64), &config).expect("resources of the host");
    let opens_failed = failed(HostCall::Open);
    let mut guest = Guest { devices, which, offered: [0; 2], opens_failed };
    guest.initialise(&mut input);
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        guest.act(&mut input);
    }
    HostCall::ALL.iter().for_each(|&call| fail(call, None));
}

impl Guest {
    fn write(&mut self, offset: u64, value: u32) {
        self.devices.write(self.which, offset, &value.to_le_bytes());
    }

    fn status(&mut self) -> u32 {
        let mut data = [0; 4];
        self.devices.read(self.which, 0x70, &mut data);
        u32::from_le_bytes(data)
    }

    /// The steps of virtio 1.3, section 3.1.1, sometimes with parts of a queue elsewhere.
    fn initialise(&mut self, input: &mut Input<'_>) {
        self.write(0x70, 0);
        self.offered = [0; 2];
        let features = match self.which {
            Which::Mem => 2,
            Which::Control => 0,
            // Reports, mostly with statistics.
            Which::Balloon => input.pick(&[0x22, 0x22, 0x20, 2]),
        };
        for (offset, value) in [(0x70, 3), (0x24, 0), (0x20, features), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(offset, value);
        }
        let odd = input.byte();
        for queue in 0..2 {
            self.write(0x30, number(self.which, queue) as u32);
            self.write(0x38, input.pick(&[16, 16, 4, 1, 64, 128]));
            for (part, place) in places(queue).into_iter().enumerate() {
                let place = if odd >> part & 1 == 0 || odd < 200 { place } else { address(input) };
                self.write(0x80 + 0x10 * part as u64, place as u32);
                self.write(0x84 + 0x10 * part as u64, (place >> 32) as u32);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let queue = input.below(2) as usize;
        match input.byte() {
            0..60 => self.descriptor(queue, input),
            60..110 => self.offer(queue, input.byte().into()),
            110..130 => {
                let request = request(input);
                self.devices.write_memory(address(input), &request);
            }
            130..150 => {
                let count = usize::from(input.byte() % 64);
                let bytes = input.bytes(count).to_vec();
                self.devices.write_memory(address(input), &bytes);
            }
            150..200 => self.complete_request(input),
            200..205 => {
                let size = Size(input.below(REGION_SIZE / BLOCK + 2) * BLOCK);
                assert_eq!(self.devices.resize(size).is_ok(), size.0 <= REGION_SIZE);
            }
            205..212 => fail(input.pick(&HostCall::ALL), Some(input.below(3) as u32)),
            212..220 => {
                let offset = u64::from(input.byte()) * 4;
                let value = input.u32();
                // A reset begins anew, and the model has to know.
                if offset == 0x70 && value == 0 || offset == 0x44 {
                    self.initialise(input);
                } else {
                    self.write(offset, value);
                }
            }
            220..224 => {
                self.devices.reset().expect("the host takes memory back");
                assert_eq!(self.devices.state().mem[0].plugged.0, 0);
                self.initialise(input);
                self.opens_failed = failed(HostCall::Open);
            }
            224..230 if self.which == Which::Balloon => self.devices.ask(),
            224..230 => self.devices.retry(),
            230..240 => {
                let op = input.pick(&[Op::Stats, Op::Check, Op::Blocks { from: u64::MAX }]);
                if self.which == Which::Control {
                    self.turn(|devices| {
                        devices.call(op);
                    });
                }
            }
            _ => {
                let which = self.which;
                self.turn(|devices| {
                    devices.serve(which);
                });
            }
        }
    }

    fn descriptor(&mut self, queue: usize, input: &mut Input<'_>) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address(input).to_le_bytes());
        let len = match input.byte() {
            0..100 => u32::from(input.byte()),
            100..140 => 24,
            140..200 => 10,
            200..220 => u32::from(input.u16()) * 16,
            _ => input.u32(),
        };
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        // NEXT, WRITE, both, INDIRECT, and anything.
        let flags = input.pick(&[0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 0x8000]);
        bytes[12..14].copy_from_slice(&u16::to_le_bytes(flags));
        bytes[14..].copy_from_slice(&u16::from(input.byte() % 20).to_le_bytes());
        let index = u64::from(input.byte() % 20);
        self.devices.write_memory(places(queue)[0] + 16 * index, &bytes);
    }

    /// Offers the chain that begins at descriptor `head`, and lets the device have its turn.
    fn offer(&mut self, queue: usize, head: u16) {
        let Some((_, size, ..)) = self.set_up(queue) else { return };
        let ring = places(queue)[1];
        let slot = u64::from(self.offered[queue] % size);
        self.devices.write_memory(ring + 4 + 2 * slot, &(head % 20).to_le_bytes());
        self.offered[queue] = self.offered[queue].wrapping_add(1);
        self.devices.write_memory(ring + 2, &self.offered[queue].to_le_bytes());
        let which = self.which;
        self.turn(|devices| {
            devices.serve(which);
        });
    }

    /// A request and the room for its answer, as a driver sends them. Either may be in two buffers.
    fn complete_request(&mut self, input: &mut Input<'_>) {
        let request = request(input);
        self.devices.write_memory(0xc000, &request);
        let answer = if input.byte() < 230 { 0xc100 } else { address(input) };
        let room = input.pick(&[ANSWER, ANSWER, ANSWER, ANSWER - 1, 1, 100]);
        let cut = u32::from(input.byte());
        let (first, second) = (cut % (request.len() as u32 + 1), cut % (room + 1));
        // In the order of the chain, with a gap before the second part of the answer.
        let buffers = [
            (0xc000, first, 0),
            (0xc000 + u64::from(first), request.len() as u32 - first, 0),
            (answer, second, WRITE),
            (answer.wrapping_add(u64::from(second) + 16), room - second, WRITE),
        ];
        let used: Vec<_> = buffers.into_iter().filter(|buffer| buffer.1 > 0).collect();
        for (index, &(address, len, write)) in used.iter().enumerate() {
            let next = if index + 1 < used.len() { index as u16 + 1 } else { 0 };
            let flags = write | u16::from(next > 0);
            let parts: [&[u8]; 4] =
                [&address.to_le_bytes(), &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
            self.devices.write_memory(places(0)[0] + 16 * index as u64, &parts.concat());
        }
        self.offer(0, 0);
    }

    /// One turn of the device, by `act`, with all bounds checked.
    fn turn(&mut self, act: impl FnOnce(&mut Devices)) {
        let queues = [0, 1].map(|queue| self.set_up(queue).filter(|queue| queue.2));
        let given_back = self.given_back();
        let before = self.boot_memory();
        let was_plugged = self.devices.state().mem[0].plugged.0;
        let looked_up = lookups();
        let ((), heap) = heap::highest(|| act(&mut self.devices));
        let looked_up = lookups() - looked_up;
        let chains = match self.which {
            Which::Mem => 1,
            Which::Balloon => 2 * 2,
            Which::Control => 2 * 64,
        };
        let longest = queues.iter().flatten().map(|queue| u64::from(queue.1)).max().unwrap_or(0);
        let most = chains * (8 * longest + 64);
        assert!(looked_up <= most, "{looked_up} addresses looked up, {most} are the most");
        assert!(heap <= 256 << 10, "{heap} bytes of heap");
        let apart = self.check_memory(&before, &queues);
        self.check_used(&queues, given_back, apart, (&before, was_plugged));
        let (plugged, reachable) = (self.devices.state().mem[0].plugged.0, self.devices.reachable());
        let lost = failed(HostCall::Open) > self.opens_failed;
        assert!(
            reachable == plugged || lost && reachable < plugged,
            "{reachable:#x} reachable, {plugged:#x} plugged"
        );
    }

    fn boot_memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; BOOT];
        assert!(self.devices.read_memory(0, &mut bytes));
        bytes
    }

    fn given_back(&self) -> [u16; 2] {
        let registers = self.devices.registers(self.which);
        [0, 1].map(|queue| registers.given_back(number(self.which, queue)).unwrap_or(0))
    }

    fn set_up(&self, queue: usize) -> Option<SetUp> {
        self.devices.registers(self.which).set_up(number(self.which, queue))
    }

    /// Only device-writable buffers and the device's rings have changed. Returns whether the buffers are apart from
    /// all parts of the queues, and these from each other.
    fn check_memory(&self, before: &[u8], queues: &[Option<SetUp>; 2]) -> bool {
        let after = self.boot_memory();
        let (mut parts, mut rings, mut buffers) = (Vec::new(), Vec::new(), Vec::new());
        for &(_, size, _, [table, avail, used]) in queues.iter().flatten() {
            let size = u64::from(size);
            parts.extend([(table, 16 * size), (avail, 6 + 2 * size), (used, 6 + 8 * size)]);
            rings.push((used.saturating_add(2), 2 + 8 * size));
            for descriptor in (0..size).filter_map(|index| table.checked_add(16 * index)) {
                buffers.extend(self.writable(before, descriptor));
            }
        }
        let overlap = |one: &Part, other: &Part| {
            one.0 < other.0.saturating_add(other.1) && other.0 < one.0.saturating_add(one.1)
        };
        let apart = (0..parts.len()).all(|index| {
            let others = parts[..index].iter().chain(&buffers);
            !others.into_iter().any(|other| overlap(&parts[index], other))
        });
        // A batch may write answers into the table, which changes the buffers of the chains behind it.
        if self.which == Which::Mem || apart {
            let differ = |chunk: &usize| before[*chunk..*chunk + CHUNK] != after[*chunk..*chunk + CHUNK];
            let bytes = (0..BOOT).step_by(CHUNK).filter(differ).flat_map(|chunk| chunk..chunk + CHUNK);
            for at in bytes {
                let (old, new, at) = (before[at], after[at], at as u64);
                let may = |&(start, len): &Part| at >= start && at - start < len;
                let allowed = old == new || rings.iter().chain(&buffers).any(may);
                assert!(allowed, "byte {at:#x} was {old:#x} and is {new:#x}");
            }
        }
        apart
    }

    /// The buffer of the descriptor at `address`, if the device may write to it. A table in the region counts as it
    /// is now.
    fn writable(&self, before: &[u8], address: u64) -> Option<Part> {
        let boot = before.get(usize::try_from(address).ok()?..).and_then(|rest| rest.first_chunk::<16>());
        let bytes = boot.copied().or_else(|| {
            let mut bytes = [0; 16];
            self.devices.read_memory(address, &mut bytes).then_some(bytes)
        })?;
        let (start, rest) = bytes.split_first_chunk::<8>()?;
        let len = u32::from_le_bytes(*rest.first_chunk()?);
        (u16::from(rest[4]) & WRITE != 0).then_some((u64::from_le_bytes(*start), len.into()))
    }

    /// Few chains went back, each with a possible head and length.
    fn check_used(
        &mut self,
        queues: &[Option<SetUp>; 2],
        before: [u16; 2],
        apart: bool,
        (memory, was_plugged): (&[u8], u64),
    ) {
        let after = self.given_back();
        let broken = self.status() & NEEDS_RESET != 0;
        for (queue, &state) in queues.iter().enumerate() {
            let Some((_, size, _, [table, _, ring])) = state else { continue };
            let count = after[queue].wrapping_sub(before[queue]);
            let most = match self.which {
                Which::Mem => 1,
                Which::Balloon => 2,
                Which::Control => size,
            };
            assert!(count <= most, "{count} chains went back in one turn, {most} are the most");
            let read = |at: u64, bytes: &mut [u8]| {
                ring.checked_add(at).is_some_and(|address| self.devices.read_memory(address, bytes))
            };
            let (mut index, mut element) = ([0; 2], [0; 8]);
            let slot = u64::from(before[queue] % size);
            if count == 0 || broken || !apart || !read(2, &mut index) || !read(4 + 8 * slot, &mut element) {
                continue;
            }
            assert_eq!(u16::from_le_bytes(index), after[queue], "the index of the device's ring");
            let most = match self.which {
                Which::Mem => ANSWER,
                Which::Balloon => 0,
                Which::Control => 2048,
            };
            let [head, len] =
                [0, 4].map(|at| u32::from_le_bytes(*element[at..].first_chunk().expect("8 bytes")));
            assert!(head < size.into(), "head {head} of {size}");
            assert!(len <= most, "{len} bytes of an answer of {most}");
            // The balloon may have taken the chain in an earlier turn. What lies in memory now tells nothing of it.
            if self.which == Which::Balloon {
                continue;
            }
            // The chains of a batch may share their buffers.
            if count == 1 && Chain::is_indirect(memory, (table, size), head) {
                panic!("a chain with an indirect descriptor came back");
            }
            if count == 1
                && let Some(chain) = Chain::follow(memory, (table, size), head)
            {
                let after = self.boot_memory();
                match (self.which, queue) {
                    (Which::Mem, _) => {
                        let plugged = self.devices.state().mem[0].plugged.0;
                        chain.check_request(&after, len, BLOCK, was_plugged, plugged);
                    }
                    (Which::Control, 0) => chain.check_call(&after, len),
                    (Which::Control, _) => assert_eq!(len, 0, "bytes were written behind a report"),
                    (Which::Balloon, _) => unreachable!("left above"),
                }
            }
        }
    }
}
