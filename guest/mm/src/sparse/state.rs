//! The states of a section, and the right to change them.
//!
//! Mirrors the bits of Linux `struct mem_section` (`SECTION_MARKED_PRESENT`, `SECTION_HAS_MEM_MAP`,
//! `SECTION_IS_ONLINE`). Differs from Linux on purpose: the bits are one state, and every change of it needs a
//! proof of ownership.
//!
//! Invariant: a state is left only for one that [`SectionState::leads_to`] allows.

use crate::lock::Locks;

/// How far a section is on its way into a zone. Every policy of initialisation and every life cycle is a
/// walk along these states, forward and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum SectionState {
    /// Its memmap is not mapped, or about to be unmapped.
    Absent = 0,
    /// Its memory and its memmap are mapped; only the owner of the section looks at the memmap.
    Present = 1,
    /// Every CPU may look at its memmap.
    Initialised = 2,
    /// Its pages are in a zone.
    Online = 3,
}

impl SectionState {
    /// Whether some life cycle has the step from here to `next`. Onlining that fails, and offlining, end at
    /// Present. Device memory that is unmapped goes from Initialised to Absent.
    pub(super) fn leads_to(self, next: Self) -> bool {
        use SectionState::{Absent, Initialised, Online, Present};
        matches!(
            (self, next),
            (Absent, Present)
                | (Present, Initialised | Absent)
                | (Initialised, Online | Present | Absent)
                | (Online, Present)
        )
    }
}

/// A proof that the caller is the only one that changes the state of a section, and that its memmap stays
/// mapped meanwhile. There are three: the memory hotplug lock; a claim of a section of deferred boot memory,
/// until that is online; and a chunk of device memory, until the whole range is initialised.
pub(crate) trait SectionOwner {
    /// The locks with which a CPU that has this proof changes the state of a section.
    const LOCKS: Locks;
}
