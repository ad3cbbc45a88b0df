//! What the guest writes to its console, kept for an embedder, and the lines by which a kernel tells of its own trouble.
//!
//! Takes the place of a log file that a script greps. Lines of trouble are those that syzkaller and kselftest's runner look
//! for: see [`TROUBLE`]. They are found when they are written, so that none is lost in a flood.
//!
//! Invariants: [`Transcript::most`] and a quarter of it bound the text, [`MAX_ALARMS`] the alarms. Bytes are numbered from the
//! first one that the guest wrote, without carriage returns, whether they are kept or not.

use crate::printable::printable;

/// Bytes of a console that are kept for an embedder that reads it.
pub const CONSOLE_KEPT: usize = 1 << 20;

/// Bytes that are kept for the text about a death.
const TAIL: usize = 4096;

/// Longest line. A longer one counts as several.
const LINE: usize = 1024;

/// Alarms that are kept until they are taken.
const MAX_ALARMS: usize = 8;

/// What a kernel in trouble writes, each at the start of a word: oopses and assertions, warnings, lockups, stalls of RCU,
/// hung tasks, panics.
const TROUBLE: &[&str] = &[
    "Oops:",
    "general protection fault, ",
    "BUG:",
    "kernel BUG at ",
    "WARNING:",
    "detected stall",
    "self-detected stall",
    "blocked for more than ",
    PANIC,
];

/// A kernel panics. It may reset the machine later.
const PANIC: &str = "Kernel panic";

/// A kernel has panicked, and does nothing from then on.
const HALTED: &str = "---[ end Kernel panic";

/// Lines by which a kernel told of trouble.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    /// The first of them, as text that a terminal may show.
    pub lines: Vec<String>,
    /// How many more there were.
    pub more: u64,
}

/// A part of what the guest wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The number of its first byte: the one that was asked for, or a later one if earlier ones are not kept any more.
    pub start: u64,
    /// The text, without carriage returns.
    pub text: Vec<u8>,
    /// The number of the first byte that was written after the last reset.
    pub since_reset: u64,
}

/// What a byte completes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Completed {
    /// A line.
    pub(crate) line: bool,
    /// The last line of a kernel that has panicked.
    pub(crate) halted: bool,
}

/// The end of what the guest wrote.
#[derive(Debug)]
pub(crate) struct Transcript {
    text: Vec<u8>,
    /// The number of the first byte of `text`.
    start: u64,
    /// Where the current line begins in `text`.
    line: usize,
    since_reset: u64,
    /// Bytes that are always kept.
    most: usize,
    /// Found since they were taken, if anybody wants them.
    alarms: Option<Alarms>,
    /// The kernel has panicked since the last reset, and somebody wants to know it.
    panicked: bool,
}

impl Default for Transcript {
    fn default() -> Self {
        Self::new(false, false)
    }
}

impl Transcript {
    /// The console of a guest that has written nothing. It is `kept` for an embedder, or for the text about a death alone,
    /// and searched for `alarms`.
    pub(crate) fn new(kept: bool, alarms: bool) -> Self {
        Self {
            text: Vec::new(),
            start: 0,
            line: 0,
            since_reset: 0,
            most: if kept { CONSOLE_KEPT } else { TAIL },
            alarms: alarms.then(Alarms::default),
            panicked: false,
        }
    }

    /// Takes a byte that the guest wrote.
    pub(crate) fn push(&mut self, byte: u8) -> Completed {
        if byte == b'\r' {
            return Completed::default();
        }
        if self.text.len() == self.most + self.most / 4 {
            let old = self.text.len() - self.most;
            self.text.drain(..old);
            self.start += old as u64;
            self.line = self.line.saturating_sub(old);
        }
        self.text.push(byte);
        if byte != b'\n' && self.text.len() - self.line < LINE {
            return Completed::default();
        }
        let line = std::mem::replace(&mut self.line, self.text.len());
        Completed { line: true, halted: self.look_at(line) }
    }

    /// Looks for trouble in the line that begins at `line`, which is complete. Returns whether the kernel is at its end.
    fn look_at(&mut self, line: usize) -> bool {
        let Some(alarms) = &mut self.alarms else { return false };
        let text = &self.text[line..];
        if !TROUBLE.iter().any(|trouble| begins_a_word(text, trouble.as_bytes())) {
            return false;
        }
        if alarms.lines.len() < MAX_ALARMS {
            alarms.lines.push(printable(text).trim().to_owned());
        } else {
            alarms.more += 1;
        }
        self.panicked |= begins_a_word(text, PANIC.as_bytes());
        begins_a_word(text, HALTED.as_bytes())
    }

    /// What was written from the byte with the number `from` on, as far as it is kept.
    pub(crate) fn from(&self, from: u64) -> Heard {
        let skipped = usize::try_from(from.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let text = self.text.get(skipped..).unwrap_or_default().to_vec();
        let start = self.start + (self.text.len() - text.len()) as u64;
        Heard { start, text, since_reset: self.since_reset }
    }

    /// The last lines, as text that a terminal may show.
    pub(crate) fn tail(&self) -> String {
        let tail = &self.text[self.text.len().saturating_sub(TAIL)..];
        printable(tail).trim_end().to_owned()
    }

    /// The alarms since the last call.
    pub(crate) fn take_alarms(&mut self) -> Alarms {
        self.alarms.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether the kernel has panicked since the last reset, if alarms are wanted.
    pub(crate) fn has_panicked(&self) -> bool {
        self.panicked
    }

    /// The machine is reset: another kernel writes from now on.
    pub(crate) fn reset(&mut self) {
        // The last line of the one before is complete, although nothing ends it.
        self.look_at(self.line);
        self.since_reset = self.start + self.text.len() as u64;
        self.line = self.text.len();
        self.panicked = false;
    }
}

/// Whether `words` stands in `text`, and not within a word: `BUG:` is not in `DEBUG:`.
fn begins_a_word(text: &[u8], words: &[u8]) -> bool {
    let is_whole = |at: usize| at == 0 || !text[at - 1].is_ascii_alphanumeric();
    text.windows(words.len()).enumerate().any(|(at, window)| window == words && is_whole(at))
}

#[cfg(test)]
mod tests {
    use super::{CONSOLE_KEPT, Completed, HALTED, LINE, MAX_ALARMS, TAIL, Transcript};

    fn write(transcript: &mut Transcript, text: &str) -> Completed {
        text.bytes().fold(Completed::default(), |before, byte| {
            let now = transcript.push(byte);
            Completed { line: before.line | now.line, halted: before.halted | now.halted }
        })
    }

    #[test]
    fn bytes_have_numbers_whether_they_are_kept_or_not() {
        let mut transcript = Transcript::new(true, false);
        let line = "0123456789abcdef\r\n";
        let lines = 2 * CONSOLE_KEPT / 17;
        for _ in 0..lines {
            write(&mut transcript, line);
        }
        let all = (lines * 17) as u64;
        let heard = transcript.from(0);
        assert_eq!(heard.start + heard.text.len() as u64, all, "without carriage returns");
        assert!((CONSOLE_KEPT..=CONSOLE_KEPT + CONSOLE_KEPT / 4).contains(&heard.text.len()));
        let last = transcript.from(all - 17);
        assert_eq!((last.start, last.text.as_slice()), (all - 17, &b"0123456789abcdef\n"[..]));
        assert_eq!((transcript.from(all).text.len(), transcript.from(all + 9).start), (0, all));
        transcript.reset();
        assert_eq!(transcript.from(0).since_reset, all);
        assert!(transcript.tail().len() <= TAIL);
    }

    #[test]
    fn without_a_reader_only_the_last_lines_are_kept() {
        let mut transcript = Transcript::default();
        for _ in 0..10_000 {
            write(&mut transcript, "0123456789\n");
        }
        assert!(transcript.from(0).text.len() <= TAIL + TAIL / 4);
        write(&mut transcript, "BUG: not looked for\n");
        assert_eq!(transcript.take_alarms().lines.len(), 0);
    }

    #[test]
    fn a_kernel_in_trouble_is_heard() {
        let trouble = [
            "[    1.2] Oops: 0000 [#1] PREEMPT SMP",
            "<4>general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
            "kernel BUG at mm/memory_hotplug.c:1!",
            "[1] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:2 f+0x1",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "rcu: INFO: rcu_sched self-detected stall on CPU",
            "INFO: task kworker/0:1:9 blocked for more than 120 seconds.",
            "Kernel panic - not syncing: VFS: Unable to mount root fs",
        ];
        let none = [
            "DEBUG: all is well",
            "Warning: unable to open an initial console.",
            "Kernel command line: oops=panic panic=-1",
            "MYWARNING: none",
            "traps: a[1] general protection fault ip:1 sp:2 error:0 in a",
        ];
        let mut transcript = Transcript::new(false, true);
        for line in trouble {
            assert!(write(&mut transcript, &format!("{line}\r\n")).line);
            assert_eq!(transcript.take_alarms().lines, [line]);
        }
        for line in none {
            write(&mut transcript, &format!("{line}\n"));
            assert_eq!(transcript.take_alarms().lines, [""; 0], "{line}");
        }
    }

    #[test]
    fn a_panic_is_known_until_a_reset_and_its_last_line_is_the_end() {
        let mut transcript = Transcript::new(false, true);
        assert!(!write(&mut transcript, "[1] Kernel panic - not syncing: x\n").halted);
        assert!(transcript.has_panicked());
        assert!(write(&mut transcript, &format!("[1] {HALTED} - not syncing: x ]---\n")).halted);
        transcript.reset();
        assert!(!transcript.has_panicked());
        let mut deaf = Transcript::new(true, false);
        assert!(!write(&mut deaf, &format!("{HALTED} - not syncing: x ]---\n")).halted);
        assert!(!deaf.has_panicked());
    }

    #[test]
    fn a_kernel_in_trouble_is_heard_although_a_reset_cuts_its_line() {
        let mut transcript = Transcript::new(true, true);
        write(&mut transcript, "[1] BUG: x");
        transcript.reset();
        write(&mut transcript, "Linux version\n");
        transcript.reset();
        assert_eq!(transcript.take_alarms().lines, ["[1] BUG: x"]);
    }

    #[test]
    fn alarms_have_a_bound() {
        let mut transcript = Transcript::new(false, true);
        let long = format!("BUG: {}", "x".repeat(3 * LINE));
        for _ in 0..100 {
            write(&mut transcript, &format!("{long}\n"));
        }
        let alarms = transcript.take_alarms();
        assert_eq!((alarms.lines.len(), alarms.more), (MAX_ALARMS, 100 - MAX_ALARMS as u64));
        assert!(alarms.lines.iter().all(|line| line.len() <= LINE));
        assert_eq!(transcript.take_alarms(), super::Alarms::default());
    }
}
