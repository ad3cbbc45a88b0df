//! The guest of one page, and the file that a VMM boots it from.

use std::fs;
use std::path::PathBuf;

/// What the guest writes.
pub const BYTE: u8 = b'~';

/// The guest, in 32-bit instructions: mov dx, 0x3f8; mov al, BYTE; out dx, al; mov al, '\n'; out dx, al; cli; hlt
pub const CODE: [u8; 12] = [0x66, 0xba, 0xf8, 0x03, 0xb0, BYTE, 0xee, 0xb0, b'\n', 0xee, 0xfa, 0xf4];
/// Where it is loaded.
pub const ADDRESS: u32 = 2 << 20;

/// A file that is removed when it is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("tidevm-bench-{}-{name}", std::process::id()));
        fs::write(&path, content).expect("temporary files can be written");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// The guest as an ELF file with a PVH entry.
pub fn kernel() -> Scratch {
    const NOTE: usize = 64 + 2 * 56;
    const PAGE: usize = 4096;
    let (address, size) = (u64::from(ADDRESS), CODE.len() as u64);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |value: u64, width: usize| file.extend_from_slice(&value.to_le_bytes()[..width]);
    for (value, width) in [(2, 2), (62, 2), (1, 4), (address, 8), (64, 8), (0, 8), (0, 4)] {
        put(value, width);
    }
    [64, 56, 2, 64, 0, 0].into_iter().for_each(|value| put(value, 2));
    for (kind, offset, place, size) in [(1, PAGE as u64, address, size), (4, NOTE as u64, 0, 20)] {
        put(kind, 4);
        put(5, 4);
        [offset, place, place, size, size, 4].into_iter().for_each(|value| put(value, 8));
    }
    [4, 4, 18, u64::from(u32::from_le_bytes(*b"Xen\0")), address].into_iter().for_each(|value| put(value, 4));
    file.resize(PAGE, 0);
    file.extend(CODE);
    Scratch::new("kernel", &file)
}
