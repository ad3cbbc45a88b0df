//! Anonymous memory of a process: pages that Linux takes from the zone Movable first and moves when it has to.
//!
//! Invariant: the mapping lives as long as the value, and only this file makes pointers into it.
#![expect(unsafe_code, reason = "maps memory, and reads and writes it behind the compiler's back")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::pipe::{IoSliceRaw, SpliceFlags, vmsplice};
use tidevm_abi::pattern::WORDS;
use tidevm_abi::{BadWord, PAGE_SIZE, PagePattern};

/// Bit of an entry of `pagemap`: the page is in memory.
const PRESENT: u64 = 1 << 63;
/// Bits of the frame number there.
const FRAME: u64 = (1 << 55) - 1;

/// Mapped pages.
pub struct Pages {
    base: *mut u64,
    count: u64,
}

// SAFETY: the mapping belongs to the value, and is the same for every thread of the process.
unsafe impl Send for Pages {}

impl Pages {
    /// Maps `count` pages, at least one. None of them takes memory before it is written.
    ///
    /// # Errors
    /// There are no addresses for them, or no memory for the mapping.
    pub fn map(count: u64) -> io::Result<Self> {
        let size = usize::try_from(count).ok().and_then(|count| count.checked_mul(PAGE_SIZE as usize));
        let size = size.filter(|&size| size > 0).ok_or(Errno::INVAL)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses addresses that nothing uses.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        // SAFETY: the mapping was just made. The advice changes no content. A kernel without huge pages refuses it, and has no
        // need for it.
        let _: Result<(), Errno> = unsafe { madvise(base, size, Advice::LinuxNoHugepage) };
        Ok(Self { base: base.cast(), count })
    }

    /// The number of pages.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn address(&self, page: u64, word: u64) -> *mut u64 {
        assert!(page < self.count && word < WORDS, "word {word} of page {page} of {}", self.count);
        self.base.wrapping_add((page * WORDS + word) as usize)
    }

    /// Fills a page.
    pub fn write(&mut self, page: u64, pattern: PagePattern) {
        pattern.each(|word, value| {
            // SAFETY: `address` checks that the word is in the mapping.
            unsafe { self.address(page, word).write_volatile(value) };
            true
        });
    }

    /// The first word of a page that differs from `pattern`.
    pub fn first_bad(&self, page: u64, pattern: PagePattern) -> Option<BadWord> {
        let mut bad = None;
        pattern.each(|word, expected| {
            // SAFETY: as in `write`.
            let found = unsafe { self.address(page, word).read_volatile() };
            bad = (found != expected).then(|| self.bad_word(page, word, expected, found));
            bad.is_none()
        });
        bad
    }

    /// Flips the lowest bit of a word of a page.
    pub fn flip(&mut self, page: u64, pattern: PagePattern) -> BadWord {
        let (word, expected) = pattern.one(page);
        let address = self.address(page, word);
        // SAFETY: as in `write`.
        let found = unsafe {
            address.write_volatile(address.read_volatile() ^ 1);
            address.read_volatile()
        };
        self.bad_word(page, word, expected, found)
    }

    fn bad_word(&self, page: u64, word: u64, expected: u64, found: u64) -> BadWord {
        let pfn = self.pfn(page).unwrap_or_else(|error| {
            crate::files::log(&format!("the frame of page {page} is unknown: {error}"));
            0
        });
        BadWord { page, pfn, word: word as u32, expected, found }
    }

    /// The frame number of a page (Linux `Documentation/admin-guide/mm/pagemap.rst`).
    fn pfn(&self, page: u64) -> io::Result<u64> {
        let virtual_page = self.address(page, 0) as u64 / PAGE_SIZE;
        let mut entry = [0; 8];
        File::open("self/pagemap")?.read_exact_at(&mut entry, virtual_page * 8)?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 {
            return Err(io::Error::other("it is not in memory"));
        }
        Ok(entry & FRAME)
    }

    /// Puts references to pages `from..from + count` into a pipe, which keeps the kernel from moving them. Returns how many
    /// found room there.
    ///
    /// # Errors
    /// No page found room.
    pub fn pin(&self, from: u64, count: u64, pipe: &impl AsFd) -> io::Result<u64> {
        let last = self.address(from + count - 1, 0);
        let start = self.address(from, 0);
        debug_assert!(start <= last);
        let pipe: BorrowedFd<'_> = pipe.as_fd();
        // SAFETY: `address` has checked both ends. The memory is mapped as long as `self` is there, and the call reads it only.
        let slice = unsafe {
            IoSliceRaw::from_slice(std::slice::from_raw_parts(
                start.cast::<u8>(),
                (count * PAGE_SIZE) as usize,
            ))
        };
        // SAFETY: `pipe` is the end to which is written, and without `GIFT` the pages stay ours.
        let taken = unsafe { vmsplice(pipe, &[slice], SpliceFlags::NONBLOCK) }?;
        Ok(taken as u64 / PAGE_SIZE)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is that of `map`, and no pointer to it is left.
        if let Err(error) = unsafe { munmap(self.base.cast(), (self.count * PAGE_SIZE) as usize) } {
            panic!("{} pages at {:p} cannot be unmapped: {error}", self.count, self.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pages;
    use tidevm_abi::PagePattern;

    #[test]
    fn a_flipped_bit_is_found() {
        let pattern = |page| PagePattern::new(5, page, false);
        let mut pages = Pages::map(3).unwrap();
        (0..3).for_each(|page| pages.write(page, pattern(page)));
        assert!((0..3).all(|page| pages.first_bad(page, pattern(page)).is_none()));
        let flipped = pages.flip(1, pattern(1));
        assert_eq!(flipped.found, flipped.expected ^ 1);
        let bad: Vec<u64> = (0..3).filter(|&page| pages.first_bad(page, pattern(page)).is_some()).collect();
        assert_eq!(bad, [1]);
        let found = pages.first_bad(1, pattern(1)).unwrap();
        assert_eq!(
            (found.word, found.expected, found.found),
            (flipped.word, flipped.expected, flipped.found)
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Pages::map(0).is_err());
        assert!(Pages::map(u64::MAX).is_err());
    }
}
