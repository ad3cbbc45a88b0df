//! Addresses and requests that are drawn from an input: mostly near what exists.
//!
//! Differs from the other draws of [`Input`] in that it knows where this target's guest has its memory.

use tidevm_machine::hosted::REGION;

use crate::input::Input;

/// Bytes of boot memory.
pub const BOOT: usize = 64 << 10;

/// Bytes of a device block.
pub const BLOCK: u64 = 2 << 20;

/// An address, mostly one in boot memory.
pub fn address(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        0..130 => u64::from(input.byte()) * 0x100 + u64::from(input.byte() % 8),
        130..180 => 0xc000 + u64::from(input.u16() % 0x4000),
        180..200 => REGION + input.below(20) * BLOCK + input.pick(&[0, 1, BLOCK - 5, 0x1000]),
        200..220 => BOOT as u64 - u64::from(input.byte() % 32),
        220..235 => u64::MAX - u64::from(input.byte()),
        _ => input.u64(),
    }
}

/// A request of the virtio-mem driver, mostly a good one.
pub fn request(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = [0; 24];
    bytes[0] = input.byte() % 5;
    let first = input.below(20);
    let address = if input.byte() < 240 { REGION + first * BLOCK } else { input.u64() };
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&(1 + u16::from(input.byte() % 16)).to_le_bytes());
    bytes[..24 - usize::from(input.byte() / 250)].to_vec()
}
