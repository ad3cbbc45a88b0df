//! The holder of a page that is in use: as a value, as a part of the page's state, and as one word.
//!
//! Takes the place of what Linux keeps in `page->mapping`, `page->index` and `page->private`. Differs from Linux on
//! purpose: the holder that a page has from its allocation on is a part of its state, so that allocating and freeing
//! write nothing else.
//!
//! Invariant: an owner and its index are read and written together.

/// Number of an owner of movable pages, see [`MovableOwner`](crate::MovableOwner).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerId(pub u8);

/// The holder of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// Not named yet: a movable page between its allocation and
    /// [`Mm::set_owner`](crate::Mm::set_owner).
    Unclaimed,
    /// RAM taken before the allocator existed, or a hole.
    Reserved,
    /// Kernel data.
    Kernel,
    /// A page table.
    PageTable,
    /// The memmap of hot-added memory.
    Memmap,
    /// An owner that can give the page up and use another one instead.
    Owned {
        /// The owner's number.
        owner: OwnerId,
        /// The owner's own name for the page, below 2^48.
        index: u64,
    },
    /// A holder that cannot give it up; the tag is the holder's own.
    Tagged(u32),
    /// The host, which takes the memory back and returns the page soon: see [`Lent`](crate::Lent).
    Lent,
}

/// What the state of an allocated head says of its holder. A kind of a page's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum HeldBy {
    /// [`Holder::Memmap`].
    Memmap = 11,
    /// [`Holder::Unclaimed`].
    Unclaimed = 12,
    /// [`Holder::Kernel`].
    Kernel = 13,
    /// [`Holder::PageTable`].
    PageTable = 14,
    /// The holder's word has it.
    Named = 15,
}

impl HeldBy {
    /// The smallest of them.
    pub(super) const LEAST: u8 = Self::Memmap as u8;

    #[inline]
    pub(crate) const fn of(holder: Holder) -> Self {
        match holder {
            Holder::Memmap => Self::Memmap,
            Holder::Unclaimed => Self::Unclaimed,
            Holder::Kernel => Self::Kernel,
            Holder::PageTable => Self::PageTable,
            _ => Self::Named,
        }
    }

    #[inline]
    pub(super) const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            11 => Some(Self::Memmap),
            12 => Some(Self::Unclaimed),
            13 => Some(Self::Kernel),
            14 => Some(Self::PageTable),
            15 => Some(Self::Named),
            _ => None,
        }
    }
}

impl Holder {
    /// The holder in one word, so that owner and index of a page are always read together: bits 0..=7 say which
    /// variant, 8..=15 hold the owner, 16..=63 the index or the tag.
    #[inline]
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Unclaimed => 0,
            Self::Reserved => 1,
            Self::Kernel => 2,
            Self::PageTable => 3,
            Self::Memmap => 4,
            Self::Owned { owner, index } => 5 | (owner.0 as u64) << 8 | index << 16,
            Self::Tagged(tag) => 6 | (tag as u64) << 16,
            Self::Lent => 7,
        }
    }

    /// What [`bits`](Self::bits) made a word of.
    #[inline]
    pub(super) const fn from_bits(bits: u64) -> Self {
        match bits & 0xff {
            0 => Self::Unclaimed,
            1 => Self::Reserved,
            2 => Self::Kernel,
            3 => Self::PageTable,
            4 => Self::Memmap,
            5 => Self::Owned { owner: OwnerId((bits >> 8) as u8), index: bits >> 16 },
            6 => Self::Tagged((bits >> 16) as u32),
            7 => Self::Lent,
            _ => panic!("page with an unknown holder"),
        }
    }
}
