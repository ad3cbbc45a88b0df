//! Kernel files, ELF and bzImage, and an initrd: loading takes memory in proportion to the file, and what is loaded
//! lies where the file says.
//!
//! The oracle reads ELF's program headers and symbols by itself, from the layout in the System V ABI, and the boot
//! information as a kernel does. It compares memory above the legacy hole, because boot information overwrites a
//! kernel below it. Symbols are in `kernel/elf.rs`.

mod elf;

use tidevm_machine::hosted::{Loaded, load, name_at};
use tidevm_machine::{Config, Size};

use crate::heap;
use crate::input::Input;
use elf::number;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 32 * MIB;
/// Most bytes of heap beside the file itself: tables of the loader and of ACPI, messages.
/// Each byte of the initrd.
const INITRD: u8 = 0xa5;
const BASE: usize = 256 << 10;
/// Most bytes of a note that count.
const NOTE: usize = 64;
/// Most bytes of an error.
const MOST_TEXT: usize = 1024;

/// Loads one kernel.
///
/// # Panics
/// When memory differs from the file, or something is out of bounds.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let initrd = vec![INITRD; usize::from(input.u16()) * usize::from(input.byte() % 4)];
    let address = u64::from(input.u16());
    let kernel = input.bytes(usize::MAX);
    let config = Config { memory: Size(MEMORY), ..Config::default() };
    let copy = kernel.to_vec();
    let (loaded, held) = heap::highest(|| load(&config, copy, Some(&initrd)));
    assert!(held <= BASE + 2 * kernel.len(), "{held} bytes of heap for a file of {}", kernel.len());
    match &loaded {
        Ok(loaded) => compare(loaded, kernel, initrd.len() as u64),
        Err(error) => bounded(&error.to_string(), MOST_TEXT),
    }
    let (name, held) = heap::highest(|| name_at(kernel, address));
    // A name of the file can be copied twice before it is cut.
    assert!(held <= BASE + 2 * kernel.len(), "{held} bytes of heap for a name in {}", kernel.len());
    elf::compare_name(kernel, address, name.as_deref());
    bounded(&name.unwrap_or_default(), 512);
}

fn bounded(text: &str, most: usize) {
    assert!(text.len() <= most, "{} bytes of text", text.len());
    let odd = text.chars().find(|c| c.is_control());
    assert_eq!(odd, None, "a character that a terminal obeys in {text:?}");
}

/// The number of `width` bytes at `address` of guest memory.
fn in_memory(loaded: &Loaded, address: u64, width: usize) -> u64 {
    let mut bytes = vec![0; width];
    assert!(loaded.read_memory(address, &mut bytes), "{width} bytes at {address:#x}");
    number(&bytes, 0, width).expect("as many bytes")
}

/// The initrd lies whole in memory behind `end`, the end of the kernel, and below `limit`. `found` is where the boot
/// information says that it is: its address and its size.
fn check_initrd(loaded: &Loaded, found: (u64, u64), size: u64, end: u64, limit: u64) {
    let (start, found) = found;
    assert_eq!(found, size, "size of the initrd in the boot information");
    assert!(start >= end && start + size <= limit, "an initrd of {size:#x} at {start:#x} behind {end:#x}");
    assert!(start.is_multiple_of(0x1000), "an initrd at {start:#x}");
    let mut bytes = vec![0; size as usize];
    assert!(loaded.read_memory(start, &mut bytes) && bytes.iter().all(|&byte| byte == INITRD), "the initrd");
}

fn compare(loaded: &Loaded, file: &[u8], initrd: u64) {
    let entry = loaded.entry;
    assert!((entry.start_info == 0) != (entry.zero_page == 0), "one kind of boot information: {entry:x?}");
    if entry.zero_page != 0 {
        // The part behind the setup sectors, whose number is at 0x1f1, is at 1 MiB.
        let sectors = number(file, 0x1f1, 1).expect("a header");
        let start = 512 * (1 + if sectors == 0 { 4 } else { sectors });
        let field = |at, width| number(file, at, width).expect("a header");
        // Unpacked, the kernel takes `init_size` bytes from `pref_address` on.
        let end = (MIB + file.len() as u64 - start).max(field(0x258, 8) + field(0x260, 4));
        let found = [0x218, 0x21c].map(|at| in_memory(loaded, entry.zero_page + at, 4));
        let limit = MEMORY.min(field(0x22c, 4) + 1);
        check_initrd(loaded, found.into(), initrd, end, limit);
        return same(loaded, file, MIB, start, file.len() as u64 - start);
    }
    let header = |at, width| number(file, at, width).expect("a header");
    let (table, size, count) = (header(0x20, 8), header(0x36, 2), header(0x38, 2));
    let (mut segments, mut end, mut notes) = (Vec::new(), 0, Vec::new());
    for index in 0..count {
        let at = |field, width| number(file, table + index * size + field, width).expect("a program header");
        let (kind, offset, address, length) = (at(0, 4), at(8, 8), at(0x18, 8), at(0x20, 8));
        if kind == 1 {
            assert!(address + length <= MEMORY, "a segment at {address:#x} in {MEMORY:#x} bytes");
            segments.push((address, offset, length));
            end = end.max(address + length.max(at(0x28, 8)));
        } else if kind == 4 {
            // A note may end behind its segment.
            let end = file.len().min((offset + length) as usize + NOTE);
            notes.extend(file.get(offset as usize..end));
        }
    }
    // The entry is a number in a note.
    let wanted = &entry.address.to_le_bytes()[..4];
    let noted = notes.iter().any(|note| note.windows(4).any(|word| word == wanted));
    assert!(noted, "the entry {:#x} is in no note", entry.address);
    // PVH's start info: its magic number, the number of modules and the address of their list.
    let info = |at, width| in_memory(loaded, entry.start_info + at, width);
    assert_eq!((info(0, 4), info(12, 4)), (0x336e_c578, 1), "start info");
    let found = [0, 8].map(|at| in_memory(loaded, info(16, 8) + at, 8));
    check_initrd(loaded, found.into(), initrd, end, MEMORY);
    // Later segments overwrite earlier ones.
    for (index, &(address, offset, length)) in segments.iter().enumerate() {
        let later = &segments[index + 1..];
        let whole =
            later.iter().all(|&(other, _, size)| other + size <= address || address + length <= other);
        // A segment without content may be anywhere, also behind the end of the file.
        if whole && address >= MIB && length > 0 {
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
