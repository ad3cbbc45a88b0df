//! `Page`: the descriptor of one page frame (Linux `struct page`).
//!
//! 64 bytes of atomics, so that the memmap of one section is exactly one 2 MiB page. Only two words and
//! two links are in use; the rest pads the size to that of Linux.
//!
//! # The state word, bit by bit
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0..=3 | kind | [`Kind`], see there for every state |
//! | 4..=7 | order | of a head: log2 of the pages of its buddy block; of a tail: 0 |
//! | 8..=11 | zone | [`ZoneId`] of the page's section: type and node; type 3 is device memory |
//! | 12 | reported | of a `Free` head: the host has taken the memory back, and nothing was written since |
//! | 13..=63 | - | zero |
//!
//! An all-zero `Page` is a state of its own, "never initialised": no page that was written has kind 0.
//! In an online section such a page is the tail of a buddy block, because a head is always written. So a
//! section whose memmap is known to be zero needs only its heads written. Each other page is initialised
//! when it becomes a head, by the store that makes it one. That is all of lazy initialisation: no code
//! checks for it.
//!
//! Initialising a page is the one store of its state word. Every other field is written when a state
//! begins that gives it a meaning, and read only in that state:
//!
//! | field | has a meaning in |
//! |---|---|
//! | `next` | `Free` and `Pcp` heads; `Device`, where it is the pgmap (which shares the list's storage in Linux) |
//! | `prev` | `Free` heads |
//! | `holder` | `Allocated` heads; `Device`, where it is the driver's word ([`DevUser`]) |
//!
//! # Invariants of an online section
//! - It is tiled by naturally aligned buddy blocks of up to [`Order::MAX`]. The first page of each buddy
//!   block is a head (every kind but `Tail` and `Uninit`) whose order is that of the buddy block. All
//!   other pages are tails.
//!   So a walk by heads that starts at a pageblock's first page sees every buddy block, and only
//!   buddy blocks of the largest order can begin before a pageblock that they cover.
//! - Kind `Free` changes under the zone lock, and kind `Pcp` by the CPU that may use the list that the page is
//!   on. Other heads are changed only by the holder of the page.
//! - A walk under the zone lock may meet a buddy block that its holder is splitting. The holder writes
//!   the new heads first and the old one last, with Release, and the walk reads with Acquire. The links
//!   mean nothing to others than those who may use the list, and `holder` is one word: both are `Relaxed`.

mod holder;

use crate::addr::{Order, Pfn};
use crate::node::{NodeId, ZoneId};
#[cfg(any(test, feature = "sim"))]
use crate::sync::written;
use crate::sync::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    one_step,
};

pub(crate) use holder::HolderWord;
pub use holder::{Holder, OwnerId};

/// One page frame's entry in the memmap.
#[repr(C, align(64))]
pub struct Page {
    state: AtomicU64,
    holder: AtomicU64,
    next: AtomicU32,
    prev: AtomicU32,
    _to_64_bytes: [AtomicU64; 5],
}

const _: () = assert!(size_of::<Page>() == 64);

/// The kind of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Never written since the memmap was mapped. If its section is online, no buddy block has begun here
    /// since, and the page is a tail.
    Uninit = 0,
    /// Not the first page of its buddy block; the head of the buddy block has the state.
    Tail = 1,
    /// Head of a buddy block on a zone's free list.
    Free = 2,
    /// Head of a buddy block on a per-CPU list; its order is 0 or that of a pageblock.
    Pcp = 3,
    /// Head of a buddy block that is in use; `holder` names the user.
    Allocated = 4,
    /// Head of RAM that was taken before the allocator existed.
    Reserved = 5,
    /// Head of frames of a section where there is no RAM.
    Hole = 6,
    /// Head of a pageblock that is not plugged (Linux `PageOffline`).
    Offline = 7,
    /// Head of the pages that hold their own section's memmap (Linux `PageVmemmapSelfHosted`).
    Memmap = 8,
    /// A page of device memory, always of order 0 (Linux `PageReserved` in `ZONE_DEVICE`): never on a
    /// list, never freed.
    Device = 9,
}

impl Kind {
    const fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Self::Uninit,
            1 => Self::Tail,
            2 => Self::Free,
            3 => Self::Pcp,
            4 => Self::Allocated,
            5 => Self::Reserved,
            6 => Self::Hole,
            7 => Self::Offline,
            8 => Self::Memmap,
            9 => Self::Device,
            _ => panic!("page state with an unknown kind"),
        }
    }
}

/// Value of a [`Page`]'s state word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageState(u64);

impl PageState {
    const KIND: u64 = 0xf;
    const ORDER_SHIFT: u32 = 4;
    const ZONE_SHIFT: u32 = 8;
    const REPORTED: u64 = 1 << 12;

    #[inline]
    pub(crate) const fn new(kind: Kind, order: Order, zone: ZoneId) -> Self {
        let zone = (zone.bits() as u64) << Self::ZONE_SHIFT;
        Self(kind as u64 | (order.get() as u64) << Self::ORDER_SHIFT | zone)
    }

    /// The state of a page of device memory of `node`, whose zone is none of the allocator's.
    pub(crate) const fn device(kind: Kind, order: Order, node: NodeId) -> Self {
        let zone = (node.device_zone() as u64) << Self::ZONE_SHIFT;
        Self(kind as u64 | (order.get() as u64) << Self::ORDER_SHIFT | zone)
    }

    #[inline]
    pub(crate) const fn kind(self) -> Kind {
        Kind::from_bits(self.0 & Self::KIND)
    }

    /// Whether this is not the first page of its buddy block.
    #[inline]
    pub(crate) const fn is_tail(self) -> bool {
        self.0 & Self::KIND <= Kind::Tail as u64
    }

    /// The order of a head.
    #[inline]
    pub(crate) const fn order(self) -> Order {
        Order::new((self.0 >> Self::ORDER_SHIFT & 0xf) as u8)
    }

    #[inline]
    pub(crate) const fn zone(self) -> ZoneId {
        let bits = self.0 >> Self::ZONE_SHIFT;
        match ZoneId::from_bits(bits as u8) {
            Some(zone) if bits <= u8::MAX as u64 => zone,
            _ => panic!("page state with an unknown zone"),
        }
    }

    /// The state of a free head whose memory the host has taken back (Linux `PageReported`). Each later change of the
    /// state forgets that, so no code has to.
    #[inline]
    pub(crate) const fn reported(self) -> Self {
        Self(self.0 | Self::REPORTED)
    }

    /// Whether the host has taken the memory of this free head back.
    #[inline]
    pub(crate) const fn is_reported(self) -> bool {
        self.0 & Self::REPORTED != 0
    }

    /// The same state without what the host has done.
    pub(crate) const fn unreported(self) -> Self {
        Self(self.0 & !Self::REPORTED)
    }

    /// Whether each of `pages` is in state `tail`, or was never written and may be `untouched`. One comparison for all
    /// of them, because hosted builds look at very many.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn all_tails(pages: &[Page], tail: Self, untouched: bool) -> bool {
        let zero_counts = if untouched { 0 } else { u64::MAX };
        let differ = |differ, page: &Page| {
            let Self(bits) = page.state();
            // All ones, unless the page was never written.
            let written = 0_u64.wrapping_sub((bits | bits.wrapping_neg()) >> 63);
            differ | (bits ^ tail.0) & (written | zero_counts)
        };
        one_step(|| pages.iter().fold(0, differ)) == 0
    }

    /// Whether this is the head of a buddy block of `order` in state `kind`, in any zone.
    #[inline]
    pub(crate) const fn is(self, kind: Kind, order: Order) -> bool {
        self.0 & ((1 << Self::ZONE_SHIFT) - 1) == kind as u64 | (order.get() as u64) << Self::ORDER_SHIFT
    }
}

impl core::fmt::Debug for PageState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Prints also words that are no valid state, because the panic that reports one uses it.
        write!(
            f,
            "kind {} order {} zone {} ({:#x})",
            self.0 & Self::KIND,
            self.0 >> 4 & 0xf,
            self.0 >> 8,
            self.0
        )
    }
}

impl Page {
    /// The words that are in use, from the first on: the state, the holder, both links.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) const WORDS: usize = 3;

    #[inline]
    pub(crate) fn state(&self) -> PageState {
        PageState(self.state.load(Acquire))
    }

    #[inline]
    pub(crate) fn set_state(&self, state: PageState) {
        self.state.store(state.0, Release);
        #[cfg(any(test, feature = "sim"))]
        written::made(self);
        #[cfg(test)]
        crate::steps::made();
    }

    /// Sets the states of pages of one pageblock. Their section is published afterwards, as in
    /// [`init_device`](Self::init_device), so plain stores will do.
    #[inline]
    pub(crate) fn set_states(pages: &[Self], state: PageState) {
        let set = |page: &Self| {
            page.state.store(state.0, Relaxed);
            #[cfg(test)]
            {
                written::made(page);
                crate::steps::made();
            }
        };
        one_step(|| pages.iter().for_each(set));
        #[cfg(any(test, feature = "sim"))]
        pages.iter().take(1).for_each(written::made);
    }

    /// The page after this one on its list.
    #[inline]
    pub(crate) fn next(&self) -> Link {
        Link(self.next.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_next(&self, link: Link) {
        self.next.store(link.0, Relaxed);
    }

    /// The page before this one on its list.
    #[inline]
    pub(crate) fn prev(&self) -> Link {
        Link(self.prev.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_prev(&self, link: Link) {
        self.prev.store(link.0, Relaxed);
    }

    /// The holder of the buddy block whose `Allocated` head this page is.
    #[inline]
    pub(crate) fn holder(&self) -> Holder {
        HolderWord::new(self.holder.load(Relaxed)).holder()
    }

    #[inline]
    pub(crate) fn set_holder(&self, holder: HolderWord) {
        self.holder.store(holder.bits(), Relaxed);
    }

    /// Makes it an unused page of device memory. Its section is published afterwards, so no CPU looks at
    /// it yet and plain stores will do.
    #[inline]
    pub(crate) fn init_device(&self, state: PageState, pgmap: u32) {
        self.state.store(state.0, Relaxed);
        self.next.store(pgmap, Relaxed);
        self.holder.store(0, Relaxed);
        #[cfg(any(test, feature = "sim"))]
        written::made(self);
        #[cfg(test)]
        crate::steps::made();
    }

    /// The pgmap of a page of device memory.
    pub(crate) fn pgmap(&self) -> u32 {
        self.next.load(Relaxed)
    }

    /// The user of a page of device memory, and how many references it holds.
    pub(crate) fn dev_user(&self) -> Option<DevUser> {
        DevUser::from_bits(self.holder.load(Relaxed))
    }

    /// Replaces [`Self::dev_user`] by the result of `change`; after an error it stays as it is.
    pub(crate) fn update_dev_user<E>(
        &self,
        change: impl Fn(Option<DevUser>) -> Result<Option<DevUser>, E>,
    ) -> Result<(), E> {
        let mut before = self.holder.load(Relaxed);
        loop {
            let after = change(DevUser::from_bits(before))?.map_or(0, DevUser::bits);
            // A CPU that sees the page free again also sees the writes of its user.
            match self.holder.compare_exchange_weak(before, after, AcqRel, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => before = now,
            }
        }
    }
}

/// The user of a page of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevUser {
    /// The number by which the user names itself.
    pub tag: u32,
    /// References that it holds, at least 1.
    pub count: u32,
}

impl DevUser {
    const fn from_bits(bits: u64) -> Option<Self> {
        if bits == 0 { None } else { Some(Self { tag: (bits >> 32) as u32, count: bits as u32 }) }
    }

    const fn bits(self) -> u64 {
        (self.tag as u64) << 32 | self.count as u64
    }
}

/// A [`Link`] that one CPU at a time writes, in plain stores.
pub(crate) struct LinkCell(AtomicU32);

impl LinkCell {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(Link::NONE.0))
    }

    #[inline]
    pub(crate) fn get(&self) -> Link {
        Link(self.0.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set(&self, link: Link) {
        self.0.store(link.0, Relaxed);
    }
}

/// A page on a list, or none. Frame 0 is never on a list, so 0 means "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link(u32);

impl Link {
    pub(crate) const NONE: Self = Self(0);

    #[inline]
    pub(crate) const fn to(pfn: Pfn) -> Self {
        Self(pfn.get())
    }

    #[inline]
    pub(crate) const fn pfn(self) -> Option<Pfn> {
        if self.0 == 0 { None } else { Some(Pfn::new(self.0)) }
    }
}
