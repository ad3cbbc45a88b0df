//! The wire format: the configuration space, the requests and the responses.
//!
//! Mirrors virtio 1.3, sections 5.15.3 to 5.15.6, and Linux's `include/uapi/linux/virtio_mem.h`. This file has
//! layouts, constants and conversions between bytes and types, and no behaviour. Everything is little
//! endian. Padding is written as zero and ignored when read.
//!
//! The device reads strictly: an unknown request is a [`BadRequest`]. The driver reads leniently: a response
//! type that the specification does not define counts as [`ResponseType::Busy`], so that a newer device never
//! stops an older driver for good.
//!
//! Invariant: the sizes and offsets of the layouts are asserted at compile time.

use core::fmt;
use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

/// Virtio device id of the memory device.
pub const DEVICE_ID: u32 = 24;

/// Feature bit: [`Config::node_id`] is valid and is an ACPI proximity domain.
pub const F_ACPI_PXM: u32 = 0;

/// Feature bit: the driver must not access unplugged memory at all.
pub const F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// Feature bit: plugged device blocks keep their content while the guest is suspended to RAM (virtio 1.4).
pub const F_PERSISTENT_SUSPEND: u32 = 2;

/// Size of the configuration space in bytes.
pub const CONFIG_SIZE: usize = size_of::<ConfigBytes>();

/// Offsets of the fields of eight bytes that change at run time: [`Config::usable_region_size`], [`Config::plugged_size`]
/// and [`Config::requested_size`].
pub const RUN_TIME_OFFSETS: [usize; 3] = [
    offset_of!(ConfigBytes, usable_region_size),
    offset_of!(ConfigBytes, plugged_size),
    REQUESTED_SIZE_OFFSET,
];

/// Offset of [`Config::requested_size`] in the configuration space.
pub const REQUESTED_SIZE_OFFSET: usize = offset_of!(ConfigBytes, requested_size);

/// Size of a request in bytes.
pub const REQUEST_SIZE: usize = size_of::<RequestBytes>();

/// Size of a response in bytes.
pub const RESPONSE_SIZE: usize = size_of::<ResponseBytes>();

/// The device's configuration space, read-only to the driver.
///
/// All sizes are in bytes. The last three fields change at run time, so a driver reads them under one value of the
/// transport's configuration generation. The others stay as they were at the first read.
///
/// ```
/// use virtio_mem::Config;
///
/// // A driver reads the bytes from the transport, all under one generation.
/// let mut bytes = [0; virtio_mem::wire::CONFIG_SIZE];
/// bytes[..8].copy_from_slice(&(2_u64 << 20).to_le_bytes());
/// bytes[virtio_mem::wire::REQUESTED_SIZE_OFFSET..].copy_from_slice(&(1_u64 << 30).to_le_bytes());
/// let config = Config::from_bytes(&bytes);
/// assert_eq!((config.block_size, config.requested_size), (2 << 20, 1 << 30));
/// // A VMM answers a read at any offset from these.
/// assert_eq!(config.to_bytes(), bytes);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Size and alignment of a device block; a power of two.
    pub block_size: u64,
    /// ACPI proximity domain of the region; meaningless unless [`F_ACPI_PXM`] was negotiated.
    pub node_id: u16,
    /// Guest-physical address of the region; a multiple of `block_size`.
    pub addr: u64,
    /// Size of the region, the most that can ever be plugged; a multiple of `block_size`.
    pub region_size: u64,
    /// Length of the first part of the region, in which device blocks may be plugged.
    pub usable_region_size: u64,
    /// Number of plugged bytes.
    pub plugged_size: u64,
    /// Number of bytes that the host wants plugged.
    pub requested_size: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ConfigBytes {
    block_size: U64,
    node_id: U16,
    padding: [u8; 6],
    addr: U64,
    region_size: U64,
    usable_region_size: U64,
    plugged_size: U64,
    requested_size: U64,
}

const _: () = {
    assert!(CONFIG_SIZE == 56);
    assert!(offset_of!(ConfigBytes, node_id) == 8);
    assert!(offset_of!(ConfigBytes, addr) == 16);
    assert!(offset_of!(ConfigBytes, region_size) == 24);
    assert!(RUN_TIME_OFFSETS[0] == 32);
    assert!(RUN_TIME_OFFSETS[1] == 40);
    assert!(REQUESTED_SIZE_OFFSET == 48);
};

impl Config {
    /// The configuration space as the driver reads it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CONFIG_SIZE] {
        transmute!(ConfigBytes {
            block_size: self.block_size.into(),
            node_id: self.node_id.into(),
            padding: [0; 6],
            addr: self.addr.into(),
            region_size: self.region_size.into(),
            usable_region_size: self.usable_region_size.into(),
            plugged_size: self.plugged_size.into(),
            requested_size: self.requested_size.into(),
        })
    }

    /// Reads a configuration space. The values are not checked.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; CONFIG_SIZE]) -> Config {
        let raw: ConfigBytes = transmute!(*bytes);
        Config {
            block_size: raw.block_size.get(),
            node_id: raw.node_id.get(),
            addr: raw.addr.get(),
            region_size: raw.region_size.get(),
            usable_region_size: raw.usable_region_size.get(),
            plugged_size: raw.plugged_size.get(),
            requested_size: raw.requested_size.get(),
        }
    }
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RequestKind {
    /// Plug device blocks that are all unplugged.
    Plug = 0,
    /// Unplug device blocks that are all plugged.
    Unplug = 1,
    /// Unplug all plugged device blocks.
    UnplugAll = 2,
    /// Report whether device blocks are plugged.
    State = 3,
}

/// A request, written by the driver.
///
/// ```
/// use virtio_mem::wire::{BadRequest, REQUEST_SIZE};
/// use virtio_mem::{Request, RequestKind};
///
/// let request = Request { kind: RequestKind::Unplug, addr: 4 << 30, nb_blocks: 64 };
/// let bytes = request.to_bytes();
/// assert_eq!((bytes.len(), &bytes[..2]), (REQUEST_SIZE, &[1, 0][..]));
/// assert_eq!(Request::from_bytes(&bytes), Ok(request));
/// // Whatever a guest writes is a request, or says why it is none.
/// assert_eq!(Request::from_bytes(&[9; REQUEST_SIZE]), Err(BadRequest::UnknownType(0x0909)));
/// assert_eq!(Request::from_bytes(&bytes[..23]), Err(BadRequest::Short { len: 23 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The kind of the request.
    pub kind: RequestKind,
    /// Guest-physical address of the first device block; ignored for [`RequestKind::UnplugAll`].
    pub addr: u64,
    /// Number of device blocks; ignored for [`RequestKind::UnplugAll`].
    pub nb_blocks: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestBytes {
    kind: U16,
    padding: [u8; 6],
    addr: U64,
    nb_blocks: U16,
    tail: [u8; 6],
}

const _: () = {
    assert!(REQUEST_SIZE == 24);
    assert!(offset_of!(RequestBytes, addr) == 8);
    assert!(offset_of!(RequestBytes, nb_blocks) == 16);
};

/// Why bytes are not a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadRequest {
    /// Fewer than [`REQUEST_SIZE`] bytes.
    Short {
        /// Their number.
        len: usize,
    },
    /// A type that the specification does not define.
    UnknownType(u16),
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadRequest::Short { len } => write!(f, "{len} bytes are too short for a request"),
            BadRequest::UnknownType(kind) => write!(f, "request type {kind} is unknown"),
        }
    }
}

impl core::error::Error for BadRequest {}

impl Request {
    /// The request as the device reads it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REQUEST_SIZE] {
        transmute!(RequestBytes {
            kind: (self.kind as u16).into(),
            padding: [0; 6],
            addr: self.addr.into(),
            nb_blocks: self.nb_blocks.into(),
            tail: [0; 6],
        })
    }

    /// Reads a request from the start of `bytes`; padding and bytes after it are ignored.
    ///
    /// # Errors
    /// [`BadRequest`] when `bytes` is too short or the type is unknown.
    pub fn from_bytes(bytes: &[u8]) -> Result<Request, BadRequest> {
        let (raw, _) =
            RequestBytes::read_from_prefix(bytes).map_err(|_| BadRequest::Short { len: bytes.len() })?;
        let kind = match raw.kind.get() {
            0 => RequestKind::Plug,
            1 => RequestKind::Unplug,
            2 => RequestKind::UnplugAll,
            3 => RequestKind::State,
            unknown => return Err(BadRequest::UnknownType(unknown)),
        };
        Ok(Request { kind, addr: raw.addr.get(), nb_blocks: raw.nb_blocks.get() })
    }
}

/// The type of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ResponseType {
    /// The request was carried out.
    Ack = 0,
    /// The request is well-formed, but asks for more than the host wants plugged.
    Nack = 1,
    /// The device cannot do it at the moment; nothing has changed.
    Busy = 2,
    /// The request is wrong.
    Error = 3,
}

/// Whether a range of device blocks is plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BlockState {
    /// All device blocks are plugged.
    Plugged = 0,
    /// All device blocks are unplugged.
    Unplugged = 1,
    /// Some device blocks are plugged, some are not.
    Mixed = 2,
}

/// A response, written by the device.
///
/// ```
/// use virtio_mem::{BlockState, Response, ResponseType};
///
/// let response = Response::with_state(BlockState::Mixed);
/// assert_eq!(Response::from_bytes(&response.to_bytes()), response);
/// // An answer of a later version of the specification makes a driver wait.
/// assert_eq!(Response::from_bytes(&[77; 10]).kind, ResponseType::Busy);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The type of the response.
    pub kind: ResponseType,
    /// Meaningful only when `kind` is [`ResponseType::Ack`] and the request was [`RequestKind::State`].
    pub state: BlockState,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ResponseBytes {
    kind: U16,
    padding: [u8; 6],
    state: U16,
}

const _: () = {
    assert!(RESPONSE_SIZE == 10);
    assert!(offset_of!(ResponseBytes, state) == 8);
};

impl Response {
    /// A response without a state: the bytes of the state are zero.
    #[must_use]
    pub const fn new(kind: ResponseType) -> Response {
        Response { kind, state: BlockState::Plugged }
    }

    /// The answer to a successful [`RequestKind::State`].
    #[must_use]
    pub const fn with_state(state: BlockState) -> Response {
        Response { kind: ResponseType::Ack, state }
    }

    /// The response as the driver reads it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RESPONSE_SIZE] {
        transmute!(ResponseBytes {
            kind: (self.kind as u16).into(),
            padding: [0; 6],
            state: (self.state as u16).into(),
        })
    }

    /// Reads a response. An unknown type is read as [`ResponseType::Busy`]. An unknown state is read as
    /// [`BlockState::Mixed`], which makes the driver ask for smaller ranges.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; RESPONSE_SIZE]) -> Response {
        let raw: ResponseBytes = transmute!(*bytes);
        let kind = match raw.kind.get() {
            0 => ResponseType::Ack,
            1 => ResponseType::Nack,
            3 => ResponseType::Error,
            _ => ResponseType::Busy,
        };
        let state = match raw.state.get() {
            0 => BlockState::Plugged,
            1 => BlockState::Unplugged,
            _ => BlockState::Mixed,
        };
        Response { kind, state }
    }
}
