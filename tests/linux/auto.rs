//! Stock Linux is sized by what the statistics of its balloon say.

use std::time::{Duration, Instant};

use tidevm_machine::{HotplugConfig, Size};
use tidevm_sizer::{Pace, Sizer, Status, Wish};
use tidevm_tests::Test;

use crate::guest::{LIMIT, Linux, config};

pub const TESTS: &[Test] = &[("linux_is_sized_by_its_load", linux_is_sized_by_its_load)];

/// What the guest fills, 16 MiB at a time.
const LOAD: Size = Size::mib(20 * 16);

/// Waits until `is_it` accepts how the VM is sized.
#[track_caller]
fn await_status(linux: &Linux, sizer: &Sizer, what: &str, is_it: impl Fn(&Status) -> bool) -> Status {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = sizer.status(&linux.vm).expect("it is sized");
        if is_it(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "waited for {what}: {status:?}; the console:\n{}", linux.text());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The load is more than boot memory. A guest that got no memory would end a process, or all of them.
fn linux_is_sized_by_its_load() {
    let wish = Wish { min: Size::mib(384), max: Size::gib(1), headroom: 30 };
    let (console, mut config) = config("at=0:fill-20 at=64:wait at=64:drop");
    config.memory = wish.min;
    config.hotplug = vec![HotplugConfig::new(Size::gib(2))];
    config.balloon = Some("stats=250ms".parse().expect("a balloon"));
    let bounds = wish.bounds(&config).expect("bounds");
    let (calm, step) = (Duration::from_secs(2), Duration::from_millis(200));
    let sizer = Sizer::new(Pace { calm, step, longest: Duration::from_secs(10) }, Some(bounds));
    let sizer = sizer.expect("a descriptor");
    let linux = Linux::start(console, config, vec![sizer.beside()]);
    linux.await_text("the guest has filled its memory");
    let full = await_status(&linux, &sizer, "room for the load", |status| status.size > LOAD);
    linux.await_text("the guest has dropped its data");
    let start = Instant::now();
    // A difference of a sixteenth is no reason to shrink, and some of Linux's memory does not come back at once.
    let back = await_status(&linux, &sizer, "less memory", |status| status.size < Size::mib(448));
    println!("{} became {} within {} ms of the free", full.size, back.size, start.elapsed().as_millis());
    assert!(wish.min <= back.range.0 && back.range.1 <= wish.max && back.range.1 > wish.min, "{back:?}");
    assert!(back.counts.grows > 0 && back.counts.shrinks > 0 && !back.held, "{back:?}");
    assert!(!linux.text().contains("Out of memory"), "{}", linux.text());
    linux.assert_content();
}
