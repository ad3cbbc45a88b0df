//! Pipes, which hold pages in the kernel (pipe(7)): memory that cannot move, and references to memory that could.
//!
//! A write of whole pages has the kernel take a page for each (`fs/pipe.c`, `pipe_write`), without `__GFP_MOVABLE`, so none of
//! them comes from the zone Movable. `vmsplice` puts references to pages of the process into a pipe instead. A page with
//! such a reference does not migrate, wherever it lies: that is how a driver's pages behave that it has for a moment, and
//! the reason why `mlock` is not used, which keeps pages in memory and lets them move.
//!
//! Invariant: of each pipe only the end from which can be read is kept. Nothing can be added to it any more.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, tee};
use tidevm_abi::{PAGE_SIZE, PagePattern};

use crate::pages::Pages;

/// Pages per pipe: what any process may put into one (`/proc/sys/fs/pipe-max-size`).
const PER_PIPE: u64 = 256;
const PIPE_SIZE: usize = (PER_PIPE * PAGE_SIZE) as usize;

/// An empty pipe with room for [`PER_PIPE`] pages: the end to read from and the end to write to.
fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&write, PIPE_SIZE)?;
    Ok((read, write))
}

/// Pages of the kernel, with a known content.
#[derive(Default)]
pub struct KernelPages {
    pipes: Vec<OwnedFd>,
    count: u64,
}

impl KernelPages {
    /// Takes `wanted` pages and fills page `n` with `pattern(n)`. There are fewer when the kernel has no more memory or
    /// descriptors; the error says why.
    pub fn take(wanted: u64, pattern: impl Fn(u64) -> PagePattern) -> (Self, Option<io::Error>) {
        let mut pages = Self::default();
        while pages.count < wanted {
            if let Err(error) = pages.add((wanted - pages.count).min(PER_PIPE), &pattern) {
                return (pages, Some(error));
            }
        }
        (pages, None)
    }

    fn add(&mut self, count: u64, pattern: &impl Fn(u64) -> PagePattern) -> io::Result<()> {
        let (read, write) = new_pipe()?;
        let content = content(self.count, count, pattern);
        let written = rustix::io::write(&write, &content)?;
        if written != content.len() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.pipes.push(read);
        self.count += count;
        Ok(())
    }

    /// The number of pages.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The number of pages whose content is not that of the pattern. The pages stay where they are: what is read is another
    /// reference to them (`tee`).
    ///
    /// # Errors
    /// They cannot be read.
    pub fn corrupt(&self, pattern: impl Fn(u64) -> PagePattern) -> io::Result<u64> {
        let (scratch, into_scratch) = new_pipe()?;
        let mut buffer = vec![0; PIPE_SIZE];
        let mut corrupt = 0;
        for (index, pipe) in self.pipes.iter().enumerate() {
            let first = index as u64 * PER_PIPE;
            let count = (self.count - first).min(PER_PIPE);
            let size = (count * PAGE_SIZE) as usize;
            let there = tee(pipe, &into_scratch, size, SpliceFlags::NONBLOCK)?;
            let mut read = 0;
            while read < there {
                read += rustix::io::read(&scratch, &mut buffer[read..there])?;
            }
            // Pages that are not there any more are wrong too.
            buffer[there..size].fill(0);
            let expected = content(first, count, &pattern);
            let pages = |bytes| <[u8]>::chunks_exact(bytes, PAGE_SIZE as usize);
            let differ =
                pages(&buffer[..size]).zip(pages(&expected)).filter(|(found, expected)| found != expected);
            corrupt += differ.count() as u64;
        }
        Ok(corrupt)
    }
}

/// The content of `count` pages from page `first` on.
fn content(first: u64, count: u64, pattern: &impl Fn(u64) -> PagePattern) -> Vec<u8> {
    let mut content = vec![0; (count * PAGE_SIZE) as usize];
    for (page, bytes) in (first..).zip(content.chunks_exact_mut(PAGE_SIZE as usize)) {
        pattern(page).each(|word, value| {
            let at = word as usize * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            true
        });
    }
    content
}

/// References to all of `pages`, which do not move as long as these live.
///
/// # Errors
/// The kernel has no more memory or descriptors.
pub fn pin(pages: &Pages) -> io::Result<Vec<OwnedFd>> {
    let mut pins = Vec::new();
    let mut done = 0;
    while done < pages.count() {
        let (read, write) = new_pipe()?;
        done += pages.pin(done, (pages.count() - done).min(PER_PIPE), &write)?;
        pins.push(read);
    }
    Ok(pins)
}

#[cfg(test)]
mod tests {
    use super::{KernelPages, PER_PIPE, pin};
    use crate::pages::Pages;
    use tidevm_abi::PagePattern;

    #[test]
    fn pages_in_pipes_keep_their_content_however_often_they_are_read() {
        let pattern = |page| PagePattern::new(9, page, true);
        let (pages, error) = KernelPages::take(PER_PIPE + 3, pattern);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(pages.count(), PER_PIPE + 3);
        for _ in 0..2 {
            assert_eq!(pages.corrupt(pattern).unwrap(), 0);
        }
        let other = |page| PagePattern::new(if page == PER_PIPE + 1 { 8 } else { 9 }, page, true);
        assert_eq!(pages.corrupt(other).unwrap(), 1);
    }

    #[test]
    fn pinned_pages_can_be_written() {
        let pattern = |page| PagePattern::new(1, page, false);
        let mut pages = Pages::map(PER_PIPE + 1).unwrap();
        (0..pages.count()).for_each(|page| pages.write(page, pattern(page)));
        let pins = pin(&pages).unwrap();
        assert_eq!(pins.len(), 2);
        pages.flip(0, pattern(0));
        assert!(pages.first_bad(0, pattern(0)).is_some());
        assert!(pages.first_bad(PER_PIPE, pattern(PER_PIPE)).is_none());
    }
}
