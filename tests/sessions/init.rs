//! The policies of initialising struct pages, in a booted guest: they end in the same state, and early allocations
//! succeed.

use tidevm_abi::MEMORY_BLOCK_SIZE;
use tidevm_machine::{Config, ConsoleMode, DeathKind, InitPolicy, Size};
use tidevm_tests::{Account, Test, machine, run, run_checked, start};

pub const TESTS: &[Test] = &[
    ("every_policy_ends_in_the_same_state", every_policy_ends_in_the_same_state),
    ("early_buffers_make_deferred_memory_come", early_buffers_make_deferred_memory_come),
    ("early_buffers_at_the_scale_of_tracing", early_buffers_at_the_scale_of_tracing),
    ("without_growing_early_buffers_are_too_much", without_growing_early_buffers_are_too_much),
    ("one_worker_initialises_all_that_was_deferred", one_worker_initialises_all_that_was_deferred),
    ("a_buffer_that_cannot_fit_is_named", a_buffer_that_cannot_fit_is_named),
    ("deferred_memory_blocks_are_listed_and_counted", deferred_memory_blocks_are_listed_and_counted),
];

const MIB: u64 = 1 << 20;

/// Boot memory of three memory blocks, so that two can be deferred.
fn config(init: InitPolicy) -> Config {
    Config { init, cpus: 2, memory: Size(3 * MEMORY_BLOCK_SIZE), ..machine(512 * MIB) }
}

fn every_policy_ends_in_the_same_state() {
    let script = "
        plug 130M
        hog 2M movable scattered full as data
        resize 128M within 60s
        verify data
        release data";
    let accounts = |init, written: u64| -> [Account; 2] {
        // Deferred boot memory may come shortly after the guest is ready, or not at all.
        let all_there = "expect deferred == 0 within 60s";
        let script = if init == InitPolicy::Lazy { script } else { &format!("{all_there}{script}") };
        let session = run_checked(config(init), script);
        session.assert_done();
        let last = session.steps.last().and_then(|step| step.sample.guest).expect("a guest");
        assert_eq!(last.memmaps_written, written, "{init}");
        // Two of the three memory blocks at boot are not needed when memory comes on demand.
        let unwanted = if init == InitPolicy::Lazy { 2 } else { 0 };
        assert_eq!(last.deferred_pages.div_ceil(MEMORY_BLOCK_SIZE >> 12), unwanted, "{init}");
        [session.after("plug 130M"), session.at_the_end()]
    };
    // Three memory blocks at boot, and two that are plugged.
    let eager = accounts(InitPolicy::Eager, 5);
    for (init, written) in [(InitPolicy::Deferred, 5), (InitPolicy::Lazy, 0)] {
        let other = accounts(init, written);
        for (eager, other) in eager.iter().zip(other) {
            assert_eq!(eager.zones, other.zones, "{init}");
            assert_eq!((eager.memmap, eager.blocks_online), (other.memmap, other.blocks_online), "{init}");
        }
    }
}

/// S2.7: two nodes have three memory blocks each, and the first memory block of each is initialised at once. The
/// node's own CPU initialises the others. With workers on both nodes this holds most of the time, not always.
fn one_worker_initialises_all_that_was_deferred() {
    let cmdline = |words: &str| Some(format!("tidevm.numa=384M:1,384M:1 {words}"));
    let config = |words: &str, init| Config {
        cmdline: cmdline(words),
        memory: Size(6 * MEMORY_BLOCK_SIZE),
        ..config(init)
    };
    let script = "expect deferred == 0 within 60s\nplug 130M";
    let one = run_checked(config("tidevm.deferred_workers=one", InitPolicy::Deferred), script);
    one.assert_done();
    let nodes = one.steps.last().and_then(|step| step.sample.guest).expect("a guest").nodes;
    let by = |node: usize| (nodes[node].init_local, nodes[node].init_remote);
    assert_eq!([by(0), by(1)], [(2, 0), (2, 0)]);
    let eager = run_checked(config("", InitPolicy::Eager), script);
    eager.assert_done();
    assert_eq!(one.after("plug 130M").zones, eager.after("plug 130M").zones);
}

/// Four CPUs take 64 MiB each while they start, in a guest with 384 MiB. Boot initialises 128 MiB of them.
fn early(words: &str) -> Config {
    Config { cpus: 4, cmdline: Some(format!("percpu_buf=64M {words}")), ..config(InitPolicy::Deferred) }
}

/// S1.2: early buffers make deferred memory come.
fn early_buffers_make_deferred_memory_come() {
    let session = run_checked(early(""), "expect deferred == 0 within 60s\nplug 128M");
    session.assert_done();
    assert_eq!(session.boot.ready.map(|ready| ready.cpus), Some(4));
}

/// S1.2: eight CPUs take 100 MiB each in 4 GiB, which Linux can do, and 200 MiB each in 2 GiB, where Linux starts
/// one of the eight CPUs.
fn early_buffers_at_the_scale_of_tracing() {
    for (memory, buffer) in [(Size::gib(4), "100M"), (Size::gib(2), "200M")] {
        let cmdline = Some(format!("percpu_buf={buffer}"));
        let config = Config { init: InitPolicy::Deferred, cpus: 8, memory, cmdline, ..machine(128 * MIB) };
        let session = run_checked(config, "expect deferred == 0 within 60s\nplug 128M");
        session.assert_done();
        assert_eq!(session.boot.ready.map(|ready| ready.cpus), Some(8), "{buffer} of {memory}");
        let end = session.at_the_end();
        let in_use: u64 = end.zones.iter().map(|zone| zone.3 - zone.4).sum();
        let wanted: u64 = if buffer == "100M" { 8 * 25_600 } else { 8 * 51_200 };
        assert!(in_use >= wanted, "{in_use} pages in use, {wanted} of buffers");
    }
}

/// Boots a guest that dies, and returns the kind of its death and the text on its console.
#[track_caller]
pub fn death(config: Config) -> (DeathKind, String) {
    let name = format!("tidevm-death-{}", std::process::id());
    let console = std::env::temp_dir().join(name);
    let vm = start(Config { console: ConsoleMode::File(console.clone()), ..config });
    let limit = std::time::Duration::from_secs(60);
    let died = vm.wait(limit, "the guest to die", |state| Some(state.death.as_ref()?.kind));
    drop(vm);
    let text = std::fs::read_to_string(&console).unwrap_or_default();
    drop(std::fs::remove_file(&console));
    (died.unwrap_or_else(|error| panic!("{error}\n{text}")), text)
}

/// The negative control of S1.1 and S1.2.
fn without_growing_early_buffers_are_too_much() {
    let (kind, text) = death(early("tidevm.deferred_grow=off"));
    assert_eq!(kind, DeathKind::OutOfMemory, "{text}");
    assert!(text.contains("percpu_buf: out of memory on CPU 1"), "{text}");
}

fn a_buffer_that_cannot_fit_is_named() {
    let config = early("");
    let (kind, text) = death(Config { cmdline: Some("percpu_buf=300M".to_owned()), ..config });
    assert_eq!(kind, DeathKind::GuestPanic, "{text}");
    assert!(text.contains("percpu_buf: CPU 1 wants 76800 pages"), "{text}");
}

/// Boot memory that no allocation has wanted is memory like any other in lists and numbers, with a state of its own.
fn deferred_memory_blocks_are_listed_and_counted() {
    let script = "blocks\ncheck\nexpect blocks.online == 3\nexpect deferred != 0";
    let session = run(config(InitPolicy::Lazy), script);
    session.assert_done();
    let note = |step: usize| match &session.steps[step].result {
        Ok(Some(note)) => note.clone(),
        other => panic!("{other:?}"),
    };
    let blocks = note(0);
    assert!(blocks.starts_with("0x0-0x7ffffff: 1 of 128 MiB, online DMA32, boot memory; "), "{blocks}");
    let deferred = "0x8000000-0x17ffffff: 2 of 128 MiB, deferred DMA32, boot memory";
    assert!(blocks.contains(deferred), "{blocks}");
    assert_eq!(note(1), "32768 pages checked, 65536 more are deferred");
}
