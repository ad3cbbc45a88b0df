//! A disk in the description of a VM.
//!
//! The words are those of other VMMs in short: QEMU's `-drive file=PATH,format=raw,readonly=on`, Firecracker's
//! `path_on_host` and `is_read_only`. The file itself is looked at when it is opened: see [`crate::disk`].

use std::path::PathBuf;
use std::str::FromStr;

use crate::memory::layout::MAX_MMIO_DEVICES;

/// Most disks of a VM.
pub const MAX_DISKS: usize = 4;

/// What makes a disk read-only, behind its path.
const READ_ONLY: &str = ",ro";

/// A virtio-blk device on a raw file or a block device of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file.
    pub path: PathBuf,
    /// The guest cannot write to it, and the file is opened for reading only.
    pub read_only: bool,
}

/// Why disks are not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskConfigError {
    /// No path.
    #[error(
        "--disk needs the path of a raw image or of a block device, as in --disk disk.img or --disk disk.img,ro"
    )]
    NoPath,
    /// More disks than there can be.
    #[error("--disk given {given} times: a machine has {MAX_DISKS} disks at most")]
    TooMany {
        /// The configured number.
        given: usize,
    },
    /// There is no interrupt for the last one.
    #[error(
        "--hotplug, --balloon and --disk make {given} devices with the control channel, and there are interrupts for \
         {MAX_MMIO_DEVICES}: leave some of them out"
    )]
    NoInterrupt {
        /// The number of all virtio-mmio devices.
        given: usize,
    },
}

/// Reads `PATH` or `PATH,ro`.
impl FromStr for DiskConfig {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<Self, DiskConfigError> {
        let (path, read_only) = text.strip_suffix(READ_ONLY).map_or((text, false), |path| (path, true));
        if path.is_empty() {
            return Err(DiskConfigError::NoPath);
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// Checks the disks of a machine with `devices` virtio-mmio devices, disks included.
///
/// # Errors
/// [`DiskConfigError`].
pub(super) fn validate(disks: &[DiskConfig], devices: usize) -> Result<(), DiskConfigError> {
    if disks.len() > MAX_DISKS {
        return Err(DiskConfigError::TooMany { given: disks.len() });
    }
    if disks.iter().any(|disk| disk.path.as_os_str().is_empty()) {
        return Err(DiskConfigError::NoPath);
    }
    if devices > MAX_MMIO_DEVICES {
        return Err(DiskConfigError::NoInterrupt { given: devices });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DiskConfig, DiskConfigError, MAX_DISKS};
    use crate::config::{BalloonConfig, Config, ConfigError, HotplugConfig};
    use tidevm_abi::{MAX_MEM_DEVICES, Size};

    #[test]
    fn a_disk_is_a_path_and_may_be_read_only() {
        let read = str::parse::<DiskConfig>;
        for (text, path, read_only) in
            [("a.img", "a.img", false), ("/b,c.img,ro", "/b,c.img", true), ("a,ro,ro", "a,ro", true)]
        {
            assert_eq!(read(text), Ok(DiskConfig { path: path.into(), read_only }), "{text}");
        }
        for bad in ["", ",ro"] {
            assert_eq!(read(bad), Err(DiskConfigError::NoPath), "{bad}");
        }
    }

    #[test]
    fn there_are_not_more_disks_than_interrupts() {
        let disk = DiskConfig { path: "a".into(), read_only: false };
        let with = |disks: usize, regions: usize| Config {
            disks: vec![disk.clone(); disks],
            hotplug: vec![HotplugConfig::new(Size::mib(128)); regions],
            balloon: Some(BalloonConfig { reporting: true, stats_interval: None }),
            ..Config::default()
        };
        assert_eq!(with(MAX_DISKS, 1).validate(), Ok(()));
        assert_eq!(with(1, MAX_MEM_DEVICES).validate(), Ok(()));
        let too_many = DiskConfigError::TooMany { given: MAX_DISKS + 1 };
        assert_eq!(with(MAX_DISKS + 1, 1).validate(), Err(ConfigError::Disk(too_many)));
        let error = with(2, MAX_MEM_DEVICES).validate().unwrap_err().to_string();
        assert!(error.contains("make 20 devices") && error.contains("interrupts for 19"), "{error}");
        let config = Config { disks: vec![DiskConfig::default()], ..Config::default() };
        assert_eq!(config.validate(), Err(ConfigError::Disk(DiskConfigError::NoPath)));
    }
}
