//! Checks that an image has only instructions that the guest may use in ring 0.
//!
//! The list names the allowed instructions: plain integer instructions and a few others. An unknown instruction
//! fails the build, so that a new compiler cannot introduce one unnoticed. The reasons: the guest does not save SSE
//! state. And on hosts without hardware virtualisation KVM emulates ring 0, and its emulator knows neither vector
//! instructions nor `int3` nor `cmpxchg16b`.

use std::fmt;
use std::path::Path;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, Mnemonic};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

use crate::Error;

/// Sections with 16- and 32-bit start-up code, which the decoder would misread.
const START_UP_SECTIONS: &str = ".boot";

/// An instruction that the guest must not contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BannedInstruction {
    /// The virtual address.
    pub address: u64,
    /// The text in AT&T syntax.
    pub text: String,
    /// The function that contains it, if a symbol names one.
    pub function: String,
}

impl fmt::Display for BannedInstruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} {} in {}", self.address, self.text, self.function)
    }
}

/// Lists the banned instructions in the ELF file at `path`.
///
/// # Errors
/// [`Error::Unreadable`] when the file cannot be read, is not ELF, or has no code.
pub fn check(path: &Path) -> Result<Vec<BannedInstruction>, Error> {
    let unreadable = |reason: String| Error::Unreadable { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let elf = object::File::parse(&*bytes).map_err(|error| unreadable(error.to_string()))?;
    let mut found = Vec::new();
    let mut decoded = 0_usize;
    for section in elf.sections().filter(|section| section.kind() == SectionKind::Text) {
        if section.name().is_ok_and(|name| name.starts_with(START_UP_SECTIONS)) {
            continue;
        }
        let code = section.data().map_err(|error| unreadable(error.to_string()))?;
        for instruction in Decoder::with_ip(64, code, section.address(), DecoderOptions::NONE) {
            decoded += 1;
            if !is_allowed(&instruction) {
                found.push(describe(&elf, &instruction));
            }
        }
    }
    if decoded == 0 {
        return Err(unreadable("it holds no code".to_owned()));
    }
    Ok(found)
}

fn is_allowed(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    match instruction.mnemonic() {
        Mnemonic::INVALID | Mnemonic::Int3 => return false,
        Mnemonic::Pause
        | Mnemonic::Mfence
        | Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Movnti
        | Mnemonic::Clflush
        // The compiler means `rep bsf`. Both give the same result for arguments other than zero, and a CPU without
        // `tzcnt` executes `bsf`.
        | Mnemonic::Tzcnt => return true,
        _ => {}
    }
    instruction.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL8086_ONLY
                | F::INTEL186
                | F::INTEL286
                | F::INTEL286_ONLY
                | F::INTEL386
                | F::INTEL386_ONLY
                | F::INTEL486
                | F::X64
                | F::CMOV
                | F::CX8
                | F::CPUID
                | F::MSR
                | F::TSC
                | F::MULTIBYTENOP
        )
    })
}

fn describe(elf: &object::File<'_>, instruction: &Instruction) -> BannedInstruction {
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    let address = instruction.ip();
    let function = elf
        .symbols()
        .filter(|symbol| symbol.address() <= address && address < symbol.address() + symbol.size().max(1))
        .find_map(|symbol| symbol.name().ok().map(str::to_owned))
        .unwrap_or_else(|| "an unnamed place".to_owned());
    BannedInstruction { address, text, function }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(code: &[u8]) -> bool {
        is_allowed(&Decoder::new(64, code, DecoderOptions::NONE).decode())
    }

    #[test]
    fn integer_code_is_allowed() {
        assert!(allowed(&[0x48, 0x89, 0xd8]), "mov %rbx, %rax");
        assert!(allowed(&[0xf0, 0x0f, 0xb1, 0x0f]), "lock cmpxchg %ecx, (%rdi)");
        assert!(allowed(&[0xf3, 0x48, 0xab]), "rep stosq");
        assert!(allowed(&[0x0f, 0x0b]), "ud2, which ends every panic path");
        assert!(allowed(&[0x0f, 0x01, 0xf8]), "swapgs");
        assert!(allowed(&[0x0f, 0x1f, 0x44, 0x00, 0x00]), "a long nop");
    }

    #[test]
    fn what_ring_0_cannot_do_is_banned() {
        assert!(!allowed(&[0x0f, 0x57, 0xc0]), "xorps %xmm0, %xmm0");
        assert!(!allowed(&[0xd9, 0xe8]), "fld1");
        assert!(!allowed(&[0x0f, 0xef, 0xc0]), "pxor %mm0, %mm0");
        assert!(!allowed(&[0xcc]), "int3");
        assert!(!allowed(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f]), "lock cmpxchg16b (%rdi)");
        assert!(!allowed(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1]), "popcnt %rcx, %rax");
        assert!(!allowed(&[0xc4, 0xe2, 0xf9, 0xf7, 0xc1]), "shlx");
    }
}
