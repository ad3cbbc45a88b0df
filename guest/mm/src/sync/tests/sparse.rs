//! `sparse`: a CPU that reads the state of a section sees what was true before that state was set.

use crate::addr::{Pfn, SectionNr};
use crate::lock::Locks;
use crate::page::Link;
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
    let (pfn, link) = (NR.start().add(7), Link::to(Pfn::new(9)));
    in_every_execution(
        move || {
            sparse.pages_to_initialise(NR, &Owner).page(pfn).set_next(link);
            sparse.set_state(NR, SectionState::Initialised, &Owner);
        },
        move || {
            if let Some(pages) = sparse.pages(NR) {
                assert_eq!(pages.page(pfn).next(), link, "a page that is not initialised");
            }
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
