//! Host mappings: alignment, bounds, discarding memory and taking it out of the view.

use std::io::Write;

use vm_memory::{Bytes, GuestAddress};

use super::{FailedCall, GIANT, HUGE, Mapping, OffsetRange, PAGE, check};
use crate::memory::fake::{at, offsets, unplug, unplug_all};

#[test]
fn host_and_guest_are_aligned_alike() {
    for (size, align) in [(2 << 20, HUGE), (1 << 30, GIANT), ((1 << 30) + (128 << 20), GIANT)] {
        let mapping = Mapping::reserve(size).unwrap();
        assert_eq!(mapping.host_address() % align as u64, 0);
        assert_eq!(mapping.size(), size);
    }
}

#[test]
fn a_mapping_reserves_its_size_and_two_guard_pages() {
    for size in [2 << 20, 1 << 30, (1 << 30) + (128 << 20)] {
        let mapping = Mapping::reserve(size).unwrap();
        let guards = (mapping.host_address() - PAGE as u64, size as usize + 2 * PAGE);
        assert_eq!((mapping.reserved.as_ptr() as u64, mapping.reserved_size), guards);
        // The guard pages are mapped: only such pages can be protected.
        for page in [guards.0, mapping.host_address() + size] {
            // SAFETY: the page belongs to the mapping, and stays out of reach.
            check(unsafe { libc::mprotect(page as *mut _, PAGE, libc::PROT_NONE) }).unwrap();
        }
    }
}

/// The host has addresses for one such mapping, not for two.
#[test]
fn a_mapping_that_is_dropped_gives_its_addresses_back() {
    for _ in 0..3 {
        drop(Mapping::reserve(64 << 40).unwrap());
    }
}

#[test]
fn ranges_outside_are_refused() {
    let mapping = Mapping::reserve(4 << 20).unwrap();
    let backwards = std::ops::Range { start: 8192, end: 4096 };
    assert_eq!(OffsetRange::new(backwards), None);
    for range in [0..(4 << 20) + 4096, u64::MAX - 4095..u64::MAX].map(offsets) {
        assert!(mapping.open(range).is_err() && mapping.discard(range).is_err());
    }
}

#[test]
fn more_than_there_are_addresses_is_an_error() {
    assert_eq!(Mapping::reserve(1 << 60).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    assert_eq!(Mapping::reserve(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(Mapping::reserve(!0x1f_ffff).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
}

/// Reports loudly that a test is skipped. Not with a macro: the test harness captures the output of macros.
fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    writeln!(std::io::stderr(), "SKIP {name}: {reason}").unwrap();
}

/// Linux refuses to change sealed memory, so memory that an unplug closed cannot be opened again.
#[test]
fn memory_that_cannot_be_opened_again_is_out_of_view() {
    use tidevm_abi::MEMORY_BLOCK_SIZE;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use crate::memory::fake::memory;
    use crate::memory::layout::HOLE_END;

    /// Number of `mseal`, since Linux 6.10.
    const MSEAL: libc::c_long = 462;
    let (memory, slots) = memory(64 << 20, &[MEMORY_BLOCK_SIZE]);
    let plugged = at(HOLE_END..HOLE_END + (6 << 20));
    memory.plug(0, plugged).unwrap();
    let (start, size) = memory.region_mappings[0].locate(offsets(2 << 20..(2 << 20) + 4096)).unwrap();
    // SAFETY: the page is in the mapping. It stays mapped to the end of the process.
    if unsafe { libc::syscall(MSEAL, start, size, 0) } != 0 {
        skip(&format!("mseal: {}", std::io::Error::last_os_error()));
        return;
    }
    let lost = at(HOLE_END + (2 << 20)..HOLE_END + (4 << 20));
    assert!(unplug(&memory, 0, lost).is_err());
    let windows: Vec<_> = memory.view().iter().skip(1).map(|run| (run.start_addr().0, run.len())).collect();
    assert_eq!(windows, [(plugged.start().0, 2 << 20), (lost.end().0, 2 << 20)]);
    // The unplug can be repeated, and the rest is unplugged as usual.
    assert!(unplug(&memory, 0, lost).is_err());
    unplug(&memory, 0, at(plugged.start().0..lost.start().0)).unwrap();
    unplug(&memory, 0, at(lost.end().0..plugged.end().0)).unwrap();
    assert_eq!((memory.view().iter().count(), slots.count()), (1, 1));
}

/// KiB of a mapping in huge pages.
fn huge(mapping: &Mapping) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", mapping.host_address());
    let own = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let line = own.into_iter().find_map(|line| line.strip_prefix("AnonHugePages:"));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// What is written for the start lies in small pages; what the guest touches later lies in huge ones.
#[test]
fn boot_memory_has_huge_pages_from_the_start_of_the_guest_on() {
    use vm_memory::{Bytes, GuestAddress};

    use crate::memory::fake::memory;

    let (memory, _) = memory(64 << 20, &[]);
    let write = |address| memory.view().write_obj(1_u8, GuestAddress(address)).unwrap();
    [0x6000, 0x7000, 2 << 20].into_iter().for_each(write);
    assert_eq!((huge(&memory.boot), memory.boot_held().unwrap().0), (0, 3 * PAGE as u64));
    memory.start_huge_pages();
    write(0x8000);
    assert_eq!((huge(&memory.boot), memory.boot_held().unwrap().0), (0, 4 * PAGE as u64));
    write(32 << 20);
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if enabled.map_or(true, |enabled| enabled.contains("[never]")) {
        skip("this host has no transparent huge pages");
        return;
    }
    assert_eq!(huge(&memory.boot), HUGE as u64 >> 10);
}

/// A plug of memory that is not wanted takes no memory, and what is wanted comes in huge pages.
#[test]
fn plugged_memory_has_huge_pages() {
    use vm_memory::{Bytes, GuestAddress};

    use crate::memory::fake::memory;
    use crate::memory::layout::HOLE_END;

    let (memory, _) = memory(64 << 20, &[128 << 20]);
    memory.plug(0, at(HOLE_END..HOLE_END + (4 << 20))).unwrap();
    memory.view().write_obj(1_u8, GuestAddress(HOLE_END)).unwrap();
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if enabled.map_or(true, |enabled| enabled.contains("[never]")) {
        skip("this host has no transparent huge pages");
        return;
    }
    assert_eq!(huge(&memory.region_mappings[0]), HUGE as u64 >> 10);
}

/// Locks the page at `offset`, as a process does that wants its memory to stay (`mlock`). Returns whether the host lets it.
fn lock_page(mapping: &Mapping, offset: u64) -> bool {
    let (page, size) = mapping.locate(offsets(offset..offset + PAGE as u64)).unwrap();
    // SAFETY: `locate` checked that the page is in the mapping. Locking it changes no content.
    let result = check(unsafe { libc::mlock(page, size) });
    if let Err(error) = &result {
        skip(&format!("mlock: {error}"));
    }
    result.is_ok()
}

/// The host discards in order, and stops where it may not. An answer that says that nothing has changed must be true of
/// the blocks before that place too.
#[test]
fn an_unplug_over_a_locked_page_loses_all_content_or_none() {
    const START: u64 = crate::memory::layout::HOLE_END;
    const BLOCK: u64 = 2 << 20;
    type Unplug = fn(&crate::memory::Memory) -> Result<(), FailedCall>;
    let unplugs: [Unplug; 2] =
        [|memory| unplug(memory, 0, at(START..START + 4 * BLOCK)), |memory| unplug_all(memory, 0)];
    for unplug in unplugs {
        let (memory, _) = crate::memory::fake::memory(64 << 20, &[1 << 30]);
        memory.plug(0, at(START..START + 4 * BLOCK)).unwrap();
        let bytes = |memory: &crate::memory::Memory| -> Vec<u8> {
            (0..4).map(|block| memory.view().read_obj(GuestAddress(START + block * BLOCK)).unwrap()).collect()
        };
        for block in 0..4 {
            memory.view().write_obj(7_u8, GuestAddress(START + block * BLOCK)).unwrap();
        }
        if !lock_page(&memory.region_mappings[0], 2 * BLOCK) {
            return;
        }
        match unplug(&memory) {
            Ok(()) => {
                assert_eq!(memory.held().unwrap()[0].0, 0);
                memory.plug(0, at(START..START + 4 * BLOCK)).unwrap();
                assert_eq!(bytes(&memory), [0; 4]);
            }
            Err(error) => {
                assert_eq!(bytes(&memory), [7; 4]);
                skip(&format!("the host discards no locked pages: {error}"));
            }
        }
    }
}

/// Such a host is older than Linux 5.18.
#[test]
fn a_host_that_discards_no_locked_page_discards_nothing_beside_it() {
    let mapping = Mapping::reserve(8 << 20).unwrap();
    mapping.open(mapping.all()).unwrap();
    let first = || {
        let (start, _) = mapping.locate(mapping.all()).unwrap();
        // SAFETY: the mapping is open, and no other thread knows it.
        unsafe { start.cast::<u8>().as_mut().unwrap() }
    };
    *first() = 7;
    if !lock_page(&mapping, 4 << 20) {
        return;
    }
    assert!(mapping.discard_unlocked(mapping.all()).is_err());
    assert_eq!(*first(), 7);
    mapping.discard_unlocked(offsets(0..4 << 20)).unwrap();
    assert_eq!(*first(), 0);
}
