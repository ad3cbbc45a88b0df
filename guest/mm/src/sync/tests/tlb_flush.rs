//! TLB flushes: a page goes away when no CPU has a translation to it, and no CPU is about to use one.
//!
//! The two CPUs take their steps as the guest's `tlb::flush_all` and its interrupt handler do
//! (`guest/kernel/src/cpu/tlb.rs`). A CPU may fill its TLB again at any moment, so it does so at once when it has flushed.
//!
//! Invariant: the page is a cell of loom's. So an access and the end of the page must be ordered in every execution.

use std::cell::Cell;
use std::rc::Rc;

use loom::cell::UnsafeCell;
use loom::thread;

use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::tests::{fixed, model};
use crate::sync::{AtomicU32, yield_now};
use crate::tlb_flush::{FlushTickets, ServedTickets};

/// One page, its translation, and what the CPUs say to each other.
struct Machine {
    /// 1 while the translation is there.
    entry: AtomicU32,
    tickets: FlushTickets,
    served: ServedTickets,
    /// 1 when CPU 0 has interrupted CPU 1.
    interrupt: AtomicU32,
}

/// The TLB of a CPU: the entry as it was when it was read.
struct Tlb(Cell<u32>);

impl Tlb {
    fn fill(&self, machine: &Machine) {
        self.0.set(machine.entry.load(Relaxed));
    }

    fn access(&self, page: &UnsafeCell<()>) {
        if self.0.get() == 1 {
            page.with(|_| ());
        }
    }
}

impl Machine {
    fn new() -> &'static Self {
        fixed(Self {
            entry: AtomicU32::new(1),
            tickets: FlushTickets::new(),
            served: ServedTickets::new(),
            interrupt: AtomicU32::new(0),
        })
    }

    /// CPU 0 takes the translation back, and then the page.
    fn unmap(&self, page: &UnsafeCell<()>) {
        self.entry.store(0, Release);
        let ticket = self.tickets.request();
        self.interrupt.store(1, Release);
        while !self.served.has(ticket) {
            yield_now();
        }
        page.with_mut(|_| ());
    }

    fn serve(&self, tlb: &Tlb) {
        self.served.serve(&self.tickets, || tlb.fill(self));
    }

    /// CPU 1 uses the page, as long as it can. It serves the request of a third CPU first, which may be the moment when
    /// that of CPU 0 is there already. Then it takes the interrupt of CPU 0.
    fn use_page(&self, page: &UnsafeCell<()>) {
        let tlb = Tlb(Cell::new(0));
        tlb.fill(self);
        tlb.access(page);
        self.serve(&tlb);
        tlb.access(page);
        while self.interrupt.load(Acquire) == 0 {
            yield_now();
        }
        self.serve(&tlb);
        tlb.access(page);
    }
}

#[test]
fn a_page_goes_after_the_last_access_by_an_old_translation() {
    let machine = Machine::new();
    model(move || {
        // Loom runs all threads of a model on one thread of the host.
        let page = Rc::new(UnsafeCell::new(()));
        let used = page.clone();
        let user = thread::spawn(move || machine.use_page(&used));
        machine.unmap(&page);
        user.join().expect("it ends");
    });
}
