//! Broken variants of the code, for models that must fail.
//!
//! A model that finds nothing proves something only if it finds a fault that is there. Each [`Variant`]
//! replaces one step of the real code by that of an older kernel, or by a likely mistake. V0 to V4 are names
//! in the models of `tests/interleavings/pcp.rs`. A test chooses one by
//! `hosted::model::choose` and sees the model fail.
//!
//! Invariant: without a model checker [`is`] is the constant `false`, so a kernel has none of this.

/// A step done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Lists that look empty are stopped without a grace period (V1).
    NoGraceIfEmpty,
    /// The drain goes by the number of pages that were on the lists before they were stopped (V2; Linux 6.0 to 6.10
    /// read it before it had the list's lock).
    DrainCountsBefore,
    /// Lists are stopped without a grace period.
    NoGrace,
    /// The limits of stopped lists are published after the grace period.
    LimitsAfterGrace,
    /// The limits of stopped lists are published after the drain.
    LimitsAfterDrain,
    /// A CPU reads the limits of its lists before a grace period waits for it.
    LimitsReadEarly,
    /// A CPU that finds its lists stopped puts a page on them nevertheless.
    StoppedListKeepsPages,
    /// The limits of stopped lists are not published to the last CPU, as if only CPUs that run counted.
    LimitsSkipLastCpu,
    /// A flush uses the migrate type that was read when the page was freed. It does not read the type again (V4).
    FlushStaleType,
    /// A claim of deferred memory is read and written under two holds of the lock.
    ClaimInTwoSteps,
    /// Who keeps CPUs from claiming deferred memory does not wait for the claims that were made before.
    FreezeDoesNotWait,
    /// A pgmap is published before its sections are Initialised, as in Linux, where readers then found no memmap.
    PgmapFirst,
}

/// Whether `variant` is chosen.
#[cfg(not(feature = "shuttle"))]
#[inline(always)]
pub(crate) const fn is(_variant: Variant) -> bool {
    false
}

#[cfg(feature = "shuttle")]
std::thread_local! {
    static CHOSEN: std::cell::Cell<Option<Variant>> = const { std::cell::Cell::new(None) };
}

/// Whether `variant` is chosen.
#[cfg(feature = "shuttle")]
pub(crate) fn is(variant: Variant) -> bool {
    CHOSEN.get() == Some(variant)
}

/// Chooses `variant` for this thread of the host, which runs all threads of a model.
#[cfg(feature = "shuttle")]
pub(crate) fn choose(variant: Option<Variant>) {
    CHOSEN.set(variant);
}
