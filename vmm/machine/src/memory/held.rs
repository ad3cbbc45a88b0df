//! How much host memory a mapping really holds.
//!
//! This is `Rss` plus `Swap` of the mapping's own VMAs in `/proc/self/smaps`. The process's resident size
//! would mix in everything else, and `Rss` alone would count swapped-out memory as freed. Pages that the
//! guest only read are the kernel's zero page and not counted. For private anonymous memory, the only kind
//! that [`super::mapping`] makes, the sum is exact.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use tidevm_abi::Size;

use super::mapping::Mapping;
use crate::sync::lock;

/// The account that the system keeps of this process's memory, kept open: a process that is locked in opens no file.
#[derive(Debug)]
pub struct Account {
    /// The number of the error if the file could not be opened: a VM runs without it.
    smaps: Mutex<Result<File, i32>>,
}

impl Account {
    /// Opens the account of this process.
    pub fn open() -> Self {
        let smaps = File::open("/proc/self/smaps");
        Self { smaps: Mutex::new(smaps.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))) }
    }

    /// Bytes of host memory that each of `mappings` holds now. The file is read once for all of them: it has a
    /// paragraph for each VMA of the process, and a guest decides how many there are.
    ///
    /// # Errors
    /// `/proc/self/smaps` cannot be read.
    pub fn held(&self, mappings: &[Arc<Mapping>]) -> io::Result<Vec<Size>> {
        let addresses =
            |mapping: &Arc<Mapping>| mapping.host_address()..mapping.host_address() + mapping.size();
        let addresses: Vec<_> = mappings.iter().map(addresses).collect();
        // One reading at a time: the kernel finds its place again after another reading only by starting over.
        match &*lock(&self.smaps) {
            Ok(smaps) => sum(BufReader::with_capacity(1 << 12, FromStart { smaps, at: 0 }), &addresses),
            Err(errno) => Err(io::Error::from_raw_os_error(*errno)),
        }
    }
}

/// Reads a file from its start, whatever was read before.
struct FromStart<'f> {
    smaps: &'f File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let size = self.smaps.read_at(bytes, self.at)?;
        self.at += size as u64;
        Ok(size)
    }
}

/// Sums over the VMAs that begin in each of `addresses`. No VMA of a mapping reaches beyond the mapping.
fn sum(mut smaps: impl BufRead, addresses: &[Range<u64>]) -> io::Result<Vec<Size>> {
    let mut held = vec![0; addresses.len()];
    let mut inside = None;
    let mut line = String::new();
    while smaps.read_line(&mut line)? > 0 {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        if matches!(first, "Rss:" | "Swap:") {
            if let Some(index) = inside {
                let kib = second.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
                held[index] += kib * 1024;
            }
        } else if let Some((start, _)) = first.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            inside = addresses.iter().position(|addresses| addresses.contains(&start));
        }
        line.clear();
    }
    Ok(held.into_iter().map(Size).collect())
}

#[cfg(test)]
mod tests {
    use super::{Size, sum};

    const SMAPS: &str = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \n\
Size:               2048 kB\n\
Rss:                  12 kB\n\
SwapPss:               9 kB\n\
Swap:                  4 kB\n\
VmFlags: rd wr mr mw me nr hg\n\
7f0000200000-7f0000400000 ---p 00000000 00:00 0 \n\
Rss:                   8 kB\n\
7f0000400000-7f0000401000 ---p 00000000 00:00 0 [anon:other]\n\
Rss:                1000 kB\n";

    #[test]
    fn counts_resident_and_swapped_of_the_range_alone() {
        let sum = |addresses| sum(SMAPS.as_bytes(), &[addresses]).unwrap();
        assert_eq!(sum(0x7f00_0000_0000..0x7f00_0040_0000), [Size(24 << 10)]);
        assert_eq!(sum(0x7f00_0020_0000..0x7f00_0040_0000), [Size(8 << 10)]);
    }

    /// The reader can be read only once.
    #[test]
    fn one_reading_counts_every_region() {
        let regions = [
            0x7f00_0020_0000..0x7f00_0040_0000,
            0x7f00_0000_0000..0x7f00_0020_0000,
            0x7f00_0040_0000..0x7f00_0050_0000,
            0x1000..0x2000,
        ];
        assert_eq!(sum(SMAPS.as_bytes(), &regions).unwrap(), [8, 16, 1000, 0].map(|kib| Size(kib << 10)));
    }
}
