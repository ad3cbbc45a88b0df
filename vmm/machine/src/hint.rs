//! What a user can do when KVM refuses, as the end of an error message.
//!
//! Invariant: a hint can help. Where nothing is known to help, there is none.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Bits of a file's mode: the group may read and write.
const GROUP_MAY: u32 = 0o060;

/// Name of the step in which KVM switches the CPU's virtualization on.
pub const MAKE_A_MACHINE: &str = "make a machine";

/// How this process stands to /dev/kvm.
#[derive(Clone, Debug)]
pub struct Access {
    /// The process is root.
    root: bool,
    /// The process is in the device's group.
    member: bool,
    /// The device's mode.
    mode: u32,
    /// The device's group, by name if it has one.
    group: String,
}

impl Access {
    /// The facts of this process. [`None`] when the host does not tell them.
    pub fn of_process() -> Option<Self> {
        let device = fs::metadata("/dev/kvm").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let numbers = |key: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
        };
        // The second number is the effective id.
        let effective = |key| numbers(key).get(1).copied();
        let gid = device.gid();
        Some(Self {
            root: effective("Uid:")? == 0,
            member: effective("Gid:")? == gid || numbers("Groups:").contains(&gid),
            mode: device.mode(),
            group: group_name(gid),
        })
    }
}

fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let names = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    };
    groups.lines().find_map(names).unwrap_or_else(|| gid.to_string())
}

/// The hint for an error of opening /dev/kvm.
pub fn for_open(error: &io::Error, access: Option<&Access>) -> String {
    const POLICY: &str = ". A container or a security policy refuses it: give the container the device (docker run \
                          --device /dev/kvm), or see the host's log for the denial";
    match (error.raw_os_error(), access) {
        (Some(libc::ENOENT | libc::ENODEV | libc::ENXIO), _) => {
            ". Load the module of your CPU (modprobe kvm_intel or kvm_amd) and enable virtualization in the \
             firmware; inside a virtual machine or container, have it give you nested virtualization or the device. \
             From tidevm's sources, `cargo xtask nested -- tidevm ...` runs it on an emulated host"
                .to_owned()
        }
        (Some(libc::EACCES | libc::EPERM), Some(access)) if access.root => POLICY.to_owned(),
        (Some(libc::EACCES | libc::EPERM), Some(Access { mode, group, member, .. })) => {
            if mode & GROUP_MAY != GROUP_MAY || group == "root" {
                ". Only root may use the device: have root give it to a group (chgrp kvm /dev/kvm; chmod 660 \
                 /dev/kvm) that you are in, or run as root"
                    .to_owned()
            } else if *member {
                POLICY.to_owned()
            } else {
                format!(
                    ". Add your user to the device's group (usermod -aG {group} USER, then log in again), or run \
                     as root"
                )
            }
        }
        (Some(libc::EMFILE), _) => ". Raise the limit of open files (ulimit -n)".to_owned(),
        _ => String::new(),
    }
}

/// The hint for an error of the step `what` of setting up KVM.
pub fn for_step(what: &str, error: &io::Error) -> &'static str {
    match (what, error.raw_os_error()) {
        (MAKE_A_MACHINE, Some(libc::EBUSY)) => {
            ". Another hypervisor uses the CPU's virtualization (VirtualBox, VMware): end its machines"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Access, MAKE_A_MACHINE, for_open, for_step};

    fn hint(errno: i32, access: &Access) -> String {
        for_open(&io::Error::from_raw_os_error(errno), Some(access))
    }

    #[test]
    fn a_hint_can_help() {
        let user = Access { root: false, member: false, mode: 0o20_660, group: "vm".to_owned() };
        assert!(hint(libc::EACCES, &user).contains("usermod -aG vm USER"));
        assert!(hint(libc::ENOENT, &user).contains("modprobe kvm_intel"));
        assert!(hint(libc::EMFILE, &user).contains("ulimit -n"));
        assert_eq!(hint(libc::EIO, &user), "");
        // None of these is helped by a group.
        let root = Access { root: true, ..user.clone() };
        let member = Access { member: true, ..user.clone() };
        let owners = Access { mode: 0o20_600, ..user.clone() };
        let roots = Access { group: "root".to_owned(), ..user };
        for (access, helps) in
            [(root, "--device"), (member, "--device"), (owners, "chmod 660"), (roots, "chgrp kvm")]
        {
            let hint = hint(libc::EACCES, &access);
            assert!(hint.contains(helps) && !hint.contains("usermod"), "{access:?}: {hint}");
        }
    }

    #[test]
    fn another_hypervisor_is_named_where_it_is_the_reason() {
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        assert!(for_step(MAKE_A_MACHINE, &busy).contains("Another hypervisor"));
        assert_eq!(for_step("register an irqfd", &busy), "");
        assert_eq!(for_step(MAKE_A_MACHINE, &io::Error::from_raw_os_error(libc::EMFILE)), "");
    }
}
