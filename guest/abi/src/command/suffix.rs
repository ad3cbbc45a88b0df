//! `device N` and `within DURATION`, at the end of commands that name a device or may take time.

use core::fmt;
use core::time::Duration;

use crate::duration::ShowDuration;
use crate::words::{SyntaxError, Words};

/// Reads both, each at most once, in any order. Without `device` it is device 0.
pub(super) fn parse(words: &mut Words<'_>) -> Result<(usize, Option<Duration>), SyntaxError> {
    let (mut device, mut within) = (None, None);
    loop {
        if device.is_none() && words.take("device") {
            device = Some(words.value("the number of a device", |text| text.parse().ok())?);
        } else if within.is_none() && words.take("within") {
            within = Some(words.duration()?);
        } else {
            return Ok((device.unwrap_or(0), within));
        }
    }
}

/// Reads `within DURATION`, for a command about the whole machine.
pub(super) fn within(words: &mut Words<'_>) -> Result<Option<Duration>, SyntaxError> {
    if words.take("within") { words.duration().map(Some) } else { Ok(None) }
}

/// Writes those that have to be written.
pub(super) fn write(f: &mut fmt::Formatter<'_>, device: usize, within: Option<Duration>) -> fmt::Result {
    if device > 0 {
        write!(f, " device {device}")?;
    }
    match within {
        Some(time) => write!(f, " within {}", ShowDuration(time)),
        None => Ok(()),
    }
}
