//! KVM: its device, its interface, and how it runs guests.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use kvm_ioctls::Kvm;
use tidevm_abi::Size;

use super::Finding;
use crate::cpuid;
use crate::error::{StartError, no_kvm};
use crate::hint;
use crate::requirements;

const DEVICE: &str = "/dev/kvm";
const INTERFACE: &str = "KVM interface";
const MACHINE: &str = "virtual machine";
const PAGING: &str = "guest paging";
const ADDRESSES: &str = "guest addresses";

pub fn findings() -> Vec<Finding> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return vec![unusable(no_kvm(io::Error::from_raw_os_error(error.errno())))],
    };
    let mut findings = vec![Finding::good(DEVICE, format!("{}, opens", owner()))];
    if let Some(missing) = requirements::missing(&kvm) {
        findings.push(Finding::missing(
            INTERFACE,
            format!("lacks {missing}"),
            "Use a Linux kernel of this decade",
        ));
        return findings;
    }
    let names: Vec<_> = requirements::CAPABILITIES.iter().map(|(_, name)| *name).collect();
    findings
        .push(Finding::good(INTERFACE, format!("version {}, {}", kvm.get_api_version(), names.join(", "))));
    findings.push(machine(&kvm));
    findings.push(paging(|path| fs::read_to_string(path).ok()));
    findings.extend(addresses(&kvm));
    findings
}

/// The device cannot be opened.
fn unusable(error: StartError) -> Finding {
    match error {
        StartError::NoKvm { error, hint } => {
            Finding::missing(DEVICE, format!("{}, cannot be opened: {error}", owner()), &hint)
        }
        error => Finding::missing(DEVICE, error.to_string(), ""),
    }
}

/// Owner, group and mode of the device.
fn owner() -> String {
    match fs::metadata(DEVICE) {
        Ok(device) => {
            let (user, group) = (hint::user_name(device.uid()), hint::group_name(device.gid()));
            format!("owner {user}, group {group}, mode {:o}", device.mode() & 0o7777)
        }
        Err(_) => "no such device".to_owned(),
    }
}

fn machine(kvm: &Kvm) -> Finding {
    match kvm.create_vm() {
        Ok(_) => Finding::good(MACHINE, format!("can be made, with at most {} vCPUs", kvm.get_max_vcpus())),
        Err(error) => {
            let error = io::Error::from_raw_os_error(error.errno());
            let hint = hint::for_step(hint::MAKE_A_MACHINE, &error);
            Finding::missing(MACHINE, format!("cannot be made: {error}"), hint)
        }
    }
}

/// Whether the CPU walks the guest's page tables by itself, or KVM makes a shadow of each.
fn paging(read: impl Fn(&str) -> Option<String>) -> Finding {
    let modules = [
        ("/sys/module/kvm_intel/parameters/ept", "EPT", "kvm_intel ept=1"),
        ("/sys/module/kvm_amd/parameters/npt", "NPT", "kvm_amd npt=1"),
    ];
    for (path, name, parameter) in modules {
        match read(path).as_deref().map(str::trim) {
            Some("Y" | "1") => return Finding::good(PAGING, format!("by the CPU ({name})")),
            Some(_) => {
                let found = format!("by shadow page tables: {name} is off; page tables of guests are slow");
                let remedy = format!("Load the module with it, as root: modprobe {parameter}");
                return Finding::limited(PAGING, found, &remedy);
            }
            None => {}
        }
    }
    let found =
        "by shadow page tables: page tables of guests are slow, and their kernel code may be emulated";
    Finding::limited(PAGING, found, "Use a machine whose CPU has VT-x with EPT, or SVM with NPT")
}

fn addresses(kvm: &Kvm) -> Option<Finding> {
    let bits = cpuid::address_bits(&cpuid::supported_cpuid(kvm).ok()?);
    let end = Size(1_u64.checked_shl(bits).unwrap_or(u64::MAX));
    Some(Finding::good(ADDRESSES, format!("{bits} bits: all memory of a guest lies below {end}")))
}

#[cfg(test)]
mod tests {
    use super::{super::Bearing, paging};

    #[test]
    fn paging_is_what_the_module_says() {
        let with =
            |module: &str, value: &str| paging(|path| path.contains(module).then(|| format!("{value}\n")));
        for (module, value, bearing, part) in [
            ("kvm_intel", "Y", Bearing::Good, "EPT"),
            ("kvm_amd", "1", Bearing::Good, "NPT"),
            ("kvm_amd", "0", Bearing::Limited, "NPT is off"),
            ("kvm_pvm", "Y", Bearing::Limited, "may be emulated"),
        ] {
            let finding = with(module, value);
            assert_eq!(finding.bearing, bearing, "{finding:?}");
            assert!(finding.found.contains(part), "{finding:?}");
            assert_eq!(finding.remedy.is_none(), bearing == Bearing::Good, "{finding:?}");
        }
    }
}
