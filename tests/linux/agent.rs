//! Scripts that run on stock Linux with an agent and on tidevm's own guest, without a word that differs.

use tidevm_machine::Config;
use tidevm_session::script::Script;
use tidevm_session::{Ended, Record, record};
use tidevm_tests::{Test, locked_in, run_script};

use crate::guest;

pub const TESTS: &[Test] = &[
    ("one_script_runs_on_both_guests", one_script_runs_on_both_guests),
    ("pinned_pages_hold_memory_in_both_guests", pinned_pages_hold_memory_in_both_guests),
    ("a_wrong_word_is_found_in_both_guests", a_wrong_word_is_found_in_both_guests),
    ("what_does_not_fit_is_refused_in_both_guests", what_does_not_fit_is_refused_in_both_guests),
    ("the_agent_is_there_again_after_a_reset", the_agent_is_there_again_after_a_reset),
    ("linux_as_an_elf_file_has_the_agent_too", linux_as_an_elf_file_has_the_agent_too),
];

/// The machine of the other tests, with an agent.
fn linux() -> (std::path::PathBuf, Config) {
    let (console, config) = guest::config("");
    (console, Config { agent: true, ..config })
}

/// The same machine with tidevm's own guest.
fn own_guest() -> Config {
    let (_, config) = guest::config("");
    Config { kernel: None, initrd: None, cmdline: None, console: tidevm_machine::ConsoleMode::Off, ..config }
}

/// Runs a script that has to succeed on Linux. Returns the console.
fn on_linux(script: &str, change: impl FnOnce(&mut Config)) -> String {
    let script = Script::parse("both", script).unwrap_or_else(|errors| panic!("{errors}"));
    let (console, mut config) = linux();
    change(&mut config);
    config.resets = script.resets();
    script.fit(&config).unwrap_or_else(|errors| panic!("{errors}"));
    let ran = locked_in(config, Vec::new(), |vm| record(vm, &script));
    let Record { steps, summary, .. } = ran.unwrap_or_else(|error| panic!("no machine: {error}"));
    let text = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
    drop(std::fs::remove_file(&console));
    let failed: Vec<_> = steps.iter().filter(|step| !step.is_done()).collect();
    assert_eq!(summary.ended, Ended::Done, "{failed:#?}\n{text}");
    let bad = ["BUG:", "WARNING: CPU", "Oops", "Call Trace", "tidevm-agent:"];
    assert!(bad.iter().all(|bad| !text.contains(bad)), "{text}");
    text
}

/// Runs a script that has to succeed on both guests.
fn on_both(script: &str) {
    let text = on_linux(script, |_| ());
    assert!(text.contains("guest: "), "the user's init runs too:\n{text}");
    let script = Script::parse("both", script).unwrap_or_else(|errors| panic!("{errors}"));
    run_script(own_guest(), &script).assert_done();
}

fn one_script_runs_on_both_guests() {
    on_both(
        "expect zone.Movable.present == 0
         expect blocks.online == 4
         plug 512M within 2m
         expect zone.Movable.present == 131072 within 1m
         expect node.0.zone.Movable.present == 131072
         expect blocks.online == 8
         hog 64M movable full as data
         hog 8M unmovable as kernel
         churn 2 threads for 2s as load
         unplug 256M within 2m
         expect zone.Movable.present == 65536 within 1m
         wait load
         verify data
         verify kernel
         meminfo
         blocks
         stats
         check
         release data
         release kernel
         resize 0 within 2m
         expect zone.Movable.present == 0 within 1m
         expect blocks.online == 4
         check",
    );
}

/// Linux moves pages that `mlock` holds. Pages with a reference of the kernel stay, and so does their memory block.
fn pinned_pages_hold_memory_in_both_guests() {
    on_both(
        "plug 256M within 2m
         expect zone.Movable.present == 65536 within 1m
         hog 16M pinned as dma
         fails resize 0 within 15s because \"stopped at\"
         verify dma
         expect plugged > 0
         release dma
         resize 512M within 2m
         resize 0 within 2m",
    );
}

fn a_wrong_word_is_found_in_both_guests() {
    on_both(
        "hog 4M movable as data
         verify data
         corrupt data page 3
         fails verify data because \"the first is page 3\"",
    );
}

fn what_does_not_fit_is_refused_in_both_guests() {
    on_both(
        "fails hog 1G movable as big because \"does not fit\"
         fails hog 1G unmovable as bigger because \"does not fit\"
         hog up to 1G movable as most
         verify most
         release most
         hog 8M movable as small
         release small",
    );
}

fn the_agent_is_there_again_after_a_reset() {
    let script = "hog 4M movable as before
                  reset within 2m
                  hog 4M movable as after
                  verify after
                  expect resets == 1";
    on_linux(script, |_| ());
}

/// The ELF kernel finds the archives in the modules of PVH.
fn linux_as_an_elf_file_has_the_agent_too() {
    on_linux("plug 128M within 2m\nexpect zone.Movable.present == 32768 within 1m\ncheck", |config| {
        config.kernel = guest::file("TIDEVM_LINUX_ELF");
    });
}
