//! A size in bytes as people write it. It is shown exactly: the text parses to the same size.
//!
//! `parse-size` reads it with binary units, so `512M` is 512 MiB as in QEMU and Cloud Hypervisor, and a
//! size beyond 64 bits is an error.

use alloc::format;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::PAGE_SIZE;

/// A number of bytes, written as `512M`, `2G`, `2GiB` or plain bytes.
///
/// In a record it is encoded as the bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Size(pub u64);

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// It is no number with a unit.
    NotASize,
    /// It is beyond 64 bits.
    TooLarge,
}

/// Words for a unit of 4 KiB. The longer one stands first.
const PAGE_UNITS: [&str; 2] = ["pages", "page"];

/// Most decimal digits of a 64-bit number.
const MAX_DIGITS: usize = 20;

impl Size {
    /// `count` MiB.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count * (1 << 20))
    }

    /// `count` GiB.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count * (1 << 30))
    }

    /// The pages that it takes. The last page may be used in part.
    #[must_use]
    pub fn pages(self) -> u64 {
        self.0.div_ceil(PAGE_SIZE)
    }

    /// Both together, or `None` if 64 bits cannot hold that.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// What is left without `other`, or `None` if `other` is larger.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// What is left without `other`; nothing if `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Whether `text` is a unit of sizes, `page` and `pages` among them.
    pub(crate) fn is_unit(text: &str) -> bool {
        let number = |unit: &str| format!("1{unit}").parse::<Self>().is_ok();
        PAGE_UNITS.contains(&text) || text.starts_with(|c: char| c.is_ascii_alphabetic()) && number(text)
    }

    /// Reads a size that may be one in pages: `1page`, `300pages`.
    pub(crate) fn with_unit(text: &str) -> Option<Self> {
        let pages = PAGE_UNITS.iter().find_map(|unit| text.strip_suffix(unit));
        match pages {
            None => text.parse().ok(),
            Some(pages) if !pages.is_empty() && pages.bytes().all(|byte| byte.is_ascii_digit()) => {
                pages.parse::<u64>().ok()?.checked_mul(PAGE_SIZE).map(Self)
            }
            Some(_) => None,
        }
    }

    /// Whether it is whole pages, and at least one.
    pub(crate) fn is_whole_pages(self) -> bool {
        self.0 > 0 && self.0.is_multiple_of(PAGE_SIZE)
    }
}

impl core::iter::Sum for Size {
    /// Saturating: sizes come from a configuration or from a guest.
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        Self(sizes.fold(0, |sum, size| sum.saturating_add(size.0)))
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        // The parser takes a unit without a number for a size of that unit.
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(SizeError::NotASize);
        }
        // The parser rounds further digits off, and its rounding of the largest 64-bit number overflows.
        let digits = text.trim_start_matches('0').bytes().filter(u8::is_ascii_digit).count();
        if digits > MAX_DIGITS {
            return Err(SizeError::TooLarge);
        }
        match parse_size::Config::new().with_binary().parse_size(text) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(parse_size::Error::PosOverflow) => Err(SizeError::TooLarge),
            Err(_) => Err(SizeError::NotASize),
        }
    }
}

impl fmt::Display for Size {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
        match units.into_iter().find(|&(unit, _)| self.0 >= unit && self.0.is_multiple_of(unit)) {
            Some((unit, suffix)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotASize => "not a size such as 512M, 2G, 2GiB or bytes",
            Self::TooLarge => "not a size that 64 bits can hold",
        })
    }
}

impl core::error::Error for SizeError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};

    use super::{Size, SizeError};

    #[test]
    fn sizes_are_binary_and_exact() {
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        assert_eq!("2GiB".parse(), Ok(Size(2 << 30)));
        assert_eq!("4097".parse(), Ok(Size(4097)));
        for bad in ["", "G", "-1", "99999999999999999999", "0x10", "1Q"] {
            bad.parse::<Size>().expect_err(bad);
        }
    }

    #[test]
    fn an_error_says_whether_it_is_too_large() {
        let too_large =
            ["99999999999999999999", "99999999T", "184467440737095516159", "18446744073709551615.9"];
        for text in too_large {
            assert_eq!(text.parse::<Size>(), Err(SizeError::TooLarge), "{text}");
        }
        for text in ["", "G", "1X", "-1", "1 G B"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::NotASize), "{text}");
        }
        assert_eq!("0000000000000000000000001G".parse(), Ok(Size(1 << 30)));
        assert_eq!("18446744073709551615".parse(), Ok(Size(u64::MAX)));
    }

    fn sizes() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), (0..=u64::MAX >> 30).prop_map(|g| g << 30), 0..5_000_u64]
    }

    proptest! {
        #[test]
        fn text_parses_to_the_size_it_was_made_from(bytes in sizes()) {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn no_digits_make_the_parser_panic(text in "[0-9]{1,30}[.eE]?[0-9]{0,24}[KMGTPE]?i?B?") {
            if let Ok(size) = text.parse::<Size>() {
                assert_eq!(size.to_string().parse(), Ok(size), "{text}");
            }
        }
    }
}
