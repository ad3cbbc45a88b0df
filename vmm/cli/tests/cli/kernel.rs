//! Tiny kernels for tests: a few bytes of 32-bit code behind a PVH entry.

use std::fs;
use std::path::PathBuf;

/// `mov al, CODE; out 0xf4, al; hlt`: ends the machine with an exit code.
pub fn exit_with(code: u8) -> Vec<u8> {
    vec![0xb0, code, 0xe6, 0xf4, 0xf4]
}

/// `mov esp, 0x101000; push 0; push 0; lidt [esp]; ud2`: a fault without an interrupt table.
pub const FAULT: &[u8] =
    &[0xbc, 0x00, 0x10, 0x10, 0x00, 0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];

/// `mov dx, 0x3f8; mov al, 10; out dx, al; mov al, 0xfe; out 0x64, al; hlt`: a line on the serial port,
/// and a reset.
pub const RESET: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'\n', 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// `mov dx, 0x3f8; mov al, 10; out dx, al`: a line on the serial port.
pub const LINE: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'\n', 0xee];

/// `mov dx, 0x3f8`, and `mov al, CHAR; out dx, al` for each character: writes `text` to the serial port.
pub fn say(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    text.bytes().for_each(|byte| code.extend([0xb0, byte, 0xee]));
    code
}

/// `mov al, 0xfe; out 0x64, al; hlt`: a reset.
pub const RESET_ALONE: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// `mov dx, 0x505; in al, dx; out dx, al; hlt`: tells the pvpanic device all events that it takes.
pub const PVPANIC: &[u8] = &[0x66, 0xba, 0x05, 0x05, 0xec, 0xee, 0xf4];

/// `hlt; jmp -3`: does nothing for ever.
pub const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

/// `mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp -3`: writes to the serial port for ever.
pub const FLOOD: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];

const BASE: u64 = 0x10_0000;
const HEADERS: u64 = 64 + 2 * 56;
const NOTE: u64 = 12 + 4 + 8;

/// Writes an ELF file that starts with `code`, named `name`, to the tests' scratch folder.
pub fn write(name: &str, code: &[u8]) -> PathBuf {
    let entry = BASE + HEADERS + NOTE;
    let end = HEADERS + NOTE + code.len() as u64;
    let mut elf = Vec::new();
    // Elf64_Ehdr: 64-bit, little-endian, executable, x86-64.
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    push(&mut elf, &[(2, 2), (62, 2), (1, 4), (entry, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2)]);
    push(&mut elf, &[(2, 2), (64, 2), (0, 2), (0, 2)]);
    // Elf64_Phdr PT_LOAD: the whole file, readable, writable and executable, and a stack behind it.
    push(&mut elf, &[(1, 4), (7, 4), (0, 8), (BASE, 8), (BASE, 8), (end, 8), (0x2000, 8), (0x1000, 8)]);
    // Elf64_Phdr PT_NOTE.
    let note = BASE + HEADERS;
    push(&mut elf, &[(4, 4), (4, 4), (HEADERS, 8), (note, 8), (note, 8), (NOTE, 8), (NOTE, 8), (4, 8)]);
    // XEN_ELFNOTE_PHYS32_ENTRY.
    push(&mut elf, &[(4, 4), (8, 4), (18, 4)]);
    elf.extend_from_slice(b"Xen\0");
    push(&mut elf, &[(entry, 8)]);
    elf.extend_from_slice(code);
    assert_eq!(elf.len() as u64, end, "the headers are as long as they say");
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, elf).expect("the scratch folder is writable");
    path
}

fn push(elf: &mut Vec<u8>, fields: &[(u64, usize)]) {
    for &(value, width) in fields {
        elf.extend_from_slice(&value.to_le_bytes()[..width]);
    }
}
