//! The text of a script: it prints as text that parses to the same statements, and its errors are bounded.
//!
//! The printer here is the simplest one: a statement a line. So what is compared is the grammar, with the text of
//! each command as its `Display` writes it.

use tidevm_abi::Command;
use tidevm_machine::{Config, HotplugConfig, Size};
use tidevm_session::script::{Script, Statement};

use crate::heap;

/// Most bytes of heap that one byte of a script may cost, beside [`BASE`].
const PER_BYTE: usize = 400;
const BASE: usize = 64 << 10;
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
    let mut printed = String::new();
    print(&script.body, &mut printed);
    let again = Script::parse("printed", &printed).unwrap_or_else(|errors| panic!("{text:?}: {errors}"));
    assert!(same(&script.body, &again.body), "{text:?} prints as {printed:?}");
    assert_eq!(script.steps(), again.steps());
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
