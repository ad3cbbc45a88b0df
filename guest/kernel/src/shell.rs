//! The shell: commands that people type at the serial console.
//!
//! Its commands are those of a session's script that the guest can carry out by itself, in the grammar of
//! [`tidevm_abi::command`], and a few of its own ([`OWN_COMMANDS`]). The last line of every answer is `ok`,
//! or begins with `failed: `.
//!
//! Where a control channel takes the reports, the shell prints nothing before a key was typed: each byte costs an exit,
//! and most VMs have nobody at their console. It sleeps until the port's interrupt.
//!
//! Invariant: the shell carries out one command at a time. It changes nothing before the whole line is
//! parsed.

mod names;
mod notices;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Display;

use tidevm_abi::command::{Executor, Item, Pmem, Race, VERBS, Verb};
use tidevm_abi::{Answer, Command, Failure, Handle, MAX_PMEM, Name, Named, Op, PmemFailure, PmemOp, Words};

use self::notices::Notices;
use crate::agent::{self, blocks, pmem};
use crate::console::{self, print, println};
use crate::cpu::ioapic::Line;
use crate::cpu::power;
use crate::job::{self, Job, Progress};
use crate::mailbox::{self, Requester};
use crate::procfs;

/// Longest line that is read.
const MAX_LINE: usize = 128;

const NO_SUCH_COMMAND: &str = "no such command; `help` lists them";
const ONLY_THE_VMM: &str = "only the VMM can do this";

/// A command that scripts do not have.
struct OwnCommand {
    word: &'static str,
    about: &'static str,
    run: fn(),
}

const OWN_COMMANDS: &[OwnCommand] = &[
    OwnCommand { word: "help", about: "list the commands", run: help },
    OwnCommand { word: "zoneinfo", about: "zones, as in Linux's /proc/zoneinfo", run: procfs::zoneinfo },
    OwnCommand { word: "reboot", about: "have the machine start again", run: || power::reset() },
    OwnCommand {
        word: "poweroff",
        about: "end the machine",
        run: || agent::carry_out(Op::PowerOff, Requester::Console),
    },
];

/// Starts the job on the boot CPU that reads commands, if there is a serial port. Without a control channel, which takes
/// reports, prints those of boot, and starts the job that prints later ones.
pub fn start(has_channel: bool) {
    if !has_channel {
        notices::print_waiting();
        job::spawn(0, Box::new(Notices));
    }
    if let Some(line) = console::listen() {
        if !has_channel {
            println!("ready");
            print!("> ");
        }
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
    /// The workload that the call under way may end. The shell reads nothing until the answer is there.
    waits: Option<Ends>,
}

/// A call to the agent, and the workload that it may end.
type Call = (Op, Ends);

/// The workload that ends with the answer to a call. Its name is free again then.
#[derive(Clone, Copy)]
enum Ends {
    /// No workload.
    Nothing,
    /// The workload that the call starts, unless it holds pages now.
    Started(Handle),
    /// The workload that the call releases, unless the call fails.
    Released(Handle),
}

impl Job for Shell {
    fn step(&mut self) -> Progress {
        if let Some(ends) = self.waits {
            let Some(answer) = mailbox::take_console_answer() else { return Progress::Idle(None) };
            self.waits = None;
            show(&answer);
            ends.settle(&answer);
            print!("> ");
        } else if !self.line.fired() {
            return Progress::Idle(None);
        }
        // Bytes that arrived while the shell waited raise no further interrupt.
        while self.waits.is_none() {
            match console::read() {
                Some(byte) => self.take(byte),
                None => return Progress::Idle(None),
            }
        }
        Progress::Idle(None)
    }
}

impl Shell {
    fn new(line: Line) -> Self {
        Self { line, typed: String::new(), overlong: false, waits: None }
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
                    failed("the line is too long");
                } else {
                    self.run(&typed);
                }
                if self.waits.is_none() {
                    print!("> ");
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

    /// Carries out a line.
    fn run(&mut self, line: &str) {
        let words = &mut Words::new(line);
        let Ok(first) = words.next("a command") else { return };
        let done = match OWN_COMMANDS.iter().find(|own| own.word == first.text) {
            Some(own) => no_more(words).map(|()| {
                (own.run)();
                None
            }),
            None => parse(line).and_then(begin),
        };
        match done {
            Ok(Some((op, ends))) => {
                // Set before the call: the answer may be there when `carry_out` returns.
                self.waits = Some(ends);
                agent::carry_out(op, Requester::Console);
            }
            Ok(None) => println!("ok"),
            Err(reason) => failed(reason),
        }
    }
}

/// Prints the last line of an answer.
fn failed(reason: impl Display) {
    println!("failed: {reason}");
}

fn no_more(words: &Words<'_>) -> Result<(), String> {
    words.peek().map_or(Ok(()), |_| Err("there are words after the command".to_string()))
}

/// Parses a whole line as a command of the grammar that the guest can carry out.
fn parse(line: &str) -> Result<Command, String> {
    let words = &mut Words::new(line);
    let verb = words.peek().and_then(|word| Verb::new(word.text));
    if verb.is_some_and(|verb| verb.executor == Executor::Vmm) {
        return Err(ONLY_THE_VMM.to_string());
    }
    match Item::parse(words) {
        Ok(Item::Command(command)) => no_more(words).map(|()| command),
        // Parts of a repetition.
        Ok(Item::Repeat(_) | Item::End) => Err(ONLY_THE_VMM.to_string()),
        Err(error) => Err(match verb {
            Some(verb) => format!("{error} at column {}; usage: {}", error.column, verb.usage),
            None => NO_SUCH_COMMAND.to_string(),
        }),
    }
}

/// Carries out a command that needs no call, or returns the call of one that does.
fn begin(command: Command) -> Result<Option<Call>, String> {
    let call = match command {
        Command::Hog(hog) => start_workload(hog.name.clone(), |handle| hog.op(handle))?,
        Command::Churn(churn) => start_workload(churn.name.clone(), |handle| churn.op(handle))?,
        Command::Verify(name) => (Op::Verify { handle: names::handle_of(&name)? }, Ends::Nothing),
        Command::Release(name) => {
            let handle = names::handle_of(&name)?;
            (Op::Release { handle }, Ends::Released(handle))
        }
        Command::Check => (Op::Check, Ends::Nothing),
        Command::Readd { size, addr } => (Op::Readd { addr, size }, Ends::Nothing),
        Command::Rebind { device } => (Op::Rebind { device }, Ends::Nothing),
        Command::Race(Race { cycles, held }) => (Op::Race { cycles, held }, Ends::Nothing),
        Command::Corrupt(corrupt) => (corrupt.op(names::handle_of(&corrupt.name)?), Ends::Nothing),
        Command::Probe(wait) => (Op::Probe(wait), Ends::Nothing),
        Command::Pmem(Pmem::Map(map)) => (map.op(), Ends::Nothing),
        Command::Pmem(Pmem::Unmap(device)) => (Op::Pmem(PmemOp::Unmap { device }), Ends::Nothing),
        Command::Pmem(Pmem::Hold(hold)) => start_workload(hold.name.clone(), |handle| hold.op(handle))?,
        Command::Pmem(Pmem::List) => {
            list_pmem();
            return Ok(None);
        }
        Command::Blocks => {
            list_blocks();
            return Ok(None);
        }
        Command::Meminfo => {
            procfs::meminfo();
            return Ok(None);
        }
        Command::Stats => {
            procfs::vmstat();
            return Ok(None);
        }
        Command::Resize(_)
        | Command::Wait(_)
        | Command::WaitBoot { .. }
        | Command::Step(_)
        | Command::Expect(_)
        | Command::ExpectConsole(_)
        | Command::Fails(_)
        | Command::Reset { .. }
        | Command::Sleep(_)
        | Command::Inject { .. } => return Err(ONLY_THE_VMM.to_string()),
    };
    Ok(Some(call))
}

/// The call that starts a workload.
fn start_workload(name: Name, op: impl FnOnce(Handle) -> Op) -> Result<Call, String> {
    let handle = names::add(name)?;
    Ok((op(handle), Ends::Started(handle)))
}

impl Ends {
    /// Frees the name of the workload that `answer` ends.
    fn settle(self, answer: &Answer) {
        match (self, answer) {
            (Self::Nothing, _)
            | (Self::Started(_), Answer::Hogged { .. })
            | (Self::Released(_), Answer::Failed(_)) => {}
            (Self::Started(handle) | Self::Released(handle), _) => names::forget(handle),
        }
    }
}

/// Prints the answer to a call, and its last line.
fn show(answer: &Answer) {
    match answer {
        Answer::Failed(failure) => failed(Named::new(failure, &names::name_of)),
        Answer::Verified { corrupt: 1.., .. } => failed(answer),
        _ => println!("{answer}\nok"),
    }
}

/// Prints the commands.
fn help() {
    for OwnCommand { word, about, .. } in OWN_COMMANDS {
        println!("  {word}\n      {about}");
    }
    for Verb { usage, about, .. } in VERBS.iter().filter(|verb| verb.executor == Executor::Guest) {
        println!("  {usage}\n      {about}");
    }
}

/// Prints the memory blocks, one line per run of memory blocks that are alike.
fn list_blocks() {
    let mut from = Some(0);
    while let Some(Answer::Blocks { runs, next }) = from.map(blocks::blocks) {
        runs.iter().flatten().for_each(|run| println!("{run}"));
        from = next;
    }
}

/// Prints the ranges of device memory.
fn list_pmem() {
    for device in 0..MAX_PMEM as u8 {
        match pmem::look(device) {
            Ok(range) => println!("pmem {device}: {range}"),
            Err(Failure::Pmem(PmemFailure::NoDevice)) if device == 0 => println!("no device memory"),
            Err(_) => return,
        }
    }
}
