//! The text of a script: it prints as text that parses to the same statements, and its errors are bounded.
//!
//! The printer here is the simplest one: a statement a line. So what is compared is the grammar, with the text of
//! each command as its `Display` writes it. A reader of its own finds the verb and the first number of each command
//! at its place in the text, so that a number which is misread is not only printed as it was read.

use std::time::Duration;

use tidevm_abi::Command;
use tidevm_abi::command::Hog;
use tidevm_machine::{Config, HotplugConfig, Size};
use tidevm_session::script::{Script, Statement};

use crate::heap;

/// Most bytes of heap that one byte of a script may cost, beside [`BASE`].
const PER_BYTE: usize = 400;
const BASE: usize = (64 << 10) + PATTERN;
/// Most bytes that a pattern takes while it is compiled, one at a time: its limit is 256 KiB, and vectors grow by doubling.
const PATTERN: usize = 1 << 20;
/// Most bytes of all errors of a script as text. A hundred are shown, and each is a message with its line.
const MOST_TEXT: usize = 128 << 10;

/// Reads one script.
///
/// # Panics
/// When it does not print as what it is, or its errors are out of bounds.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (script, held) = heap::highest(|| Script::parse("fuzz", &text));
    let most = BASE + PER_BYTE * text.len();
    assert!(held <= most, "{held} bytes of heap for a script of {}, {most} are the most", text.len());
    match script {
        Ok(script) => same_again(&text, &script),
        Err(errors) => {
            let lines: Vec<&str> = text.lines().collect();
            for error in &errors.0 {
                let line = lines.get(error.line - 1).expect("an error is on a line");
                let columns = line.chars().count() + 1;
                assert!((1..=columns).contains(&error.column), "column {} of {columns}", error.column);
            }
            let places = errors.0.iter().map(|error| (error.line, error.column));
            assert!(places.clone().is_sorted(), "errors in the order of lines");
            let (shown, held) = heap::highest(|| errors.to_string());
            assert!(shown.len() <= MOST_TEXT && held <= 4 * MOST_TEXT, "{} bytes of errors", shown.len());
            let odd = shown.chars().find(|&c| c.is_control() && c != '\n');
            assert_eq!(odd, None, "a character that a terminal obeys in {shown:?}");
        }
    }
    for line in text.lines().take(50) {
        if let Ok(command) = line.parse::<Command>() {
            let printed = command.to_string();
            assert_eq!(printed.parse(), Ok(command), "{line:?} prints as {printed:?}");
        }
    }
}

fn same_again(text: &str, script: &Script) {
    let lines: Vec<&str> = text.lines().collect();
    let steps = steps(&script.body, &lines);
    assert_eq!(script.steps(), steps, "steps of {text:?}");
    let mut printed = String::new();
    print(&script.body, &mut printed);
    let again = Script::parse("printed", &printed).unwrap_or_else(|errors| panic!("{text:?}: {errors}"));
    assert!(same(&script.body, &again.body), "{text:?} prints as {printed:?}");
    assert_eq!(script.longest_step(), again.longest_step());
    let hotplug = vec![HotplugConfig::new(Size::gib(1)); 2];
    let config = Config { hotplug, pmem: vec![Size::gib(1)], ..Config::default() };
    assert_eq!(script.fit(&config).is_ok(), again.fit(&config).is_ok());
}

fn print(body: &[Statement], text: &mut String) {
    for statement in body {
        match statement {
            Statement::Step(step) => *text += &format!("{}\n", step.command),
            Statement::Repeat { times, body } => {
                *text += &format!("repeat {times} {{\n");
                print(body, text);
                *text += "}\n";
            }
        }
    }
}

/// The number of steps with repetitions, each of which is what stands at its place.
fn steps(body: &[Statement], lines: &[&str]) -> u64 {
    let of = |statement: &Statement| match statement {
        Statement::Step(step) => {
            let line = lines.get(step.line - 1).expect("a step is on a line");
            let rest: String = line.chars().skip(step.column - 1).collect();
            let words = rest.split(|c: char| c.is_whitespace() || "{}#".contains(c));
            let words: Vec<&str> = words.filter(|word| !word.is_empty()).take(2).collect();
            let printed = step.command.to_string();
            assert_eq!(
                words.first(),
                printed.split(' ').next().as_ref(),
                "the verb of {printed:?} in {line:?}"
            );
            if let Some(number) = words.get(1) {
                assert!(is_as_written(&step.command, number), "{number:?} was read as {:?}", step.command);
            }
            1
        }
        Statement::Repeat { times, body } => u64::from(*times).saturating_mul(steps(body, lines)),
    };
    body.iter().map(of).fold(0, u64::saturating_add)
}

/// Whether the first number of a command is the one that is written `text`, in one of the short ways.
fn is_as_written(command: &Command, text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let Ok(number) = text[..text.len() - unit.len()].parse::<u64>() else { return true };
    let shift = ["", "K", "M", "G", "T"].iter().position(|&known| known == unit);
    let size = shift.and_then(|shift| number.checked_mul(1 << (10 * shift)));
    let millis = [("ms", 1), ("s", 1000), ("m", 60_000)].iter().find(|(known, _)| *known == unit);
    match command {
        Command::Resize(resize) => size.is_none_or(|size| resize.target.size().0 == size),
        Command::Hog(Hog { size: read, .. }) | Command::Readd { size: read, .. } => {
            size.is_none_or(|size| read.0 == size)
        }
        Command::Sleep(read) => {
            millis.is_none_or(|(_, factor)| *read == Duration::from_millis(number * factor))
        }
        Command::Churn(churn) => u64::from(churn.threads) == number,
        Command::Race(race) => u64::from(race.cycles) == number,
        _ => true,
    }
}

/// Whether both are the same, apart from the places of steps.
fn same(one: &[Statement], other: &[Statement]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|pair| match pair {
            (Statement::Step(one), Statement::Step(other)) => one.command == other.command,
            (
                Statement::Repeat { times, body },
                Statement::Repeat { times: other_times, body: other_body },
            ) => times == other_times && same(body, other_body),
            _ => false,
        })
}
