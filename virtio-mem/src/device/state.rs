//! A device on its way to another process or another host: its state, and the bytes of that.
//!
//! Mirrors the migration state of QEMU's `hw/virtio/virtio-mem.c` (`vmstate_virtio_mem_device`, and
//! `vmstate_virtio_mem_sanity_checks` for what must not differ). Differs on purpose: the bytes have a checksum, and a state
//! that contradicts itself is refused, because a device that believes a wrong bitmap gives a guest memory that it does
//! not have.
//!
//! The bytes are, all numbers little endian: `vmem`; the version (4 bytes); the length of what follows up to the checksum
//! (4 bytes); a [`DeviceState`] as postcard writes it; and the CRC-32 of everything before (4 bytes).
//!
//! Counters, the last refusal and the length of the next pause stay behind. They concern the host that is left.

use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::retry::Retry;
use super::{ConfigError, Device, DeviceConfig, PluggedRuns, ResizeError};
use crate::blocks::BlockBitmap;

const MAGIC: [u8; 4] = *b"vmem";

/// The version of the byte form. A change of [`DeviceState`] that older versions cannot read is a new one.
const VERSION: u32 = 1;

/// Bytes before the state, and of the checksum behind it.
const HEADER: usize = 12;
const CHECKSUM: usize = 4;

/// The state of a device.
///
/// ```
/// use virtio_mem::device::{Device, DeviceConfig, DeviceState};
///
/// let mut device = Device::new(DeviceConfig::new(4 << 30, 1 << 30, 2 << 20))?;
/// device.resize(512 << 20)?;
/// let bytes = device.state()?.to_bytes();
/// // On another host:
/// let state = DeviceState::from_bytes(&bytes)?;
/// assert_eq!(state.config().region_size, 1 << 30);
/// let restored = Device::from_state(&state)?;
/// for _run in restored.plugged_runs().runs() {
///     // Make the memory accessible to the guest, and fill it.
/// }
/// assert_eq!(restored.config(), device.config());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    config: DeviceConfig,
    requested_size: u64,
    usable_region_size: u64,
    generation: u32,
    retry_due: bool,
    /// One bit for each device block, the first one in the lowest bit of the first byte.
    plugged: Vec<u8>,
}

impl DeviceState {
    /// The fixed properties of the device. A host that restores it compares them with those of its own machine.
    #[must_use]
    pub const fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The byte form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Writing to memory that grows cannot fail.
        let state = postcard::to_allocvec(self).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER + state.len() + CHECKSUM);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((state.len() as u32).to_le_bytes());
        bytes.extend(state);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// The state whose byte form is all of `bytes`.
    ///
    /// # Errors
    /// [`StateError`]: the bytes are no state, damaged, not complete, or of another version. Whether the state makes sense
    /// is seen by [`Device::from_state`].
    pub fn from_bytes(bytes: &[u8]) -> Result<DeviceState, StateError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(StateError::NoState);
        }
        let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (Some(version), Some(length)) = (number(4), number(8)) else {
            return Err(StateError::Length {
                expected: (HEADER + CHECKSUM) as u64,
                found: bytes.len() as u64,
            });
        };
        let expected = (HEADER + CHECKSUM) as u64 + u64::from(length);
        if bytes.len() as u64 != expected {
            return Err(StateError::Length { expected, found: bytes.len() as u64 });
        }
        let (checked, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        if checksum != crc32fast::hash(checked).to_le_bytes() {
            return Err(StateError::Checksum);
        }
        if version != VERSION {
            return Err(StateError::Version { found: version });
        }
        match postcard::take_from_bytes(&checked[HEADER..]) {
            Ok((state, [])) => Ok(state),
            Ok(_) | Err(_) => Err(StateError::Malformed),
        }
    }
}

impl Device {
    /// The state of the device, to be restored by [`Device::from_state`].
    ///
    /// # Errors
    /// [`StateError::Changing`] between [`Device::begin`] and [`Device::commit`]: nobody knows what is plugged then.
    pub fn state(&self) -> Result<DeviceState, StateError> {
        if self.is_changing() {
            return Err(StateError::Changing);
        }
        Ok(DeviceState {
            config: self.fixed,
            requested_size: self.requested_size,
            usable_region_size: self.usable_region_size,
            generation: self.generation,
            retry_due: self.retry.is_due(),
            plugged: self.plugged.to_bytes(),
        })
    }

    /// A device with this state. Nothing is asked of a backing: the caller makes [`Device::plugged_runs`] accessible.
    ///
    /// # Errors
    /// [`StateError`] says where the state contradicts itself.
    pub fn from_state(state: &DeviceState) -> Result<Device, StateError> {
        let DeviceState { config: fixed, requested_size, usable_region_size, generation, retry_due, .. } =
            *state;
        fixed.check().map_err(StateError::Config)?;
        fixed.check_size(requested_size).map_err(StateError::Requested)?;
        fixed.check_size(usable_region_size).map_err(StateError::Usable)?;
        if usable_region_size < requested_size {
            return Err(StateError::UsableBelowRequested { usable_region_size, requested_size });
        }
        let blocks = fixed.blocks();
        let plugged = BlockBitmap::from_bytes(blocks, &state.plugged).ok_or(StateError::Bitmap { blocks })?;
        let usable = usable_region_size / fixed.block_size;
        if let Some(run) = plugged.next_run(usable) {
            return Err(StateError::PluggedBeyondUsable { block: run.first(), usable });
        }
        Ok(Device {
            fixed,
            plugged,
            usable_region_size,
            requested_size,
            generation,
            refused: None,
            changing: None,
            changes: 0,
            retry: Retry::restored(retry_due),
            counts: Counts::default(),
        })
    }

    /// A copy of what is plugged.
    #[must_use]
    pub fn plugged_runs(&self) -> PluggedRuns {
        PluggedRuns::new(self.fixed, self.plugged.clone())
    }
}

/// Why a state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes do not begin as a state does.
    NoState,
    /// The bytes have another length than they say.
    Length {
        /// The length that they say.
        expected: u64,
        /// The length that they have.
        found: u64,
    },
    /// The checksum is wrong: the bytes are damaged.
    Checksum,
    /// The bytes are of another version of the byte form.
    Version {
        /// Their version.
        found: u32,
    },
    /// The bytes are undamaged and no state all the same.
    Malformed,
    /// A change of the device waits for its end.
    Changing,
    /// The fixed properties contradict themselves.
    Config(ConfigError),
    /// The requested size is not possible.
    Requested(ResizeError),
    /// The usable size is not possible.
    Usable(ResizeError),
    /// The usable size is less than the requested size.
    UsableBelowRequested {
        /// The usable size in bytes.
        usable_region_size: u64,
        /// The requested size in bytes.
        requested_size: u64,
    },
    /// The bitmap has another length than the region's, or bits beyond it.
    Bitmap {
        /// The device blocks of the region.
        blocks: u64,
    },
    /// A device block is plugged outside the usable part of the region.
    PluggedBeyondUsable {
        /// The first such device block.
        block: u64,
        /// The number of usable device blocks.
        usable: u64,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::NoState => f.write_str("this is no state of a virtio-mem device"),
            StateError::Length { expected, found } => {
                write!(f, "the state has {found} bytes, and says that it has {expected}")
            }
            StateError::Checksum => f.write_str("the state is damaged: its checksum is wrong"),
            StateError::Version { found } => {
                write!(f, "the state has version {found}, and version {VERSION} can be restored")
            }
            StateError::Malformed => f.write_str("the state is malformed, although its checksum is right"),
            StateError::Changing => f.write_str("the device is carrying out a request: end it first"),
            StateError::Config(why) => write!(f, "the state's device cannot be: {why}"),
            StateError::Requested(why) => write!(f, "the state's requested size cannot be: {why}"),
            StateError::Usable(why) => write!(f, "the state's usable size cannot be: {why}"),
            StateError::UsableBelowRequested { usable_region_size, requested_size } => write!(
                f,
                "the state's usable size of {usable_region_size} bytes is less than the requested size of \
                 {requested_size} bytes"
            ),
            StateError::Bitmap { blocks } => {
                write!(f, "the state's bitmap is not that of a region of {blocks} blocks")
            }
            StateError::PluggedBeyondUsable { block, usable } => {
                write!(
                    f,
                    "the state has block {block} plugged, and only the first {usable} blocks are usable"
                )
            }
        }
    }
}

impl Error for StateError {}
