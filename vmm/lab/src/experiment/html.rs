//! Verdicts as one page: who ran them where, a summary, and for each experiment its findings, its numbers, a chart, and
//! its sessions over time.
//!
//! The page needs no other file: no script, no font, no picture. It follows the reader's choice of a light or
//! a dark scheme. Text that does not come from this file is escaped.

mod chart;

use std::fmt::{self, Write};

use tidevm_events::Start;
use tidevm_report::Escaped;

use super::{Drawing, Finding, Side, Value, Verdict};

const STYLE: &str = include_str!("html/style.css");

/// The page. `start` tells of the run.
#[must_use]
pub fn page(start: &Start, verdicts: &[Verdict]) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut page, start, verdicts);
    page
}

fn write(page: &mut String, start: &Start, verdicts: &[Verdict]) -> fmt::Result {
    let passed = verdicts.iter().filter(|verdict| verdict.passed()).count();
    writeln!(page, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(page, "<title>tidevm experiments</title>\n<style>")?;
    writeln!(page, "{}{STYLE}</style>\n</head>\n<body>\n<main>", tidevm_report::STYLE)?;
    writeln!(page, "<h1>tidevm experiments</h1>")?;
    writeln!(
        page,
        "<p class=\"lead\">Each boots the guest with a mechanism off and on. {passed} of {} show the failure \
         when it is off, and only then. Every number is of this run.</p>",
        verdicts.len()
    )?;
    page.push_str(&tidevm_report::facts(start));
    summary(page, verdicts)?;
    for verdict in verdicts {
        experiment(page, verdict)?;
    }
    writeln!(page, "</main>\n</body>\n</html>")
}

fn summary(page: &mut String, verdicts: &[Verdict]) -> fmt::Result {
    writeln!(page, "<div class=\"scroll\"><table>\n<thead><tr><th>experiment</th><th>mechanism off</th>")?;
    writeln!(page, "<th>mechanism on</th><th>result</th><th class=\"n\">time</th></tr></thead>\n<tbody>")?;
    for verdict in verdicts {
        let name = Escaped(verdict.name);
        write!(page, "<tr><td><a href=\"#{name}\">{name}</a></td>")?;
        for on in [false, true] {
            write!(page, "<td>")?;
            for side in verdict.sides.iter().filter(|side| side.on == on) {
                write!(page, "<div>{}: {}</div>", Escaped(side.setting), side.finding.text())?;
            }
            write!(page, "</td>")?;
        }
        let took = verdict.took.as_secs_f64();
        writeln!(page, "<td>{}</td><td class=\"n\">{took:.1} s</td></tr>", mark(verdict))?;
    }
    writeln!(page, "</tbody></table></div>")
}

fn mark(verdict: &Verdict) -> &'static str {
    match verdict.passed() {
        true => "<span class=\"good\">\u{2713} ok</span>",
        false => "<span class=\"bad\">\u{2717} fail</span>",
    }
}

fn experiment(page: &mut String, verdict: &Verdict) -> fmt::Result {
    let name = Escaped(verdict.name);
    writeln!(page, "<section id=\"{name}\">\n<h2>{name} {}</h2>", mark(verdict))?;
    writeln!(page, "<p>{}</p>\n<ul>", Escaped(verdict.about))?;
    for side in &verdict.sides {
        let (title, what) = (Escaped(side.title()), Escaped(&side.what));
        writeln!(page, "<li><strong>{title}</strong>, {}: {what}</li>", side.finding.text())?;
    }
    writeln!(page, "</ul>")?;
    chart::draw(page, verdict)?;
    numbers(page, &verdict.sides)?;
    verdict.drawings.iter().try_for_each(|drawing| session(page, drawing))?;
    writeln!(page, "</section>")
}

/// A session, which the reader opens.
fn session(page: &mut String, drawing: &Drawing) -> fmt::Result {
    let Drawing { label, timeline } = drawing;
    writeln!(page, "<details>\n<summary>{} over time</summary>\n{timeline}</details>", Escaped(label))
}

fn numbers(page: &mut String, sides: &[Side]) -> fmt::Result {
    write!(page, "<div class=\"scroll\"><table>\n<thead><tr><th></th>")?;
    for side in sides {
        write!(page, "<th class=\"n\">{}</th>", Escaped(side.title()))?;
    }
    writeln!(page, "</tr></thead>\n<tbody>")?;
    let names = sides.first().map_or(&[][..], |side| &side.numbers);
    for (index, name) in names.iter().enumerate() {
        write!(page, "<tr><td>{}</td>", Escaped(&name.name))?;
        for side in sides {
            match side.numbers.get(index).map(|number| &number.value) {
                Some(Value::Missing(why)) => write!(page, "<td class=\"n why\">{}</td>", Escaped(why))?,
                Some(value) => write!(page, "<td class=\"n\">{}</td>", Escaped(value))?,
                None => write!(page, "<td></td>")?,
            }
        }
        writeln!(page, "</tr>")?;
    }
    writeln!(page, "</tbody></table></div>")
}

impl Finding {
    /// One word.
    pub(super) fn text(self) -> &'static str {
        match self {
            Finding::Failure => "failure",
            Finding::Success => "success",
            Finding::Neither => "neither",
        }
    }
}
