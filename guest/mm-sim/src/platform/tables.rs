//! Page-table pages, where a machine takes them from the allocator.
//!
//! Invariant: a page goes back when the last mapping that it was taken for is gone, and has kept its content.

use core::ops::Range;

use tidevm_mm::{FaultStep, Gfp, NoPageTable, Order, PAGEBLOCK_PAGES, Pfn, PfnRange, Platform, SectionNr};

use super::Sim;

/// A page-table page, with the mappings that need it.
pub(super) struct Table {
    page: Pfn,
    /// Those that are left, as [`direct_map`] or [`memmaps`] numbers them.
    mappings: Vec<u64>,
}

/// The mappings of pageblocks in the direct map.
pub(super) fn direct_map(range: PfnRange) -> Range<u64> {
    let [first, end] = [range.start(), range.end()].map(|pfn| u64::from(pfn.get() / PAGEBLOCK_PAGES));
    first..end
}

/// The mappings of the memmaps of `count` sections from `first` on.
pub(super) fn memmaps(first: SectionNr, count: u32) -> Range<u64> {
    let first = 1 << 32 | u64::from(first.get());
    first..first + u64::from(count)
}

impl Sim {
    /// A page-table page for new mappings.
    pub(super) fn take_table(&self, mappings: Range<u64>) -> Result<(), NoPageTable> {
        if self.fault(FaultStep::PageTable) {
            return Err(NoPageTable);
        }
        let mm = self.mm();
        if !self.page_tables || !mm.has_memory() {
            return Ok(());
        }
        let page = mm.alloc_pages(Order::PAGE, Gfp::PageTable).map_err(|_| NoPageTable)?;
        self.write(page, u64::from(page.get()));
        let table = Table { page, mappings: mappings.collect() };
        self.tables_in_use.lock().expect("no panic holds it").push(table);
        Ok(())
    }

    /// Gives back the page-table pages that only `mappings` needed, which are gone.
    pub(super) fn give_tables_back(&self, mappings: &Range<u64>) {
        let mut unused = Vec::new();
        self.tables_in_use.lock().expect("no panic holds it").retain_mut(|table| {
            table.mappings.retain(|mapping| !mappings.contains(mapping));
            if table.mappings.is_empty() {
                unused.push(table.page);
            }
            !table.mappings.is_empty()
        });
        for page in unused {
            assert_eq!(self.read(page), u64::from(page.get()), "content of a page table");
            self.mm().free_pages(page, Order::PAGE);
        }
    }
}
