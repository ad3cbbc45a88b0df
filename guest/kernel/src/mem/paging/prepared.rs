//! Prepared memory: what mapping it needs is set aside, so that a CPU can map it with any lock held and without
//! an allocation. Deferred memory is mapped like this when it is wanted.
//!
//! Takes the place of Linux's `vmemmap_populate` and `kernel_physical_mapping_init` at boot and at hot-add, which map
//! everything at once.
//!
//! A table of the direct map maps 1 GiB, and one of the vmemmap window the memmaps of 64 GiB. A page for each table is set
//! aside. Its address is in the entry that will point to the table, which is not present: the processor ignores the other
//! bits then. The first CPU that maps something there clears the page and makes it the table.
//!
//! Pages of 1 GiB are not used, although they would need no table: what is not wanted would be mapped too.
//!
//! Invariants: an entry with [`SET_ASIDE`] is not present, and nothing else refers to its page. The memory hotplug lock
//! is held where pages are set aside and given back, except at boot, while one CPU runs.

use core::sync::atomic::{AtomicU64, Ordering};
use core::mem;

use super::{
    ADDRESS, LARGE_PAGE, LOCK, MEMORY, NoPageTable, PRESENT, SET_ASIDE, SMALL_PAGE, TABLE_SPAN, TableSource,
    WRITABLE, clear_page, entries, entry, index, is_empty, next_table, root, span_of_table,
};

/// Software bit of an entry with [`SET_ASIDE`]: a CPU is making the table.
const BEING_MADE: u64 = 1 << 11;

/// The table of `slot`, which is there or set aside. It needs no lock: the first CPU that finds the page set aside makes
/// it the table, and others wait for that, which takes as long as clearing a page.
pub(super) fn table(slot: &AtomicU64) -> u64 {
    loop {
        let value = slot.load(Ordering::Acquire);
        if value & PRESENT != 0 {
            return value & ADDRESS;
        }
        assert!(value & SET_ASIDE != 0, "no page is set aside for a table: {value:#x}");
        let is_free = value & BEING_MADE == 0;
        let making = value | BEING_MADE;
        if is_free && slot.compare_exchange(value, making, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            let table = value & ADDRESS;
            clear_page(table);
            slot.store(table | PRESENT | WRITABLE, Ordering::Release);
            return table;
        }
        core::hint::spin_loop();
    }
}

/// The starts of the parts of `virt..end` that one table each maps.
fn spans(virt: u64, end: u64) -> impl Iterator<Item = u64> {
    (span_of_table(virt).0..end).step_by(TABLE_SPAN as usize)
}

/// How many tables the large pages from `virt` to `end` need.
pub fn tables_for(virt: u64, end: u64) -> u64 {
    spans(virt, end).count() as u64
}

/// Sets pages aside for the tables that the large pages from `virt` to `end` need.
///
/// # Errors
/// [`NoPageTable`]; nothing is set aside then.
pub fn prepare(virt: u64, end: u64, source: &mut dyn TableSource) -> Result<(), NoPageTable> {
    let guard = LOCK.lock();
    let (mut next, end) = (span_of_table(virt).0, span_of_table(end - 1).1);
    while next < end {
        match set_aside(next, end, source) {
            (stop, Ok(())) => next = stop,
            (stop, Err(error)) => {
                drop(guard);
                next = virt;
                while next < stop {
                    next = release(next, stop, source);
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Sets pages aside for the tables from `virt` to `end`, at most up to the end of the table above them. Returns where it
/// stopped.
fn set_aside(virt: u64, end: u64, source: &mut dyn TableSource) -> (u64, Result<(), NoPageTable>) {
    let upper = match next_table(entry(root(), index(virt, 3)), source) {
        Ok(upper) => upper,
        Err(error) => return (virt, Err(error)),
    };
    // One call of the source for many pages: this loop is what the size of memory costs at boot.
    let mut stock = mem::take(source.stock());
    let mut next = virt;
    for slot in entries(upper, virt, end, TABLE_SPAN) {
        if slot.load(Ordering::Relaxed) == 0 {
            let page = if stock.is_empty() { source.take() } else { Some(stock.start) };
            let Some(page) = page else { return (next, Err(NoPageTable)) };
            slot.store(page | SET_ASIDE, Ordering::Release);
            stock.start = stock.end.min(stock.start + SMALL_PAGE);
        }
        next += TABLE_SPAN;
    }
    *source.stock() = stock;
    (next, Ok(()))
}

/// Maps the large pages from `virt` to `end`, for which [`prepare`] was called, to the memory from `phys` on. It needs no lock: the tables stay, and no other CPU changes these entries.
pub fn map_prepared(virt: u64, end: u64, phys: u64) {
    let (mut next, mut page) = (virt, phys | MEMORY);
    while next < end {
        let upper = entry(root(), index(next, 3)).load(Ordering::Acquire);
        assert!(upper & PRESENT != 0, "no tables for {next:#x}");
        let table = table(entry(upper & ADDRESS, index(next, 2)));
        for slot in entries(table, next, end, LARGE_PAGE) {
            assert_eq!(slot.load(Ordering::Relaxed), 0, "{next:#x} is mapped, and not to {page:#x}");
            slot.store(page, Ordering::Release);
            page += LARGE_PAGE;
            next += LARGE_PAGE;
        }
    }
}

/// Gives back what [`prepare`] set aside from `virt` to `end`, as far as the tables do not stay and map
/// nothing. Stops behind a table that a CPU may have seen, for the caller to flush the TLBs. Returns where it stopped.
pub fn release(virt: u64, end: u64, source: &mut dyn TableSource) -> u64 {
    let _guard = LOCK.lock();
    for span in spans(virt, end) {
        let upper = entry(root(), index(span, 3)).load(Ordering::Relaxed);
        if upper & PRESENT == 0 || source.stays(span) {
            continue;
        }
        let slot = entry(upper & ADDRESS, index(span, 2));
        let value = slot.load(Ordering::Acquire);
        if value & SET_ASIDE != 0 {
            slot.store(0, Ordering::Release);
            source.give_back(value & ADDRESS);
        } else if value & PRESENT != 0 && is_empty(value & ADDRESS) {
            slot.store(0, Ordering::Release);
            source.free(value & ADDRESS);
            return end.min(span + TABLE_SPAN);
        }
    }
    end
}
