//! The judge's end of the serial line, and its waits.
//!
//! Takes the place of the shell and of the job loop. It differs on purpose: a row is one function that waits in its middle,
//! because a row is read from top to bottom. The CPU halts in each wait, at most a millisecond at a time, because a device
//! that forgets an interrupt must not be able to stop its judge.
//!
//! Invariant: only the boot CPU runs, and nothing else runs on it.

use alloc::string::String;

use tidevm_abi::judge::{FromGuest, MAX_LINE, ToGuest};
use x86_64::instructions::interrupts;

use crate::console::{self, println};
use crate::cpu::lapic;
use crate::cpu::time::Instant;

/// Longest wait for the host to set a target.
const HOST_MILLIS: u64 = 20_000;

/// Waits until `done` is true, at most `millis` milliseconds. Returns whether it is. Interrupts are off while `done` looks:
/// one that comes then ends the halt that follows.
pub fn wait(millis: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::in_millis(millis);
    loop {
        interrupts::disable();
        let is_done = done();
        if is_done || end.has_passed() {
            interrupts::enable();
            return is_done;
        }
        lapic::set_timer(end.min(Instant::in_millis(1)));
        interrupts::enable_and_hlt();
    }
}

/// The serial line.
pub struct Talk {
    typed: String,
}

impl Talk {
    /// The line, if there is a serial port.
    pub fn new() -> Option<Self> {
        // The interrupts only wake the judge, which looks at the port itself.
        console::listen().map(|_| Self { typed: String::new() })
    }

    /// Sends a message.
    pub fn say(&self, message: FromGuest<'_>) {
        println!("{message}");
    }

    /// The next whole line, if it has come.
    fn line(&mut self) -> Option<String> {
        while let Some(byte) = console::read() {
            match byte {
                b'\r' | b'\n' if self.typed.is_empty() => {}
                b'\r' | b'\n' => return Some(core::mem::take(&mut self.typed)),
                b' '..=b'~' if self.typed.len() < MAX_LINE => self.typed.push(char::from(byte)),
                _ => {}
            }
        }
        None
    }

    /// The next line of the host, however long it takes: the host has the deadlines.
    pub fn next(&mut self) -> String {
        loop {
            // A byte that comes from here on ends the halt.
            interrupts::disable();
            if let Some(line) = self.line() {
                interrupts::enable();
                return line;
            }
            interrupts::enable_and_hlt();
        }
    }

    /// The host's answer to a request for a target, if it has come: an error is the VMM's reason for a refusal.
    pub fn poll_host(&mut self) -> Option<Result<(), String>> {
        let line = self.line()?;
        match ToGuest::parse(&line) {
            Some(ToGuest::Done) => Some(Ok(())),
            Some(ToGuest::Refused(reason)) => Some(Err(reason.into())),
            _ => None,
        }
    }

    /// Has the host set a target, and waits for its answer.
    ///
    /// # Errors
    /// The VMM's reason for a refusal, or that there was no answer.
    pub fn resize(&mut self, bytes: u64) -> Result<(), String> {
        self.say(FromGuest::Resize(bytes));
        let mut answer = None;
        wait(HOST_MILLIS, || {
            answer = self.poll_host();
            answer.is_some()
        });
        answer.unwrap_or_else(|| Err("the host did not answer".into()))
    }
}
