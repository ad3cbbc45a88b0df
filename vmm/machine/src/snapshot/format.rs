//! The bytes of the file `state` around the state itself.
//!
//! All numbers are little endian: `tidevmsn`; the version (4 bytes); the length of the state (8 bytes); the state, as postcard
//! writes it; and the CRC-32 of everything before (4 bytes). This is the form of [`virtio_mem::device::DeviceState`], with a
//! length of 8 bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

const MAGIC: [u8; 8] = *b"tidevmsn";

/// The version of the byte form. A change of [`super::MachineState`] is a new one.
const VERSION: u32 = 2;

/// Bytes before the state, and of the checksum behind it.
const HEADER: usize = 20;
const CHECKSUM: usize = 4;

/// Why bytes are no state of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They do not begin as a state does.
    #[error("this is no snapshot of tidevm")]
    NoSnapshot,
    /// They are of another version of the byte form.
    #[error(
        "the snapshot has version {found}, and version {VERSION} can be restored: use the tidevm that saved it"
    )]
    Version {
        /// Their version.
        found: u32,
    },
    /// They have another length than they say.
    #[error("the file has {found} bytes, and says that it has {expected}: it is not complete")]
    Length {
        /// The length that they say.
        expected: u64,
        /// The length that they have.
        found: u64,
    },
    /// The checksum is wrong.
    #[error("the file is damaged: its checksum is wrong")]
    Checksum,
    /// The checksum is right, and the state is none all the same.
    #[error("the file is malformed, although its checksum is right")]
    Malformed,
}

/// The bytes of `state`.
pub fn to_bytes(state: &impl Serialize) -> Vec<u8> {
    // Writing to memory that grows cannot fail.
    let state = postcard::to_allocvec(state).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER + state.len() + CHECKSUM);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((state.len() as u64).to_le_bytes());
    bytes.extend(state);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// The state whose bytes are all of `bytes`. The version is looked at before the rest, which another version may have
/// changed.
///
/// # Errors
/// [`FormatError`].
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    let found = bytes.len() as u64;
    let short = FormatError::Length { expected: (HEADER + CHECKSUM) as u64, found };
    if !bytes.starts_with(&MAGIC[..MAGIC.len().min(bytes.len())]) {
        return Err(FormatError::NoSnapshot);
    }
    let (_, rest) = bytes.split_at_checked(MAGIC.len()).ok_or(short)?;
    let (version, rest) = rest.split_first_chunk().ok_or(short)?;
    let (length, _) = rest.split_first_chunk().ok_or(short)?;
    let length = u64::from_le_bytes(*length);
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(FormatError::Version { found: version });
    }
    let expected = length.saturating_add((HEADER + CHECKSUM) as u64);
    if found != expected {
        return Err(FormatError::Length { expected, found });
    }
    let (checked, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
    if checksum != crc32fast::hash(checked).to_le_bytes() {
        return Err(FormatError::Checksum);
    }
    match postcard::take_from_bytes(&checked[HEADER..]) {
        Ok((state, [])) => Ok(state),
        Ok(_) | Err(_) => Err(FormatError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::{FormatError, from_bytes, to_bytes};

    #[test]
    fn what_is_cut_off_or_changed_anywhere_is_refused() {
        let state: Vec<u32> = (0..300).collect();
        let bytes = to_bytes(&state);
        assert_eq!(from_bytes::<Vec<u32>>(&bytes), Ok(state));
        for length in 0..bytes.len() {
            let cut = from_bytes::<Vec<u32>>(&bytes[..length]);
            assert!(matches!(cut, Err(FormatError::Length { .. })), "{length}: {cut:?}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                assert!(from_bytes::<Vec<u32>>(&bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(from_bytes::<Vec<u32>>(&longer), Err(FormatError::Length { .. })));
    }

    #[test]
    fn another_file_and_another_version_are_told_apart_from_damage() {
        assert_eq!(from_bytes::<u32>(b"#!/bin/sh\necho a script\n"), Err(FormatError::NoSnapshot));
        let mut bytes = to_bytes(&7_u32);
        bytes[8] = 9;
        assert_eq!(from_bytes::<u32>(&bytes), Err(FormatError::Version { found: 9 }));
    }
}
