//! Stacks in a booted guest: as many CPUs as there can be, and what happens at the end of a stack.

use std::fs;

use object::{Object, ObjectSection, ObjectSymbol};
use tidevm_abi::MAX_CPUS;
use tidevm_machine::{Config, DeathKind, GUEST_IMAGE};
use tidevm_tests::{Test, machine, run_checked};

use crate::init::death;

pub const TESTS: &[Test] = &[
    ("check_on_most_cpus_finds_a_guard_page_under_every_stack", most_cpus),
    ("a_stack_overflow_is_reported_with_its_cpu", a_stack_overflow_is_reported_with_its_cpu),
];

const MIB: u64 = 1 << 20;

/// `check` holds the lists of all CPUs together, and looks for the unmapped page under each stack.
fn most_cpus() {
    let config = Config { cpus: MAX_CPUS as u8, ..machine(128 * MIB) };
    let session = run_checked(config, "stats\nplug 128M\nresize 0 within 60s");
    session.assert_done();
    assert_eq!(session.boot.ready.map(|ready| ready.cpus), Some(MAX_CPUS as u32));
}

/// The guest, but the job loop calls itself without end. A CPU enters the loop when it has started.
fn image_without_end() -> Vec<u8> {
    const CALL_ITSELF: [u8; 5] = [0xe8, 0xfb, 0xff, 0xff, 0xff];
    let elf = object::File::parse(GUEST_IMAGE).expect("an ELF file");
    let is_loop = |name: &str| name.ends_with("tidevm_guest3job3run");
    let job_loop = elf.symbols().find(|symbol| symbol.name().is_ok_and(is_loop)).expect("a job loop");
    let section = job_loop.section_index().and_then(|index| elf.section_by_index(index).ok());
    let section = section.expect("code is in a section");
    let (start, _) = section.file_range().expect("code is in the file");
    let place = (start + job_loop.address() - section.address()) as usize;
    let mut image = GUEST_IMAGE.to_vec();
    image[place..place + CALL_ITSELF.len()].copy_from_slice(&CALL_ITSELF);
    image
}

/// The boot CPU's stack is in the image; the others have a window of the address space.
fn a_stack_overflow_is_reported_with_its_cpu() {
    let kernel = std::env::temp_dir().join(format!("tidevm-overflow-{}", std::process::id()));
    fs::write(&kernel, image_without_end()).expect("a file");
    // A CPU is started after those before it, so the first that reaches the loop is the boot CPU if it is alone.
    let deaths =
        [1, 3].map(|cpus| death(Config { cpus, kernel: Some(kernel.clone()), ..machine(128 * MIB) }));
    drop(fs::remove_file(&kernel));
    for (cpu, (kind, text)) in deaths.into_iter().enumerate() {
        assert_eq!(kind, DeathKind::GuestPanic, "{text}");
        let report =
            format!("panic on CPU {cpu}: stack overflow: CPU {cpu} has used up its stack, page fault");
        assert!(text.contains(&report), "{text}");
    }
}
