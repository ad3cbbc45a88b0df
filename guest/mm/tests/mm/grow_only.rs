//! A machine that only grows: its platform has the methods that every platform must have, and no more.
#![expect(unsafe_code, reason = "implements the platform, whose contract is unsafe")]

use std::sync::Mutex;

use tidevm_mm::{
    AddError, Gfp, Holder, InitPolicy, MemoryContent, Mm, NodeId, OfflineError, Options, Order, PAGE_SIZE,
    PageblockSet, Pfn, PfnRange, Platform, SectionNr, SectionRange, SectionState, ZoneType,
};

use crate::window::{self, Window};

/// The first section of the memory that comes.
const REGION: u32 = 4;

struct Smallest {
    window: Window,
    /// What another CPU does during the next grace period.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

// SAFETY: the whole window is readable and writable at all times. There is one CPU.
unsafe impl Platform for Smallest {
    fn this_cpu(&self) -> usize {
        0
    }

    fn map_prepared_memmap(&self, section: SectionNr, _: Pfn) {
        self.window.scribble(section);
    }

    fn unmap_memmap(&self, section: SectionNr) {
        self.window.scribble(section);
    }

    fn map_prepared_direct(&self, _: PfnRange) {}

    fn unmap_direct(&self, _: PfnRange) {}

    fn synchronize(&self) {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        meanwhile.into_iter().for_each(|act| act());
    }
}

fn machine(options: Options) -> &'static Mm<Smallest> {
    let window = Window::new();
    let mm = window::machine(Smallest { window, meanwhile: Mutex::new(None) }, window);
    window::boot(mm, options);
    mm
}

/// A machine with 4 memory blocks online in `zone`.
fn grown(options: Options, zone: ZoneType) -> &'static Mm<Smallest> {
    let mm = machine(options);
    let end =
        mm.hotplug()
            .add_and_online_memory(NodeId::FIRST, region(4), 1, zone, MemoryContent::Unknown, || true);
    assert_eq!(end.unwrap(), SectionNr::new(REGION + 4));
    mm.check();
    mm
}

fn region(sections: u32) -> SectionRange {
    SectionRange::new(SectionNr::new(REGION), sections).unwrap()
}

/// Takes single pages until one of them lies in `nr`, and gives the others back.
fn page_in(mm: &Mm<Smallest>, nr: SectionNr, gfp: Gfp) -> Pfn {
    let mut others = Vec::new();
    let page = loop {
        let page = mm.alloc_pages(Order::PAGE, gfp).expect("the section has free pages");
        if page.section() == nr {
            break page;
        }
        others.push(page);
    };
    others.into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
    page
}

#[test]
fn a_machine_that_only_grows_gives_back_what_nothing_uses() {
    for init in [InitPolicy::Eager, InitPolicy::Lazy] {
        let mm = grown(Options::DEFAULT.with_init(init), ZoneType::Movable);
        let (used, unused) = (SectionNr::new(REGION + 1), SectionNr::new(REGION + 3));
        let before = mm.stats().zones;
        let page = page_in(mm, used, Gfp::Movable);
        let part = mm.hotplug().offline_and_remove_from_end(region(4), || true).unwrap_err();
        let Some(OfflineError::InUse(stuck)) = part.error else { panic!("{init:?}: {part:?}") };
        assert_eq!(
            (part.first, stuck.pages),
            (SectionNr::new(REGION + 2), 1),
            "{init:?}: what lies above has left"
        );
        assert_eq!(stuck.first[0], Some((page, Holder::Unclaimed)));
        let text = part.error.unwrap().to_string();
        assert!(text.starts_with("pages are in use, and this machine does not migrate pages: "), "{text}");
        assert_eq!(
            [used, unused].map(|nr| mm.section_state(nr)),
            [SectionState::Online, SectionState::Absent]
        );
        mm.check();

        // The block that stays goes on: no pageblock of it is isolated.
        let more = page_in(mm, used, Gfp::Movable);
        [page, more].into_iter().for_each(|page| mm.free_pages(page, Order::PAGE));
        mm.hotplug().offline_and_remove_from_end(region(2), || true).expect("nothing uses it any more");
        mm.check();
        let movable = mm.stats().zones[ZoneType::Movable.index()];
        assert_eq!((movable.present, movable.managed), (0, 0));
        let add = || {
            mm.hotplug().add_and_online_memory(
                NodeId::FIRST,
                region(4),
                1,
                ZoneType::Movable,
                MemoryContent::Unknown,
                || true,
            )
        };
        add().expect("it can come again");
        assert_eq!(mm.stats().zones, before, "{init:?}");
    }
}

/// Kernel data is in the way just the same, and so is a range that is to be allocated in one piece.
#[test]
fn a_page_of_the_kernel_is_in_use_too() {
    let mm = machine(Options::DEFAULT);
    let page = mm.alloc_pages(Order::PAGE, Gfp::Kernel).unwrap();
    let pageblock = PageblockSet::range(page.pageblock()..page.pageblock() + 1);
    let taken = mm.hotplug().alloc_contig_range(page.section(), pageblock);
    let Err(OfflineError::InUse(stuck)) = taken else { panic!("{taken:?}") };
    assert_eq!((stuck.pages, stuck.first[0]), (1, Some((page, Holder::Kernel))));
    mm.free_pages(page, Order::PAGE);
    mm.hotplug().alloc_contig_range(page.section(), pageblock).expect("it is free");
    mm.check();
}

/// A page that another CPU was giving back when the memory block was to go is no reason to stay.
#[test]
fn a_page_that_is_being_freed_is_not_in_use() {
    let mm = grown(Options::DEFAULT, ZoneType::Movable);
    let nr = SectionNr::new(REGION);
    let page = page_in(mm, nr, Gfp::Movable);
    let hotplug = mm.hotplug();
    // The first grace period is that of the per-CPU lists.
    *mm.platform().meanwhile.lock().unwrap() = Some(Box::new(move || {
        *mm.platform().meanwhile.lock().unwrap() = Some(Box::new(move || mm.free_pages(page, Order::PAGE)));
    }));
    assert_eq!(hotplug.offline(nr), Ok(()));
    drop(hotplug);
    mm.check();
}

/// Where the memmap is to lie in older memory, it lies in one piece or nothing is added.
#[test]
fn a_memmap_that_fits_nowhere_in_one_piece_is_an_error() {
    let mm = machine(Options::DEFAULT.with_memmap_on_memory(false));
    let nr = SectionNr::new(REGION);
    let add = || mm.hotplug().add_memory(NodeId::FIRST, nr, PageblockSet::ALL, MemoryContent::Unknown);
    add().expect("there is a large page");
    mm.hotplug().remove_memory(nr).unwrap();
    let pages: Vec<Pfn> = std::iter::from_fn(|| mm.alloc_pages(Order::PAGE, Gfp::Kernel).ok()).collect();
    pages.iter().step_by(2).for_each(|&page| mm.free_pages(page, Order::PAGE));
    assert_eq!(add(), Err(AddError::NoPageTable));
    assert_eq!(mm.section_state(nr), SectionState::Absent);
    let free = mm.stats().zones[ZoneType::Dma32.index()].free;
    assert!(free * PAGE_SIZE > 2 << 20, "{free} pages are free");
    mm.check();
}
