//! Commands typed at the serial console, for VMMs that have no control channel. Their words are those of
//! a session's script; `meminfo` and `zoneinfo` answer in the form of Linux's files of these names.
//!
//! The last line of every answer is `ok`, or begins with `failed: `.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::str::SplitAsciiWhitespace;

use spin::Mutex;
use tidevm_abi::{Answer, Failure, Handle, HogKind, Op, Report, ResizeState};
use tidevm_mm::{PAGE_SIZE, ZoneStats, ZoneType};

use crate::agent::{self, Asker};
use crate::console::{self, print, println};
use crate::ioapic::Line;
use crate::job::{self, Job, Step};
use crate::{MM, cmdline, irq};

/// Longest line that is read.
const MAX_LINE: usize = 128;
/// The shell's workloads have handles from here down; the VMM counts from 0.
const LAST_HANDLE: Handle = Handle::MAX;

const HELP: &str = "\
  meminfo, zoneinfo       counters, as Linux shows them
  stats                   where memmaps lie, and what moved
  check                   verify every invariant of the memory management
  hog SIZE movable|unmovable|pinned [scattered] [full] as NAME
  verify NAME, release NAME
  churn N threads for MILLISms
  poweroff";

/// The answer that came.
static ANSWER: Mutex<Option<Answer>> = Mutex::new(None);

/// Takes the answer to what the shell asked.
pub fn answer(answer: Answer) {
    *ANSWER.lock() = Some(answer);
    irq::wake(0);
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

/// Starts the shell, on the boot CPU, if there is a serial port.
pub fn start() {
    if let Some(line) = console::listen() {
        println!("ready");
        print!("> ");
        job::spawn(
            0,
            Box::new(Shell { line, typed: String::new(), names: Vec::new(), starting: None, waits: false }),
        );
    }
}

struct Shell {
    line: Line,
    typed: String,
    /// Workloads that it started.
    names: Vec<(String, Handle)>,
    /// The one that it starts just now.
    starting: Option<(String, Handle)>,
    /// For an answer.
    waits: bool,
}

/// What a line asks for.
enum Command {
    Nothing,
    Help,
    MemInfo,
    ZoneInfo,
    Stats,
    Op(Op),
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
                self.run(&typed);
            }
            BACKSPACE | DELETE => {
                // On the terminal: back, over it with a space, and back.
                self.typed.pop().iter().for_each(|_| print!("\u{8} \u{8}"));
            }
            b' '..=b'~' if self.typed.len() < MAX_LINE => {
                self.typed.push(char::from(byte));
                print!("{}", char::from(byte));
            }
            _ => {}
        }
    }

    fn run(&mut self, line: &str) {
        let done = match self.parse(line) {
            Ok(Command::Nothing) => return print!("> "),
            Ok(Command::Op(op)) => {
                // Its answer may already be there when this returns.
                self.waits = true;
                return agent::carry_out(op, Asker::Shell);
            }
            Ok(Command::Help) => {
                println!("{HELP}");
                Ok(())
            }
            Ok(Command::MemInfo) => {
                meminfo();
                Ok(())
            }
            Ok(Command::ZoneInfo) => {
                zoneinfo();
                Ok(())
            }
            Ok(Command::Stats) => {
                stats();
                Ok(())
            }
            Err(reason) => Err(reason),
        };
        end(done);
    }

    fn parse(&mut self, line: &str) -> Result<Command, &'static str> {
        let mut words = line.split_ascii_whitespace();
        let Some(word) = words.next() else { return Ok(Command::Nothing) };
        let command = match word {
            "help" => Command::Help,
            "meminfo" => Command::MemInfo,
            "zoneinfo" => Command::ZoneInfo,
            "stats" => Command::Stats,
            "check" => Command::Op(Op::Check),
            "poweroff" => Command::Op(Op::PowerOff),
            "hog" => Command::Op(self.hog(&mut words)?),
            "verify" => Command::Op(Op::Verify { handle: self.find(words.next())?.1 }),
            "release" => {
                let (index, handle) = self.find(words.next())?;
                self.names.swap_remove(index);
                Command::Op(Op::Release { handle })
            }
            "churn" => Command::Op(self.churn(&mut words)?),
            _ => return Err("no such command; `help` lists them"),
        };
        match words.next() {
            None => Ok(command),
            Some(_) => Err("there are words after the command"),
        }
    }

    fn hog(&mut self, words: &mut SplitAsciiWhitespace<'_>) -> Result<Op, &'static str> {
        const USAGE: &str = "hog SIZE movable|unmovable|pinned [scattered] [full] as NAME";
        let size = words.next().and_then(cmdline::number).ok_or(USAGE)?;
        let kind = match words.next() {
            Some("movable") => HogKind::Movable,
            Some("unmovable") => HogKind::Unmovable,
            Some("pinned") => HogKind::Pinned,
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
        let name = words.next().ok_or(USAGE)?;
        if self.find(Some(name)).is_ok() {
            return Err("there is a workload of this name");
        }
        let handle = self.new_handle();
        self.starting = Some((name.into(), handle));
        Ok(Op::Hog { handle, pages: size.div_ceil(PAGE_SIZE), kind, scattered, full })
    }

    fn churn(&self, words: &mut SplitAsciiWhitespace<'_>) -> Result<Op, &'static str> {
        const USAGE: &str = "churn N threads for MILLISms";
        let threads = words.next().and_then(|word| word.parse().ok()).ok_or(USAGE)?;
        let [Some("threads"), Some("for"), Some(time)] = [words.next(), words.next(), words.next()] else {
            return Err(USAGE);
        };
        let millis = time.strip_suffix("ms").and_then(|time| time.parse().ok()).ok_or(USAGE)?;
        Ok(Op::Churn { handle: self.new_handle(), threads, millis })
    }

    fn new_handle(&self) -> Handle {
        self.names.iter().map(|(_, handle)| handle - 1).min().unwrap_or(LAST_HANDLE)
    }

    fn find(&self, name: Option<&str>) -> Result<(usize, Handle), &'static str> {
        let name = name.ok_or("which workload?")?;
        let index =
            self.names.iter().position(|(known, _)| known == name).ok_or("no workload has this name")?;
        Ok((index, self.names[index].1))
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
            Answer::Verified { pages, corrupt: 0, .. } => println!("{pages} pages intact"),
            Answer::Verified { pages, corrupt, first_corrupt } => {
                println!("{corrupt} of {pages} pages corrupt, the first is {first_corrupt:x?}");
                return Err("the content changed");
            }
            Answer::Failed(failure) => {
                return Err(match failure {
                    Failure::NoMemory => "no memory for the table of its pages",
                    Failure::UnknownHandle | Failure::HandleInUse | Failure::BadRecord => {
                        unreachable!("names and handles are kept together")
                    }
                });
            }
            Answer::Stats(_) | Answer::Done => {}
        }
        Ok(())
    }
}

fn name(zone: ZoneType) -> &'static str {
    match zone {
        ZoneType::Dma32 => "DMA32",
        ZoneType::Normal => "Normal",
        ZoneType::Movable => "Movable",
    }
}

/// Linux `/proc/meminfo`, what of it means something here.
fn meminfo() {
    let zones = MM.stats().zones;
    let kib = |pages: fn(&ZoneStats) -> u64| zones.iter().map(pages).sum::<u64>() * (PAGE_SIZE / 1024);
    println!("MemTotal:       {:8} kB", kib(|zone| zone.managed));
    println!("MemFree:        {:8} kB", kib(|zone| zone.free + zone.pcp));
}

/// Linux `/proc/zoneinfo`, what of it means something here. Pages on per-CPU lists are given as one
/// number.
fn zoneinfo() {
    for zone in MM.stats().zones {
        println!("Node 0, zone {:>8}", name(zone.zone));
        println!("  pages free     {}", zone.free);
        println!("        spanned  {}", zone.spanned);
        println!("        present  {}", zone.present);
        println!("        managed  {}", zone.managed);
        println!("      nr_free_pages {}", zone.free);
        println!("      nr_isolate_pageblock {}", zone.nr_isolate_pageblock);
        println!("  pagesets\n    all cpus\n              count:    {}", zone.pcp);
    }
}

fn stats() {
    let stats = MM.stats();
    println!("memmap in boot memory       {} pages", stats.memmap_boot_pages);
    println!("memmap in hot-added memory  {} pages", stats.memmap_altmap_pages);
    println!("memory blocks online        {}", stats.sections_online);
    println!("pages migrated              {}, {} times in vain", stats.pages_migrated, stats.migrate_failed);
    println!("drains of per-CPU lists     {}", stats.pcp_drains);
}
