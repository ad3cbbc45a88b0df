//! `pmem`: device memory mapped, used and unmapped in the guest.
//!
//! ```text
//! pmem                                          list it
//! pmem map N [N...] [altmap [reserve SIZE]] [on N cpus]
//! pmem unmap N
//! pmem hold [up to] SIZE of N as NAME           then `verify NAME`, `release NAME`
//! ```
//!
//! N is the N-th `--pmem`. Several are mapped at once, on all CPUs unless the command says otherwise.

use core::fmt;

use super::workload::{UP_TO, up_to};
use crate::limits::{MAX_PMEM, PAGE_SIZE};
use crate::words::{SyntaxError, Words};
use crate::{Counted, Handle, Name, Op, PmemOp, Size};

/// Something to do with device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pmem {
    /// `pmem`: list it.
    List,
    /// `pmem map`: make struct pages for ranges.
    Map(PmemMap),
    /// `pmem unmap`: take the struct pages away again. A range in use stays.
    Unmap(u8),
    /// `pmem hold`: use pages of a range, and fill them.
    Hold(PmemHold),
}

/// `pmem map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmemMap {
    /// Bit `n` is the `n`-th range; at least one.
    pub devices: u8,
    /// The struct pages lie in the range itself, behind so many bytes that are left alone, a multiple of
    /// 4 KiB.
    pub altmap: Option<Size>,
    /// Most CPUs that take part, if not all.
    pub cpus: Option<u32>,
}

/// `pmem hold`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmemHold {
    /// A multiple of 4 KiB, not 0.
    pub size: Size,
    /// `up to`: it uses the pages that are free, even if there are none. Without it, it fails if there are not as many,
    /// and uses none then.
    pub partial: bool,
    /// The range.
    pub device: u8,
    /// Name for later commands.
    pub name: Name,
}

impl PmemMap {
    /// The ranges.
    pub fn devices(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |device| self.devices >> device & 1 != 0)
    }

    /// The call to the guest.
    #[must_use]
    pub fn op(self) -> Op {
        let reserve = self.altmap.map_or(0, Size::pages);
        Op::Pmem(PmemOp::Map {
            devices: self.devices,
            altmap: self.altmap.is_some(),
            reserve: u32::try_from(reserve).unwrap_or(u32::MAX),
            cpus: self.cpus.unwrap_or(u32::MAX),
        })
    }

    /// Reads what follows `pmem map`.
    fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let mut devices = 1 << device(words)?;
        while let Some(word) = words.peek().filter(|word| word.text.starts_with(|c: char| c.is_ascii_digit()))
        {
            let bit = 1 << device(words)?;
            if devices & bit != 0 {
                return Err(word.error("another device"));
            }
            devices |= bit;
        }
        let altmap = if !words.take("altmap") {
            None
        } else if words.take("reserve") {
            let fits = |size: &Size| size.0.is_multiple_of(PAGE_SIZE) && size.pages() <= u64::from(u32::MAX);
            Some(words.size("a size in whole pages of 4 KiB such as 2M", fits)?)
        } else {
            Some(Size(0))
        };
        let cpus = if words.take("on") {
            let cpus = words.count("a number of CPUs")?;
            words.plural("cpu", "cpus")?;
            Some(cpus)
        } else {
            None
        };
        Ok(Self { devices, altmap, cpus })
    }
}

impl PmemHold {
    /// The call to the guest, for a workload that records call `handle`.
    #[must_use]
    pub fn op(&self, handle: Handle) -> Op {
        Op::Pmem(PmemOp::Hold {
            handle,
            device: self.device,
            pages: self.size.pages(),
            partial: self.partial,
        })
    }

    /// Reads what follows `pmem hold`.
    fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        let partial = up_to(words)?;
        let size = words.size("a size in whole pages of 4 KiB such as 16M", |size| size.is_whole_pages())?;
        words.keyword("of")?;
        let device = device(words)?;
        words.keyword("as")?;
        Ok(Self { size, partial, device, name: words.name()? })
    }
}

impl Pmem {
    /// Reads what follows `pmem`.
    pub(super) fn parse(words: &mut Words<'_>) -> Result<Self, SyntaxError> {
        if words.take("map") {
            PmemMap::parse(words).map(Self::Map)
        } else if words.take("unmap") {
            device(words).map(Self::Unmap)
        } else if words.take("hold") {
            PmemHold::parse(words).map(Self::Hold)
        } else {
            match words.peek() {
                // The end of the line or of a `repeat`, or the reason of a failure, may follow any command.
                None => Ok(Self::List),
                Some(word) if matches!(word.text, "}" | "because") => Ok(Self::List),
                Some(word) => Err(word.error("map, unmap, hold or the end of the line")),
            }
        }
    }
}

fn device(words: &mut Words<'_>) -> Result<u8, SyntaxError> {
    words.value("the number of a --pmem, from 0 to 7", |text| {
        text.parse().ok().filter(|device| usize::from(*device) < MAX_PMEM)
    })
}

impl fmt::Display for Pmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List => f.write_str("pmem"),
            Self::Map(map) => map.fmt(f),
            Self::Unmap(device) => write!(f, "pmem unmap {device}"),
            Self::Hold(PmemHold { size, partial, device, name }) => {
                let up_to = if *partial { UP_TO } else { "" };
                write!(f, "pmem hold {up_to}{size} of {device} as {name}")
            }
        }
    }
}

impl fmt::Display for PmemMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pmem map")?;
        self.devices().try_for_each(|device| write!(f, " {device}"))?;
        match self.altmap {
            None => {}
            Some(Size(0)) => f.write_str(" altmap")?,
            Some(reserve) => write!(f, " altmap reserve {reserve}")?,
        }
        match self.cpus {
            None => Ok(()),
            Some(cpus) => write!(f, " on {}", Counted(cpus.into(), "cpu")),
        }
    }
}
