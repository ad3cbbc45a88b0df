//! `Page`: the descriptor of one page frame (Linux `struct page`).
//!
//! 64 bytes of atomics, so that the memmap of one section is exactly one 2 MiB page.
//!
//! # The state of a page is a byte
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0..=3 | kind | [`Kind`], see there for every state; a head in use says in its kind who holds it ([`HeldBy`]) |
//! | 4..=7 | order | of a head: log2 of the pages of its buddy block; of a tail: 0 |
//!
//! Differs from Linux on purpose: the states of the 512 pages of a pageblock lie together, 32 to a struct page, in 16
//! struct pages of the pageblock (see [`part_of`]). A page that is allocated and freed without another holder's name
//! touches its state only: 16 cache lines have the states of a whole pageblock. The other fields of its struct page
//! are written when a state begins that gives them a meaning, and read only in that state:
//!
//! | field | has a meaning in |
//! |---|---|
//! | `holder` | heads held by [`HeldBy::Named`]; `Device`, where it is the driver's word ([`DevUser`]) |
//! | `pgmap` | `Device` |
//!
//! The rest belongs to the pageblock, and is spread over the same 16 struct pages: see `free_area`.
//!
//! An all-zero state is one of its own, "never initialised". In an online section such a page is the tail of a buddy
//! block, because a head is always written. So a section whose memmap is known to be zero needs only its heads
//! written. Each other page is initialised when it becomes a head, by the store that makes it one. That is all of
//! lazy initialisation: no code checks for it.
//!
//! # Invariants of an online section
//! - It is tiled by naturally aligned buddy blocks of up to [`Order::MAX`]. The first page of each buddy
//!   block is a head (every kind but `Tail` and `Uninit`) whose order is that of the buddy block. All
//!   other pages are tails.
//!   So a walk by heads that starts at a pageblock's first page sees every buddy block, and only
//!   buddy blocks of the largest order can begin before a pageblock that they cover.
//! - Kind `Free` changes under the zone lock, and kind `Pcp` by the CPU that may use the list that the page is
//!   on. Other heads are changed only by the holder of the page. Neighbours in a cache line are bytes of their own,
//!   so one CPU's store never changes the page of another.
//! - A walk under the zone lock may meet a buddy block that its holder is splitting. The holder writes
//!   the new heads first and the old one last, with Release, and the walk reads with Acquire. `holder` is one word,
//!   written before the state that gives it a meaning, so it is `Relaxed`.

mod holder;
mod state;

use core::ops::Deref;

use crate::addr::{Order, PAGEBLOCK_PAGES};
#[cfg(any(test, feature = "hosted"))]
use crate::sync::written;
use crate::sync::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    one_step,
};

pub(crate) use holder::HeldBy;
pub use holder::{Holder, OwnerId};
pub(crate) use state::{Kind, PageState};

/// One page frame's entry in the memmap.
#[repr(C, align(64))]
pub struct Page {
    holder: AtomicU64,
    pgmap: AtomicU32,
    _to_64_bytes: AtomicU32,
    /// Of a pageblock, see `free_area`.
    pub(crate) area: AreaWords,
    /// The states of [`PART_PAGES`] pages of its pageblock, if it is one of [`PARTS`] struct pages that have them.
    states: [AtomicU8; PART_PAGES],
}

/// What a struct page has of the free pages of its pageblock. `free_area` says which of its struct pages has what.
pub(crate) struct AreaWords {
    /// Which of the pages whose states are here are free.
    pub(crate) free: AtomicU32,
    /// The list of the zone that the pageblock is on.
    pub(crate) list: AtomicU32,
    /// The pageblock after this one on a zone's list.
    pub(crate) after: AtomicU32,
    /// The pageblock before this one on it.
    pub(crate) before: AtomicU32,
}

const _: () = assert!(size_of::<Page>() == 64);

/// Pages whose states lie in one struct page.
pub(crate) const PART_PAGES: usize = 32;

/// Struct pages of a pageblock that have states.
pub(crate) const PARTS: usize = PAGEBLOCK_PAGES as usize / PART_PAGES;

/// Where the struct page with the state of page `index` lies: in the memmap of a section, or of all memory.
///
/// In the n-th pageblock these are 16 struct pages from the 16 n-th on, modulo its size. At the same place in all
/// pageblocks they would be 32 KiB apart and share a few sets of a CPU's caches.
#[inline]
pub(crate) const fn part_of(index: usize) -> usize {
    const IN_PAGEBLOCK: usize = PAGEBLOCK_PAGES as usize - 1;
    // The lowest bits are those of the part in its pageblock, the others those of the pageblock's number.
    (index & !IN_PAGEBLOCK) | ((index / PART_PAGES) & IN_PAGEBLOCK)
}

/// A struct page, and the state of its page.
#[derive(Clone, Copy)]
pub(crate) struct PageRef<'s> {
    page: &'s Page,
    /// The struct page that has its state.
    part: &'s Page,
    /// Index in that one's states.
    at: u8,
}

impl<'s> PageRef<'s> {
    /// The struct page `page` of the `index`-th page of a section, or of all memory. `part` is the struct page that has
    /// its state.
    #[inline(always)]
    pub(crate) fn new(page: &'s Page, part: &'s Page, index: usize) -> Self {
        Self { page, part, at: (index % PART_PAGES) as u8 }
    }

    #[inline(always)]
    fn byte(self) -> &'s AtomicU8 {
        &self.part.states[usize::from(self.at) % PART_PAGES]
    }

    #[inline]
    pub(crate) fn state(self) -> PageState {
        PageState::from_bits(self.byte().load(Acquire))
    }

    #[inline]
    pub(crate) fn set_state(self, state: PageState) {
        self.byte().store(state.bits(), Release);
        #[cfg(any(test, feature = "hosted"))]
        written::made(self.part);
        #[cfg(test)]
        crate::steps::made();
    }

    /// Of the first page of a pageblock: the words that are there once for the pageblock.
    #[inline(always)]
    pub(crate) fn words(self) -> &'s AreaWords {
        debug_assert!(self.at == 0, "the words of a pageblock lie beside the state of its first page");
        &self.part.area
    }

    /// Makes it the head of an allocated buddy block of `order` that `holder` has.
    #[inline]
    pub(crate) fn hold(self, order: Order, holder: Holder) {
        let held_by = HeldBy::of(holder);
        if held_by == HeldBy::Named {
            self.page.holder.store(holder.bits(), Relaxed);
        }
        // Release: who reads this state also reads the word.
        self.set_state(PageState::held(order, held_by));
    }

    /// The holder of the allocated buddy block whose head was found in `state`.
    #[inline]
    pub(crate) fn holder(self, state: PageState) -> Holder {
        match state.held_by() {
            Some(HeldBy::Named) => Holder::from_bits(self.page.holder.load(Relaxed)),
            Some(HeldBy::Memmap) => Holder::Memmap,
            Some(HeldBy::Kernel) => Holder::Kernel,
            Some(HeldBy::PageTable) => Holder::PageTable,
            Some(HeldBy::Unclaimed) | None => Holder::Unclaimed,
        }
    }
}

impl Deref for PageRef<'_> {
    type Target = Page;

    #[inline(always)]
    fn deref(&self) -> &Page {
        self.page
    }
}

impl Page {
    /// Sets the states of all pages of a pageblock to `state`, and none of them is free. Their section is published
    /// afterwards, as in [`init_device`](Self::init_device), so plain stores will do.
    pub(crate) fn init_pageblock(parts: &[Self], state: PageState) {
        one_step(|| {
            for part in parts {
                let words = &part.area;
                for word in [&words.free, &words.list, &words.after, &words.before] {
                    word.store(0, Relaxed);
                }
                for at in &part.states {
                    at.store(state.bits(), Relaxed);
                    #[cfg(test)]
                    crate::steps::made();
                }
            }
        });
        #[cfg(any(test, feature = "hosted"))]
        parts.iter().take(1).for_each(written::made);
    }

    /// Gives the pages of `bits`, whose states are here and those of tails, another state. Returns the first of them that
    /// was no tail, and its state; it is as the others then.
    #[inline]
    pub(crate) fn replace_tails(&self, bits: u32, state: PageState) -> Result<(), (u32, PageState)> {
        let result = one_step(|| {
            let (mut left, mut result) = (bits, Ok(()));
            while left != 0 {
                let at = left.trailing_zeros();
                left &= left - 1;
                let byte = &self.states[at as usize % PART_PAGES];
                let before = PageState::from_bits(byte.load(Relaxed));
                if !before.is_tail() && result.is_ok() {
                    result = Err((at, before));
                }
                byte.store(state.bits(), Release);
                #[cfg(test)]
                crate::steps::made();
            }
            result
        });
        #[cfg(any(test, feature = "hosted"))]
        written::made(self);
        result
    }

    /// Whether each of the pages `range` of the pageblock with the states `parts` is a tail, or was never written and may
    /// be `untouched`. A plain loop, because hosted builds look at very many.
    #[cfg(any(test, feature = "hosted"))]
    pub(crate) fn are_tails(parts: &[Self; PARTS], range: core::ops::Range<usize>, untouched: bool) -> bool {
        let tail = PageState::new(Kind::Tail, Order::PAGE).bits();
        let least = if untouched { 0 } else { tail };
        one_step(|| {
            let mut other = false;
            for index in range {
                let state = parts[index / PART_PAGES % PARTS].states[index % PART_PAGES].load(Relaxed);
                other |= state < least || state > tail;
            }
            !other
        })
    }

    /// Whether the states of all pages of a pageblock were written.
    #[cfg(all(any(test, feature = "hosted"), not(feature = "loom")))]
    pub(crate) fn are_written(parts: &[Self; PARTS]) -> bool {
        let states = || parts.iter().flat_map(|part| &part.states);
        one_step(|| states().all(|state| state.load(Relaxed) != 0))
    }

    /// Makes it an unused page of device memory of `pgmap`; its state is set by
    /// [`init_pageblock`](Self::init_pageblock). Its section is published afterwards, so no CPU looks at
    /// it yet and plain stores will do.
    #[inline]
    pub(crate) fn init_device(&self, pgmap: u32) {
        self.pgmap.store(pgmap, Relaxed);
        self.holder.store(0, Relaxed);
        #[cfg(test)]
        crate::steps::made();
    }

    /// The pgmap of a page of device memory.
    pub(crate) fn pgmap(&self) -> u32 {
        self.pgmap.load(Relaxed)
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
