//! The memory that this process's control group allows, and the warning when a VM may use more.
//!
//! When a control group is full, the kernel kills a process in it (SIGKILL). The process cannot say why: no signal
//! handler runs, and its parent sees status 137. So the limit is read once, at the start of a VM, and a VM whose guest
//! may use more is warned about, once: at the start, or at the target that goes beyond. A thread that starts VMs and is
//! locked in reads the limit before, by [`keep`], because Landlock takes the files away.
//!
//! Mirrors `memory.max` of version 2 (Linux `Documentation/admin-guide/cgroup-v2.rst`) and `memory.limit_in_bytes` of
//! version 1. The smallest limit on the way from the group to the root acts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tidevm_abi::Size;

/// A larger limit of version 1 means that there is none: it shows the largest number of whole pages.
const UNLIMITED: u64 = 1 << 62;

/// A limit of memory, and the file that sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The most memory.
    pub size: Size,
    /// The file.
    pub file: PathBuf,
}

/// See [`keep`].
static KEPT: OnceLock<Option<Limit>> = OnceLock::new();

/// Reads the limit for all VMs that this process starts from now on.
pub fn keep() {
    KEPT.get_or_init(read);
}

/// The limit as it is now.
pub fn read() -> Option<Limit> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit(&groups, |file| fs::read_to_string(file).ok())
}

/// What this process may use.
#[derive(Debug)]
pub struct Budget {
    limit: Option<Limit>,
    warned: AtomicBool,
}

impl Budget {
    /// The budget of this process as it is now, or as it was at [`keep`].
    pub fn of_process() -> Self {
        Self::new(KEPT.get().cloned().unwrap_or_else(read))
    }

    fn new(limit: Option<Limit>) -> Self {
        Self { limit, warned: AtomicBool::new(false) }
    }

    /// The file that sets the limit, if there is one.
    #[must_use]
    pub fn limit_file(&self) -> Option<&Path> {
        self.limit.as_ref().map(|limit| limit.file.as_path())
    }

    /// The warning for a guest that may use `size` from now on, if that is more than is allowed and there was no
    /// warning yet.
    pub fn warning(&self, size: Size) -> Option<String> {
        let Limit { size: most, file } = self.limit.as_ref().filter(|limit| size > limit.size)?;
        if self.warned.swap(true, Ordering::Relaxed) {
            return None;
        }
        Some(format!(
            "the guest may use {} of memory, and this process's control group has {} ({}): if it uses more, the kernel \
             kills this process without a word (SIGKILL, status 137). Raise the limit, or give the guest less",
            size,
            most,
            file.display()
        ))
    }
}

/// The smallest limit of the groups that `/proc/self/cgroup` lists.
fn limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<Limit> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // A group outside this mount namespace has no folder here; the mount itself is then the nearest one.
        let group = Path::new(group.trim_start_matches('/'));
        let limits = group.ancestors().filter_map(|group| {
            let file = Path::new(mount).join(group).join(file);
            let bytes = read(&file)?.trim().parse().ok().filter(|&bytes| bytes < UNLIMITED)?;
            Some(Limit { size: Size(bytes), file })
        });
        limits.min_by_key(|limit| limit.size)
    };
    groups.lines().filter_map(of_line).min_by_key(|limit| limit.size)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Budget, Limit, Size, limit};

    fn limit_of(groups: &str, files: &[(&str, &str)]) -> Option<Limit> {
        limit(groups, |path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| format!("{text}\n"))
        })
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_root_acts() {
        let (outer, inner) = ("/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/a/b/memory.max");
        let at = |bytes, file: &str| Some(Limit { size: Size(bytes), file: file.into() });
        assert_eq!(limit_of("0::/a/b", &[(outer, "1000"), (inner, "max")]), at(1000, outer));
        assert_eq!(limit_of("0::/a/b", &[(outer, "1000"), (inner, "500")]), at(500, inner));
        assert_eq!(limit_of("0::/a/b", &[(outer, "max"), (inner, "max")]), None);
        // A container without a namespace of groups: its group has no folder there.
        let root = "/sys/fs/cgroup/memory.max";
        assert_eq!(limit_of("0::/../x", &[(root, "700")]), at(700, root));
        let first = "/sys/fs/cgroup/memory/c/memory.limit_in_bytes";
        let groups = "9:cpuset:/c\n4:cpu,memory:/c\n0::/";
        assert_eq!(limit_of(groups, &[(first, "800")]), at(800, first));
        assert_eq!(limit_of(groups, &[(first, "9223372036854771712")]), None);
        assert_eq!(limit_of("nonsense\n", &[]), None);
    }

    #[test]
    fn more_than_the_limit_is_warned_about_once() {
        let budget =
            Budget::new(Some(Limit { size: Size::mib(512), file: "/sys/fs/cgroup/memory.max".into() }));
        assert_eq!(budget.warning(Size::mib(512)), None);
        let warning = budget.warning(Size::gib(1)).expect("a warning");
        for part in ["may use 1G", "has 512M (/sys/fs/cgroup/memory.max)", "status 137"] {
            assert!(warning.contains(part), "no `{part}` in {warning}");
        }
        assert_eq!(budget.warning(Size::gib(2)), None);
        assert_eq!(Budget::new(None).warning(Size(u64::MAX)), None);
    }
}
