//! The page: the session's facts, its timeline, its regions, how long steps took, and the steps.
//!
//! Every text that a session brings is escaped. Drawings are inline SVG without text: it stretches with the page, and labels
//! are HTML beside it, so that they are as legible on a telephone as on a desk.

mod head;
mod latency;
mod regions;
mod table;
mod timeline;

use std::fmt::{self, Write};

use tidevm_events::Start;

use crate::{Escaped, Report, STYLE};

/// The whole document.
pub fn page(report: &Report) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut page, report);
    page
}

/// The facts of a run.
pub fn facts(start: &Start) -> String {
    let mut page = String::new();
    let _ = head::facts(&mut page, start);
    page
}

/// The timeline with its legend and its marks.
pub fn timeline_alone(report: &Report) -> String {
    let mut page = String::new();
    let _ = timeline::draw(&mut page, report);
    page
}

fn write(page: &mut String, report: &Report) -> fmt::Result {
    writeln!(page, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(page, "<title>{}</title>", Escaped(head::title(report)))?;
    writeln!(page, "<style>\n{STYLE}</style>\n</head>\n<body>\n<main>")?;
    head::draw(page, report)?;
    section(page, "Memory over time", |page| timeline::draw(page, report))?;
    section(page, "Memory blocks", |page| regions::draw(page, report))?;
    section(page, "How long steps took", |page| latency::draw(page, report))?;
    section(page, "Steps", |page| table::draw(page, report))?;
    writeln!(page, "</main>\n</body>\n</html>")
}

fn section(page: &mut String, title: &str, draw: impl FnOnce(&mut String) -> fmt::Result) -> fmt::Result {
    writeln!(page, "<section>\n<h2>{title}</h2>")?;
    draw(page)?;
    writeln!(page, "</section>")
}

/// A sentence about a drawing that has nothing to show.
fn nothing(page: &mut String, why: &str) -> fmt::Result {
    writeln!(page, "<p class=\"soft\">{}</p>", Escaped(why))
}

/// `1 step`, `2 steps`.
fn number(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
