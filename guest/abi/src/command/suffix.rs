//! `device N` and `within DURATION`, at the end of commands that name a device or may take time.

use alloc::format;
use core::fmt;
use core::time::Duration;

use crate::duration::ShowDuration;
use crate::limits::MAX_MEM_DEVICES;
use crate::words::{SyntaxError, Words};

/// Reads both, each at most once, in any order.
pub(super) fn parse(words: &mut Words<'_>) -> Result<(Option<usize>, Option<Duration>), SyntaxError> {
    let (mut device, mut within) = (None, None);
    loop {
        if device.is_none() && words.take("device") {
            let exists = |device: &usize| *device < MAX_MEM_DEVICES;
            let expected = format!("the number of a device, from 0 to {}", MAX_MEM_DEVICES - 1);
            device = Some(words.value(&expected, |text| text.parse().ok().filter(exists))?);
        } else if within.is_none() && words.take("within") {
            within = Some(words.duration()?);
        } else {
            return Ok((device, within));
        }
    }
}

/// Reads `within DURATION`, for a command about the whole machine.
pub(super) fn within(words: &mut Words<'_>) -> Result<Option<Duration>, SyntaxError> {
    if words.take("within") { words.duration().map(Some) } else { Ok(None) }
}

/// Writes those that there are.
pub(super) fn write(
    f: &mut fmt::Formatter<'_>,
    device: Option<usize>,
    within: Option<Duration>,
) -> fmt::Result {
    if let Some(device) = device {
        write!(f, " device {device}")?;
    }
    match within {
        Some(time) => write!(f, " within {}", ShowDuration(time)),
        None => Ok(()),
    }
}
