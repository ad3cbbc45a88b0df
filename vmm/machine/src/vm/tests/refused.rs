//! VMs that do not start: what the host or the configuration does not allow.

use std::path::PathBuf;

use tidevm_abi::Size;

use super::{kvm, start};
use crate::boot::BootError;
use crate::config::{Config, HotplugConfig};
use crate::error::{StartError, no_kvm};
use crate::memory::MemoryError;
use crate::vm::start::check_reach;

#[test]
fn a_file_that_is_no_kernel_does_not_start() {
    if !kvm() {
        return;
    }
    let config = Config { kernel: Some("/nonexistent".into()), ..Config::default() };
    let error = start(config).unwrap_err();
    assert!(matches!(error, StartError::Boot(BootError::Unreadable { .. })), "{error}");
    assert!(!error.is_refusal());
}

/// The limit holds for the embedded guest and for a file with the same content.
#[test]
fn tidevms_own_guest_has_its_limit_of_cpus() {
    let file = std::env::temp_dir().join(format!("tidevm-test-{}-own.elf", std::process::id()));
    std::fs::write(&file, crate::boot::Image::open(None).unwrap().bytes()).unwrap();
    let error = start(Config { cpus: 65, kernel: Some(file.clone()), ..Config::default() }).unwrap_err();
    std::fs::remove_file(file).unwrap();
    assert_eq!(error.to_string(), "--cpus 65: there can be 1 to 64 vCPUs");
}

#[test]
fn memory_that_no_address_leads_to_is_refused() {
    let config = Config { hotplug: vec![HotplugConfig::new(Size::gib(60))], ..Config::default() };
    assert!(check_reach(&config, 36).is_ok());
    let config = Config { hotplug: vec![HotplugConfig::new(Size::gib(61))], ..config };
    let error = check_reach(&config, 36).unwrap_err();
    assert!(error.is_refusal());
    assert!(
        error.to_string().contains("end at 65G, beyond the 64G that this host's CPU can address"),
        "{error}"
    );
}

/// The cause decides, not the place.
#[test]
fn a_host_that_cannot_is_told_apart_from_a_wrong_configuration() {
    let error = |code| std::io::Error::from_raw_os_error(code);
    let console = |code| StartError::Console { kind: "file", path: PathBuf::new(), error: error(code) };
    let unreadable = |code| {
        StartError::from(BootError::Unreadable { what: "--kernel", path: PathBuf::new(), error: error(code) })
    };
    let no_addresses = MemoryError { what: String::new(), size: Size(0), error: error(libc::ENOMEM) };
    let limit = Size::gib(64);
    for refused in [
        no_kvm(error(libc::ENOENT)),
        no_addresses.into(),
        StartError::TooManyCpus { asked: 9, most: 4 },
        StartError::Unaddressable { end: limit, limit },
        console(libc::ENOSPC),
        console(libc::EMFILE),
        unreadable(libc::ENOMEM),
        unreadable(libc::ENFILE),
    ] {
        assert!(refused.is_refusal(), "{refused:?}");
    }
    assert!(no_kvm(error(libc::ENOENT)).to_string().contains("cargo xtask nested"));
    let wrong = start(Config { cpus: 0, ..Config::default() }).unwrap_err();
    for wrong in [wrong, console(libc::ENOENT), unreadable(libc::EACCES)] {
        assert!(!wrong.is_refusal(), "{wrong:?}");
    }
}
