//! How long steps may take when their commands do not say: a base, and so much per GiB that is asked for.
//!
//! Takes the place of the fixed limits of other tools, which are too long for a small machine or too short for a large
//! one. Times per GiB are those of the slowest known host, which emulates every instruction of the guest, with a
//! margin.
//!
//! Invariant: a deadline follows from sizes of commands, of the configuration and of devices. A number that the guest
//! says is in none.

use std::time::Duration;

use tidevm_abi::Size;

/// Longest time from the start of the guest to its first report, without the part that depends on its memory.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// Longest time of a resize without `within`, without the part that depends on its size.
pub const RESIZE_DEADLINE: Duration = Duration::from_secs(60);

/// Longest time until the guest answers a call, without the work that the call asks for.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Work of the guest on a GiB of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Its struct pages are written. That takes half a second at most.
    Initialise,
    /// Its pages are moved, or freed one by one. Half a minute.
    Move,
    /// Every word of its pages is written or compared. Two minutes.
    Fill,
}

impl Work {
    /// The time for it, per GiB.
    pub(super) const fn per_gib(self) -> Duration {
        match self {
            Self::Initialise => Duration::from_secs(5),
            Self::Move => Duration::from_secs(60),
            Self::Fill => Duration::from_secs(540),
        }
    }

    /// The time for it, for `size`: whole seconds.
    pub(super) fn time(self, size: Size) -> Duration {
        let seconds = (u128::from(self.per_gib().as_secs()) * u128::from(size.0)).div_ceil(1 << 30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX))
    }
}

/// How much longer Linux takes than tidevm's own guest: it unpacks itself and archives, and starts programs of its user, which
/// may load the driver that its agent needs.
const LINUX_BOOTS: u32 = 3;

/// Longest time from the start of a guest with so much boot memory to its first report. `own_guest`: it is tidevm's own.
pub(super) fn boot(memory: Size, own_guest: bool) -> Duration {
    (BOOT_DEADLINE + Work::Initialise.time(memory)) * if own_guest { 1 } else { LINUX_BOOTS }
}

/// Longest time until the guest answers a call that asks it to do `work` on memory of `size`.
pub(super) fn answer(work: Work, size: Size) -> Duration {
    ANSWER_DEADLINE + work.time(size)
}

/// Longest time of a resize without `within`, of a device that is at `from` and is to be at `to`.
#[must_use]
pub fn resize_deadline(from: Size, to: Size) -> Duration {
    let (more, less) = (to.saturating_sub(from), from.saturating_sub(to));
    RESIZE_DEADLINE + Work::Initialise.time(more) + Work::Move.time(less)
}

#[cfg(test)]
mod tests {
    use super::{ANSWER_DEADLINE, Duration, RESIZE_DEADLINE, Size, Work, answer, resize_deadline};

    #[test]
    fn a_deadline_is_a_base_and_so_much_per_gib() {
        let (zero, gib, seconds) = (Size(0), Size::gib(1), Duration::from_secs);
        assert_eq!(resize_deadline(gib, gib), RESIZE_DEADLINE);
        assert_eq!(resize_deadline(zero, Size::gib(512)), RESIZE_DEADLINE + seconds(512 * 5));
        assert_eq!(resize_deadline(Size::gib(3), gib), RESIZE_DEADLINE + seconds(2 * 60));
        assert_eq!(answer(Work::Fill, Size(4096)), ANSWER_DEADLINE + seconds(1), "rounded up");
        assert!(answer(Work::Fill, Size(u64::MAX)) < seconds(1 << 44), "no size overflows");
    }
}
