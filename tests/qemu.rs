//! tidevm's guest on QEMU, and the tiny kernel of `examples/`. QEMU's virtio-mem device is an independent check of our
//! driver, and it is on PCI.
//!
//! QEMU emulates the CPU, so these tests need no KVM. Without QEMU they are skipped.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tidevm_guest_image::{TINY, build, find_toolchain};
use tidevm_lab::qemu::{self, Hotplug, QemuConfig, QemuMachine};
use tidevm_lab::zoneinfo::{self, Zone};
use tidevm_machine::{GUEST_IMAGE, Size};
use tidevm_tests::{Test, run_if};

const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = 256;
/// Number of pages with the memmap of a memory block, and the size of a memory block in MiB.
const MEMMAP_PAGES: u64 = 512;
const MEMORY_BLOCK_MIB: u64 = 128;

/// The longest wait for one event. A busy host can be slow.
const LIMIT: Duration = Duration::from_secs(60);

const TESTS: &[Test] = &[
    ("guest_follows_qemu", guest_follows_qemu),
    ("guest_follows_a_target_that_moves", guest_follows_a_target_that_moves),
    ("guest_moves_its_data", guest_moves_its_data),
    ("guest_takes_memory_that_is_not_zero", guest_takes_memory_that_is_not_zero),
    ("guest_runs_on_cpus_whose_ids_have_gaps", guest_runs_on_cpus_whose_ids_have_gaps),
    ("guest_brings_up_as_many_cpus_as_it_may", guest_brings_up_as_many_cpus_as_it_may),
    ("devices_share_interrupt_lines", devices_share_interrupt_lines),
    ("devices_lie_behind_bridges", devices_lie_behind_bridges),
    ("guest_hears_devices_by_messages", guest_hears_devices_by_messages),
    ("guest_hears_a_device_without_messages_by_its_line", guest_hears_a_device_without_messages_by_its_line),
    ("buses_that_no_bridge_leads_to_cost_nothing", buses_that_no_bridge_leads_to_cost_nothing),
    ("acpi_ends_the_machine", acpi_ends_the_machine),
    ("a_region_ends_where_it_likes", a_region_ends_where_it_likes),
    ("meminfo_and_zoneinfo_use_linux_words", meminfo_and_zoneinfo_use_linux_words),
    ("the_shell_says_what_is_wrong", the_shell_says_what_is_wrong),
    ("no_line_at_the_console_ends_the_guest", no_line_at_the_console_ends_the_guest),
    ("a_boot_takes_no_more_instructions_than_it_may", a_boot_takes_no_more_instructions_than_it_may),
    ("every_policy_maps_boot_memory", every_policy_maps_boot_memory),
    (
        "a_timer_without_deadlines_is_measured_when_it_is_set",
        a_timer_without_deadlines_is_measured_when_it_is_set,
    ),
    ("boot_memory_beyond_the_first_tables_is_mapped", boot_memory_beyond_the_first_tables_is_mapped),
    ("a_table_stays_for_memory_that_is_deferred", a_table_stays_for_memory_that_is_deferred),
    ("the_tiny_kernel_grows", the_tiny_kernel_grows),
];

fn main() -> ExitCode {
    let missing = qemu::missing();
    let without_messages = (missing.is_none() && !qemu::has_property("virtio-mem-pci", "vectors"))
        .then(|| "this QEMU's virtio-mem-pci has no MSI-X; QEMU 10.0 is needed".to_owned());
    run_if(TESTS, |name| match name {
        "guest_hears_devices_by_messages" | "guest_hears_a_device_without_messages_by_its_line" => {
            missing.clone().or_else(|| without_messages.clone())
        }
        _ => missing.clone(),
    })
}

/// A folder with the guest's image. Dropping it removes the folder.
struct Guest {
    folder: PathBuf,
}

impl Guest {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tidevm-guest-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("kernel"), GUEST_IMAGE).unwrap();
        Self { folder }
    }

    fn options(&self) -> QemuConfig {
        QemuConfig {
            cpus: 2,
            hotplug: vec![Hotplug::new(Size::mib(8192))],
            limit: LIMIT,
            ..QemuConfig::new(self.folder.join("kernel"), Size::mib(512))
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn boot(name: &str, change: impl FnOnce(&mut QemuConfig)) -> QemuMachine {
    let guest = Guest::new(name);
    let mut options = guest.options();
    change(&mut options);
    // The image may go now: QEMU has read it when the guest is up.
    QemuMachine::start(&options).unwrap_or_else(|error| panic!("{error}"))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn command(machine: &mut QemuMachine, line: &str) -> Vec<String> {
    machine.command(line).unwrap_or_else(|error| panic!("{error}"))
}

fn movable(machine: &mut QemuMachine) -> Zone {
    let lines = command(machine, "zoneinfo");
    let zones = zoneinfo::parse(lines.iter().map(String::as_str));
    zones.into_iter().find(|zone| zone.name == "Movable").expect("every zone is listed")
}

/// The expected Movable zone with `mib` MiB plugged from the start of the region and no page in use. Every memory
/// block holds its own memmap.
fn expected(mib: u64) -> Zone {
    let blocks = mib.div_ceil(MEMORY_BLOCK_MIB);
    let present = blocks * MEMORY_BLOCK_MIB * PAGES_PER_MIB;
    let managed = mib * PAGES_PER_MIB - blocks * MEMMAP_PAGES;
    Zone { node: 0, name: "Movable".to_owned(), spanned: present, present, managed, free: managed }
}

/// Resizes the only device, and waits until the guest uses all of the memory. The device counts memory as plugged
/// before the guest uses it.
fn resize(machine: &mut QemuMachine, mib: u64) {
    let done = machine.resize(0, Size::mib(mib)).and_then(|()| machine.wait_plugged(0, Size::mib(mib)));
    done.unwrap_or_else(|error| panic!("{mib} MiB: {error}"));
    let deadline = Instant::now() + LIMIT;
    while movable(machine).managed != expected(mib).managed {
        assert!(Instant::now() < deadline, "waited for the guest to use {mib} MiB:\n{}", machine.text());
        std::thread::sleep(Duration::from_millis(5));
    }
    command(machine, "check");
}

/// Ends the machine, and checks that no interrupt was lost: a driver that found work without an interrupt prints a
/// message.
fn power_off(mut machine: QemuMachine) {
    let text = machine.text();
    assert!(!text.contains("no answer for"), "{text}");
    assert_eq!(machine.power_off().unwrap().code(), Some(1), "{}", machine.text());
}

fn guest_follows_qemu() {
    let mut machine = boot("sizes", |options| options.hotplug[0].requested = Size::mib(256));
    machine.wait_plugged(0, Size::mib(256)).unwrap();
    for mib in [130, 2, 0, 2, 126, 128, 1026, 0, 4096, 8192, 258, 0] {
        resize(&mut machine, mib);
        assert_eq!(movable(&mut machine), expected(mib), "{mib} MiB\n{}", machine.text());
    }
    assert!(machine.text().contains("2 CPUs, 1 virtio-mem device\n"), "{}", machine.text());
    power_off(machine);
}

fn guest_follows_a_target_that_moves() {
    let mut machine = boot("moves", |_| ());
    for round in 0..40 {
        machine.resize(0, Size::mib(round * 7 % 12 * 130)).unwrap();
        std::thread::sleep(Duration::from_millis(3 * (round % 5)));
    }
    resize(&mut machine, 386);
    assert_eq!(movable(&mut machine).managed, expected(386).managed);
    resize(&mut machine, 0);
    assert_eq!(movable(&mut machine), expected(0));
    power_off(machine);
}

fn guest_moves_its_data() {
    let mut machine = boot("data", |_| ());
    resize(&mut machine, 1024);
    command(&mut machine, "hog 128M movable scattered full as data");
    for mib in [512, 258, 0, 1024] {
        resize(&mut machine, mib);
        let intact = command(&mut machine, "verify data");
        assert!(intact.iter().any(|line| line == "32768 pages intact"), "{mib} MiB: {intact:?}");
    }
    command(&mut machine, "release data");
    assert_eq!(movable(&mut machine), expected(1024));
    power_off(machine);
}

const GARBAGE: u8 = 0xa5;

/// QEMU does not promise the content of memory that it plugs. Here the content is never zero.
fn guest_takes_memory_that_is_not_zero() {
    let guest = Guest::new("garbage");
    let backing = guest.folder.join("memory");
    let mut options = guest.options();
    options.hotplug = vec![Hotplug { backing: Some(backing.clone()), ..Hotplug::new(Size::mib(512)) }];
    let mut machine = QemuMachine::start(&options).unwrap_or_else(|error| panic!("{error}"));
    let mut memory = OpenOptions::new().read(true).write(true).open(backing).unwrap();
    for mib in [512, 130, 0, 512] {
        // Fills everything that is not plugged. QEMU empties unplugged memory.
        let plugged = machine.plugged(0).unwrap().0;
        memory.seek(SeekFrom::Start(plugged)).unwrap();
        for _ in plugged / MIB..512 {
            memory.write_all(&[GARBAGE; MIB as usize]).unwrap();
        }
        resize(&mut machine, mib);
        assert_eq!(movable(&mut machine), expected(mib), "{mib} MiB\n{}", machine.text());
        if mib > 0 {
            let mut last = [0];
            // At 130 MiB this is in a struct page: in its holder, which the initialisation of a memmap does not write.
            memory.read_exact_at(&mut last, mib * MIB - 64).unwrap();
            assert_eq!(last, [GARBAGE], "the guest got clean memory, which proves nothing");
            command(&mut machine, "hog 64M movable scattered full as data");
            command(&mut machine, "verify data");
            command(&mut machine, "release data");
        }
    }
    power_off(machine);
}

fn guest_runs_on_cpus_whose_ids_have_gaps() {
    // With three cores per socket the APIC ids are 0, 1, 2, 4, 5, 6.
    let mut machine = boot("cpus", |options| {
        options.cpus = 6;
        options.extra = words("-smp sockets=2,cores=3,threads=1");
    });
    assert!(machine.text().contains("6 CPUs"), "{}", machine.text());
    command(&mut machine, "churn 6 threads for 300ms as load");
    resize(&mut machine, 256);
    power_off(machine);
}

fn guest_brings_up_as_many_cpus_as_it_may() {
    let machine = boot("limit", |options| {
        options.cpus = 4;
        options.cmdline = "nr_cpus=3".to_owned();
    });
    let text = machine.text();
    assert!(text.contains("3 CPUs") && text.contains("CPUs that are not used: 1; the limit is 3"), "{text}");
}

/// The firmware of a q35 machine gives all slots together two interrupt lines.
fn devices_share_interrupt_lines() {
    let mut machine = boot("lines", |options| options.hotplug = vec![Hotplug::new(Size::mib(256)); 6]);
    assert!(machine.text().contains("6 virtio-mem devices"), "{}", machine.text());
    for (size, round) in [(130, 1), (256, 2), (2, 3), (0, 4)] {
        // Resizes all devices at once, so that their interrupts come together.
        for device in 0..6 {
            machine.resize(device, Size::mib(size)).unwrap();
        }
        for device in 0..6 {
            machine
                .wait_plugged(device, Size::mib(size))
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    }
    // The last device may still be at work.
    resize(&mut machine, 0);
    assert_eq!(movable(&mut machine), expected(0));
    power_off(machine);
}

/// One device is on a bus behind a root port, another on a bus behind a second root.
fn devices_lie_behind_bridges() {
    let mut machine = boot("bridges", |options| {
        options.hotplug.clear();
        options.extra = words(
            "-m slots=2,maxmem=4G -object memory-backend-ram,id=ram0,size=1G -device pcie-root-port,id=bridge \
             -device virtio-mem-pci,id=mem0,memdev=ram0,bus=bridge,block-size=2M \
             -object memory-backend-ram,id=ram1,size=1G -device pxb-pcie,id=root,bus_nr=128 \
             -device pcie-root-port,id=far,bus=root,chassis=2 \
             -device virtio-mem-pci,id=mem1,memdev=ram1,bus=far,block-size=2M",
        );
    });
    assert!(machine.text().contains("2 virtio-mem devices"), "{}", machine.text());
    resize(&mut machine, 130);
    assert_eq!(movable(&mut machine), expected(130));
    machine.resize(1, Size::mib(256)).and_then(|()| machine.wait_plugged(1, Size::mib(256))).unwrap();
    power_off(machine);
}

/// What QEMU traces when a device's MSI-X capability is written and messages are let come.
const MESSAGES_COME: &str = "virtio-mem-pci enabled 1 masked 0";

/// A device of its own with so many vectors, and a trace of what becomes of them.
fn with_vectors(vectors: u32) -> impl Fn(&mut QemuConfig) {
    move |options| {
        options.extra =
            words(&format!("-global virtio-mem-pci.vectors={vectors} -trace enable=msix_write_config"));
    }
}

/// Follows targets, also after the driver has reset the device, and after another one shared its time.
fn follow_and_rebind(machine: &mut QemuMachine) {
    for mib in [256, 130, 0, 1026] {
        resize(machine, mib);
        assert_eq!(movable(machine), expected(mib), "{mib} MiB");
    }
    command(machine, "rebind 0");
    for mib in [130, 258, 0] {
        resize(machine, mib);
    }
}

/// With two vectors or more, the configuration and the queue have one each; with one they share it.
fn guest_hears_devices_by_messages() {
    for vectors in [1, 2, 3] {
        let mut machine = boot("messages", with_vectors(vectors));
        assert!(machine.complaints().contains(MESSAGES_COME), "{}", machine.complaints());
        assert!(!machine.text().contains("messages are not used"), "{}", machine.text());
        follow_and_rebind(&mut machine);
        power_off(machine);
    }
}

fn guest_hears_a_device_without_messages_by_its_line() {
    let mut machine = boot("no-messages", with_vectors(0));
    follow_and_rebind(&mut machine);
    assert!(!machine.complaints().contains(MESSAGES_COME), "{}", machine.complaints());
    power_off(machine);
}

/// A q35 says that there may be 256 buses, and has one.
fn buses_that_no_bridge_leads_to_cost_nothing() {
    const MOST: u64 = 400_000;
    let count = |extra: &str| {
        let mut machine = boot("buses", |options| {
            (options.icount, options.cpus) = (true, 1);
            options.hotplug = vec![Hotplug::new(Size::mib(256))];
            options.cmdline = "tsc_early_khz=1000000 tidevm.zeroed=on tidevm.init=lazy".to_owned();
            options.extra = words(extra);
        });
        assert!(machine.text().contains("1 virtio-mem device"), "{}", machine.text());
        let ticks = stat(&mut machine, "boot_ticks ");
        power_off(machine);
        ticks
    };
    let one = count("");
    assert!(one <= MOST, "{one} instructions with one bus");
    let two = count("-device pcie-root-port,id=bridge");
    assert!(two <= one + MOST / 4, "{two} instructions with two buses, {one} with one");
}

/// The machines have no exit port. A microvm with ACPI is hardware-reduced, and its registers are in memory; a q35's reset
/// register is a port; and a microvm without ACPI has a keyboard controller if it is asked for.
fn acpi_ends_the_machine() {
    let boot = |name, microvm, machine: &str| {
        boot(name, |options| {
            (options.exit_port, options.microvm, options.hotplug) = (false, microvm, Vec::new());
            // A microvm has no timer by which this could be measured.
            options.cmdline = "tsc_early_khz=1000000".to_owned();
            options.extra = words(machine);
        })
    };
    let mut machine = boot("sleep", true, "-machine acpi=on");
    assert!(machine.text().contains("2 CPUs"), "{}", machine.text());
    assert_eq!(machine.power_off().unwrap().code(), Some(0), "{}", machine.text());
    for (name, microvm, arguments) in [
        ("reset-memory", true, "-machine acpi=on"),
        ("reset-port", false, ""),
        ("reset-keyboard", true, "-machine acpi=off -device i8042"),
    ] {
        let mut machine = boot(name, microvm, arguments);
        assert_eq!(machine.reboot().unwrap().code(), Some(0), "{name}: {}", machine.text());
    }
}

/// A region of 1000 MiB ends within its eighth memory block. QEMU places the next region directly after it, where no
/// memory block begins: the guest uses what lies in whole ones.
fn a_region_ends_where_it_likes() {
    let mut machine = boot("end", |options| {
        options.hotplug = vec![Hotplug::new(Size::mib(1000)), Hotplug::new(Size::mib(256))];
    });
    for mib in [1000, 898, 0, 1000] {
        resize(&mut machine, mib);
        assert_eq!(movable(&mut machine), expected(mib), "{mib} MiB");
    }
    let text = machine.text();
    let lost = "region of 0x10000000 bytes at 0x13e800000: 0x1800000 bytes are in no whole memory block and not used";
    assert!(text.contains(lost), "{text}");
    machine.resize(1, Size::mib(128)).and_then(|()| machine.wait_plugged(1, Size::mib(128))).unwrap();
    power_off(machine);
}

/// The output has the names and the order of Linux's files, so programs for those files can read it.
fn meminfo_and_zoneinfo_use_linux_words() {
    let mut machine = boot("words", |_| ());
    resize(&mut machine, 130);
    let zoneinfo = command(&mut machine, "zoneinfo");
    let meminfo = command(&mut machine, "meminfo");
    let (start, movable) = zoneinfo
        .iter()
        .rposition(|line| line.starts_with("Node 0, zone "))
        .map(|start| (start, zoneinfo[start..].iter().map(|line| words(line)).collect::<Vec<_>>()))
        .expect("zones");
    assert_eq!(zoneinfo[start], "Node 0, zone  Movable");
    let names: Vec<&str> = movable[1..].iter().map(|words| words[0].as_str()).collect();
    let of_zone =
        ["pages", "min", "low", "high", "spanned", "present", "managed", "protection:", "nr_free_pages"];
    let of_cpu = ["cpu:", "count:", "high:", "batch:"];
    assert_eq!(
        names,
        [&of_zone[..], &["pagesets"], &of_cpu, &of_cpu, &["start_pfn:"]].concat(),
        "{zoneinfo:#?}"
    );
    let value = |name: &str| -> u64 {
        let words = movable.iter().find(|words| words[0] == name).expect(name);
        words[words.len() - 1].parse().expect(name)
    };
    assert_eq!(value("min"), 32, "what a movable zone of this size keeps");
    assert!(value("low") > 32 && value("batch:") == 7 && value("high:") >= 4 * 7, "{zoneinfo:#?}");
    assert_eq!(value("start_pfn:") % (MEMORY_BLOCK_MIB * PAGES_PER_MIB), 0);
    // An empty zone has only the first lines.
    assert!(zoneinfo.iter().any(|line| line.starts_with("Node 0, zone   Normal")));

    let zones = zoneinfo::parse(zoneinfo.iter().map(String::as_str));
    let meminfo: Vec<_> = meminfo.iter().map(|line| words(line)).filter(|words| words.len() == 3).collect();
    let kib = |index: usize| -> u64 { meminfo[index][1].parse().expect("a number") };
    let names: Vec<&str> = meminfo.iter().map(|words| words[0].as_str()).collect();
    assert_eq!(names, ["MemTotal:", "MemFree:", "MemAvailable:"]);
    assert_eq!(kib(0), 4 * zones.iter().map(|zone| zone.managed).sum::<u64>());
    assert_eq!(kib(1), 4 * zones.iter().map(|zone| zone.free).sum::<u64>());
    assert!(kib(2) < kib(1) && kib(2) > kib(1) * 9 / 10, "{meminfo:?}");
    power_off(machine);
}

fn the_shell_says_what_is_wrong() {
    let mut machine = boot("shell", |_| ());
    for (line, reason) in [
        ("nonsense", "no such command"),
        ("verify nothing", "no workload has this name"),
        ("release", "expected a name"),
        ("hog 1M", "hog [up to] SIZE movable|unmovable|pinned"),
        ("hog 1X movable as a", "hog [up to] SIZE"),
        ("meminfo now", "words after the command"),
        ("churn 2 threads for 5", "churn N threads for 5s as NAME"),
        ("hog 1M movable as a b", "words after the command"),
        ("hog 1M movable full scattered as a", "expected `as`, found `scattered` at column 21"),
        ("resize 2G", "only the VMM can do this"),
        ("repeat 2 { check }", "only the VMM can do this"),
        ("pmem unmap 0", "no such device memory"),
    ] {
        let error = machine.command(line).expect_err(line);
        assert!(error.contains(reason), "{line}: {error}");
    }
    let overlong = format!("hog {:0>140}M movable as a", 1);
    assert!(machine.command(&overlong).unwrap_err().contains("too long"));
    command(&mut machine, "hog 1MiB unmovable as a");
    assert!(machine.command("release a b").unwrap_err().contains("words after"));
    assert!(machine.command("hog 1M movable as a").unwrap_err().contains("of this name"));
    // A name can be used again, and a line can be corrected while it is typed.
    command(&mut machine, "release b\u{8}a");
    command(&mut machine, "hog 1M pinned full as a");
    assert!(command(&mut machine, "help").len() > 5);
    command(&mut machine, "churn 2 threads for 100ms as load");
    // A churn has ended when its answer is there, and its name is free.
    command(&mut machine, "churn 1 thread for 1ms as load");
    command(&mut machine, "check");
    power_off(machine);
}

/// The lines are typed while no page is free, so that a reader of lines that needs a page would have none.
fn no_line_at_the_console_ends_the_guest() {
    let mut machine = boot("lines-typed", |_| ());
    command(&mut machine, "hog up to 15E unmovable as all");
    let fill = |text: &str| text.repeat(128 / text.len());
    for line in [
        "größe 2G",
        "hog 18446744073709551616 movable as a",
        "hog 15E movable as a",
        "churn 18446744073709551616 threads for 1s as a",
        "churn 1 thread for 18446744073709551615m as a",
        "churn 4294967295 threads for 1ms as a",
        "readd 15E at 15E",
        "readd 128M at 18446744073709551615",
        "pmem map 0 1 2 3 4 5 6 7 altmap reserve 15T on 4294967295 cpus",
        "pmem hold 15E of 7 as a",
        "hog 1M \u{7f}\u{7f}\u{8}\u{1b}[A\t{",
        &fill("{ "),
        &fill("{"),
        &fill("\"\\"),
        &format!("verify {}", fill("a")),
        &format!("hog {}", "9".repeat(120)),
    ] {
        let error = machine.command(line).expect_err(line);
        assert!(error.contains("failed: "), "{line}: {error}");
    }
    command(&mut machine, "release all");
    // The workloads that did not start have left no name.
    command(&mut machine, "hog 4K unmovable as a");
    command(&mut machine, "check");
    power_off(machine);
}

/// The guest's instructions from its first one until all drivers are bound. QEMU's clock counts them, and the frequency
/// is given, so that nothing measures it: the number is the same each time. In 2026-11 it was 2.58 million with 512 MiB,
/// and 15,544 more with 2 GiB, for page tables.
/// QEMU's emulated CPU has no TSC deadline. The probe goes on by timers of one millisecond, on a CPU that does nothing else.
fn a_timer_without_deadlines_is_measured_when_it_is_set() {
    let mut machine = boot("timer", |options| options.hotplug.clear());
    for _ in 0..2 {
        let answer = command(&mut machine, "probe churn");
        assert!(answer.iter().any(|line| line == "done"), "{answer:?}");
    }
    power_off(machine);
}

/// Carries out each line of `script`, and checks after each.
fn run(machine: &mut QemuMachine, script: &[&str]) {
    for line in script {
        command(machine, line);
        command(machine, "check");
    }
}

/// The number for `name` in `stats`.
fn stat(machine: &mut QemuMachine, name: &str) -> u64 {
    let stats = command(machine, "stats");
    let number = |line: &String| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok();
    stats.iter().find_map(number).unwrap_or_else(|| panic!("{stats:?}"))
}

/// A machine with memory on both sides of the hole below 4 GiB. `check` looks at the page tables of all sections.
fn every_policy_maps_boot_memory() {
    for init in ["eager", "deferred", "lazy"] {
        let mut machine = boot(init, |options| {
            options.memory = Size::gib(4);
            options.cmdline = format!("tidevm.init={init} tidevm.zeroed=on");
            options.cpu_features = vec!["pdpe1gb=off".to_owned()];
        });
        command(&mut machine, "check");
        let deferred = stat(&mut machine, "deferred_pages ");
        assert!(init == "deferred" || (init == "lazy") == (deferred > 0), "{init}: {deferred}");
        run(&mut machine, &["hog 300M unmovable as a", "verify a", "release a"]);
        // The first memory block of the highest zone was there, and at least two more were wanted.
        let claimed = deferred - stat(&mut machine, "deferred_pages ");
        assert!(
            init != "lazy" || (1..=3).contains(&claimed.div_ceil(MEMORY_BLOCK_MIB * PAGES_PER_MIB)),
            "{claimed}"
        );
        power_off(machine);
    }
}

/// One table maps the memmaps of 64 GiB. Here the second table is for memory of the second node and for memory that is
/// plugged: either may want it first, and it stays for the other.
fn boot_memory_beyond_the_first_tables_is_mapped() {
    let mut machine = boot("far", |options| {
        options.memory = Size::gib(80);
        options.cmdline = "tidevm.numa=72G:1,8G:1 tidevm.init=lazy tidevm.zeroed=on".to_owned();
    });
    let boot = stat(&mut machine, "deferred_pages ");
    for mib in [8192, 0, 1024] {
        resize(&mut machine, mib);
    }
    run(&mut machine, &["hog 100M movable as near", "release near"]);
    resize(&mut machine, 0);
    // Workloads run on the last CPU, which is on the second node.
    run(&mut machine, &["hog 200M unmovable as far", "verify far"]);
    let claimed = boot - stat(&mut machine, "deferred_pages ");
    assert!((1..=2).contains(&claimed.div_ceil(MEMORY_BLOCK_MIB * PAGES_PER_MIB)), "{claimed} pages");
    resize(&mut machine, 1024);
    run(&mut machine, &["hog 100M movable as near", "verify near", "release near"]);
    resize(&mut machine, 0);
    run(&mut machine, &["verify far", "release far"]);
    power_off(machine);
}

/// Two devices share a table for the memmaps of their memory, and boot memory, which ends at 64 GiB, has none of it. The
/// table has no entry any more when the first device's memory has left, and what the second has plugged needs it.
fn a_table_stays_for_memory_that_is_deferred() {
    let mut machine = boot("shared", |options| {
        options.memory = Size::gib(62);
        options.hotplug = vec![Hotplug::new(Size::gib(1)); 2];
        options.cmdline = "tidevm.init=lazy tidevm.zeroed=on".to_owned();
    });
    resize(&mut machine, 1024);
    run(&mut machine, &["hog 100M movable as first", "release first"]);
    let follows = |machine: &mut QemuMachine, device, mib, all| {
        let done = machine.resize(device, Size::mib(mib));
        done.and_then(|()| machine.wait_plugged(device, Size::mib(mib)))
            .unwrap_or_else(|error| panic!("{error}"));
        let deadline = Instant::now() + LIMIT;
        while movable(machine).managed != expected(all).managed {
            assert!(Instant::now() < deadline, "waited for the guest to use {all} MiB:\n{}", machine.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    follows(&mut machine, 1, 1024, 2048);
    follows(&mut machine, 0, 0, 1024);
    run(&mut machine, &["hog 100M movable as second", "verify second", "release second"]);
    follows(&mut machine, 1, 0, 0);
    power_off(machine);
}

/// The size of memory costs nothing, whether the processor has pages of 1 GiB or not. More than 1 GiB costs what a second
/// zone and the hole between them cost.
fn a_boot_takes_no_more_instructions_than_it_may() {
    const MOST: u64 = 20_000;
    let count = |gib, cpu_features: &[&str]| {
        let mut machine = boot("count", |options| {
            (options.icount, options.cpus, options.memory) = (true, 1, Size::gib(gib));
            (options.hotplug, options.microvm) = (Vec::new(), true);
            options.cpu_features = cpu_features.iter().map(ToString::to_string).collect();
            // As tidevm's own machine, this one has no ACPI, and the command line says how many CPUs there are.
            options.cmdline = "nr_cpus=1 tsc_early_khz=1000000 tidevm.zeroed=on tidevm.init=lazy".to_owned();
        });
        let stats = command(&mut machine, "stats");
        command(&mut machine, "check");
        power_off(machine);
        let ticks = stats.iter().find_map(|line| line.strip_prefix("boot_ticks ")?.parse::<u64>().ok());
        ticks.unwrap_or_else(|| panic!("{stats:?}"))
    };
    let [little, more, much, small_pages] =
        [count(1, &[]), count(8, &[]), count(512, &[]), count(512, &["pdpe1gb=off"])];
    assert!((1..=MOST).contains(&little), "{little} instructions with 1 GiB");
    assert!(much <= little * 6 / 5, "{much} instructions with 512 GiB, {little} with 1 GiB");
    assert!(much <= more + 200, "{much} instructions with 512 GiB, {more} with 8 GiB");
    assert_eq!(much, small_pages, "with pages of 1 GiB and without");
}

/// The tiny kernel follows QEMU's targets, each to whole memory blocks, and back.
fn the_tiny_kernel_grows() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-kernel");
    let kernel = find_toolchain().and_then(|toolchain| build(TINY, &toolchain, &folder));
    let kernel = kernel.unwrap_or_else(|error| panic!("{error}"));
    let options = QemuConfig {
        hotplug: vec![Hotplug { requested: Size::mib(256), ..Hotplug::new(Size::gib(4)) }],
        limit: LIMIT,
        ..QemuConfig::new(kernel, Size::mib(512))
    };
    let mut machine = QemuMachine::start(&options).unwrap_or_else(|error| panic!("{error}"));
    let boot = 512 - 32;
    for (target, plugged) in [(256, 256), (1024, 1024), (4096, 4096), (1000, 896), (0, 0), (2048, 2048)] {
        machine.resize(0, Size::mib(target)).unwrap();
        machine.wait_plugged(0, Size::mib(plugged)).unwrap_or_else(|error| panic!("{error}"));
        // The device counts memory as plugged before the kernel uses it.
        let deadline = Instant::now() + LIMIT;
        let free = loop {
            let text = machine.text();
            let last = text.lines().rfind(|line| line.contains(" MiB plugged, "));
            let sizes = last.and_then(|line| {
                let (size, rest) = line.split_once(" MiB plugged, ")?;
                Some((size.parse::<u64>().ok()?, rest.split_once(' ')?.0.parse::<u64>().ok()?))
            });
            match sizes {
                Some((size, free)) if size == plugged => break free,
                _ => {
                    assert!(Instant::now() < deadline, "waited for the kernel to say {plugged} MiB:\n{text}")
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // Each memory block keeps 2 MiB for its memmap.
        let expected = boot + plugged / MEMORY_BLOCK_MIB * (MEMORY_BLOCK_MIB - 2);
        assert!((expected..expected + 32).contains(&free), "{target} MiB: {free} MiB are free");
    }
}
