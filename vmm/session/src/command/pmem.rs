//! `pmem`: device memory mapped, used and unmapped in the guest.
//!
//! ```text
//! pmem                                          what there is
//! pmem map N [N...] [altmap [reserve SIZE]] [on N cpus]
//! pmem unmap N
//! pmem hold SIZE of N as NAME                   then `verify NAME`, `release NAME`
//! ```
//!
//! N is the N-th `--pmem`. Several are mapped at once, on all CPUs if nothing else is said.

use std::fmt;

use tidevm_machine::Size;

use super::parse::{SyntaxError, Words, count, name};
use super::{Name, parse_size};

const PAGE_SIZE: u64 = 4096;

/// Something to do with device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pmem {
    /// `pmem`: tell what there is.
    List,
    /// `pmem map`: make struct pages for ranges.
    Map(PmemMap),
    /// `pmem unmap`: take them away again. A range in use stays.
    Unmap(u8),
    /// `pmem hold`: use pages of a range, and fill them.
    Hold {
        /// Bytes; a multiple of 4 KiB, not 0. What does not fit is reported and is no failure.
        size: u64,
        /// The range.
        device: u8,
        /// What later commands call it.
        name: Name,
    },
}

/// `pmem map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmemMap {
    /// Bit `n` is the `n`-th range; at least one.
    pub devices: u8,
    /// The struct pages lie in the range itself, behind so many bytes that are left alone, a multiple of
    /// 4 KiB.
    pub altmap: Option<u64>,
    /// Most CPUs that take part, if not all.
    pub cpus: Option<u32>,
}

impl PmemMap {
    /// The ranges.
    pub fn devices(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |device| self.devices >> device & 1 != 0)
    }
}

impl fmt::Display for Pmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pmem::List => f.write_str("pmem"),
            Pmem::Map(map) => {
                f.write_str("pmem map")?;
                map.devices().try_for_each(|device| write!(f, " {device}"))?;
                match map.altmap {
                    None => {}
                    Some(0) => f.write_str(" altmap")?,
                    Some(reserve) => write!(f, " altmap reserve {}", Size(reserve))?,
                }
                match map.cpus {
                    None => Ok(()),
                    Some(1) => f.write_str(" on 1 cpu"),
                    Some(cpus) => write!(f, " on {cpus} cpus"),
                }
            }
            Pmem::Unmap(device) => write!(f, "pmem unmap {device}"),
            Pmem::Hold { size, device, name } => write!(f, "pmem hold {} of {device} as {name}", Size(*size)),
        }
    }
}

/// Reads what follows `pmem`.
pub(super) fn parse(words: &mut Words<'_>) -> Result<Pmem, SyntaxError> {
    if words.take("map") {
        map(words)
    } else if words.take("unmap") {
        Ok(Pmem::Unmap(device(words)?))
    } else if words.take("hold") {
        let size = words.value("a size in whole pages of 4 KiB such as 16M", |text| {
            parse_size(text).filter(|size| *size > 0 && size.is_multiple_of(PAGE_SIZE))
        })?;
        words.keyword("of")?;
        let device = device(words)?;
        words.keyword("as")?;
        Ok(Pmem::Hold { size, device, name: name(words)? })
    } else {
        match words.peek() {
            // What may stand behind any command.
            None => Ok(Pmem::List),
            Some(word) if word.text == "}" => Ok(Pmem::List),
            Some(word) => Err(word.error("map, unmap, hold or the end of the line")),
        }
    }
}

fn map(words: &mut Words<'_>) -> Result<Pmem, SyntaxError> {
    let mut devices = 1 << device(words)?;
    while let Some(word) = words.peek().filter(|word| word.text.starts_with(|c: char| c.is_ascii_digit())) {
        let bit = 1 << device(words)?;
        if devices & bit != 0 {
            return Err(word.error("another device"));
        }
        devices |= bit;
    }
    let altmap = if !words.take("altmap") {
        None
    } else if words.take("reserve") {
        let pages = |size: &u64| size.is_multiple_of(PAGE_SIZE) && size / PAGE_SIZE <= u64::from(u32::MAX);
        Some(
            words
                .value("a size in whole pages of 4 KiB such as 2M", |text| parse_size(text).filter(pages))?,
        )
    } else {
        Some(0)
    };
    let cpus = if words.take("on") {
        let cpus = count(words, "a number of CPUs")?;
        let word = words.next("`cpus`")?;
        if !matches!(word.text, "cpu" | "cpus") {
            return Err(word.error("`cpus`"));
        }
        Some(cpus)
    } else {
        None
    };
    Ok(Pmem::Map(PmemMap { devices, altmap, cpus }))
}

fn device(words: &mut Words<'_>) -> Result<u8, SyntaxError> {
    const MOST: u8 = tidevm_abi::MAX_PMEM as u8;
    words.value("the number of a --pmem, from 0 to 7", |text| {
        text.parse().ok().filter(|device| *device < MOST)
    })
}
