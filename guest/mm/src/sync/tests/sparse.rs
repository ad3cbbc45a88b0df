//! `sparse`: a CPU that reads the state of a section sees what was true before that state was set.

use crate::addr::{Order, SectionNr};
use crate::lock::Locks;
use crate::page::{Kind, Page, PageState};
use crate::sparse::{SectionOwner, SectionState};
use crate::sync::tests::{Data, fixed, in_every_execution, machine};

const NR: SectionNr = SectionNr::new(1);

struct Owner;

impl SectionOwner for Owner {
    const LOCKS: Locks = Locks::ANY;
}

/// `set_state` and `has_pages`: from Initialised on, the pages of a section mean something.
#[test]
fn a_section_is_published_with_its_pages() {
    let sparse = &machine().sparse;
    sparse.set_state(NR, SectionState::Present, &Owner);
    let (pfn, pgmap) = (NR.start().add(7), 9);
    in_every_execution(
        move || {
            sparse.pages_to_initialise(NR, &Owner).page(pfn).init_device(pgmap);
            sparse.set_state(NR, SectionState::Initialised, &Owner);
        },
        move || {
            if let Some(pages) = sparse.pages(NR) {
                assert_eq!(pages.page(pfn).pgmap(), pgmap, "a page that is not initialised");
            }
        },
    );
}

/// `Page::init_pageblock` writes by plain stores: the section that is published afterwards publishes its pages too.
#[test]
fn pages_of_a_section_are_set_before_it_is_published() {
    let sparse = &machine().sparse;
    sparse.set_state(NR, SectionState::Present, &Owner);
    let tail = PageState::new(Kind::Tail, Order::PAGE);
    in_every_execution(
        move || {
            // One struct page with states: a model has no room for all of them.
            Page::init_pageblock(&sparse.pages_to_initialise(NR, &Owner).parts(0)[..1], tail);
            sparse.set_state(NR, SectionState::Initialised, &Owner);
        },
        move || {
            let found = sparse.pages(NR).map(|pages| [7, 8].map(|at| pages.page(NR.start().add(at)).state()));
            assert!(found.is_none_or(|states| states == [tail; 2]), "pages that are not set: {found:?}");
        },
    );
}

/// `set_state` and `state`: from Present on, the memmap is mapped.
#[test]
fn a_section_is_present_with_its_memmap() {
    let sparse = &machine().sparse;
    let mapped = fixed(Data::new());
    in_every_execution(
        || {
            mapped.write();
            sparse.set_state(NR, SectionState::Present, &Owner);
        },
        || {
            if sparse.entry(NR).state() >= SectionState::Present {
                mapped.assert_written();
            }
        },
    );
}
