//! Stock Linux as a guest. Its virtio_mem driver is an independent check of our device.
//!
//! The environment variables TIDEVM_LINUX_KERNEL, TIDEVM_LINUX_ELF and TIDEVM_LINUX_INITRD name the kernel as a
//! bzImage, the kernel as an ELF file, and the initrd. The nested host sets them; on other hosts these tests are
//! skipped. Several times a second the initrd prints: how much more memory the kernel has than at boot, how many pages
//! the Movable zones manage, how much memory is on node 1, whether a file in memory is intact, and the distances
//! of node 0.

#[path = "linux/agent.rs"]
mod agent;
#[path = "linux/auto.rs"]
mod auto;
#[path = "linux/balloon.rs"]
mod balloon;
#[path = "linux/disk.rs"]
mod disk;
#[path = "linux/faults.rs"]
mod faults;
#[path = "linux/guest.rs"]
mod guest;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use guest::{KIB_PER_MIB, Linux, MIB, PAGES_PER_MIB};
use tidevm_machine::{HotplugConfig, Size};
use tidevm_tests::{Test, run_if};

const TESTS: &[Test] = &[
    ("linux_follows_odd_sizes", linux_follows_odd_sizes),
    ("linux_follows_a_target_that_moves", linux_follows_a_target_that_moves),
    ("linux_moves_its_data", linux_moves_its_data),
    ("linux_cycles", linux_cycles),
    ("linux_onlines_to_the_kernel_zones", || grows("policy=online_kernel")),
    ("linux_onlines_as_it_likes", || grows("policy=auto-movable")),
    ("linux_on_four_cpus", linux_on_four_cpus),
    ("linux_as_an_elf_file", linux_as_an_elf_file),
    ("linux_drives_two_devices_on_two_nodes", linux_drives_two_devices_on_two_nodes),
    ("linux_sees_device_memory", linux_sees_device_memory),
];

fn main() -> ExitCode {
    let names = ["TIDEVM_LINUX_KERNEL", "TIDEVM_LINUX_ELF", "TIDEVM_LINUX_INITRD"];
    let unset = names.into_iter().find(|name| env::var_os(name).is_none());
    let missing = unset.map(|name| format!("{name} names no file (the nested host has one)"));
    let missing = missing.or_else(tidevm_tests::missing_kvm);
    run_if(&[TESTS, agent::TESTS, auto::TESTS, balloon::TESTS, disk::TESTS, faults::TESTS].concat(), |_| {
        missing.clone()
    })
}

/// Resizes to each of `sizes` in turn, and checks the counters of the guest each time.
fn follow(linux: &Linux, sizes: &[u64]) {
    for &mib in sizes {
        linux.resize(0, mib);
        linux.await_size(mib);
        linux.await_seen("the pages in Movable", |seen| seen.movable_pages == mib * PAGES_PER_MIB);
    }
    linux.assert_content();
}

fn linux_follows_odd_sizes() {
    let linux = Linux::boot("", |_| ());
    follow(&linux, &[2, 126, 128, 130, 1026, 0, 1026, 126, 2, 0]);
    assert_eq!(linux.vm.held(0).unwrap(), Size(0));
}

fn linux_follows_a_target_that_moves() {
    let linux = Linux::boot("", |_| ());
    for round in 0..20 {
        linux.vm.resize(0, Size((round * 7 % 12) * 128 * MIB)).unwrap();
        std::thread::sleep(Duration::from_millis(30 * (round % 5)));
    }
    follow(&linux, &[384, 0]);
}

fn linux_moves_its_data() {
    let linux = Linux::boot("data=64", |_| ());
    linux.resize(0, 512);
    linux.await_seen("the data", |seen| seen.data == "intact");
    for mib in [256, 512, 0, 512] {
        linux.resize(0, mib);
        linux.await_size(mib);
        let before = linux.text().len();
        linux.await_seen("another look at the data", |seen| {
            linux.text().len() > before + 200 && seen.data == "intact"
        });
    }
    linux.assert_content();
}

fn linux_cycles() {
    let linux = Linux::boot("", |_| ());
    for _ in 0..50 {
        linux.resize(0, 258);
        linux.resize(0, 0);
    }
    linux.await_size(0);
    linux.assert_content();
    assert_eq!(linux.vm.held(0).unwrap(), Size(0));
}

/// Linux decides which zone gets the memory. The test can only check that Linux has it.
fn grows(words: &str) {
    let linux = Linux::boot(words, |_| ());
    linux.resize(0, 1026);
    linux.await_size(1026);
    // How far Linux shrinks depends on its own policy.
    linux.vm.resize(0, Size(0)).unwrap();
    linux.resize(0, 1026);
    linux.await_size(1026);
    linux.assert_content();
}

fn linux_on_four_cpus() {
    let linux = Linux::boot("", |config| config.cpus = 4);
    follow(&linux, &[512, 130, 0]);
    assert!(linux.text().contains("Brought up 1 node, 4 CPUs"), "{}", linux.text());
}

/// The ELF kernel boots by PVH; the bzImage of the other tests boots by Linux's own protocol.
fn linux_as_an_elf_file() {
    let linux = Linux::boot("", |config| config.kernel = guest::file("TIDEVM_LINUX_ELF"));
    follow(&linux, &[258, 0]);
    assert!(linux.text().contains("Booting paravirtualized kernel on KVM"), "{}", linux.text());
}

fn linux_drives_two_devices_on_two_nodes() {
    let linux = Linux::boot("", |config| {
        config.hotplug.push(HotplugConfig {
            device_block: Size::mib(4),
            node: Some(1),
            ..HotplugConfig::new(Size::mib(512))
        });
    });
    linux.resize(0, 258);
    linux.resize(1, 132);
    linux.await_size(390);
    linux.await_seen("the second device on its node", |seen| seen.kib_on_node_1 == 132 * KIB_PER_MIB);
    linux.await_seen("how far it is", |seen| seen.distances == "10 20");
    linux.resize(0, 0);
    linux.await_size(132);
    linux.await_seen("all of it there", |seen| seen.kib_on_node_1 == 132 * KIB_PER_MIB);
    linux.resize(1, 0);
    linux.await_size(0);
    linux.assert_content();
}

/// By both boot protocols, Linux takes the range for its pmem driver and not as memory.
fn linux_sees_device_memory() {
    for kernel in ["TIDEVM_LINUX_KERNEL", "TIDEVM_LINUX_ELF"] {
        let linux = Linux::boot("", |config| {
            config.kernel = guest::file(kernel);
            config.pmem = vec![Size::mib(256)];
        });
        let text = linux.text();
        // The range follows 512 MiB of boot memory and a region of 2 GiB at 4 GiB.
        let line = "BIOS-e820: [mem 0x0000000180000000-0x000000018fffffff] persistent (type 12)";
        assert!(text.contains(line), "{kernel}: {text}");
        linux.resize(0, 128);
        linux.await_size(128);
        linux.assert_content();
    }
}
