//! The kernel of the host: its version, and what it does for memory and for locking a process in.

use std::fs;

use landlock::LandlockStatus;

use super::Finding;
use crate::confine::reach::{self, NEWEST};

const KERNEL: &str = "kernel";
const HUGE_PAGES: &str = "huge pages";
const MAPPINGS: &str = "mappings";
const LANDLOCK: &str = "Landlock";
const SECCOMP: &str = "seccomp";

/// Linux's default of `vm.max_map_count`.
const DEFAULT_MAPPINGS: u64 = 65_530;

/// What a filter of system calls does at a forbidden one, in the kernel's word.
const ACTION: &str = "trap";

pub fn findings() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).ok();
    vec![
        version(read("/proc/sys/kernel/osrelease").as_deref()),
        huge_pages(read("/sys/kernel/mm/transparent_hugepage/enabled").as_deref()),
        mappings(read("/proc/sys/vm/max_map_count").as_deref()),
        match reach::try_on_a_thread() {
            Ok(status) => landlock(status),
            Err(error) => Finding::limited(LANDLOCK, format!("cannot be tried: {error}"), ""),
        },
        seccomp(read("/proc/sys/kernel/seccomp/actions_avail").as_deref()),
    ]
}

fn version(release: Option<&str>) -> Finding {
    Finding::good(KERNEL, format!("Linux {}", release.map_or("of an unknown version", str::trim)))
}

/// `always [madvise] never`: the chosen word stands in brackets.
fn huge_pages(enabled: Option<&str>) -> Finding {
    let chosen = enabled.and_then(|words| words.split(['[', ']']).nth(1));
    match chosen {
        Some(word @ ("always" | "madvise")) => Finding::good(HUGE_PAGES, format!("transparent: {word}")),
        Some(word) => Finding::limited(
            HUGE_PAGES,
            format!("transparent: {word}; memory comes and goes in pages of 4 KiB, which is slow"),
            "As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Finding::limited(
            HUGE_PAGES,
            "this kernel has no transparent ones, so memory comes and goes slowly",
            "",
        ),
    }
}

fn mappings(count: Option<&str>) -> Finding {
    match count.and_then(|count| count.trim().parse::<u64>().ok()) {
        Some(count) if count < DEFAULT_MAPPINGS => Finding::limited(
            MAPPINGS,
            format!("at most {count}; memory that is plugged in many pieces takes one for each"),
            &format!("As root: sysctl -w vm.max_map_count={DEFAULT_MAPPINGS}"),
        ),
        Some(count) => Finding::good(MAPPINGS, format!("at most {count}")),
        None => Finding::good(MAPPINGS, "the kernel does not tell their number"),
    }
}

fn landlock(status: LandlockStatus) -> Finding {
    match status {
        LandlockStatus::Available { effective_abi, .. } if effective_abi >= NEWEST => {
            Finding::good(LANDLOCK, format!("version {effective_abi}: no file, socket or signal leads out"))
        }
        LandlockStatus::Available { effective_abi, .. } => Finding::limited(
            LANDLOCK,
            format!("version {effective_abi}: it forbids less than version {NEWEST}"),
            "Use Linux 6.15 or newer",
        ),
        LandlockStatus::NotEnabled => Finding::limited(
            LANDLOCK,
            "off: only seccomp keeps tidevm from opening files",
            "Put landlock first in the kernel's parameter lsm=",
        ),
        LandlockStatus::NotImplemented => Finding::limited(
            LANDLOCK,
            "not in this kernel: only seccomp keeps tidevm from opening files",
            "Use a kernel with CONFIG_SECURITY_LANDLOCK",
        ),
    }
}

fn seccomp(actions: Option<&str>) -> Finding {
    match actions {
        Some(actions) if actions.split_ascii_whitespace().any(|action| action == ACTION) => {
            Finding::good(SECCOMP, format!("filters of system calls, with the action {ACTION}"))
        }
        _ => Finding::missing(
            SECCOMP,
            "no filters of system calls",
            "Use a kernel with CONFIG_SECCOMP_FILTER, or --seccomp off",
        ),
    }
}

#[cfg(test)]
mod tests {
    use landlock::{ABI, LandlockStatus};

    use super::super::Bearing::{Good, Limited, Missing};
    use super::{huge_pages, landlock, mappings, seccomp, version};

    #[test]
    fn what_a_kernel_lacks_is_found_with_its_remedy() {
        let abi = |effective_abi| LandlockStatus::Available { effective_abi, kernel_abi: None };
        for (finding, bearing, found, remedy) in [
            (version(Some("6.1.0-x\n")), Good, "Linux 6.1.0-x", ""),
            (huge_pages(Some("always [madvise] never\n")), Good, "transparent: madvise", ""),
            (huge_pages(Some("always madvise [never]\n")), Limited, "transparent: never", "echo madvise"),
            (huge_pages(None), Limited, "no transparent ones", ""),
            (mappings(Some("65530\n")), Good, "65530", ""),
            (mappings(Some("1000\n")), Limited, "at most 1000", "vm.max_map_count=65530"),
            (landlock(abi(ABI::V7)), Good, "version 7", ""),
            (landlock(abi(ABI::V3)), Limited, "version 3: it forbids less than version 7", "Linux 6.15"),
            (landlock(LandlockStatus::NotEnabled), Limited, "off", "lsm="),
            (
                landlock(LandlockStatus::NotImplemented),
                Limited,
                "not in this kernel",
                "CONFIG_SECURITY_LANDLOCK",
            ),
            (seccomp(Some("kill_thread trap errno log allow\n")), Good, "filters", ""),
            (seccomp(Some("kill_thread\n")), Missing, "no filters", "--seccomp off"),
            (seccomp(None), Missing, "no filters", "CONFIG_SECCOMP_FILTER"),
        ] {
            assert_eq!(finding.bearing, bearing, "{finding:?}");
            assert!(finding.found.contains(found), "{finding:?}");
            assert!(finding.remedy.as_deref().unwrap_or_default().contains(remedy), "{finding:?}");
            assert_eq!(finding.remedy.is_some(), !remedy.is_empty(), "{finding:?}");
        }
    }
}
