//! Interrupts that a device sends as messages (MSI-X): a vector of the boot CPU for each.
//!
//! Takes the place of Linux's vector allocator (`arch/x86/kernel/apic/vector.c`). Differs on purpose: a vector is given once
//! and never taken back, because devices never leave. A message is an edge: the handler records it and does no more.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tidevm_firmware::message;

use crate::cpu::{self, idt};

/// Vector of the first message: behind those of the I/O APIC.
const FIRST_VECTOR: u8 = 0x50;
/// Most messages: up to the vectors of the local APIC.
const MOST: usize = 0xf0 - FIRST_VECTOR as usize;

/// How often each message came.
static RAISED: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
/// How many vectors are given.
static GIVEN: AtomicUsize = AtomicUsize::new(0);

/// A message of a device, as its driver sees it.
#[derive(Debug)]
pub struct Message {
    index: usize,
    /// Its count at the last look.
    seen: u32,
}

impl Message {
    /// A message with a vector of its own, which the boot CPU handles. `None` when no vector is left. Called on the boot CPU.
    pub fn new() -> Option<Self> {
        let index = GIVEN.load(Ordering::Relaxed);
        if index == MOST {
            return None;
        }
        idt::open(FIRST_VECTOR + index as u8);
        GIVEN.store(index + 1, Ordering::Release);
        Some(Self { index, seen: 0 })
    }

    /// The entry of a device's table that sends this message.
    pub fn entry(&self) -> [u32; 4] {
        let apic_id = cpu::area(0).apic_id.load(Ordering::Relaxed);
        message(apic_id as u8, FIRST_VECTOR + self.index as u8)
    }

    /// Whether the message came since the last call.
    pub fn fired(&mut self) -> bool {
        let raised = RAISED[self.index].load(Ordering::Acquire);
        core::mem::replace(&mut self.seen, raised) != raised
    }

    /// Whether the next [`Self::fired`] will say that the message came.
    pub fn has_fired(&self) -> bool {
        RAISED[self.index].load(Ordering::Acquire) != self.seen
    }
}

/// Records the message with `vector`; called by the interrupt handler. Returns whether the vector is a message's.
pub fn raise(vector: u8) -> bool {
    let index = usize::from(vector.wrapping_sub(FIRST_VECTOR));
    let is_given = index < GIVEN.load(Ordering::Acquire);
    if is_given {
        RAISED[index].fetch_add(1, Ordering::Release);
    }
    is_given
}
