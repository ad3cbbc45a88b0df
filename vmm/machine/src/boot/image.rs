//! The files of a kernel and an initrd, read and looked at before anything is loaded.
//!
//! The files may be hostile. Invariant: the work on a file is in proportion to its size, and its size has a
//! limit.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use object::Endianness;
use object::elf::ProgramHeader64;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use super::{BootError, GUEST_IMAGE};
use crate::memory::layout;

/// Most bytes of a file. The end of low memory is the end of everything that is loaded.
const MAX_FILE: u64 = layout::HOLE_START;
/// Most program headers of a kernel. Each may name the whole file. Linux has 5.
const MAX_HEADERS: usize = 64;
/// Most bytes of a kernel's notes, all program headers together. Linux has less than 1 KiB.
const MAX_NOTES: u64 = 1 << 20;

/// A kernel file and its name in messages.
#[derive(Debug)]
pub struct Image {
    pub(super) name: String,
    bytes: Cow<'static, [u8]>,
    own_guest: bool,
}

impl Image {
    /// The kernel that `path` names, or the embedded one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: Option<&Path>) -> Result<Self, BootError> {
        let Some(path) = path else {
            return Ok(Self::new("(embedded guest)".to_owned(), GUEST_IMAGE.into()));
        };
        Ok(Self::new(path.display().to_string(), read("--kernel", path)?.into()))
    }

    pub(crate) fn new(name: String, bytes: Cow<'static, [u8]>) -> Self {
        let own_guest = is_own_guest(&bytes);
        Self { name, bytes, own_guest }
    }

    /// The file's content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether this is tidevm's own guest, which reports and answers calls.
    #[must_use]
    pub fn is_own_guest(&self) -> bool {
        self.own_guest
    }

    pub(super) fn not_elf(&self, reason: &str) -> BootError {
        BootError::NotElf { name: self.name.clone(), reason: reason.to_owned() }
    }

    /// The end of the kernel's segments in memory.
    pub(super) fn end(&self) -> Result<u64, BootError> {
        let not_elf = |reason: &str| self.not_elf(reason);
        let file =
            ElfFile64::<Endianness>::parse(self.bytes()).map_err(|error| not_elf(&error.to_string()))?;
        let machine = file.elf_header().e_machine(file.endian());
        if machine != object::elf::EM_X86_64 {
            return Err(not_elf(&format!("machine {machine}")));
        }
        let headers = headers(&file).map_err(|reason| not_elf(&reason))?;
        let loaded = headers.iter().filter(|header| header.p_type.get(file.endian()) == object::elf::PT_LOAD);
        let ends = loaded.map(|header| {
            // A file can have more bytes for a segment than it says that the segment has: all of them are loaded.
            let size = header.p_memsz.get(file.endian()).max(header.p_filesz.get(file.endian()));
            header.p_paddr.get(file.endian()).saturating_add(size)
        });
        ends.max().ok_or_else(|| not_elf("no segments to load"))
    }
}

/// The program headers, if reading what they name takes time in proportion to the file.
fn headers<'f>(file: &ElfFile64<'f, Endianness>) -> Result<&'f [ProgramHeader64<Endianness>], String> {
    let headers = file.elf_program_headers();
    if headers.len() > MAX_HEADERS {
        return Err(format!("{} program headers, {MAX_HEADERS} are the most", headers.len()));
    }
    let notes = headers.iter().filter(|header| header.p_type.get(file.endian()) == object::elf::PT_NOTE);
    let size = notes.fold(0_u64, |sum, header| sum.saturating_add(header.p_filesz.get(file.endian())));
    if size > MAX_NOTES {
        return Err(format!("{size} bytes of notes, {MAX_NOTES} are the most"));
    }
    Ok(headers)
}

/// Whether an ELF file has the note of tidevm's own guest.
fn is_own_guest(bytes: &[u8]) -> bool {
    let Ok(file) = ElfFile64::<Endianness>::parse(bytes) else { return false };
    let segments = headers(&file).unwrap_or_default().iter();
    let notes = segments.filter_map(|segment| segment.notes(file.endian(), file.data()).ok()?);
    let mut named = false;
    for mut notes in notes {
        while let Ok(Some(note)) = notes.next() {
            named |= note.name() == tidevm_abi::NOTE_NAME.as_bytes();
        }
    }
    named
}

/// Reads a file up to the size beyond which no part of it could be loaded. A device can be without an end.
pub(super) fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, BootError> {
    let read = || {
        let file = File::open(path)?;
        let mut bytes = Vec::new();
        if file.metadata()?.len() <= MAX_FILE {
            file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 <= MAX_FILE {
                return Ok(bytes);
            }
        }
        Err(io::ErrorKind::FileTooLarge.into())
    };
    read().map_err(|error| BootError::Unreadable { what, path: path.to_owned(), error })
}
