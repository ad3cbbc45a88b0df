//! Chains that follow all rules: what has to be read of them, and what has to be in them afterwards.
//!
//! Mirrors virtio 1.3, section 2.7 (descriptors) and section 5.15.6 (requests of a virtio-mem driver). A chain that
//! breaks a rule, or that leaves boot memory, is none here: the bounds of the target hold for it.

use tidevm_abi::{Call, decode};

/// Length of an answer of a virtio-mem device.
pub const ANSWER: u32 = 10;
/// The flag of a descriptor whose buffer is device-writable.
pub const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
/// Bytes of a request of a virtio-mem driver.
const REQUEST: usize = 24;

/// Memory of the guest: where it starts, and its size.
pub type Part = (u64, u64);

/// A chain of buffers in boot memory, none of which reaches into another one.
pub struct Chain {
    /// The device-readable bytes.
    request: Vec<u8>,
    /// The device-writable buffers.
    writable: Vec<Part>,
}

/// A descriptor as it lies in memory.
struct Descriptor {
    buffer: Part,
    flags: u16,
    next: Option<u16>,
}

impl Descriptor {
    fn read(memory: &[u8], table: u64, index: u16) -> Option<Self> {
        let bytes = part(memory, (table.checked_add(16 * u64::from(index))?, 16))?;
        let [flags, next] = [12, 14].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let len = u32::from_le_bytes(*bytes[8..].first_chunk()?);
        let buffer = (u64::from_le_bytes(*bytes.first_chunk()?), len.into());
        Some(Self { buffer, flags, next: (flags & NEXT != 0).then_some(next) })
    }

    fn is_direct(&self) -> bool {
        self.flags & INDIRECT == 0
    }
}

impl Chain {
    /// Follows the chain that begins at descriptor `head` of `table`, a table in `memory` and its entries.
    pub fn follow(memory: &[u8], (table, entries): (u64, u16), head: u32) -> Option<Self> {
        let mut chain = Self { request: Vec::new(), writable: Vec::new() };
        let (mut buffers, mut index): (Vec<Part>, _) = (Vec::new(), u16::try_from(head).ok()?);
        for _ in 0..entries {
            if index >= entries {
                return None;
            }
            let descriptor = Descriptor::read(memory, table, index)?;
            let buffer = descriptor.buffer;
            let bytes = part(memory, buffer)?;
            let apart = |other: &Part| buffer.0 + buffer.1 <= other.0 || other.0 + other.1 <= buffer.0;
            if !descriptor.is_direct() || !buffers.iter().all(apart) {
                return None;
            }
            buffers.push(buffer);
            if descriptor.flags & WRITE != 0 {
                chain.writable.push(buffer);
            } else {
                chain.request.extend(bytes);
            }
            let Some(next) = descriptor.next else { return Some(chain) };
            index = next;
        }
        None
    }

    /// Whether the device comes to an indirect descriptor when it follows the chain from `head` on. Only where all
    /// before it is in boot memory.
    pub fn is_indirect(memory: &[u8], (table, entries): (u64, u16), head: u32) -> bool {
        let descriptors = std::iter::successors(Descriptor::read(memory, table, head as u16), |before| {
            let next = before.next.filter(|_| before.is_direct() && part(memory, before.buffer).is_some())?;
            (next < entries).then(|| Descriptor::read(memory, table, next))?
        });
        descriptors.take(entries.into()).any(|descriptor| !descriptor.is_direct())
    }

    /// The first `len` bytes of the device-writable buffers.
    fn written(&self, memory: &[u8], len: u32) -> Vec<u8> {
        let buffers = self.writable.iter().filter_map(|&buffer| part(memory, buffer));
        buffers.flatten().copied().take(len as usize).collect()
    }

    fn room(&self) -> u64 {
        self.writable.iter().map(|buffer| buffer.1).sum()
    }

    /// A request of a virtio-mem driver: it is served if there is room for the answer, and the answer is in its
    /// place and says what happened to device blocks of `block` bytes.
    pub fn check_request(&self, memory: &[u8], len: u32, block: u64, before: u64, after: u64) {
        if self.room() < ANSWER.into() {
            assert_eq!((len, after), (0, before), "without room for the answer: its length, what is plugged");
            return;
        }
        assert_eq!(len, ANSWER, "length of the answer");
        let answer = self.written(memory, len);
        let kind = u16::from_le_bytes([answer[0], answer[1]]);
        assert!(kind < 4, "an answer of type {kind}");
        let Some(request) = self.request.first_chunk::<REQUEST>() else {
            assert_eq!((kind, after), (3, before), "to a request of {} bytes", self.request.len());
            return;
        };
        let blocks = u64::from(u16::from_le_bytes([request[16], request[17]])) * block;
        let expected = match (kind, u16::from_le_bytes([request[0], request[1]])) {
            (0, 0) => before + blocks,
            (0, 1) => before.checked_sub(blocks).expect("as much was plugged"),
            (0, 2) => 0,
            _ => before,
        };
        assert_eq!(after, expected, "plugged after answer {kind} to {request:02x?}");
    }

    /// A call to the guest: it is in the buffers, or they are too small for it.
    pub fn check_call(&self, memory: &[u8], len: u32) {
        let record = self.written(memory, len);
        assert!(len == 0 || decode::<Call>(&record).is_ok(), "{record:02x?} is no call");
    }
}

/// The bytes of `part` of boot memory.
fn part(memory: &[u8], (start, len): Part) -> Option<&[u8]> {
    memory.get(usize::try_from(start).ok()?..)?.get(..usize::try_from(len).ok()?)
}
