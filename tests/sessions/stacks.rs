//! Stacks in a booted guest: as many CPUs as there can be, and what happens at the end of a stack.

use std::fs;
use std::path::PathBuf;

use object::{Object, ObjectSection, ObjectSymbol};
use tidevm_abi::MAX_CPUS;
use tidevm_machine::{Config, DeathKind, GUEST_IMAGE};
use tidevm_session::Ended;
use tidevm_tests::{Test, machine, run, run_checked};

use crate::init::death;

pub const TESTS: &[Test] = &[
    ("check_on_most_cpus_finds_a_guard_page_under_every_stack", most_cpus),
    ("a_stack_overflow_is_reported_with_its_cpu", a_stack_overflow_is_reported_with_its_cpu),
    ("check_finds_a_page_that_is_mapped_under_a_stack", check_finds_a_page_that_is_mapped_under_a_stack),
];

const MIB: u64 = 1 << 20;

/// `check` holds the lists of all CPUs together, and looks for the unmapped page under each stack.
fn most_cpus() {
    let config = Config { cpus: MAX_CPUS as u8, ..machine(128 * MIB) };
    let session = run_checked(config, "stats\nplug 128M\nresize 0 within 60s");
    session.assert_done();
    assert_eq!(session.boot.ready.map(|ready| ready.cpus), Some(MAX_CPUS as u32));
}

/// The file of a guest in which `code` is the beginning of the function whose symbol ends with `name`. It lives as long
/// as this value.
struct Patched(PathBuf);

impl Patched {
    fn new(name: &str, code: &[u8]) -> Self {
        let elf = object::File::parse(GUEST_IMAGE).expect("an ELF file");
        let is_meant = |symbol: &object::Symbol<'_, '_>| symbol.name().is_ok_and(|text| text.ends_with(name));
        let function = elf.symbols().find(is_meant).unwrap_or_else(|| panic!("no function {name}"));
        assert!(function.size() >= code.len() as u64, "{name} has {} bytes", function.size());
        let section = function.section_index().and_then(|index| elf.section_by_index(index).ok());
        let section = section.expect("code is in a section");
        let (start, _) = section.file_range().expect("code is in the file");
        let place = (start + function.address() - section.address()) as usize;
        let mut image = GUEST_IMAGE.to_vec();
        image[place..place + code.len()].copy_from_slice(code);
        let path = std::env::temp_dir().join(format!("tidevm-{name}-{}", std::process::id()));
        fs::write(&path, image).expect("a file");
        Self(path)
    }

    fn machine(&self, cpus: u8) -> Config {
        Config { cpus, kernel: Some(self.0.clone()), ..machine(128 * MIB) }
    }
}

impl Drop for Patched {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// The job loop calls itself without end. A CPU enters the loop when it has started. The boot CPU's stack is in the
/// image; the others have a window of the address space.
fn a_stack_overflow_is_reported_with_its_cpu() {
    const CALL_ITSELF: [u8; 5] = [0xe8, 0xfb, 0xff, 0xff, 0xff];
    let kernel = Patched::new("tidevm_guest3job3run", &CALL_ITSELF);
    // The boot CPU alone; then whichever of three reaches the loop first, which is hardly ever the boot CPU.
    for cpus in [1, 3] {
        let (kind, text) = death(kernel.machine(cpus));
        assert_eq!(kind, DeathKind::GuestPanic, "{text}");
        let report =
            |cpu| format!("panic on CPU {cpu}: stack overflow: CPU {cpu} has used up its stack, page fault");
        assert!((0..cpus).any(|cpu| text.contains(&report(cpu))), "{text}");
    }
}

/// `is_boot_guard` returns false. So the kernel maps the pages under the boot CPU's stacks with the rest of its image.
fn check_finds_a_page_that_is_mapped_under_a_stack() {
    const RETURN_FALSE: [u8; 3] = [0x31, 0xc0, 0xc3];
    let kernel = Patched::new("tidevm_guest3cpu5stack13is_boot_guard", &RETURN_FALSE);
    let session = run(kernel.machine(1), "stats\ncheck");
    let Ended::Died(death) = &session.summary.ended else {
        panic!("`check` found nothing: {:?}", session.steps.last());
    };
    assert_eq!(death.kind, DeathKind::GuestPanic, "{death}");
    let last = session.steps.last().map(|step| step.command.to_string());
    assert_eq!((session.steps.len(), last.as_deref()), (2, Some("check")));
    let text = death.text.as_str();
    assert!(text.contains("panic on CPU 0: CPU 0: a page is mapped under its stack"), "{text}");
}
