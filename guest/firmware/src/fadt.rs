//! The FADT: how the machine is reset and powered off (ACPI 6.5, sections 4.8.3.6, 4.8.3.7 and 5.2.9).
//!
//! Mirrors Linux `acpi_reset` and `acpi_hw_extended_sleep`. Differs on purpose: a machine that is not hardware-reduced
//! powers off by other registers (PM1 control), which are not read here. The machines that run this guest have the sleep
//! registers, or the guest's exit port.

/// A register of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// At a physical address.
    Memory(u64),
    /// At an I/O port.
    Port(u16),
}

/// What the table says of the machine's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
    /// The reset register, and the byte that resets the machine.
    pub reset: Option<(Register, u8)>,
    /// The sleep control register of a hardware-reduced machine.
    pub sleep_control: Option<Register>,
}

const HEADER: usize = 36;
const FLAGS: usize = 112 - HEADER;
const RESET_REGISTER: usize = 116 - HEADER;
const RESET_VALUE: usize = 128 - HEADER;
const SLEEP_CONTROL: usize = 244 - HEADER;

const HAS_RESET: u32 = 1 << 10;
const HARDWARE_REDUCED: u32 = 1 << 20;

impl Fadt {
    /// Reads the bytes after the table's header. Registers that a short table lacks are not there.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        let flags = body.get(FLAGS..FLAGS + 4).and_then(|flags| flags.try_into().ok());
        let flags = flags.map_or(0, u32::from_le_bytes);
        let reset = register(body, RESET_REGISTER).zip(body.get(RESET_VALUE).copied());
        Self {
            reset: reset.filter(|_| flags & HAS_RESET != 0),
            sleep_control: register(body, SLEEP_CONTROL).filter(|_| flags & HARDWARE_REDUCED != 0),
        }
    }
}

/// The register that the generic address structure at `offset` names (5.2.3.2), if it has one byte and this kernel can
/// reach it.
fn register(body: &[u8], offset: usize) -> Option<Register> {
    const SYSTEM_MEMORY: u8 = 0;
    const SYSTEM_IO: u8 = 1;
    const BITS: u8 = 8;
    let &[space, BITS, 0, _, ref address @ ..] = body.get(offset..)?.first_chunk::<12>()? else {
        return None;
    };
    match (space, u64::from_le_bytes(*address)) {
        (_, 0) => None,
        (SYSTEM_MEMORY, address) => Some(Register::Memory(address)),
        (SYSTEM_IO, port) => u16::try_from(port).ok().map(Register::Port),
        _ => None,
    }
}
