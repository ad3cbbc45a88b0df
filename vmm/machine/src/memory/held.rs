//! How much host memory a mapping really holds.
//!
//! This is `Rss` plus `Swap` of the mapping's own VMAs in `/proc/self/smaps`. The process's resident size
//! would mix in everything else, and `Rss` alone would count swapped-out memory as freed. Pages that the
//! guest only read are the kernel's zero page and not counted. For private anonymous memory, the only kind
//! that [`super::mapping`] makes, the sum is exact.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;

use super::mapping::Mapping;

/// Bytes of host memory that `mapping` holds now.
///
/// # Errors
/// `/proc/self/smaps` cannot be read.
pub fn held(mapping: &Mapping) -> io::Result<u64> {
    let base = mapping.host_address();
    sum(BufReader::new(File::open("/proc/self/smaps")?), &(base..base + mapping.size()))
}

/// Sums over the VMAs that begin in `addresses`. No VMA of a mapping reaches beyond the mapping.
fn sum(smaps: impl BufRead, addresses: &Range<u64>) -> io::Result<u64> {
    let mut inside = false;
    let mut kib = 0;
    for line in smaps.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        if matches!(first, "Rss:" | "Swap:") {
            if inside {
                kib += second.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
            }
        } else if let Some((start, _)) = first.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            inside = addresses.contains(&start);
        }
    }
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::sum;

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
        assert_eq!(sum(SMAPS.as_bytes(), &(0x7f00_0000_0000..0x7f00_0040_0000)).unwrap(), 24 << 10);
        assert_eq!(sum(SMAPS.as_bytes(), &(0x7f00_0020_0000..0x7f00_0040_0000)).unwrap(), 8 << 10);
    }
}
