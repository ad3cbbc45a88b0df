//! Two constants in ACPI's bytecode (ACPI 6.5, chapter 20): the sleep type of the power-off, and the numbers of root buses.
//!
//! Linux interprets the bytecode. This kernel does not: it looks for a name and for the constant that firmware gives it in
//! the same definition, as all VMMs write it. Where another definition may stand behind a name, the answer is that nothing is
//! known.

use crate::buses::BusSet;

const NAME: u8 = 0x08;
const PACKAGE: u8 = 0x12;
const ROOT: u8 = b'\\';

/// SLP_TYP of the soft-off state: the first element of `\_S5`'s package (7.4.2). `None` when `aml`, the bytes of a
/// definition block after its header, has no such constant.
#[must_use]
pub fn sleep_type(aml: &[u8]) -> Option<u8> {
    places(aml, *b"_S5_").find_map(|place| {
        let [PACKAGE, package @ ..] = defined(aml, place)? else { return None };
        // The two highest bits of a package's length count the bytes of the length that follow.
        let more = usize::from(package.first()? >> 6);
        // The length, and the number of elements.
        let elements = package.get(1 + more + 1..)?;
        const SLEEP_TYPES: u64 = 8;
        integer(elements).filter(|&sleep_type| sleep_type < SLEEP_TYPES).map(|sleep_type| sleep_type as u8)
    })
}

/// The buses that host bridges name as theirs (`_BBN`, 6.5.5). A host bridge without that name has bus 0. `None` when a
/// name is not a constant.
#[must_use]
pub fn root_buses(aml: &[u8]) -> Option<BusSet> {
    let mut buses = BusSet::of(0);
    for place in places(aml, *b"_BBN") {
        let bus = integer(defined(aml, place)?).and_then(|bus| u8::try_from(bus).ok())?;
        buses.insert(bus);
    }
    Some(buses)
}

/// Offsets at which `name` stands in `aml`. The names begin with an underscore, which is rare in bytecode.
fn places(aml: &[u8], name: [u8; 4]) -> impl Iterator<Item = usize> {
    let underscores = aml.iter().enumerate().filter(|&(_, &byte)| byte == b'_');
    underscores.map(|(place, _)| place).filter(move |&place| aml[place..].starts_with(&name))
}

/// What the name at offset `place` is defined as, by a definition of a name. The bytes go on to the end of `aml`.
fn defined(aml: &[u8], place: usize) -> Option<&[u8]> {
    let before = aml.get(..place)?;
    let before = before.strip_suffix(&[ROOT]).unwrap_or(before);
    before.ends_with(&[NAME]).then(|| &aml[place + 4..])
}

/// The integer at the start of `bytes` (20.2.3).
fn integer(bytes: &[u8]) -> Option<u64> {
    let constant = |size: usize| {
        let digits = bytes.get(1..1 + size)?;
        Some(digits.iter().rev().fold(0, |value, &digit| value << 8 | u64::from(digit)))
    };
    match bytes.first()? {
        0x00 => Some(0),
        0x01 => Some(1),
        0x0a => constant(1),
        0x0b => constant(2),
        0x0c => constant(4),
        0x0e => constant(8),
        _ => None,
    }
}
