//! The state of a page: one byte.
//!
//! Takes the place of the flags and the page type of Linux `struct page`.
//!
//! Invariant: every byte that this file makes is a kind that [`PageState::kind`] knows, and an order.

use super::HeldBy;
use crate::addr::Order;

/// The kind of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Never written since the memmap was mapped. If its section is online, no buddy block has begun here
    /// since, and the page is a tail.
    Uninit,
    /// Not the first page of its buddy block; the head of the buddy block has the state.
    Tail,
    /// Head of a buddy block on a zone's free list.
    Free,
    /// Head of a buddy block on a per-CPU list; its order is 0 or that of a pageblock.
    Pcp,
    /// Head of a buddy block that is in use; [`PageState::held_by`] says by whom.
    Allocated,
    /// Head of RAM that was taken before the allocator existed.
    Reserved,
    /// Head of frames of a section where there is no RAM.
    Hole,
    /// Head of a pageblock that is not plugged (Linux `PageOffline`).
    Offline,
    /// Head of the pages that hold their own section's memmap (Linux `PageVmemmapSelfHosted`).
    Memmap,
    /// A page of device memory, always of order 0 (Linux `PageReserved` in `ZONE_DEVICE`): never on a
    /// list, never freed.
    Device,
}

/// Value of the state of a [`Page`](super::Page).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageState(u8);

impl PageState {
    const KIND: u8 = 0xf;
    const ORDER_SHIFT: u32 = 4;
    const TAIL: u8 = 1;
    const FREE: u8 = 2;
    /// A free head whose memory the host has.
    const REPORTED: u8 = 9;

    /// The state of `kind`. An allocated head has no holder's name.
    #[inline]
    pub(crate) const fn new(kind: Kind, order: Order) -> Self {
        let kind = match kind {
            Kind::Uninit => 0,
            Kind::Tail => Self::TAIL,
            Kind::Free => Self::FREE,
            Kind::Pcp => 3,
            Kind::Reserved => 4,
            Kind::Hole => 5,
            Kind::Offline => 6,
            Kind::Memmap => 7,
            Kind::Device => 8,
            Kind::Allocated => HeldBy::Unclaimed as u8,
        };
        Self(kind | order.get() << Self::ORDER_SHIFT)
    }

    /// The state of the head of an allocated buddy block.
    #[inline]
    pub(crate) const fn held(order: Order, by: HeldBy) -> Self {
        Self(by as u8 | order.get() << Self::ORDER_SHIFT)
    }

    #[inline]
    pub(super) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    #[inline]
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// The kind.
    ///
    /// # Panics
    /// When it is none: the memmap was overwritten.
    #[inline]
    pub(crate) const fn kind(self) -> Kind {
        match self.0 & Self::KIND {
            0 => Kind::Uninit,
            Self::TAIL => Kind::Tail,
            Self::FREE | Self::REPORTED => Kind::Free,
            3 => Kind::Pcp,
            4 => Kind::Reserved,
            5 => Kind::Hole,
            6 => Kind::Offline,
            7 => Kind::Memmap,
            8 => Kind::Device,
            10 => panic!("page state with an unknown kind"),
            _ => Kind::Allocated,
        }
    }

    /// Who holds the allocated buddy block; none when it is not allocated.
    #[inline]
    pub(crate) const fn held_by(self) -> Option<HeldBy> {
        HeldBy::from_bits(self.0 & Self::KIND)
    }

    /// Whether this is not the first page of its buddy block.
    #[inline]
    pub(crate) const fn is_tail(self) -> bool {
        self.0 & Self::KIND <= Self::TAIL
    }

    /// The order of a head.
    #[inline]
    pub(crate) const fn order(self) -> Order {
        Order::new(self.0 >> Self::ORDER_SHIFT)
    }

    /// The state of a free head whose memory the host has taken back (Linux `PageReported`). Each later change of the
    /// state forgets that, so no code has to.
    #[inline]
    pub(crate) const fn reported(self) -> Self {
        assert!(self.0 & Self::KIND == Self::FREE, "only a free head is reported");
        Self(self.0 & !Self::KIND | Self::REPORTED)
    }

    /// Whether the host has taken the memory of this free head back.
    #[inline]
    pub(crate) const fn is_reported(self) -> bool {
        self.0 & Self::KIND == Self::REPORTED
    }

    /// The same state without what the host has done.
    pub(crate) const fn unreported(self) -> Self {
        if self.is_reported() { Self(self.0 & !Self::KIND | Self::FREE) } else { self }
    }

    /// Whether this is the head of a buddy block of `order` in state `kind`.
    #[inline]
    pub(crate) const fn is(self, kind: Kind, order: Order) -> bool {
        match kind {
            Kind::Allocated => {
                self.0 >> Self::ORDER_SHIFT == order.get() && self.0 & Self::KIND >= HeldBy::LEAST
            }
            Kind::Free => self.unreported().0 == Self::new(kind, order).0,
            _ => self.0 == Self::new(kind, order).0,
        }
    }
}

impl core::fmt::Debug for PageState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Prints also bytes that are no valid state, because the panic that reports one uses it.
        write!(f, "kind {} order {} ({:#x})", self.0 & Self::KIND, self.0 >> Self::ORDER_SHIFT, self.0)
    }
}
