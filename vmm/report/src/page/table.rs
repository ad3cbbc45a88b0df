//! The table of steps.

use std::fmt::{self, Write};

use super::nothing;
use crate::steps::Row;
use crate::{Escaped, Report, show};

pub fn draw(page: &mut String, report: &Report) -> fmt::Result {
    if report.steps.count() == 0 {
        return nothing(page, "No step was run.");
    }
    writeln!(
        page,
        "<table>\n<thead><tr><th class=\"n\">#</th><th>step</th><th class=\"n wide\">at</th><th class=\"n\">took</th>"
    )?;
    writeln!(
        page,
        "<th class=\"n wide\">requested</th><th class=\"n\">plugged</th><th class=\"n wide\">used</th>"
    )?;
    writeln!(page, "<th class=\"n\">held</th></tr></thead>\n<tbody>")?;
    let mut before = 0;
    for step in report.steps.rows() {
        if step.number != before + 1 {
            let left_out = report.steps.left_out();
            writeln!(
                page,
                "<tr class=\"gap\"><td></td><td colspan=\"7\">{left_out} steps are not shown</td></tr>"
            )?;
        }
        before = step.number;
        row(page, step)?;
    }
    writeln!(page, "</tbody></table>")
}

fn row(page: &mut String, step: &Row) -> fmt::Result {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), show::size);
    let class = if step.ok { "" } else { " class=\"bad\"" };
    let line = if step.line == 0 { "added at the end".to_owned() } else { format!("line {}", step.line) };
    write!(
        page,
        "<tr{class}><td class=\"n\">{}</td><td title=\"{line}\"><code>{}</code>",
        step.number,
        Escaped(&step.command)
    )?;
    if let Some(text) = &step.text {
        let class = if step.ok { "note" } else { "note bad" };
        write!(page, "<span class=\"{class}\">{}</span>", Escaped(text))?;
    }
    let (at, took) = (show::time(step.start), show::time(step.took));
    write!(page, "</td><td class=\"n wide\">{at}</td><td class=\"n\">{took}</td>")?;
    let after = step.after;
    writeln!(
        page,
        "<td class=\"n wide\">{}</td><td class=\"n\">{}</td><td class=\"n wide\">{}</td><td class=\"n\">{}</td></tr>",
        size(Some(after.requested)),
        size(Some(after.plugged)),
        size(after.used),
        size(after.held)
    )
}
