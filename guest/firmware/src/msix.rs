//! MSI-X (PCI local bus specification 3.0, section 6.8.2): where a function has its table of messages, and what a message
//! is on x86 (Intel SDM volume 3, section 11.11).
//!
//! Mirrors Linux `msix_map_region` and `__irq_msi_compose_msg`.

/// Bit of the capability's first register: interrupts come as messages, and the function's pin is silent.
pub const MSIX_ENABLE: u32 = 1 << 31;
/// Bit of the capability's first register: no message is sent.
pub const MSIX_FUNCTION_MASK: u32 = 1 << 30;

/// Bytes of an entry of the table.
const ENTRY: u64 = 16;
const MESSAGES: u32 = 0xfee0_0000;

/// The table of messages of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixTable {
    /// Number of entries, from 1 on.
    pub entries: u16,
    /// The base address register of the memory that it lies in, below 6.
    pub bar: u8,
    /// Offset of its first byte there.
    pub offset: u32,
}

impl MsixTable {
    /// Reads the first two registers of the capability. `None` when they name no base address register.
    #[must_use]
    pub fn parse(control: u32, table: u32) -> Option<Self> {
        let entries = (control >> 16 & 0x7ff) as u16 + 1;
        let (bar, offset) = ((table & 7) as u8, table & !7);
        (bar < 6).then_some(Self { entries, bar, offset })
    }

    /// Where the first `entries` entries are in memory of `size` bytes at `start`. `None` when they end beyond it.
    #[must_use]
    pub fn place(&self, (start, size): (u64, u64), entries: u16) -> Option<(u64, u64)> {
        let (offset, bytes) = (u64::from(self.offset), ENTRY * u64::from(entries));
        (offset + bytes <= size && entries <= self.entries).then_some((start.checked_add(offset)?, bytes))
    }
}

/// An entry that sends `vector` to the CPU with local APIC id `apic_id`, and is not masked: its four words.
#[must_use]
pub fn message(apic_id: u8, vector: u8) -> [u32; 4] {
    [MESSAGES | u32::from(apic_id) << 12, 0, vector.into(), 0]
}
