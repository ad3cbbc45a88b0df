//! The shell: commands that people type at the serial console, for VMMs that have no control channel.
//!
//! A command that a session's script has too is written as it is there. `meminfo` and `zoneinfo` answer in
//! the form of Linux's files of these names. The last line of every answer is `ok`, or begins with
//! `failed: `.

mod notices;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::str::SplitAsciiWhitespace;

use tidevm_abi::{Answer, Failure, Handle, HogKind, Op};
use tidevm_mm::PAGE_SIZE;

use self::notices::Notices;
use crate::agent::{self, blocks};
use crate::boot::cmdline;
use crate::console::{self, print, println};
use crate::cpu::ioapic::Line;
use crate::job::{self, Job, Progress};
use crate::mailbox::{self, Requester};
use crate::mem::{MM, stamps};
use crate::procfs;

/// Longest line that is read.
const MAX_LINE: usize = 128;
const HELP: &str = "\
  meminfo, zoneinfo       counters, as Linux shows them
  blocks                  memory blocks: state, zone, what is plugged, memmap pages
  readd SIZE at ADDRESS   offline and remove memory blocks, and add them back
  stats                   where memmaps lie, and what moved
  check                   verify every invariant of the memory management
  hog SIZE movable|unmovable|pinned|contiguous [scattered] [full] as NAME
  verify NAME, release NAME
  churn N threads for 5s
  race N cycles           take a pageblock again and again while other CPUs free pages of it
  poweroff";

/// Prints the reports of boot, and starts the jobs on the boot CPU that print later ones and, if there is a
/// serial port, read commands. Called where no control channel takes the reports.
pub fn start() {
    notices::print_waiting();
    job::spawn(0, Box::new(Notices));
    if let Some(line) = console::listen() {
        println!("ready");
        print!("> ");
        job::spawn(0, Box::new(Shell::new(line)));
    }
}

/// The job that reads commands.
struct Shell {
    /// Interrupt of the serial port.
    line: Line,
    /// The command so far.
    typed: String,
    /// The command is longer than [`MAX_LINE`].
    overlong: bool,
    /// Workloads that the shell started.
    names: Vec<(String, Handle)>,
    /// The workload that the current call starts.
    starting: Option<(String, Handle)>,
    last_handle: Handle,
    /// A call is under way; the shell reads nothing until its answer is there.
    waits: bool,
}

type Words<'l> = SplitAsciiWhitespace<'l>;

fn no_more(words: &mut Words<'_>) -> Result<(), &'static str> {
    words.next().map_or(Ok(()), |_| Err("there are words after the command"))
}

/// `512M`, `2G`, `2GiB`, or bytes.
fn size(text: &str) -> Option<u64> {
    cmdline::number(text.strip_suffix("iB").unwrap_or(text))
}

/// `5s` or `300ms`.
fn millis(text: &str) -> Option<u64> {
    match text.strip_suffix("ms") {
        Some(millis) => millis.parse().ok(),
        None => text.strip_suffix('s')?.parse::<u64>().ok()?.checked_mul(1000),
    }
}

impl Job for Shell {
    fn step(&mut self) -> Progress {
        if self.waits {
            let Some(answer) = mailbox::take_console_answer() else { return Progress::Idle(None) };
            self.waits = false;
            end(self.show(answer));
        } else if !self.line.fired() {
            return Progress::Idle(None);
        }
        // Bytes that arrived while the shell waited raise no further interrupt.
        while !self.waits {
            match console::read() {
                Some(byte) => self.take(byte),
                None => return Progress::Idle(None),
            }
        }
        Progress::Idle(None)
    }
}

/// Prints the last line of an answer, and the prompt.
fn end(result: Result<(), &str>) {
    match result {
        Ok(()) => println!("ok"),
        Err(reason) => println!("failed: {reason}"),
    }
    print!("> ");
}

impl Shell {
    fn new(line: Line) -> Self {
        Self {
            line,
            typed: String::new(),
            overlong: false,
            names: Vec::new(),
            starting: None,
            last_handle: 0,
            waits: false,
        }
    }

    /// Takes one typed byte.
    fn take(&mut self, byte: u8) {
        const BACKSPACE: u8 = 0x08;
        const DELETE: u8 = 0x7f;
        match byte {
            b'\r' | b'\n' => {
                println!("");
                let typed = core::mem::take(&mut self.typed);
                if core::mem::take(&mut self.overlong) {
                    end(Err("the line is too long"));
                } else {
                    self.run(&typed);
                }
            }
            BACKSPACE | DELETE => {
                // The terminal moves back, overwrites the character with a space, and moves back again.
                self.typed.pop().iter().for_each(|_| print!("\u{8} \u{8}"));
            }
            b' '..=b'~' if self.typed.len() == MAX_LINE => self.overlong = true,
            b' '..=b'~' => {
                self.typed.push(char::from(byte));
                print!("{}", char::from(byte));
            }
            _ => {}
        }
    }

    fn run(&mut self, line: &str) {
        let words = &mut line.split_ascii_whitespace();
        let Some(command) = words.next() else { return print!("> ") };
        match self.command(command, words) {
            Ok(Some(op)) => {
                // Set before the call: the answer may be there when `carry_out` returns.
                self.waits = true;
                agent::carry_out(op, Requester::Console);
            }
            Ok(None) => end(Ok(())),
            Err(reason) => end(Err(reason)),
        }
    }

    /// Carries out a command that needs no call, or returns the call of one that does. Nothing is changed
    /// before the whole line is parsed.
    fn command(&mut self, command: &str, words: &mut Words<'_>) -> Result<Option<Op>, &'static str> {
        let op = match command {
            "hog" => Some(self.hog(words)?),
            "churn" => Some(self.churn(words)?),
            "readd" => Some(readd(words)?),
            "race" => Some(race(words)?),
            "verify" => Some(Op::Verify { handle: self.names[self.name(words)?].1 }),
            "release" => {
                let index = self.name(words)?;
                Some(Op::Release { handle: self.names.swap_remove(index).1 })
            }
            _ => {
                no_more(words)?;
                match command {
                    "check" => return Ok(Some(Op::Check)),
                    "poweroff" => return Ok(Some(Op::PowerOff)),
                    "help" => println!("{HELP}"),
                    "meminfo" => procfs::meminfo(),
                    "zoneinfo" => procfs::zoneinfo(),
                    "blocks" => blocks(),
                    "stats" => stats(),
                    _ => return Err("no such command; `help` lists them"),
                }
                None
            }
        };
        Ok(op)
    }

    fn hog(&mut self, words: &mut Words<'_>) -> Result<Op, &'static str> {
        const USAGE: &str = "hog SIZE movable|unmovable|pinned|contiguous [scattered] [full] as NAME";
        let size = words.next().and_then(size).ok_or(USAGE)?;
        let kind = match words.next() {
            Some("movable") => HogKind::Movable,
            Some("unmovable") => HogKind::Unmovable,
            Some("pinned") => HogKind::Pinned,
            Some("contiguous") => HogKind::Contiguous,
            _ => return Err(USAGE),
        };
        let (mut scattered, mut full) = (false, false);
        loop {
            match words.next() {
                Some("scattered") => scattered = true,
                Some("full") => full = true,
                Some("as") => break,
                _ => return Err(USAGE),
            }
        }
        let handle = self.start_workload(words.next().ok_or(USAGE)?, words)?;
        Ok(Op::Hog { handle, pages: size.div_ceil(PAGE_SIZE), kind, scattered, full })
    }

    fn churn(&mut self, words: &mut Words<'_>) -> Result<Op, &'static str> {
        const USAGE: &str = "churn N threads for 5s";
        let threads = words.next().and_then(|word| word.parse().ok()).ok_or(USAGE)?;
        let [Some("threads" | "thread"), Some("for"), Some(time)] =
            [words.next(), words.next(), words.next()]
        else {
            return Err(USAGE);
        };
        let millis = millis(time).ok_or(USAGE)?;
        no_more(words)?;
        // A churn frees its pages before it answers, so no later command names it.
        Ok(Op::Churn { handle: self.new_handle(), threads, millis })
    }

    /// Reserves a name for the workload that the next call makes.
    fn start_workload(&mut self, name: &str, words: &mut Words<'_>) -> Result<Handle, &'static str> {
        no_more(words)?;
        if self.find(name).is_some() {
            return Err("there is a workload of this name");
        }
        let handle = self.new_handle();
        self.starting = Some((name.into(), handle));
        Ok(handle)
    }

    fn new_handle(&mut self) -> Handle {
        self.last_handle += 1;
        self.last_handle
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|(known, _)| known == name)
    }

    /// Index of the workload that the last word of the line names.
    fn name(&self, words: &mut Words<'_>) -> Result<usize, &'static str> {
        let name = words.next().ok_or("which workload?")?;
        no_more(words)?;
        self.find(name).ok_or("no workload has this name")
    }

    /// Prints an answer, or returns why the call failed.
    fn show(&mut self, answer: Answer) -> Result<(), &'static str> {
        match answer {
            Answer::Checked { pages } => println!("{pages} pages looked at"),
            Answer::Hogged { pages } => {
                self.names.extend(self.starting.take());
                println!("{pages} pages held");
            }
            Answer::Released { pages } => println!("{pages} pages given back"),
            Answer::Churned { allocations, failures } => {
                println!("{allocations} allocations, {failures} found no memory");
            }
            Answer::Raced { cycles, failures, stranded } => {
                println!("{failures} of {cycles} cycles failed, {stranded} pages were stranded");
            }
            Answer::Verified { pages, corrupt: 0, .. } => println!("{pages} pages intact"),
            Answer::Verified { pages, corrupt, first_corrupt } => {
                println!("{corrupt} of {pages} pages corrupt, the first is {first_corrupt:x?}");
                return Err("the content changed");
            }
            Answer::Failed(failure) => {
                return Err(match failure {
                    Failure::NoMemory => "no memory for the table of its pages, or too many workloads",
                    Failure::Unfit => "it needs two CPUs and plugged memory",
                    Failure::Pmem(_) | Failure::UnknownHandle | Failure::HandleInUse | Failure::BadRecord => {
                        "the kernel does not know this workload as the shell does"
                    }
                    Failure::NotBlocks => "these are not whole memory blocks that were added and are online",
                    Failure::Granularity => "memory blocks that hold their own memmap go one at a time",
                    Failure::Mixed => "some of them hold their own memmap, and some do not",
                    Failure::Stuck { .. } => "pages are in the way",
                });
            }
            // The shell makes no call with such an answer.
            Answer::Stats(_)
            | Answer::Blocks { .. }
            | Answer::Done
            | Answer::Pmem(_)
            | Answer::PmemMapped(_)
            | Answer::PmemUnmapped { .. } => {}
        }
        Ok(())
    }
}

/// Prints the memory blocks in the words of Linux's `/sys/devices/system/memory`, one line per run of memory
/// blocks that are alike.
fn blocks() {
    let mut from = Some(0);
    while let Some(Answer::Blocks { runs, next }) = from.map(blocks::blocks) {
        runs.iter().flatten().for_each(|run| println!("{run}"));
        from = next;
    }
}

fn readd(words: &mut Words<'_>) -> Result<Op, &'static str> {
    const USAGE: &str = "readd SIZE at ADDRESS";
    let bytes = words.next().and_then(size).ok_or(USAGE)?;
    if words.next() != Some("at") {
        return Err(USAGE);
    }
    let addr = words.next().and_then(size).ok_or(USAGE)?;
    no_more(words)?;
    Ok(Op::Readd { addr, size: bytes })
}

fn race(words: &mut Words<'_>) -> Result<Op, &'static str> {
    const USAGE: &str = "race N cycles";
    let cycles = words.next().and_then(|word| word.parse().ok()).ok_or(USAGE)?;
    if words.next() != Some("cycles") {
        return Err(USAGE);
    }
    no_more(words)?;
    Ok(Op::Race { cycles })
}

fn stats() {
    let stats = MM.stats();
    println!("memmap in boot memory       {} pages", stats.memmap_boot_pages);
    println!("memmap in hot-added memory  {} pages", stats.memmap_altmap_pages);
    println!("memmaps in single pages     {}", stats.memmaps_by_base_pages);
    println!("memory blocks online        {}", stats.blocks_online);
    println!("memmaps written whole       {}", stats.memmaps_written);
    println!("boot memory to come         {} pages", stats.deferred_pages());
    println!("pages migrated              {}, {} times in vain", stats.pages_migrated, stats.migrate_failed);
    println!("drains of per-CPU lists     {}", stats.pcp_drains);
    let isolated: u64 = stats.zones.iter().map(|zone| zone.nr_isolate_pageblock).sum();
    println!("pageblocks isolated         {isolated}");
    println!("last memory block           {} ticks", stamps::last_add());
}
