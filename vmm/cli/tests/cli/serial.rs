//! The guest's shell at its serial console, and the terminal that it has.

use std::io::{Read, Write};

use super::endings::{LIMIT, end, kill, until};
use super::typist::Typist;
use super::{Test, kernel, program, spawn, text};

pub const TESTS: &[Test] = &[
    ("the_guests_shell_answers_at_the_serial_console", the_guests_shell_answers_at_the_serial_console),
    ("the_guests_shell_answers_at_a_pipe", the_guests_shell_answers_at_a_pipe),
    ("keys_that_no_guest_reads_hold_up_nothing", keys_that_no_guest_reads_hold_up_nothing),
];

const MACHINE: &[&str] = &["run", "--memory", "128M", "--hotplug", "size=256M", "--console", "stdio"];

/// A person at the serial console of a machine.
fn sit_down(options: &[&str]) -> Typist {
    let mut command = program();
    let mut typist = Typist::start(command.args(MACHINE).args(options));
    typist.sees("Ctrl-a x ends the machine");
    typist
}

fn the_guests_shell_answers_at_the_serial_console() {
    let mut typist = sit_down(&[]);
    // More than the port holds, before the guest listens.
    typist.types(&format!("stats{}\r", " ".repeat(100)));
    let stats = typist.sees("ok\r\n> ");
    assert!(stats.contains("memmap.boot_pages 0"), "{stats}");
    typist.types("hog 1M movable as a\rverify a\r");
    typist.sees("256 pages intact");
    typist.sees("> ");
    // Ctrl-C is a key like others.
    typist.types("resize\u{3} 2M\r");
    typist.sees("failed: only the VMM can do this");
    typist.types("\u{1}x");
    assert_eq!(end(&mut typist.child).code(), Some(0));
    assert!(typist.pty.is_cooked(), "the terminal is restored");

    let mut typist = sit_down(&[]);
    typist.types("poweroff\r");
    assert_eq!(end(&mut typist.child).code(), Some(0));
    assert!(typist.pty.is_cooked(), "the terminal is restored");
}

fn the_guests_shell_answers_at_a_pipe() {
    let mut child = spawn(MACHINE);
    let mut out = child.stdout.take().expect("a pipe");
    let mut until = |end: &[u8]| {
        let (mut said, mut byte) = (Vec::new(), [0]);
        while !said.ends_with(end) {
            assert!(said.len() < 4096 && out.read(&mut byte).expect("a pipe") == 1, "{}", text(&said));
            said.push(byte[0]);
        }
        text(&said)
    };
    // The row of the boot is the last one. Before it, rows and what the guest says mix.
    until(b"  ok\n");
    child.stdin.as_mut().expect("a pipe").write_all(b"check\n").expect("it is read");
    let said = until(b"\nok\n");
    assert!(said.contains("pages checked"), "{said}");
    kill("-TERM", &child);
    assert_eq!(end(&mut child).code(), Some(0));
}

fn keys_that_no_guest_reads_hold_up_nothing() {
    let kernel = kernel::write("halt-keys", kernel::HALT);
    let mut typist = sit_down(&["--kernel", kernel.to_str().expect("UTF-8")]);
    until("the guest's terminal", || !typist.pty.is_cooked());
    // More than the port and the VMM keep. The terminal itself keeps 4 KiB, so that this waits for the VMM to read.
    for _ in 0..16 {
        typist.types(&"x".repeat(1024));
    }
    typist.types("\u{1}x");
    assert_eq!(end(&mut typist.child).code(), Some(0), "within {LIMIT:?}");
    assert!(typist.pty.is_cooked(), "the terminal is restored");
}
