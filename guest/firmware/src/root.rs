//! The root pointer (RSDP), where nothing names its address (ACPI 6.5, section 5.2.5.1).
//!
//! Mirrors Linux `acpi_find_root_pointer`: first the first KiB of the extended BIOS data area (EBDA), then the BIOS area, in
//! steps of 16 bytes.

use core::ops::Range;

/// The BIOS area: physical addresses.
pub const BIOS_AREA: Range<u64> = 0xe_0000..0x10_0000;
/// Physical address of the real-mode segment of the EBDA, two bytes.
pub const EBDA_SEGMENT: u64 = 0x40e;
const EBDA_SEARCHED: u64 = 1 << 10;
/// Where an EBDA may be: behind the BIOS data area, in conventional memory.
const CONVENTIONAL: Range<u64> = 0x500..0xa_0000;

const STEP: usize = 16;
const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
/// Bytes of the structure of ACPI 1.0, which its checksum covers.
const FIRST_SIZE: usize = 20;
/// Bytes of the structure since ACPI 2.0.
const SIZE: usize = 36;

/// The part of the EBDA that is searched, as physical addresses. `None` when there is none at `segment`.
#[must_use]
pub fn ebda(segment: u16) -> Option<Range<u64>> {
    let start = u64::from(segment) << 4;
    CONVENTIONAL.contains(&start).then(|| start..CONVENTIONAL.end.min(start + EBDA_SEARCHED))
}

/// Offset of a root pointer in `area`, which begins at a multiple of 16.
#[must_use]
pub fn find_root(area: &[u8]) -> Option<usize> {
    let (steps, _) = area.as_chunks::<STEP>();
    let begins =
        |step: &[u8; STEP]| step.first_chunk().is_some_and(|start| u64::from_le_bytes(*start) == SIGNATURE);
    let mut places = (0..).step_by(STEP).zip(steps).filter(|(_, step)| begins(step)).map(|(place, _)| place);
    places.find(|&place| is_valid(&area[place..]))
}

/// Whether the structure at the start of `bytes` has the checksums that it should have.
fn is_valid(bytes: &[u8]) -> bool {
    let sums_to_zero = |bytes: &[u8]| bytes.iter().copied().fold(0, u8::wrapping_add) == 0;
    let Some(first) = bytes.first_chunk::<FIRST_SIZE>().filter(|first| sums_to_zero(&first[..])) else {
        return false;
    };
    let revision = first[15];
    if revision == 0 {
        return true;
    }
    let length = bytes.get(20..24).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
    length as usize >= SIZE && bytes.get(..length as usize).is_some_and(sums_to_zero)
}
