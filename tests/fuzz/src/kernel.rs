//! Kernel files, ELF and bzImage, and an initrd: loading takes memory in proportion to the file, and what is loaded
//! lies where the file says.
//!
//! The oracle reads ELF's program headers by itself, from the layout in the System V ABI. It compares memory above
//! the legacy hole, because boot information overwrites a kernel below it.

use tidevm_machine::hosted::{Loaded, load, name_at};
use tidevm_machine::{Config, Size};

use crate::heap;
use crate::input::Input;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 32 * MIB;
/// Most bytes of heap beside the file itself: tables of the loader and of ACPI, messages.
const BASE: usize = 256 << 10;
/// Most bytes of an error.
const MOST_TEXT: usize = 1024;

/// Loads one kernel.
///
/// # Panics
/// When memory differs from the file, or something is out of bounds.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let initrd = vec![0xa5; usize::from(input.u16()) * usize::from(input.byte() % 4)];
    let address = u64::from(input.u16());
    let kernel = input.bytes(usize::MAX);
    let config = Config { memory: Size(MEMORY), ..Config::default() };
    let copy = kernel.to_vec();
    let (loaded, held) = heap::highest(|| load(&config, copy, Some(&initrd)));
    assert!(held <= BASE + 2 * kernel.len(), "{held} bytes of heap for a file of {}", kernel.len());
    match &loaded {
        Ok(loaded) => compare(loaded, kernel),
        Err(error) => bounded(&error.to_string(), MOST_TEXT),
    }
    let (name, held) = heap::highest(|| name_at(kernel, address));
    // A name of the file can be copied twice before it is cut.
    assert!(held <= BASE + 2 * kernel.len(), "{held} bytes of heap for a name in {}", kernel.len());
    bounded(&name.unwrap_or_default(), 512);
}

fn bounded(text: &str, most: usize) {
    assert!(text.len() <= most, "{} bytes of text", text.len());
    let odd = text.chars().find(|c| c.is_control());
    assert_eq!(odd, None, "a character that a terminal obeys in {text:?}");
}

/// Bytes of `file` as a little-endian number.
fn number(file: &[u8], at: u64, width: usize) -> Option<u64> {
    let bytes = file.get(usize::try_from(at).ok()?..)?.get(..width)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn compare(loaded: &Loaded, file: &[u8]) {
    let entry = loaded.entry;
    assert!((entry.start_info == 0) != (entry.zero_page == 0), "one kind of boot information: {entry:x?}");
    if entry.zero_page != 0 {
        // The part behind the setup sectors, whose number is at 0x1f1, is at 1 MiB.
        let sectors = number(file, 0x1f1, 1).expect("a header");
        let start = 512 * (1 + if sectors == 0 { 4 } else { sectors });
        return same(loaded, file, MIB, start, file.len() as u64 - start);
    }
    let header = |at, width| number(file, at, width).expect("a header");
    let (table, size, count) = (header(0x20, 8), header(0x36, 2), header(0x38, 2));
    let mut segments = Vec::new();
    for index in 0..count {
        let at = |field, width| number(file, table + index * size + field, width).expect("a program header");
        let (kind, offset, address, length) = (at(0, 4), at(8, 8), at(0x18, 8), at(0x20, 8));
        if kind == 1 {
            assert!(address + length <= MEMORY, "a segment at {address:#x} in {MEMORY:#x} bytes");
            segments.push((address, offset, length));
        }
    }
    // Later segments overwrite earlier ones.
    for (index, &(address, offset, length)) in segments.iter().enumerate() {
        let later = &segments[index + 1..];
        let whole =
            later.iter().all(|&(other, _, size)| other + size <= address || address + length <= other);
        if whole && address >= MIB {
            same(loaded, file, address, offset, length);
        }
    }
}

fn same(loaded: &Loaded, file: &[u8], address: u64, offset: u64, length: u64) {
    let from = usize::try_from(offset).expect("an offset in the file");
    let expected = file.get(from..from + length as usize).expect("a part of the file");
    let mut found = vec![0; expected.len()];
    assert!(loaded.read_memory(address, &mut found), "{length:#x} bytes at {address:#x}");
    assert!(found == expected, "{length:#x} bytes at {address:#x} are not those at {offset:#x} of the file");
}
