//! What a user can do when KVM refuses, as the end of an error message.
//!
//! Invariant: a hint can help. Where nothing is known to help, there is none.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bits of a file's mode: the group may read and write.
const GROUP_MAY: u32 = 0o060;

/// Name of the step in which KVM switches the CPU's virtualization on.
pub const MAKE_A_MACHINE: &str = "make a machine";

/// What helps wherever there is no KVM.
const EMULATED: &str =
    "From tidevm's sources, `cargo xtask nested -- tidevm ...` runs it on an emulated host, without /dev/kvm";

/// The host, as far as it matters to a process that finds no KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The process is in a container, which can load no module and has only the devices that it was given.
    container: bool,
    /// A module of KVM for a CPU is loaded.
    module: bool,
    /// The module for this CPU, if the CPU is of a known maker.
    module_of_cpu: Option<&'static str>,
    /// The CPU offers virtualization. [`None`] when the host does not tell.
    virtualization: Option<bool>,
}

impl Host {
    /// The host of this process.
    pub fn of_process() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        // Docker, Podman and systemd-nspawn leave these marks.
        let marks = ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"];
        Self {
            container: marks.iter().any(|mark| Path::new(mark).exists())
                || std::env::var_os("container").is_some(),
            module: ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter().any(loaded),
            ..Self::with_cpu(&cpu)
        }
    }

    /// A host with the CPU that `/proc/cpuinfo` describes.
    fn with_cpu(cpuinfo: &str) -> Self {
        let value = |key: &str| {
            let line = cpuinfo.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.trim_start_matches(['\t', ' ', ':'])
        };
        let module_of_cpu = match value("vendor_id") {
            "GenuineIntel" => Some("kvm_intel"),
            "AuthenticAMD" | "HygonGenuine" => Some("kvm_amd"),
            _ => None,
        };
        let flags = value("flags");
        let has = |name: &str| flags.split_ascii_whitespace().any(|flag| flag == name);
        let virtualization = (!flags.is_empty()).then(|| has("vmx") || has("svm"));
        Self { container: false, module: false, module_of_cpu, virtualization }
    }

    /// What helps when /dev/kvm is missing, or is a file without KVM behind it.
    fn without_kvm(self, missing: bool) -> String {
        if self.container && missing {
            ". A container has only the devices that it was given: start it with this one (docker run --device \
             /dev/kvm), on a machine that has it"
                .to_owned()
        } else if self.container {
            ". The machine that the container runs on has no KVM: load its module there".to_owned()
        } else if self.module && missing {
            ". KVM's module is loaded, and only the device file is missing: make it as root (mknod -m 660 /dev/kvm c \
             10 232)"
                .to_owned()
        } else if self.virtualization == Some(false) {
            ". This CPU offers no virtualization: enable it in the firmware, or, if this is a virtual machine, have \
             its host give it nested virtualization"
                .to_owned()
        } else {
            let module = self.module_of_cpu.unwrap_or("kvm_intel or kvm_amd");
            format!(
                ". Load the module of the CPU as root (modprobe {module}), and enable virtualization in the firmware"
            )
        }
    }
}

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
    /// The number of that group.
    gid: u32,
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
            gid,
        })
    }
}

/// The name of a group, or its number when it has none.
pub fn group_name(gid: u32) -> String {
    name_in("/etc/group", gid)
}

/// The name of a user, or its number when it has none.
pub fn user_name(uid: u32) -> String {
    name_in("/etc/passwd", uid)
}

/// In both files, the first field is the name and the third is the number.
fn name_in(file: &str, id: u32) -> String {
    let lines = fs::read_to_string(file).unwrap_or_default();
    let names = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    };
    lines.lines().find_map(names).unwrap_or_else(|| id.to_string())
}

/// The hint for an error of opening /dev/kvm.
pub fn for_open(error: &io::Error, access: Option<&Access>, host: Host) -> String {
    match (error.raw_os_error(), access) {
        (Some(libc::ENOENT), _) => format!("{}. {EMULATED}", host.without_kvm(true)),
        (Some(libc::ENODEV | libc::ENXIO), _) => format!("{}. {EMULATED}", host.without_kvm(false)),
        (Some(libc::EACCES | libc::EPERM), Some(access)) => for_refusal(access, host.container),
        (Some(libc::EMFILE), _) => ". Raise the limit of open files (ulimit -n)".to_owned(),
        _ => String::new(),
    }
}

/// The hint for a process that may not open the device.
fn for_refusal(access: &Access, container: bool) -> String {
    let Access { root, member, mode, group, gid } = access;
    let group_may = mode & GROUP_MAY == GROUP_MAY && group != "root";
    if *root || group_may && *member {
        let policy = ". A container or a security policy refuses it: give the container the device (docker run \
                      --device /dev/kvm), or see the host's log for the denial";
        return policy.to_owned();
    }
    match (group_may, container) {
        // A container's own list of groups says nothing of the host's.
        (true, true) => format!(
            ". Start the container with the device's group (docker run --group-add {gid}), or run as root in it"
        ),
        (true, false) => format!(
            ". Add your user to the device's group (usermod -aG {group} USER, then log in again), or run as root"
        ),
        (false, true) => ". Only root may use the device: run as root in the container, or have the host's root give \
                          the device to a group, and start the container with that group (docker run --group-add)"
            .to_owned(),
        (false, false) => ". Only root may use the device: have root give it to a group (chgrp kvm /dev/kvm; chmod 660 \
                           /dev/kvm) that you are in, or run as root"
            .to_owned(),
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

    use super::{Access, EMULATED, Host, MAKE_A_MACHINE, for_open, for_step};

    const INTEL: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx sse\n";
    const AMD: &str = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm sse\n";
    const WITHOUT: &str = "vendor_id\t: GenuineIntel\nflags\t\t: fpu sse\n";

    fn hint(errno: i32, access: &Access, host: Host) -> String {
        for_open(&io::Error::from_raw_os_error(errno), Some(access), host)
    }

    fn user() -> Access {
        Access { root: false, member: false, mode: 0o20_660, group: "vm".to_owned(), gid: 104 }
    }

    /// Each remedy is named where it helps, and nowhere else.
    #[test]
    fn a_missing_device_is_answered_by_what_the_host_lacks() {
        let remedies =
            ["--device /dev/kvm", "mknod", "nested virtualization", "modprobe", "runs on has no KVM"];
        let bare = Host::with_cpu;
        let module = |cpu| Host { module: true, ..bare(cpu) };
        let container = |host: Host| Host { container: true, ..host };
        for (errno, host, remedy) in [
            (libc::ENOENT, bare(INTEL), "modprobe kvm_intel)"),
            (libc::ENOENT, bare(AMD), "modprobe kvm_amd)"),
            (libc::ENOENT, bare(""), "modprobe kvm_intel or kvm_amd)"),
            (libc::ENOENT, bare(WITHOUT), "nested virtualization"),
            (libc::ENOENT, module(INTEL), "mknod"),
            (libc::ENOENT, module(WITHOUT), "mknod"),
            (libc::ENOENT, container(bare(INTEL)), "--device /dev/kvm"),
            (libc::ENOENT, container(module(WITHOUT)), "--device /dev/kvm"),
            (libc::ENODEV, bare(INTEL), "modprobe kvm_intel)"),
            (libc::ENXIO, bare(WITHOUT), "nested virtualization"),
            (libc::ENODEV, container(bare(INTEL)), "runs on has no KVM"),
        ] {
            let hint = hint(errno, &user(), host);
            assert!(hint.contains(remedy) && hint.ends_with(EMULATED), "{host:?}: {hint}");
            let others =
                remedies.iter().filter(|other| !remedy.starts_with(*other) && hint.contains(**other));
            assert_eq!(others.count(), 0, "{host:?}: {hint}");
        }
    }

    #[test]
    fn a_hint_can_help() {
        let (user, host) = (user(), Host::with_cpu(INTEL));
        assert!(hint(libc::EACCES, &user, host).contains("usermod -aG vm USER"));
        assert!(hint(libc::EMFILE, &user, host).contains("ulimit -n"));
        assert_eq!(hint(libc::EIO, &user, host), "");
        let container = Host { container: true, ..host };
        assert!(hint(libc::EACCES, &user, container).contains("--group-add 104)"));
        // None of these is helped by a group that has a name here.
        let root = Access { root: true, ..user.clone() };
        let member = Access { member: true, ..user.clone() };
        let owners = Access { mode: 0o20_600, ..user.clone() };
        let roots = Access { group: "root".to_owned(), ..user };
        for (access, host, helps) in [
            (&root, host, "--device"),
            (&member, host, "--device"),
            (&owners, host, "chmod 660"),
            (&roots, host, "chgrp kvm"),
            (&roots, container, "run as root in the container"),
        ] {
            let hint = hint(libc::EACCES, access, host);
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
