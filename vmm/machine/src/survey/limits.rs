//! The limits of this process: `ulimit`, and the memory of its control group.

use std::fs;

use tidevm_abi::Size;

use super::Finding;
use crate::budget;
use crate::config::DEFAULT_MEMORY;

const FILES: &str = "open files";
const ADDRESSES: &str = "address space";
const TASKS: &str = "tasks";
const MEMORY: &str = "memory";

/// A machine with two devices and an API has 46 descriptors; each further device takes a few.
const DESCRIPTORS: u64 = 128;

/// A machine has a thread per vCPU and six others. The limit counts all tasks of the user.
const THREADS: u64 = 128;

pub fn findings() -> Vec<Finding> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = |name| Soft::read(&limits, name);
    vec![
        files(soft("Max open files")),
        address_space(soft("Max address space")),
        tasks(soft("Max processes")),
        memory(budget::read()),
    ]
}

/// A soft limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Soft {
    At(u64),
    /// There is none, or the kernel does not tell it.
    Unlimited,
}

impl Soft {
    /// The limit `name` in the text of `/proc/self/limits`: the first number behind its name.
    fn read(limits: &str, name: &str) -> Self {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        number.map_or(Self::Unlimited, Self::At)
    }
}

fn files(soft: Soft) -> Finding {
    match soft {
        Soft::At(count) if count < DESCRIPTORS => Finding::limited(
            FILES,
            format!("at most {count}; a machine with devices and clients may need more"),
            &format!("Raise the limit: ulimit -n {DESCRIPTORS}"),
        ),
        Soft::At(count) => Finding::good(FILES, format!("at most {count}")),
        Soft::Unlimited => Finding::good(FILES, "no limit"),
    }
}

fn address_space(soft: Soft) -> Finding {
    match soft {
        Soft::At(bytes) => Finding::limited(
            ADDRESSES,
            format!("at most {}; a hotplug region takes its whole size", Size(bytes)),
            "Raise the limit: ulimit -v unlimited",
        ),
        Soft::Unlimited => Finding::good(ADDRESSES, "no limit"),
    }
}

fn tasks(soft: Soft) -> Finding {
    match soft {
        Soft::At(count) if count < THREADS => Finding::limited(
            TASKS,
            format!("at most {count} of this user; a machine has one for each vCPU, and six others"),
            &format!("Raise the limit: ulimit -u {THREADS}"),
        ),
        Soft::At(count) => Finding::good(TASKS, format!("at most {count} of this user")),
        Soft::Unlimited => Finding::good(TASKS, "no limit"),
    }
}

fn memory(limit: Option<budget::Limit>) -> Finding {
    match limit {
        Some(limit) => {
            let found = format!("at most {} ({})", limit.size, limit.file.display());
            if limit.size < DEFAULT_MEMORY {
                Finding::limited(
                    MEMORY,
                    format!("{found}: less than a machine's default of {DEFAULT_MEMORY}"),
                    "Raise the limit of the control group, or give machines less: --memory",
                )
            } else {
                Finding::good(MEMORY, found)
            }
        }
        None => Finding::good(MEMORY, "no limit of the control group"),
    }
}

#[cfg(test)]
mod tests {
    use tidevm_abi::Size;

    use super::super::Bearing::{Good, Limited};
    use super::{Soft, address_space, files, memory, tasks};
    use crate::budget::Limit;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                          Max processes             90                   96365                processes \n\
                          Max open files            1024                 1048576              files     \n\
                          Max address space         unlimited            unlimited            bytes     \n";

    #[test]
    fn soft_limits_are_read_by_their_names() {
        let read = |name| Soft::read(LIMITS, name);
        assert_eq!(read("Max open files"), Soft::At(1024));
        assert_eq!(read("Max processes"), Soft::At(90));
        assert_eq!(read("Max address space"), Soft::Unlimited);
        assert_eq!(read("Max locked memory"), Soft::Unlimited);
    }

    #[test]
    fn a_limit_that_is_low_is_found_with_its_remedy() {
        let group =
            |mib| memory(Some(Limit { size: Size::mib(mib), file: "/sys/fs/cgroup/memory.max".into() }));
        for (finding, bearing, found, remedy) in [
            (files(Soft::At(64)), Limited, "at most 64", "ulimit -n"),
            (files(Soft::At(1024)), Good, "1024", ""),
            (address_space(Soft::At(4 << 30)), Limited, "at most 4G", "ulimit -v"),
            (address_space(Soft::Unlimited), Good, "no limit", ""),
            (tasks(Soft::At(20)), Limited, "at most 20", "ulimit -u"),
            (tasks(Soft::At(4096)), Good, "4096", ""),
            (group(128), Limited, "at most 128M (/sys/fs/cgroup/memory.max)", "--memory"),
            (group(4096), Good, "at most 4G", ""),
            (memory(None), Good, "no limit", ""),
        ] {
            assert_eq!(finding.bearing, bearing, "{finding:?}");
            assert!(finding.found.contains(found), "{finding:?}");
            assert!(finding.remedy.as_deref().unwrap_or_default().contains(remedy), "{finding:?}");
            assert_eq!(finding.remedy.is_some(), !remedy.is_empty(), "{finding:?}");
        }
    }
}
