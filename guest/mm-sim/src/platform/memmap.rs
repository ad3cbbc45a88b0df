//! Memmaps: what lies behind them, and what is in them when they come and go.
//!
//! Invariants: the backing of a memmap is mapped, unless it is boot memory, and backs one memmap. A memmap is full of
//! garbage whenever nothing has written it, except that fresh memory of a host that promises zeros has zeros.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use tidevm_mm::hosted::{MODELLED, Seen, pages_with_states, states_written, without_states};
use tidevm_mm::{MEMMAP_PAGES, PAGEBLOCK_PAGES, Pfn, SectionNr};

use super::tables;
use super::window::{GARBAGE, PAGE_WORDS, ZERO};
use super::{LOST, Sim};

/// A memmap that is mapped.
pub(super) struct Mapped {
    /// The frames behind it: the first one of a large page, or all base pages.
    pub(super) frames: Vec<Pfn>,
}

impl Mapped {
    pub(super) fn large(&self) -> Option<Pfn> {
        (self.frames.len() == 1).then(|| self.frames[0])
    }

    /// All frames behind it.
    fn backing(&self) -> impl Iterator<Item = Pfn> + '_ {
        let each = if self.large().is_some() { MEMMAP_PAGES } else { 1 };
        self.frames.iter().flat_map(move |first| (0..each).map(|page| first.add(page)))
    }
}

impl Sim {
    /// Maps the memmap of `section` onto `frames`.
    pub(super) fn map_frames(&self, section: SectionNr, frames: Vec<Pfn>) {
        self.assert_absent(section);
        let mapped = Mapped { frames };
        let is_boot = |pfn: Pfn| self.boot[pfn.get() as usize / PAGEBLOCK_PAGES as usize].load(SeqCst);
        mapped.backing().filter(|&pfn| !is_boot(pfn)).for_each(|pfn| self.assert_direct(pfn));
        self.unseen[section.get() as usize].store(false, SeqCst);
        // Whether nothing was written there since the host provided it.
        let word = |pfn: Pfn| &self.section_content(pfn.section())[pfn.in_section()];
        let fresh = mapped.backing().all(|pfn| word(pfn).load(SeqCst) == LOST);
        let mut memmaps = self.memmaps.lock().expect("no panic holds it");
        assert!(memmaps[section.get() as usize].is_none(), "{section:?} has a memmap");
        for &first in &mapped.frames {
            let twice = memmaps.iter().flatten().any(|other| other.frames.contains(&first));
            assert!(!twice, "{first:?} backs two memmaps");
        }
        memmaps[section.get() as usize] = Some(mapped);
        if self.zeros && fresh { self.clear(section) } else { self.scribble(section) }
    }

    /// Unmaps the memmap of `section`, and returns its frames.
    pub(super) fn unmap_frames(&self, section: SectionNr) -> Vec<Pfn> {
        assert!(self.settled.load(SeqCst), "{section:?}: no grace period");
        let unseen = self.unseen[section.get() as usize].load(SeqCst);
        assert!(unseen, "{section:?} was not Absent when the grace period began");
        self.assert_absent(section);
        let mut memmaps = self.memmaps.lock().expect("no panic holds it");
        let mapped = memmaps[section.get() as usize].take().expect("unmaps a memmap that is mapped");
        mapped.backing().for_each(|pfn| self.write(pfn, 0));
        self.scribble(section);
        drop(memmaps);
        self.give_tables_back(&tables::memmaps(section, 1));
        mapped.frames
    }

    /// Pages of `section` whose states were written.
    pub fn written_pages(&self, section: SectionNr) -> usize {
        section.frames().frames().filter(|&pfn| self.window.state(pfn) != 0).count()
    }

    /// Makes the memmap of `section` all zero.
    fn clear(&self, section: SectionNr) {
        for (first, pageblock) in self.window.pageblocks(section) {
            // Most of a memmap was never written.
            if Seen::now(first, ZERO).is_known() {
                continue;
            }
            // Memory that was never written must not be taken from the host.
            for word in pageblock.iter().filter(|word| word.load(Relaxed) != 0) {
                word.store(0, Relaxed);
            }
            states_written(first);
            Seen::now(first, ZERO).note();
        }
    }

    /// Fills the memmap of `section` with garbage. Machines by the thousand have it only in the struct pages with states.
    fn scribble(&self, section: SectionNr) {
        let mut word = self.garbage.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        for (nr, (first, pageblock)) in self.window.pageblocks(section).enumerate() {
            // Most of a memmap is still full of garbage when it is mapped again.
            if Seen::now(first, GARBAGE).is_known() {
                continue;
            }
            let states = pages_with_states(nr);
            let few = MODELLED.then_some(states.start * PAGE_WORDS..states.end * PAGE_WORDS);
            for at in few.map_or(pageblock, |few| &pageblock[few]) {
                word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
                at.store(without_states(word ^ word >> 32), Relaxed);
            }
            states_written(first);
            Seen::now(first, GARBAGE).note();
        }
    }

    /// Overwrites the memmap of section `nr`, which is not online, as happens in a hibernation that does not
    /// save it.
    ///
    /// # Panics
    /// When the section is online.
    pub fn lose_memmap(&self, nr: SectionNr) {
        assert!(!self.mm().is_online_page(nr.start()), "the memmap of {nr:?} is in use");
        self.scribble(nr);
    }
}
