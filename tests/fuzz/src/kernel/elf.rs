//! The function around an address, by the oracle's own reading of an ELF file's symbols.
//!
//! Mirrors the symbol table of the System V ABI. The names of a file may be anything, so what is compared is how far
//! the address is behind the function.

const SYMTAB: u64 = 2;
const FUNCTION: u64 = 2;

/// A function that the file defines: its address and its size.
type Function = (u64, u64);

/// Bytes of `file` as a little-endian number.
pub fn number(file: &[u8], at: u64, width: usize) -> Option<u64> {
    let bytes = file.get(usize::try_from(at).ok()?..)?.get(..width)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// The functions of the first symbol table of a little-endian 64-bit file.
fn functions(file: &[u8]) -> Option<Vec<Function>> {
    if !file.starts_with(b"\x7fELF\x02\x01\x01") {
        return None;
    }
    let header = |at, width| number(file, at, width);
    let (table, size, count) = (header(0x28, 8)?, header(0x3a, 2)?, header(0x3c, 2)?);
    let sections = (0..count).map(|index| table.checked_add(index * size)).collect::<Option<Vec<_>>>()?;
    let symbols = sections.into_iter().find(|&at| field(file, at, 4, 4) == Some(SYMTAB))?;
    let [start, length] = [0x18, 0x20].map(|at| field(file, symbols, at, 8));
    let (start, length) = (start?, length?);
    let mut functions = Vec::new();
    for index in 0..length / 24 {
        let symbol = start.checked_add(index * 24)?;
        let [kind, section] = [(4, 1), (6, 2)].map(|(at, width)| field(file, symbol, at, width));
        // Sections 0 and 0xff00 to 0xfffe define nothing.
        let defined = section.is_some_and(|section| section != 0 && !(0xff00..0xffff).contains(&section));
        if kind? & 0xf == FUNCTION && defined {
            functions.push((field(file, symbol, 8, 8)?, field(file, symbol, 16, 8)?));
        }
    }
    Some(functions)
}

fn field(file: &[u8], start: u64, at: u64, width: usize) -> Option<u64> {
    number(file, start.checked_add(at)?, width)
}

/// Compares `name`, which was found for `address`, with the functions of the file.
pub fn compare_name(file: &[u8], address: u64, name: Option<&str>) {
    let (Some(functions), Some(name)) = (functions(file), name) else { return };
    let offset = name.rsplit_once("+0x").and_then(|(_, offset)| u64::from_str_radix(offset, 16).ok());
    let last = functions.iter().filter(|function| function.0 <= address).map(|function| function.0).max();
    let last = last.unwrap_or_else(|| panic!("{name:?} begins behind {address:#x}"));
    assert_eq!(
        offset,
        Some(address - last),
        "{name:?} for {address:#x}, the function before it is at {last:#x}"
    );
    let around = |&(start, size): &Function| start == last && (size == 0 || address - start < size);
    assert!(functions.iter().any(around), "{address:#x} is not in the function {name:?}");
}
