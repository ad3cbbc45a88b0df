//! Guests that die of memory that is not plugged, other than by a data access.

use super::*;

/// Whether KVM reset the vCPU before it told of a triple fault, as it does on AMD's CPUs. The registers tell nothing
/// then, and the test says that it is skipped.
fn is_reset(kind: DeathKind, report: &str) -> bool {
    let reset = kind == DeathKind::TripleFault && report.contains("at rip 0x000000000000fff0");
    if reset {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        writeln!(std::io::stderr(), "SKIP {name}: this host's KVM resets a vCPU at a triple fault").unwrap();
    }
    reset
}

/// Runs 64-bit `code`, with `rbx` at the unplugged region, and looks for `line` in the text about its death.
fn dies_with(code: &[u8], line: &str) -> Option<DeathKind> {
    let (kind, report) = died(&long_mode(code))?;
    if is_reset(kind, &report) {
        return None;
    }
    let line = format!("\n  not plugged: {line}");
    assert!(report.contains(&line), "no `{line}` in\n{kind}\n{report}");
    Some(kind)
}

#[test]
fn an_instruction_in_unplugged_memory_is_named() {
    // jmp rbx
    let kind =
        dies_with(&[0xff, 0xe3], "the instruction at 0x100000000 (guest-physical address 0x100000000)");
    let told = |kind| matches!(kind, DeathKind::UnpluggedMemory(Some(HOLE_END)) | DeathKind::TripleFault);
    assert!(kind.is_none_or(told), "{kind:?}");
}

#[test]
fn a_page_table_in_unplugged_memory_is_named() {
    // lea rax, [rbx + 3]; mov [0x104008], rax: the second page directory entry of the region leads to its start.
    let mut code = vec![0x48, 0x8d, 0x43, 0x03, 0x48, 0x89, 0x04, 0x25, 0x08, 0x40, 0x10, 0x00];
    code.extend([0x8b, 0x83, 0x00, 0x00, 0x20, 0x00]); // mov eax, [rbx + 2M]
    dies_with(
        &code,
        "a page table of the last page fault's address 0x100200000 (guest-physical address 0x100000000)",
    );
    // mov cr3, rbx
    let line = "a page table of the instruction at 0x1002";
    dies_with(&[0x0f, 0x22, 0xdb], line);
}

#[test]
fn a_stack_in_unplugged_memory_is_named() {
    // lea rsp, [rbx + 0x1000]; ud2
    let code = [0x48, 0x8d, 0xa3, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x0b];
    dies_with(&code, "the stack below 0x100001000 (guest-physical address 0x100000ff8)");
    // push rax, which is a data access.
    let code = [0x48, 0x8d, 0xa3, 0x00, 0x10, 0x00, 0x00, 0x50];
    // Whether the stack pointer has moved already depends on how KVM runs the instruction.
    let kind = dies_with(&code, "the stack below 0x10000");
    assert!(kind.is_none_or(|kind| matches!(kind, DeathKind::UnpluggedMemory(_))), "{kind:?}");
}

/// A pointer to a table of 4 KiB at `rbx`, at 0x180100: mov word [0x180100], 0xfff; mov [0x180102], rbx
const POINTER: [u8; 18] = [
    0x66, 0xc7, 0x04, 0x25, 0x00, 0x01, 0x18, 0x00, 0xff, 0x0f, //
    0x48, 0x89, 0x1c, 0x25, 0x02, 0x01, 0x18, 0x00,
];

#[test]
fn a_descriptor_table_in_unplugged_memory_is_named() {
    let mut code = POINTER.to_vec();
    code.extend([0x0f, 0x01, 0x1c, 0x25, 0x00, 0x01, 0x18, 0x00, 0x0f, 0x0b]); // lidt [0x180100]; ud2
    dies_with(&code, "the interrupt table at 0x100000000 (guest-physical address 0x100000000)");
}

/// KVM's emulator tries to read the descriptor again and again. Such a guest does not die, and is reported as one
/// that does not answer.
#[test]
fn a_segment_in_unplugged_memory_is_named_of_a_guest_that_dies_and_of_one_that_hangs() {
    if !kvm() {
        return;
    }
    let mut code = POINTER.to_vec();
    code.extend([0x0f, 0x01, 0x14, 0x25, 0x00, 0x01, 0x18, 0x00]); // lgdt [0x180100]
    code.extend([0x66, 0xb8, 0x08, 0x00, 0x8e, 0xd8]); // mov ax, 8; mov ds, ax
    let kernel = Kernel::new(&long_mode(&code));
    let vm = start(kernel.config()).unwrap();
    let line = "not plugged: the descriptor table at 0x100000000 (guest-physical address 0x100000000)";
    let start = Instant::now();
    loop {
        let state = vm.state();
        let report = match state.death {
            Some(death) if is_reset(death.kind, &death.text) => return,
            Some(death) => death.to_string(),
            None => vm.vcpus()[0].to_string(),
        };
        if report.contains(line) {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{report}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The same with memory that shares its slot with plugged memory: KVM reports it in another way.
#[test]
fn unplugged_memory_beside_plugged_memory_is_named_too() {
    if !kvm() {
        return;
    }
    let mut code = WAIT.to_vec();
    code.extend([0xff, 0xe3]); // jmp rbx
    let kernel = Kernel::new(&long_mode(&code));
    let vm = start(kernel.config()).unwrap();
    vm.shared.memory.plug(0, at(HOLE_END + 2 * MIB..HOLE_END + 4 * MIB)).unwrap();
    go(&vm);
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    let death = vm.state().death.expect("it died");
    if !is_reset(death.kind, &death.text) {
        let line = "\n  not plugged: the instruction at 0x100000000 (guest-physical address 0x100000000)";
        assert!(death.text.contains(line), "{death}");
    }
}
