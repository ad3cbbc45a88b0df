//! The name of a guest kernel's function at an address, from the kernel's ELF symbol table.
//!
//! The file may be hostile: many symbols can share one long name. So the search keeps one symbol and reads one
//! name, and both the name in the file and the name that is shown have a limit. The cost is one pass over the
//! symbol table.

use std::fmt::{self, Write};

use object::{Object, ObjectSymbol, SymbolKind};

use crate::printable::printable;

/// Most bytes of a name in the file. A longer name is cut before it is demangled.
const MANGLED: usize = 4096;

/// Most bytes of a name that is shown, without the marks of its end.
const SHOWN: usize = 256;

/// `name+0x12` for an address in a function of the ELF file `image`. Functions in assembly often have no size;
/// such a function reaches to the next one. There is no name when the file is stripped or cannot be read.
#[must_use]
pub fn name_at(image: &[u8], address: u64) -> Option<String> {
    let file = object::File::parse(image).ok()?;
    let function = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter(|symbol| symbol.address() <= address)
        .max_by_key(ObjectSymbol::address)?;
    let offset = address - function.address();
    let inside = function.size() == 0 || offset < function.size();
    let name = shown(function.name_bytes().ok()?);
    inside.then(|| format!("{name}+{offset:#x}"))
}

/// A name of the file as it is shown.
fn shown(mangled: &[u8]) -> String {
    let text = String::from_utf8_lossy(&mangled[..mangled.len().min(MANGLED)]);
    let mut name = Capped { text: String::new(), cut: mangled.len() > MANGLED };
    // A demangled name can be far longer than the mangled one. The error ends the demangling.
    name.cut |= write!(name, "{:#}", rustc_demangle::demangle(&text)).is_err();
    let mut text = printable(name.text.as_bytes()).replace(['\n', '\t'], " ");
    if text.len() > SHOWN || name.cut {
        text.truncate(text.floor_char_boundary(SHOWN));
        text += "...";
    }
    text
}

/// Text that refuses to grow beyond [`SHOWN`] bytes.
struct Capped {
    text: String,
    cut: bool,
}

impl Write for Capped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.floor_char_boundary(SHOWN - self.text.len());
        self.text.push_str(&text[..fits]);
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::time::{Duration, Instant};

    use super::{Capped, SHOWN, name_at};

    /// A function: its address, its size, and where its name begins in the string table.
    type Function = (u64, u64, usize);

    /// An ELF file with nothing but symbols and `names`.
    fn elf(functions: impl IntoIterator<Item = Function>, names: &[u8]) -> Vec<u8> {
        let push = |to: &mut Vec<u8>, fields: &[(u64, usize)]| {
            fields.iter().for_each(|&(value, width)| to.extend(&value.to_le_bytes()[..width]));
        };
        // The first symbol of a table is undefined.
        let mut symbols = vec![0; 24];
        for (address, size, name) in functions {
            // STB_GLOBAL, STT_FUNC, in section 1.
            push(&mut symbols, &[(name as u64, 4), (0x12, 1), (0, 1), (1, 2), (address, 8), (size, 8)]);
        }
        let (symbols_at, names_at) = (64, 64 + symbols.len() as u64);
        let sections_at = names_at + names.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        push(&mut file, &[(2, 2), (62, 2), (1, 4), (0, 8), (0, 8), (sections_at, 8), (0, 4), (64, 2)]);
        push(&mut file, &[(56, 2), (0, 2), (64, 2), (3, 2), (2, 2)]);
        file.extend(&symbols);
        file.extend(names);
        file.extend([0; 64]);
        // SHT_SYMTAB, whose names are in section 2, which is SHT_STRTAB.
        for (kind, at, size, link, entry) in
            [(2, symbols_at, symbols.len() as u64, 2, 24), (3, names_at, names.len() as u64, 0, 0)]
        {
            push(&mut file, &[(0, 4), (kind, 4), (0, 8), (0, 8), (at, 8), (size, 8), (link, 4), (1, 4)]);
            push(&mut file, &[(1, 8), (entry, 8)]);
        }
        file
    }

    #[test]
    fn an_address_belongs_to_the_function_around_it() {
        // Not in the order of addresses.
        let image = elf([(0x200, 0, 7), (0x100, 0x10, 1)], b"\0first\0assembly\0");
        let name = |address| name_at(&image, address);
        assert_eq!(name(0xff), None);
        assert_eq!(name(0x100).as_deref(), Some("first+0x0"));
        assert_eq!(name(0x10f).as_deref(), Some("first+0xf"));
        assert_eq!(name(0x110), None);
        assert_eq!(name(0x2ff).as_deref(), Some("assembly+0xff"));
    }

    #[test]
    fn a_file_that_is_not_elf_has_no_names() {
        assert_eq!(name_at(b"not an ELF file", 0), None);
    }

    #[test]
    fn twenty_thousand_symbols_of_one_long_name_cost_one_short_name() {
        let mut names = vec![b'x'; 64 << 10];
        (names[0], names[(64 << 10) - 1]) = (0, 0);
        let image = elf((0..20_000).map(|address| (address, 1, 1)), &names);
        let start = Instant::now();
        let name = name_at(&image, 12_345).expect("a name");
        assert_eq!(name, format!("{}...+0x0", "x".repeat(SHOWN)));
        // All names together are 1.3 GB.
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }

    #[test]
    fn a_symbol_commands_no_terminal_and_is_one_line() {
        let image = elf([(0, 0, 1)], b"\0\x1b]0;mine\x07\n\xc2\x9b2J\xff\0");
        assert_eq!(name_at(&image, 1).as_deref(), Some("\\u{1b}]0;mine\\u{7} \\u{9b}2J\u{fffd}+0x1"));
    }

    /// A list of tuples, of which each holds the one before it twice, by reference.
    #[test]
    fn a_name_that_grows_when_it_is_demangled_is_cut() {
        let digits: Vec<_> = ('0'..='9').chain('a'..='z').chain('A'..='Z').collect();
        let mut mangled = "\0_RINvC1a1bTllE".to_owned();
        let mut last = "INvC1a1b".len();
        for _ in 0..7 {
            // References count from behind `_R`.
            let next = mangled.len() - "\0_R".len();
            let digit = digits[last - 1];
            mangled += &format!("TB{digit}_B{digit}_E");
            last = next;
        }
        mangled.push('E');
        let mut capped = Capped { text: String::new(), cut: false };
        let grown = write!(capped, "{:#}", rustc_demangle::demangle(&mangled[1..]));
        assert!(grown.is_err() && capped.text.len() <= SHOWN, "{} bytes are kept", capped.text.len());
        let image = elf([(0, 0, 1)], (mangled + "\0").as_bytes());
        let name = name_at(&image, 0).expect("a name");
        assert!(name.starts_with("a::b::<(i32, i32), ((i32, i32), (i32, i32)), "), "{name}");
        assert!(name.ends_with("...+0x0") && name.len() <= SHOWN + "...+0x0".len(), "{} bytes", name.len());
    }
}
