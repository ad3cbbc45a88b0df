//! The serial console of a guest that takes commands: lines go in, lines come out.
//!
//! The guest prints a line `ready` when it reads commands. It answers each command with any number of lines and a last
//! line `ok` or `failed: REASON`. Echoed input and messages of the kernel may come in between, so the reader of an
//! answer has to recognise its lines by their form.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A guest's console.
pub struct Console {
    input: Box<dyn Write + Send>,
    output: Arc<Output>,
}

#[derive(Default)]
struct Output {
    seen: Mutex<LookResult>,
    more: Condvar,
}

/// The output so far.
#[derive(Default)]
struct LookResult {
    bytes: Vec<u8>,
    /// Whether the output has ended.
    ended: bool,
}

impl LookResult {
    fn text_from(&self, start: usize) -> String {
        String::from_utf8_lossy(&self.bytes[start..]).replace('\r', "")
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, LookResult> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bytes: &[u8]) {
        let mut seen = self.lock();
        seen.bytes.extend_from_slice(bytes);
        seen.ended |= bytes.is_empty();
        drop(seen);
        self.more.notify_all();
    }
}

impl Console {
    /// A console whose two ends are `input` and `output`. A thread reads `output` until its end.
    pub fn new(input: impl Write + Send + 'static, mut output: impl Read + Send + 'static) -> Self {
        let console = Self { input: Box::new(input), output: Arc::default() };
        let seen = Arc::clone(&console.output);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A failed read counts as the end.
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                seen.add(&buffer[..length]);
            }
            seen.add(&[]);
        });
        console
    }

    /// The whole output.
    pub fn text(&self) -> String {
        self.output.lock().text_from(0)
    }

    /// The last lines of the output, for an error.
    pub fn last_lines(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// Waits at most `limit` until the guest takes commands.
    ///
    /// # Errors
    /// The guest is not ready in time.
    pub fn ready(&self, limit: Duration) -> Result<(), String> {
        self.lines_until(0, limit, "the guest to be ready", |line| line == "ready").map(|_| ())
    }

    /// Sends a command, and returns the lines of its answer without the last one.
    ///
    /// # Errors
    /// The command failed, or the answer did not end within `limit`.
    pub fn command(&mut self, line: &str, limit: Duration) -> Result<Vec<String>, String> {
        let start = self.output.lock().bytes.len();
        self.send(line)?;
        let is_last = |line: &str| line == "ok" || line.starts_with(FAILED);
        let mut answer = self.lines_until(start, limit, &format!("the answer to `{line}`"), is_last)?;
        match answer.pop().as_deref().and_then(|last| last.strip_prefix(FAILED)) {
            Some(reason) => Err(format!("`{line}` failed: {reason}")),
            None => Ok(answer),
        }
    }

    /// Sends a command that has no answer.
    ///
    /// # Errors
    /// The console has no reader any more.
    pub fn send(&mut self, line: &str) -> Result<(), String> {
        let sent = self.input.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.input.flush());
        sent.map_err(|error| format!("cannot send `{line}`: {error}"))
    }

    /// The complete lines from byte `start` on, up to and including the first line that `is_last` accepts.
    fn lines_until(
        &self,
        start: usize,
        limit: Duration,
        what: &str,
        is_last: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, String> {
        let deadline = Instant::now() + limit;
        let mut seen = self.output.lock();
        loop {
            let text = seen.text_from(start);
            let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
            let lines: Vec<&str> = complete.lines().collect();
            if let Some(last) = lines.iter().position(|line| is_last(line)) {
                return Ok(lines[..=last].iter().map(|&line| line.to_owned()).collect());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.ended {
                return Err(format!("the guest's console ended; waited for {what}"));
            }
            if left.is_zero() {
                return Err(format!("waited {limit:?} for {what}"));
            }
            seen = self.output.more.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Number of lines in an error text. The report of a panic fits.
const LAST_LINES: usize = 60;

/// The beginning of the last line after a failed command.
const FAILED: &str = "failed: ";

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use super::Console;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A guest that prints one kernel message and then `ready`, and answers with `answers`.
    fn guest(answers: &'static [&'static str]) -> Console {
        let (host, guest) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut output = guest.try_clone().unwrap();
            let mut lines = BufReader::new(guest).lines();
            output.write_all(b"[    0.0] booting\r\nready\r\n").unwrap();
            for answer in answers {
                lines.next().unwrap().unwrap();
                output.write_all(answer.as_bytes()).unwrap();
            }
            lines.next();
        });
        let console = Console::new(host.try_clone().unwrap(), host);
        console.ready(LIMIT).unwrap();
        console
    }

    #[test]
    fn answers_end_with_ok_or_with_a_reason() {
        let mut console = guest(&["ok\n", "a\r\nb ok\r\nok\r\n", "half\nfailed: no room\n"]);
        assert_eq!(console.command("one", LIMIT), Ok(vec![]));
        assert_eq!(console.command("two", LIMIT), Ok(vec!["a".to_owned(), "b ok".to_owned()]));
        assert_eq!(console.command("three", LIMIT), Err("`three` failed: no room".to_owned()));
        assert!(console.text().starts_with("[    0.0] booting\nready\nok\na\n"), "{}", console.text());
    }

    #[test]
    fn silence_has_a_limit() {
        let mut console = guest(&["o"]);
        let answer = console.command("x", Duration::from_millis(50));
        assert_eq!(answer, Err("waited 50ms for the answer to `x`".to_owned()));
    }

    #[test]
    fn a_console_that_ends_is_not_waited_for() {
        let console = Console::new(std::io::sink(), &b"booting\n"[..]);
        let error = console.ready(LIMIT).unwrap_err();
        assert_eq!(error, "the guest's console ended; waited for the guest to be ready");
    }
}
