//! Names of a guest kernel's functions, from its ELF symbol table.

use object::{Object, ObjectSymbol, SymbolKind};

/// Functions by address.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// Ascending by address.
    functions: Vec<Function>,
}

#[derive(Clone, Debug)]
struct Function {
    address: u64,
    size: u64,
    name: String,
}

impl Symbols {
    /// The functions of an ELF file. There are none when the file is stripped or cannot be read.
    #[must_use]
    pub fn of(image: &[u8]) -> Self {
        let Ok(file) = object::File::parse(image) else { return Self::default() };
        let mut functions: Vec<_> = file
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .filter_map(|symbol| {
                let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
                Some(Function { address: symbol.address(), size: symbol.size(), name })
            })
            .collect();
        functions.sort_by_key(|function| function.address);
        Self { functions }
    }

    /// `name+0x12` for an address in a function. Functions in assembly often have no size; such a function
    /// reaches to the next one.
    #[must_use]
    pub fn name(&self, address: u64) -> Option<String> {
        let after = self.functions.partition_point(|function| function.address <= address);
        let function = self.functions[..after].last()?;
        let offset = address - function.address;
        (function.size == 0 || offset < function.size).then(|| format!("{}+{offset:#x}", function.name))
    }
}

#[cfg(test)]
mod tests {
    use super::{Function, Symbols};

    #[test]
    fn an_address_belongs_to_the_function_around_it() {
        let function = |address, size, name: &str| Function { address, size, name: name.to_owned() };
        let functions = vec![function(0x100, 0x10, "first"), function(0x200, 0, "assembly")];
        let symbols = Symbols { functions };
        assert_eq!(symbols.name(0xff), None);
        assert_eq!(symbols.name(0x100).as_deref(), Some("first+0x0"));
        assert_eq!(symbols.name(0x10f).as_deref(), Some("first+0xf"));
        assert_eq!(symbols.name(0x110), None);
        assert_eq!(symbols.name(0x2ff).as_deref(), Some("assembly+0xff"));
    }

    #[test]
    fn a_file_that_is_not_elf_has_no_names() {
        assert_eq!(Symbols::of(b"not an ELF file").name(0), None);
    }
}
