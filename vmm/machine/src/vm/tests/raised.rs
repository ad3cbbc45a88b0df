//! A limit of the host that is raised while a driver waits for the host: the driver is told, and nobody sets a target.
//!
//! Limits belong to a process, so the VM has one of its own.
#![expect(unsafe_code, reason = "changes a limit of its own process")]

use std::process::Command;
use std::thread::sleep;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG;
use virtio_mem::wire::RequestKind;

use super::unplug_all::Driver;
use super::*;
use crate::memory::host_calls::{MemoryCall, watch_all};
use crate::sync::lock;
use crate::virtio::fake::interrupts;

const GIB: u64 = 1 << 30;
const BUSY: [u8; 2] = [2, 0];

/// How often the test may raise the limit too late: the process can stand still for a whole pause.
const TRIES: u64 = 5;

#[test]
fn a_driver_is_told_of_a_raised_limit_without_a_target() {
    if !kvm() {
        return;
    }
    let name = "vm::tests::raised::a_process_with_a_limit";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
}

/// Sets the limit of addresses. The hard limit stays.
fn set_limit(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is read, and outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

fn until(what: &str, mut found: impl FnMut() -> bool) {
    let start = Instant::now();
    while !found() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(1));
    }
}

/// A pause that is over by itself is followed by one of twice the length. Only a driver that was told because the cause may be
/// gone begins with the first pause again.
#[test]
#[ignore = "limits its process; the test above starts it"]
fn a_process_with_a_limit() {
    let mut limit = 1 << 44;
    set_limit(limit);
    let kernel = Kernel::new(&[0xf4, 0xeb, 0xfd]); // hlt; jmp -3
    let hotplug = vec![HotplugConfig { requested: Size(GIB), ..HotplugConfig::new(Size(GIB)) }];
    let vm = start(Config { hotplug, ..kernel.config() }).unwrap();
    let mut driver = Driver::new(&vm);
    watch_all(|call| matches!(call, MemoryCall::Open(_)));
    let ask = |driver: &mut Driver| {
        let before = driver.answers().0;
        driver.send(RequestKind::Plug, 0, 1);
        until("an answer", || driver.answers().0 == before + 1);
        assert_eq!(driver.answers().1, BUSY);
        interrupts(&mut *lock(&driver.device));
        lock(&driver.device).pause_ms().expect("it waits")
    };
    let first = ask(&mut driver);
    let told = |driver: &Driver| interrupts(&mut *lock(&driver.device)) & VIRTIO_MMIO_INT_CONFIG != 0;
    for _ in 0..TRIES {
        limit += 1 << 40;
        set_limit(limit);
        until("the driver is told", || told(&driver));
        if ask(&mut driver) == first {
            return;
        }
    }
    panic!("each pause was twice as long as the one before");
}
