//! The prompt of `tidevm run` at a pseudo-terminal.

use std::fs;
use std::path::{Path, PathBuf};

use super::endings::{end, kill};
use super::typist::Typist;
use super::{Test, program};

pub const TESTS: &[Test] = &[
    ("a_person_types_commands_and_sees_rows", a_person_types_commands_and_sees_rows),
    ("tab_completes_commands_names_and_metrics", tab_completes_commands_names_and_metrics),
    ("ctrl_c_cancels_what_runs_and_ctrl_d_ends_it", ctrl_c_cancels_what_runs_and_ctrl_d_ends_it),
    ("the_history_is_kept_in_the_state_folder", the_history_is_kept_in_the_state_folder),
    ("the_end_of_the_machine_ends_the_prompt", the_end_of_the_machine_ends_the_prompt),
];

const PROMPT: &str = "tidevm> ";

/// A folder for the state of one test, empty.
fn state(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("state-{name}"));
    // It may not be there.
    drop(fs::remove_dir_all(&folder));
    folder
}

/// A person at a small machine, once the prompt is there.
fn sit_down(state: &Path) -> Typist {
    let mut command = program();
    command.args(["run", "--memory", "128M", "--hotplug", "size=8G"]);
    command.env("XDG_STATE_HOME", state).env("TERM", "xterm");
    let mut typist = Typist::start(&mut command);
    typist.sees("console is off; --console file:PATH keeps it");
    typist.sees("boot");
    typist.sees(PROMPT);
    typist
}

fn a_person_types_commands_and_sees_rows() {
    let mut typist = sit_down(&state("rows"));
    typist.types("plug 2M\r");
    let row = typist.sees(PROMPT);
    assert!(row.contains("2M") && row.contains("ok"), "{row}");
    typist.types("resize 4X\r");
    typist.sees("prompt:2:8: expected");
    typist.types("resize 16G\r");
    typist.sees("refused: 16G does not fit");
    typist.types("hog 1M movable as data\r");
    typist.sees("ok");
    typist.types("hog 1M movable as data\r");
    typist.sees("`data` is in use since line 4");
    typist.types("repeat 2 {\r");
    typist.sees("......> ");
    typist.types("verify data\r");
    typist.sees("......> ");
    typist.types("}\r");
    typist.sees("256 pages intact");
    typist.sees("256 pages intact");
    typist.types("help\r");
    typist.sees("resize SIZE");
    typist.types("quit\r");
    typist.sees("1 of 5 steps failed");
    assert_eq!(end(&mut typist.child).code(), Some(1));
}

fn tab_completes_commands_names_and_metrics() {
    let mut typist = sit_down(&state("tab"));
    typist.types("ho\t1M mova\tas data\r");
    typist.sees("ok");
    typist.types("verif\tda\t\r");
    typist.sees("256 pages intact");
    typist.types("expect plugg\t== 0\r");
    typist.sees("ok");
    typist.types("re\t\t");
    typist.sees("reset");
    typist.sees("resize");
    typist.types("\u{3}");
    typist.sees(PROMPT);
    typist.types("stop\r");
    typist.sees("3 steps done");
    assert_eq!(end(&mut typist.child).code(), Some(0));
}

fn ctrl_c_cancels_what_runs_and_ctrl_d_ends_it() {
    let mut typist = sit_down(&state("cancel"));
    typist.types("repeat 9 {\rsleep 10m\r}\r");
    typist.sees("}\r\n");
    typist.waits_for_signals();
    typist.types("\u{3}");
    let seen = typist.sees("cancelled");
    typist.sees(PROMPT);
    typist.types("not a comm\u{3}");
    typist.sees(PROMPT);
    // A step that nothing ends: a resize may be over before the key is there.
    typist.types("expect plugged == 8G within 10m\r");
    typist.sees("10m\r\n");
    typist.waits_for_signals();
    typist.types("\u{3}");
    typist.sees("cancelled");
    typist.sees(PROMPT);
    typist.types("\u{4}");
    typist.sees("2 of 2 steps failed");
    assert_eq!(end(&mut typist.child).code(), Some(1), "{seen}");
}

fn the_history_is_kept_in_the_state_folder() {
    let state = state("history");
    for round in 0..2 {
        let mut typist = sit_down(&state);
        // The last line of the session before is one step up.
        typist.types(if round == 0 { "expect plugged == 0\r" } else { "\u{1b}[A\r" });
        typist.sees("ok");
        typist.sees(PROMPT);
        typist.types("\u{4}");
        assert_eq!(end(&mut typist.child).code(), Some(0));
    }
    let history = fs::read_to_string(state.join("tidevm/history")).expect("a history");
    assert_eq!(history, "expect plugged == 0\n");
}

fn the_end_of_the_machine_ends_the_prompt() {
    let mut typist = sit_down(&state("end"));
    assert!(!typist.pty.is_cooked(), "the prompt has the terminal");
    typist.types("plug 2M\rhog 1M movable as a\rcorrupt a memmap\rcheck\r");
    typist.sees("the guest died");
    typist.sees("is owned by");
    assert_eq!(end(&mut typist.child).code(), Some(4));
    assert!(typist.pty.is_cooked(), "the terminal is restored");

    let mut typist = sit_down(&state("killed"));
    kill("-TERM", &typist.child);
    typist.sees("ended by signal 15");
    assert_eq!(end(&mut typist.child).code(), Some(143));
    assert!(typist.pty.is_cooked(), "the terminal is restored");
}
