//! Commands typed at the serial console, for VMMs that have no control channel. Where a session's script
//! has the same command it is written the same; `meminfo` and `zoneinfo` answer in the form of Linux's
//! files of these names.
//!
//! The last line of every answer is `ok`, or begins with `failed: `.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::str::SplitAsciiWhitespace;

use spin::Mutex;
use tidevm_abi::{Answer, Failure, Handle, HogKind, Op, Report, ResizeState};
use tidevm_mm::PAGE_SIZE;

use crate::agent::blocks;
use crate::agent::{self, Asker};
use crate::boot::cmdline;
use crate::console::{self, print, println};
use crate::control;
use crate::cpu::ioapic::Line;
use crate::cpu::lapic;
use crate::job::{self, Job, Step};
use crate::mem::MM;
use crate::procfs;
use crate::virtio::mem;

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

/// The answer that came.
static ANSWER: Mutex<Option<Answer>> = Mutex::new(None);

/// Takes the answer to what the shell asked.
pub fn answer(answer: Answer) {
    *ANSWER.lock() = Some(answer);
    lapic::wake(0);
}

/// Tells people what no VMM listens to.
pub fn tell(report: Report) {
    match report {
        Report::Ready { cpus, mem_devices } => {
            println!("tidevm guest: {cpus} CPUs, {mem_devices} virtio-mem devices");
        }
        Report::Resize(resize) => {
            let (plugged, requested) = (resize.plugged >> 20, resize.requested >> 20);
            print!("virtio-mem at {:#x}: {plugged} of {requested} MiB plugged", resize.region);
            match resize.state {
                ResizeState::Reached => println!(""),
                why => println!(", stopped: {why:?}"),
            }
        }
        Report::Done { .. } => unreachable!("only a VMM on the channel makes calls"),
    }
}

/// Starts the shell, on the boot CPU, if there is a serial port and no VMM that makes calls.
pub fn start() {
    if control::is_bound() {
        return;
    }
    if let Some(line) = console::listen() {
        println!("ready");
        print!("> ");
        job::spawn(
            0,
            Box::new(Shell {
                line,
                typed: String::new(),
                overlong: false,
                names: Vec::new(),
                starting: None,
                last_handle: 0,
                waits: false,
            }),
        );
    }
}

struct Shell {
    line: Line,
    typed: String,
    /// More was typed than is read.
    overlong: bool,
    /// Workloads that it started.
    names: Vec<(String, Handle)>,
    /// The one that it starts just now.
    starting: Option<(String, Handle)>,
    last_handle: Handle,
    /// For an answer.
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
    fn step(&mut self) -> Step {
        if self.waits {
            let Some(answer) = ANSWER.lock().take() else { return Step::Idle(None) };
            self.waits = false;
            end(self.show(answer));
        } else if !self.line.fired() {
            return Step::Idle(None);
        }
        // Bytes that came while it waited raise no further interrupt.
        while !self.waits {
            match console::read() {
                Some(byte) => self.take(byte),
                None => return Step::Idle(None),
            }
        }
        Step::Idle(None)
    }
}

fn end(result: Result<(), &str>) {
    match result {
        Ok(()) => println!("ok"),
        Err(reason) => println!("failed: {reason}"),
    }
    print!("> ");
}

impl Shell {
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
                // On the terminal: back, over it with a space, and back.
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
                // Its answer may already be there when this returns.
                self.waits = true;
                agent::carry_out(op, Asker::Shell);
            }
            Ok(None) => end(Ok(())),
            Err(reason) => end(Err(reason)),
        }
    }

    /// Carries out what needs no answer of the agent's; the rest is returned. Nothing is changed before
    /// the whole line is read.
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
        // Its pages are gone with its answer, so nobody has to name it.
        Ok(Op::Churn { handle: self.new_handle(), threads, millis })
    }

    /// Takes a name for a workload that is about to be made.
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

    /// The workload that the last word names.
    fn name(&self, words: &mut Words<'_>) -> Result<usize, &'static str> {
        let name = words.next().ok_or("which workload?")?;
        no_more(words)?;
        self.find(name).ok_or("no workload has this name")
    }

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
            // Not to what the shell asks.
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

/// What Linux tells in `/sys/devices/system/memory`, a line for memory blocks that are alike.
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
    println!("last memory block           {} ticks", mem::last_add());
}
