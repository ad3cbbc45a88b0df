//! Copies of pages by two CPUs: each page is copied once, after it was written and before it is used.
//!
//! The two CPUs take their steps as the guest's `copy_pages` and the job of the other CPU do
//! (`guest/kernel/src/mem/copy.rs`).
//!
//! Invariant: pages are cells of loom's. So any two accesses to a page, one of which writes, must be ordered in every
//! execution.

use std::cell::Cell;
use std::rc::Rc;

use loom::cell::UnsafeCell;
use loom::thread;

use crate::addr::Pfn;
use crate::copy_batch::CopyBatch;
use crate::sync::tests::{fixed, model};
use crate::sync::yield_now;

/// A page: what orders the accesses, and the content. Loom runs all threads of a model on one thread of the host.
struct Page {
    access: UnsafeCell<()>,
    content: Cell<u32>,
}

/// Pages by frame number.
type Pages = Rc<[Page; 4]>;

fn read(pages: &Pages, pfn: Pfn) -> u32 {
    let page = &pages[pfn.get() as usize];
    page.access.with(|_| page.content.get())
}

fn write(pages: &Pages, pfn: Pfn, value: u32) {
    let page = &pages[pfn.get() as usize];
    page.access.with_mut(|_| page.content.set(value));
}

/// A copy counts itself: a page that is copied twice has another content.
fn copy(pages: &Pages, to: Pfn, from: Pfn) {
    write(pages, to, read(pages, to) + read(pages, from));
}

/// CPU 0 writes pages, has them copied, and uses the copies.
fn copy_pages(batch: &CopyBatch, pages: &Pages, moves: &[(u32, u32)]) {
    let moves: std::vec::Vec<_> = moves.iter().map(|&(to, from)| (Pfn::new(to), Pfn::new(from))).collect();
    for &(to, from) in &moves {
        write(pages, from, 10 + from.get());
        write(pages, to, 0);
    }
    batch.post(&moves);
    while batch.copy_next(|to, from| copy(pages, to, from)) {}
    while !batch.is_copied() {
        yield_now();
    }
    for &(to, from) in &moves {
        assert_eq!(read(pages, to), 10 + from.get(), "the copy of {from:?}");
        // The page is free, and may be used for anything.
        write(pages, from, 0);
    }
}

/// CPU 1 takes part, in as many turns as there are, in `batches`.
fn in_batches(batches: &'static [&'static [(u32, u32)]], turns: usize) {
    let batch = fixed(CopyBatch::new());
    model(move || {
        let page = || Page { access: UnsafeCell::new(()), content: Cell::new(0) };
        let pages: Pages = Rc::new([page(), page(), page(), page()]);
        let seen = pages.clone();
        let other = thread::spawn(move || {
            for _ in 0..turns {
                batch.copy_next(|to, from| copy(&seen, to, from));
            }
        });
        for moves in batches {
            copy_pages(batch, &pages, moves);
        }
        other.join().expect("it ends");
    });
}

#[test]
fn two_cpus_copy_a_batch() {
    in_batches(&[&[(2, 0), (3, 1)]], 1);
}

/// A turn of the first batch looks like one of the second. The CPU that takes it gets the pages of the second.
#[test]
fn a_batch_follows_another_one() {
    in_batches(&[&[(2, 0)], &[(3, 1)]], 1);
}
