//! The guest-physical address space: where memory and device registers are. Pure arithmetic.
//!
//! ```text
//! 0 ............ boot memory, first part (memory maps leave out 640 KiB to 1 MiB, as firmware does)
//! 3 GiB ........ no RAM, only device registers: virtio-mmio, IO-APIC, local APIC
//! 4 GiB ........ boot memory, second part
//! next GiB ..... hotplug region 0, each further region at the next GiB or some bytes behind it, device memory last
//! ```
//!
//! Invariants: no two ranges overlap; hotplug regions are never part of [`ram`], from which memory maps for
//! the guest are made.

use tidevm_abi::Size;
use vm_memory::GuestAddress;

use super::range::{GuestRange, OffsetRange};

/// End of boot memory's first part and start of the register hole.
pub const HOLE_START: u64 = 3 << 30;

/// End of the register hole.
pub const HOLE_END: u64 = 4 << 30;

/// Hotplug regions start at multiples of this, or as many bytes behind one as [`Place::offset`] says.
pub const REGION_ALIGN: u64 = 1 << 30;

/// A range that wants a place behind boot memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its size.
    pub size: Size,
    /// Bytes from a multiple of [`REGION_ALIGN`] to its start; less than that.
    pub offset: u64,
}

impl From<Size> for Place {
    fn from(size: Size) -> Self {
        Self { size, offset: 0 }
    }
}

/// Registers of virtio-mmio device `n` start at this plus `n` times [`MMIO_SIZE`].
pub const MMIO_BASE: u64 = 0xd000_0000;

/// Bytes of registers per device.
pub const MMIO_SIZE: u64 = 0x1000;

/// Interrupt of the serial port, as on every PC.
pub const SERIAL_GSI: u32 = 4;

/// Interrupt of virtio-mmio device 0. Device `n` has this plus `n`.
pub const FIRST_GSI: u32 = 5;

/// Pins of the IO-APIC.
const GSIS: u32 = 24;

/// Most virtio-mmio devices: each has an interrupt.
pub const MAX_MMIO_DEVICES: usize = (GSIS - FIRST_GSI) as usize;

// One interrupt per virtio-mem device, one for the control channel, one for the balloon, and one for a disk.
const _: () = assert!(tidevm_abi::MAX_MEM_DEVICES + 3 <= MAX_MMIO_DEVICES);

/// Three pages in the register hole that KVM needs on Intel CPUs without unrestricted guest mode.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// The address ranges of `memory` of boot memory, ascending.
pub fn ram(memory: Size) -> impl Iterator<Item = GuestRange> {
    let low = memory.0.min(HOLE_START);
    [0..low, HOLE_END..HOLE_END + (memory.0 - low)].into_iter().filter_map(GuestRange::new)
}

/// The address ranges of boot memory, each with its offsets in the one mapping behind boot memory. `all` are
/// the offsets of that mapping.
pub fn boot_parts(all: OffsetRange) -> impl Iterator<Item = (GuestRange, OffsetRange)> {
    let mut next = all.start();
    ram(Size(all.size())).filter_map(move |range| {
        let offsets = OffsetRange::new(next..next + range.size())?;
        next = offsets.end();
        Some((range, offsets))
    })
}

/// Cuts boot memory into parts of `sizes`, from the lowest address up. Gives the ranges of each part,
/// ascending, with the part's number.
pub fn parts(memory: Size, sizes: impl IntoIterator<Item = Size>) -> Vec<(usize, GuestRange)> {
    let mut rest: Vec<_> = ram(memory).map(|range| (range.start().0, range.end().0)).collect();
    let mut parts = Vec::new();
    for (part, Size(mut left)) in sizes.into_iter().enumerate() {
        for (start, end) in &mut rest {
            let cut = *start + left.min(*end - *start);
            parts.extend(GuestRange::new(*start..cut).map(|range| (part, range)));
            left -= cut - *start;
            *start = cut;
        }
    }
    parts
}

/// Places ranges behind `memory` of boot memory: hotplug regions or device memory. [`None`] when
/// an address overflows or a size is 0.
pub fn regions<P: Into<Place>>(memory: Size, places: impl IntoIterator<Item = P>) -> Option<Vec<GuestRange>> {
    let mut next = HOLE_END.checked_add(memory.0.saturating_sub(HOLE_START))?;
    places
        .into_iter()
        .map(|place| {
            let Place { size, offset } = place.into();
            let start = next.checked_next_multiple_of(REGION_ALIGN)?.checked_add(offset)?;
            next = start.checked_add(size.0)?;
            GuestRange::new(start..next)
        })
        .collect()
}

/// End of the last of these ranges, or 4 GiB or the end of boot memory when there is none. [`None`] when an
/// address overflows.
pub fn end<P: Into<Place>>(memory: Size, places: impl IntoIterator<Item = P>) -> Option<u64> {
    let ram = HOLE_END.checked_add(memory.0.saturating_sub(HOLE_START))?;
    regions(memory, places)?.last().map_or(Some(ram), |last| Some(last.end().0))
}

/// Address of the registers of virtio-mmio device `index`.
#[must_use]
pub fn mmio(index: usize) -> GuestAddress {
    GuestAddress(MMIO_BASE + index as u64 * MMIO_SIZE)
}

/// Interrupt of virtio-mmio device `index`.
#[must_use]
pub fn gsi(index: usize) -> u32 {
    FIRST_GSI + index as u32
}

#[cfg(test)]
mod tests;
