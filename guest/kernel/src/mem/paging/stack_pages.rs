//! Stacks in a window of their own, by small pages, so that the pages between them can stay unmapped.
//!
//! Mirrors the mappings of Linux `VMAP_STACK`. The parent's invariants about tables and their lock hold here. Pages
//! of stacks are never unmapped.

use core::sync::atomic::Ordering;

use super::{
    ADDRESS, LARGE, LOCK, MEMORY, NoPageTable, PRESENT, TableSource, entry, index, next_table, root,
};

/// Maps one page of a stack at `virt`.
///
/// # Errors
/// [`NoPageTable`]; tables that were made stay.
pub fn map_stack_page(virt: u64, phys: u64, source: &mut dyn TableSource) -> Result<(), NoPageTable> {
    let _guard = LOCK.lock();
    let mut table = root();
    for level in [3, 2, 1] {
        table = next_table(entry(table, index(virt, level)), source)?;
    }
    let before = entry(table, index(virt, 0)).swap(phys | (MEMORY & !LARGE), Ordering::Release);
    assert_eq!(before, 0, "{virt:#x} is mapped, and not to {phys:#x}");
    Ok(())
}

/// Whether any page is mapped at `virt`.
pub fn is_mapped(virt: u64) -> bool {
    let mut table = root();
    for level in [3, 2, 1, 0] {
        let value = entry(table, index(virt, level)).load(Ordering::Relaxed);
        if value & PRESENT == 0 {
            return false;
        }
        if level > 0 && value & LARGE != 0 {
            return true;
        }
        table = value & ADDRESS;
    }
    true
}
