//! Lines that come while a session runs: the thread that reads them, and its side towards the session.
//!
//! The thread is a companion of the VM with a filter of its own. It reads one line when the session asks for one, so that
//! at most one line waits and what a program writes ahead stays in its pipe. Then it has the session look. A read need
//! not end, so the VM does not wait for this thread: see [`Purpose::Read`].
//!
//! Invariant: a line has at most [`MAX_LINE`] bytes; a longer one is an error, and its rest is not kept.

use std::fmt::Display;
use std::io::{self, BufRead};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tidevm_abi::Name;
use tidevm_machine::{Beside, Companion, Purpose, VmHandle};
use tidevm_session::script::{LiveScript, ScriptErrors};
use tidevm_session::{Line, Lines};

/// Longest line from a pipe, in bytes, as a terminal has it.
pub const MAX_LINE: usize = 4096;

/// Shows an error to a person.
pub type Complain = fn(&dyn Display);

/// What a reader may want to know when it is asked for a line.
#[derive(Debug)]
pub struct Asked {
    /// A `repeat` waits for its `}`.
    pub open: bool,
    /// The workloads that live.
    pub names: Vec<Name>,
}

/// Reads lines.
pub trait Read {
    /// The next line. It may take for ever.
    fn line(&mut self, asked: Asked) -> Line;
}

/// The session's side of the thread that reads.
pub struct Input {
    ask: SyncSender<Asked>,
    lines: Receiver<Line>,
    /// Shows an error to the person.
    complain: Complain,
}

/// The thread that reads lines by what `open` makes in it, and the session's side. `open` may still open what it
/// needs to ask terminals; the thread is locked in after it.
pub fn companion<R: Read>(
    open: impl FnOnce() -> R + Send + 'static,
    complain: Complain,
) -> (Companion, Input) {
    let (ask, asked) = sync_channel(1);
    let (tell, lines) = sync_channel(1);
    let body = move |vm: VmHandle, beside: Beside| {
        let nudger = vm.nudger();
        // The thread may outlive the VM, and must not keep its memory.
        drop(vm);
        let mut reader = open();
        if beside.lock_in().is_none() {
            return;
        }
        while let Ok(asked) = asked.recv() {
            // Without a receiver the session is over.
            if tell.send(reader.line(asked)).is_err() {
                return;
            }
            nudger.nudge();
        }
    };
    let companion = Companion { name: "input", purpose: Purpose::Read, body: Box::new(body) };
    (companion, Input { ask, lines, complain })
}

impl Lines for Input {
    fn ask(&mut self, script: &LiveScript) {
        // Fails when the thread has ended; then no line comes, which `take` tells.
        drop(self.ask.send(Asked { open: script.is_open(), names: script.names() }));
    }

    fn take(&mut self) -> Option<Line> {
        use std::sync::mpsc::TryRecvError;
        match self.lines.try_recv() {
            Ok(line) => Some(line),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Line::End),
        }
    }

    fn refuse(&mut self, errors: &ScriptErrors) -> io::Result<()> {
        (self.complain)(errors);
        Ok(())
    }
}

/// Lines of a program, from a pipe or a file.
pub struct Piped<R>(pub R);

impl<R: BufRead> Read for Piped<R> {
    fn line(&mut self, _: Asked) -> Line {
        match line(&mut self.0) {
            Ok(line) => line,
            Err(error) => Line::Unreadable(format!("cannot read the line: {error}")),
        }
    }
}

/// The next line of `input`.
fn line(input: &mut impl BufRead) -> io::Result<Line> {
    let mut line = Vec::new();
    let mut began = false;
    loop {
        let part = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            part => part?,
        };
        if part.is_empty() {
            break;
        }
        began = true;
        let end = part.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&part[..end.unwrap_or(part.len()).min(MAX_LINE + 1 - line.len())]);
        let used = end.map_or(part.len(), |end| end + 1);
        input.consume(used);
        if line.len() > MAX_LINE {
            return Ok(Line::Unreadable(format!("the line is longer than {MAX_LINE} bytes")));
        }
        if end.is_some() {
            break;
        }
    }
    if !began {
        return Ok(Line::End);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8(line).map_or_else(
        |error| {
            Line::Unreadable(format!("the line is no text: byte {}", error.utf8_error().valid_up_to() + 1))
        },
        Line::Text,
    ))
}

#[cfg(test)]
mod tests {
    use std::io::{self, BufReader, Read};

    use super::{Line, MAX_LINE, line};

    #[test]
    fn lines_end_with_a_newline_or_the_input() {
        let mut input = BufReader::with_capacity(3, &b"plug 2M\r\n\n  check"[..]);
        let lines: Vec<_> = std::iter::from_fn(|| Some(line(&mut input).unwrap())).take(5).collect();
        let text = |text: &str| Line::Text(text.to_owned());
        assert_eq!(lines, [text("plug 2M"), text(""), text("  check"), Line::End, Line::End]);
    }

    /// Writes the same byte for ever, and counts.
    struct Endless(usize);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 += buffer.len();
            assert!(self.0 < 4 * MAX_LINE, "it reads on and on");
            buffer.fill(b'x');
            Ok(buffer.len())
        }
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut input = BufReader::with_capacity(100, Endless(0));
        let Line::Unreadable(why) = line(&mut input).unwrap() else { panic!("a line without an end") };
        assert_eq!(why, "the line is longer than 4096 bytes");
        let longest = "y".repeat(MAX_LINE) + "\nz\n";
        assert_eq!(line(&mut longest.as_bytes()).unwrap(), Line::Text("y".repeat(MAX_LINE)));
        let bad = line(&mut &b"stats \xff\n"[..]).unwrap();
        assert_eq!(bad, Line::Unreadable("the line is no text: byte 7".to_owned()));
    }
}
