//! The header of a request, and the sectors that it names. Pure.
//!
//! Mirrors `struct virtio_blk_req` of virtio 1.3, section 5.2.6: type, a reserved word, sector.
//!
//! Invariant: a position that [`position`] returns is one of the medium, and so is every byte of the length from it on.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::medium::SECTOR;

/// Bytes of a header.
pub(super) const HEADER: usize = 16;

/// The type of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sectors are read.
    In,
    /// Sectors are written.
    Out,
    /// What was written is brought to the disk.
    Flush,
    /// The disk's name is read.
    GetId,
    /// Another type, or no whole header.
    Other,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is carried out.
    Done,
    /// It cannot be carried out.
    Failed,
    /// The device does not know it.
    Unsupported,
}

impl Answer {
    /// Its number in the status byte.
    pub(super) const fn status(self) -> u8 {
        let status = match self {
            Self::Done => VIRTIO_BLK_S_OK,
            Self::Failed => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        status as u8
    }
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The type.
    pub(super) kind: Kind,
    /// The first sector.
    pub(super) sector: u64,
}

impl Header {
    /// Reads a header. `None` if `bytes` are not a whole one.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first_chunk::<4>()?;
        let (_, sector) = rest.split_first_chunk::<4>()?;
        let kind = match u32::from_le_bytes(*kind) {
            VIRTIO_BLK_T_IN => Kind::In,
            VIRTIO_BLK_T_OUT => Kind::Out,
            VIRTIO_BLK_T_FLUSH => Kind::Flush,
            VIRTIO_BLK_T_GET_ID => Kind::GetId,
            _ => Kind::Other,
        };
        Some(Self { kind, sector: u64::from_le_bytes(*sector.first_chunk()?) })
    }
}

/// Where `length` bytes from `sector` on begin, in bytes. `None` if they are not whole sectors of a medium of `sectors`.
pub(super) fn position(sector: u64, length: usize, sectors: u64) -> Option<u64> {
    let length = length as u64;
    let end = sector.checked_add(length / SECTOR)?;
    (length.is_multiple_of(SECTOR) && end <= sectors).then(|| sector.checked_mul(SECTOR)).flatten()
}

#[cfg(test)]
mod tests {
    use super::{Header, Kind, position};

    #[test]
    fn a_header_has_sixteen_bytes() {
        let bytes = |kind: u32, sector: u64| {
            [&kind.to_le_bytes()[..], &[0xff; 4], &sector.to_le_bytes()[..]].concat()
        };
        for (number, kind) in [
            (0, Kind::In),
            (1, Kind::Out),
            (4, Kind::Flush),
            (8, Kind::GetId),
            (2, Kind::Other),
            (11, Kind::Other),
            (u32::MAX, Kind::Other),
        ] {
            let expected = Some(Header { kind, sector: u64::MAX - 1 });
            assert_eq!(Header::parse(&bytes(number, u64::MAX - 1)), expected);
        }
        assert_eq!(Header::parse(&bytes(0, 0)[..15]), None);
    }

    #[test]
    fn only_whole_sectors_of_the_medium_have_a_position() {
        for (sector, length, expected) in [
            (0, 512, Some(0)),
            (7, 512, Some(7 * 512)),
            (0, 8 * 512, Some(0)),
            (8, 0, Some(8 * 512)),
            (0, 511, None),
            (0, 513, None),
            (0, 9 * 512, None),
            (8, 512, None),
            (9, 0, None),
            (u64::MAX, 512, None),
            (u64::MAX, 0, None),
            (u64::MAX - 7, 8 * 512, None),
            (1 << 55, 512, None),
        ] {
            assert_eq!(position(sector, length, 8), expected, "{sector} {length}");
        }
        // As many sectors as 64 bits count, of which most have no position in bytes.
        assert_eq!(position(1 << 55, 512, u64::MAX), None);
    }
}
