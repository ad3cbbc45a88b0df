//! Boot memory in a booted guest: mapped when it is wanted, whoever wants it. Each `check` looks at the page tables of all
//! sections. Buffers that nobody writes to take most of what boot initialises, so that little is enough to want more.

use tidevm_abi::{MEMORY_BLOCK_SIZE, ZoneName};
use tidevm_machine::{Config, Size};
use tidevm_tests::{Session, Test, machine, run_checked};

pub const TESTS: &[Test] = &[
    ("boot_memory_is_mapped_when_it_is_wanted", is_mapped_when_it_is_wanted),
    ("boot_memory_that_pages_move_to_is_mapped", pages_move_to_what_nobody_has_claimed),
];

/// Boot memory above 4 GiB is initialised first. Of its first memory block 8 MiB are left.
fn config() -> Config {
    Config {
        cpus: 2,
        memory: Size::gib(5),
        cmdline: Some("percpu_buf=60M".to_owned()),
        ..machine(4 * MEMORY_BLOCK_SIZE)
    }
}

/// Memory blocks that no allocation has claimed, after `step`.
fn deferred(session: &Session, step: usize) -> u64 {
    let guest = session.steps[step].sample.guest.expect("a guest to ask");
    guest.deferred_pages.div_ceil(MEMORY_BLOCK_SIZE >> 12)
}

fn is_mapped_when_it_is_wanted() {
    let script = "
        expect deferred != 0
        churn 2 threads for 500ms as storm
        hog 12M unmovable as a
        wait storm
        plug 128M
        hog 4M movable as b
        verify a
        release a
        resize 0
        verify b
        release b";
    let session = run_checked(config(), script);
    session.assert_done();
    assert_eq!(deferred(&session, 0), 39, "of 40, one is initialised");
    let after = deferred(&session, 10);
    assert!((37..39).contains(&after), "{after} memory blocks are left");
}

/// The pages of memory that goes offline find their place in boot memory that was not mapped before.
fn pages_move_to_what_nobody_has_claimed() {
    let script = "
        resize 128M
        hog 12M movable as data
        resize 0 within 60s
        verify data
        release data";
    let session = run_checked(config(), script);
    session.assert_done();
    assert_eq!(deferred(&session, 1) - deferred(&session, 2), 1, "claimed by pages that move");
    assert_eq!(session.at_the_end().managed(ZoneName::Movable), 0);
}
