//! A person who types at a pseudo-terminal.

use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::endings::{LIMIT, until};
use super::pty::Pty;

/// A person who types at a terminal and reads what a program shows.
pub struct Typist {
    pub pty: Pty,
    pub child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    /// How much of it was read.
    read: usize,
}

impl Typist {
    /// Starts `command` at a terminal.
    pub fn start(command: &mut Command) -> Self {
        let pty = Pty::open();
        let child = pty.start(command);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, paper) = (pty.person.try_clone().expect("a descriptor"), Arc::clone(&shown));
        // Ends with the terminal, or with the process of the tests.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(size @ 1..) = screen.read(&mut bytes) {
                paper.lock().expect("no panic").extend_from_slice(&bytes[..size]);
            }
        });
        Self { pty, child, shown, read: 0 }
    }

    pub fn types(&mut self, keys: &str) {
        self.pty.person.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Waits until Ctrl-C is a signal.
    #[track_caller]
    pub fn waits_for_signals(&self) {
        until("a terminal whose keys are signals", || self.pty.is_cooked());
    }

    /// Waits until `text` is shown, behind what was waited for before, and returns what is shown up to its end.
    #[track_caller]
    pub fn sees(&mut self, text: &str) -> String {
        let mut found = None;
        let start = Instant::now();
        while found.is_none() {
            thread::sleep(Duration::from_millis(10));
            let shown = self.shown.lock().expect("no panic");
            let rest = String::from_utf8_lossy(&shown[self.read..]).into_owned();
            found = rest.find(text).map(|place| place + text.len());
            assert!(start.elapsed() < LIMIT, "no `{text}` within {LIMIT:?}, only: {rest:?}");
        }
        let end = self.read + found.expect("it was found");
        let seen =
            String::from_utf8_lossy(&self.shown.lock().expect("no panic")[self.read..end]).into_owned();
        self.read = end;
        seen
    }
}
