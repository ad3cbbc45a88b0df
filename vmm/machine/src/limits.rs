//! Limits of the host for this process that can be raised while a VM runs, and whether one was.
//!
//! A plug or an unplug that such a limit forbids is answered BUSY, and the driver tries again after a pause that doubles. The
//! kernel tells nobody that a limit was raised (`sysctl`, `prlimit`, a control group), so somebody has to look. A look costs
//! three system calls, and is worth it only while a driver waits: the event loop looks then, and tells the driver at once.
//!
//! Mirrors nothing of QEMU, whose driver waits for the end of its own pause.
#![expect(unsafe_code, reason = "getrlimit has no safe wrapper here")]

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

use crate::budget::Budget;

/// The limits at one moment. `u64::MAX` where there is none, or where it cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Mappings of a process (`vm.max_map_count`): each run of plugged memory is one.
    pub mappings: u64,
    /// Bytes of address space (`RLIMIT_AS`).
    pub addresses: u64,
    /// Bytes of memory of the control group, the kernel's tables included.
    pub memory: u64,
}

impl Limits {
    /// Whether one of them is higher than `before`.
    #[must_use]
    pub fn is_raised_from(&self, before: &Self) -> bool {
        self.mappings > before.mappings || self.addresses > before.addresses || self.memory > before.memory
    }
}

/// Where limits are read. Its files are kept open: a process that is locked in opens no file.
#[derive(Debug)]
pub struct LimitFiles {
    mappings: Option<File>,
    memory: Option<File>,
}

impl LimitFiles {
    /// Opens the files of this process. A limit that cannot be read counts as none.
    #[must_use]
    pub fn open(budget: &Budget) -> Self {
        let open = |path: &std::path::Path| File::open(path).ok();
        Self {
            mappings: open("/proc/sys/vm/max_map_count".as_ref()),
            memory: budget.limit_file().and_then(open),
        }
    }

    /// The limits now.
    #[must_use]
    pub fn read(&self) -> Limits {
        Limits {
            mappings: self.mappings.as_ref().map_or(u64::MAX, number),
            addresses: address_space(),
            memory: self.memory.as_ref().map_or(u64::MAX, number),
        }
    }
}

/// The number in a file; `max` and what is no number is none.
fn number(file: &File) -> u64 {
    let mut text = [0; 32];
    let length = file.read_at(&mut text, 0).unwrap_or(0);
    let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

fn address_space() -> u64 {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: `limit` has room for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_AS, limit.as_mut_ptr()) } != 0 {
        return u64::MAX;
    }
    // SAFETY: the call succeeded, so it has written all of the answer.
    unsafe { limit.assume_init() }.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::{Budget, LimitFiles, Limits};

    #[test]
    fn one_limit_that_is_higher_is_enough_and_a_lower_one_is_none() {
        let limits = |mappings, addresses, memory| Limits { mappings, addresses, memory };
        let before = limits(65530, 1 << 40, 1 << 30);
        assert!(!before.is_raised_from(&before));
        assert!(limits(65531, 1 << 40, 1 << 30).is_raised_from(&before));
        assert!(limits(65530, u64::MAX, 1 << 30).is_raised_from(&before));
        assert!(limits(1, 1, u64::MAX).is_raised_from(&before));
        assert!(!limits(65529, 1 << 39, 1 << 29).is_raised_from(&before));
    }

    #[test]
    fn this_process_has_a_limit_of_mappings() {
        let limits = LimitFiles::open(&Budget::of_process()).read();
        assert!((1..u64::MAX).contains(&limits.mappings), "{limits:?}");
        assert_eq!(LimitFiles { mappings: None, memory: None }.read().mappings, u64::MAX);
    }
}
