//! `readd`: memory blocks that go and come back.

use super::Command;
use crate::Size;
use crate::words::{SyntaxError, Words};

/// Reads what follows `readd`.
pub(super) fn parse(words: &mut Words<'_>) -> Result<Command, SyntaxError> {
    let size = words.size("a size above 0 such as 1G", |size| size.0 > 0)?;
    words.keyword("at")?;
    let Size(addr) = words.size("an address such as 4G", |_| true)?;
    Ok(Command::Readd { size, addr })
}
