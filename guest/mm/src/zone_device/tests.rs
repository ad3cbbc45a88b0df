//! The moment when device memory becomes visible.
//!
//! `d17` is row 17 of `docs/pitfalls.md`.

use crate::addr::{Pfn, SECTION_PAGES, SectionNr};
use crate::node::NodeId;
use crate::options::DeviceInit;
use crate::sim::SimMachine;
use crate::sparse::SectionState;
use crate::{DevPageError, DevPagemap, Options, PfnRange, steps};

const FIRST: SectionNr = SectionNr::new(32);
const SECTIONS: u32 = 2;

/// At every step of mapping, also between the last page and the end of the last call, no page is visible: neither
/// the first nor the last, nor the pgmap. They become visible after the last section was marked.
#[test]
fn d17_the_pgmap_is_published_last() {
    for device_init in [DeviceInit::Once, DeviceInit::Twice] {
        let mm =
            SimMachine { options: Options { device_init, ..SimMachine::OPTIONS }, ..SimMachine::default() }
                .boot();
        let range = PfnRange::new(FIRST.start(), SECTIONS * SECTION_PAGES);
        let ends = [range.start(), Pfn::new(range.end().get() - 1)];
        let hidden = move || {
            for pfn in ends {
                assert_eq!(mm.dev_page(pfn), None);
                assert_eq!(mm.get_dev_page(pfn, 1), Err(DevPageError::NotDevice));
            }
            let device = mm.pgmaps.stats();
            assert_eq!((device.refs, device.pages), (0, 0));
        };
        let map = DevPagemap { range, node: NodeId::FIRST, altmap: None };
        let steps = steps::each(hidden, || _ = mm.memremap_pages(map).unwrap());
        let writes = if device_init == DeviceInit::Once { 1 } else { 2 };
        // Each page is written, and each section becomes Present and Initialised.
        assert!(steps >= writes * range.pages() + 2 * SECTIONS, "{steps} steps");
        for pfn in ends {
            assert!(mm.dev_page(pfn).is_some());
            assert_eq!(mm.section_state(pfn.section()), SectionState::Initialised);
        }
        mm.check();
    }
}
