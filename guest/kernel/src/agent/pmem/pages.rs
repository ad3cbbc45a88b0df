//! The pages of device memory that a workload uses: the [`PageSet`] of device memory, which `agent/walk.rs`
//! takes, verifies and releases a batch at a time.
//!
//! A workload takes pages of one range, the lowest first, with its handle as their user tag.
//!
//! Invariant: a handle has at most one entry in `ENTRIES`, and the pages of that entry's range whose user tag is
//! the handle are exactly the pages that the workload uses.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;
use tidevm_abi::{Failure, Handle, PmemFailure};
use tidevm_mm::{Pfn, PfnRange, PgmapNr};

use crate::agent::pattern::PagePattern;
use crate::agent::walk::{PageSet, Taken};
use crate::agent::workload::{self, Hold};
use crate::mem::MM;

/// One workload in device memory: the pages of `range` whose user is `handle`.
#[derive(Clone, Copy)]
struct Entry {
    /// No other entry has or had it. A handle may come again.
    number: u64,
    handle: Handle,
    range: PfnRange,
    /// A call takes or frees its pages.
    changing: bool,
}

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Number of the next entry.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The pages of one workload in device memory. The place of a page counts from the start of the range.
pub struct DevicePages {
    entry: Entry,
    /// While pages are taken: the next page to try.
    next: Pfn,
}

impl DevicePages {
    /// Registers the workload `handle` in the range that is mapped as `pgmap`, without any page yet. The caller is the one
    /// that changes which pages it has.
    ///
    /// # Errors
    /// The handle is in use, or the range is not mapped.
    pub fn register(handle: Handle, pgmap: PgmapNr) -> Result<Self, Failure> {
        if workload::find(handle).is_some() || Self::find(handle).is_some() {
            return Err(Failure::HandleInUse);
        }
        let info = MM.pgmap(pgmap).ok_or(Failure::Pmem(PmemFailure::NotMapped))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { number, handle, range: info.pages, changing: true };
        let mut entries = ENTRIES.lock();
        entries.try_reserve(1).map_err(|_| Failure::NoMemory)?;
        entries.push(entry);
        Ok(Self::of(entry))
    }

    /// The pages of `handle`, if that is a workload in device memory.
    pub fn find(handle: Handle) -> Option<Self> {
        ENTRIES.lock().iter().find(|entry| entry.handle == handle).copied().map(Self::of)
    }

    fn of(entry: Entry) -> Self {
        Self { entry, next: entry.range.start() }
    }

    /// Calls `change` with the workload's entry, if that is still there.
    fn change<T>(&self, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        ENTRIES.lock().iter_mut().find(|entry| entry.number == self.entry.number).map(change)
    }

    fn page(&self, place: u32) -> Pfn {
        self.entry.range.start().add(place)
    }
}

impl PageSet for DevicePages {
    fn take_some(&mut self, _wanted: u64) -> Taken {
        let Entry { handle, range, .. } = self.entry;
        let pfn = self.next;
        if pfn == range.end() {
            return Taken::NoMore;
        }
        self.next = pfn.add(1);
        let is_free = MM.dev_page(pfn).is_some_and(|page| page.user.is_none());
        if !is_free || MM.get_dev_page(pfn, handle).is_err() {
            return Taken::LeftOut;
        }
        self.pattern(pfn.get() - range.start().get()).write(pfn);
        Taken::Pages(1)
    }

    fn end_take(&mut self) {
        self.entry.range = self.entry.range.before(self.next);
        // The workload has no page behind the last one that was tried.
        self.change(|entry| entry.range = self.entry.range);
    }

    fn begin_change(&self) -> bool {
        self.change(|entry| !core::mem::replace(&mut entry.changing, true)).unwrap_or(false)
    }

    fn end_change(&self) {
        self.change(|entry| entry.changing = false);
    }

    fn places(&self) -> u32 {
        self.entry.range.pages()
    }

    fn hold(&self, place: u32) -> Hold {
        // Nothing moves a page of device memory, so its reference is hold enough.
        let pfn = self.page(place);
        let user = MM.dev_page(pfn).and_then(|page| page.user);
        if user.is_some_and(|user| user.tag == self.entry.handle) { Hold::Held(pfn) } else { Hold::Empty }
    }

    fn pattern(&self, place: u32) -> PagePattern {
        PagePattern::new(self.entry.handle, self.page(place).get(), false)
    }

    fn let_go(&self, _place: u32, _pfn: Pfn) {}

    fn release(&mut self, _place: u32, pfn: Pfn) {
        MM.put_dev_page(pfn, self.entry.handle).expect("the page's user is this workload");
    }

    fn forget(&self) {
        ENTRIES.lock().retain(|entry| entry.number != self.entry.number);
    }
}
