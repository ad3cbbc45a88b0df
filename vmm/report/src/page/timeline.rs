//! The timeline: requested, plugged, used and held memory, the steps below it, and marks for what went wrong.

use std::fmt::{self, Write};

use super::{nothing, number};
use crate::series::Point;
use crate::{Escaped, Report, show};

/// The drawing's own units. It is stretched to the page.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;

/// Marks that are closer than this part of the width have one number for the first of them.
const NUMBER_GAP: f64 = 0.06;

/// Most steps that are drawn below the timeline.
const MAX_STEPS: usize = 400;

pub fn draw(page: &mut String, report: &Report) -> fmt::Result {
    let points = report.series.points();
    if points.is_empty() || report.last <= 0.0 {
        return nothing(page, "Nothing was measured: the guest did not run.");
    }
    let scale = Scale::new(report, &points);
    legend(page, &points)?;
    writeln!(page, "<div class=\"plot\">")?;
    let marks = show::size_marks(scale.most);
    writeln!(page, "<div class=\"y\">")?;
    for mark in &marks {
        writeln!(page, "<span style=\"top:{:.2}%\">{}</span>", scale.y(*mark), show::size(*mark))?;
    }
    writeln!(page, "</div>\n<div class=\"area\">")?;
    numbers(page, report, &scale)?;
    let about = "Requested, plugged, used and held memory over time";
    writeln!(
        page,
        "<svg class=\"time\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{about}\">"
    )?;
    for mark in &marks {
        let y = scale.y(*mark);
        writeln!(page, "<path class=\"grid\" d=\"M0 {y:.2}H{WIDTH}\"/>")?;
    }
    curves(page, &points, &scale)?;
    for mark in report.marks.all() {
        let (x, class) = (scale.x(mark.at), mark.kind.class());
        writeln!(page, "<path class=\"mark {class}\" d=\"M{x:.1} 0V{HEIGHT}\"/>")?;
    }
    writeln!(page, "</svg>")?;
    steps(page, report, &scale)?;
    writeln!(page, "<div class=\"x\">")?;
    for mark in show::time_marks(scale.end) {
        let left = scale.x(mark) / WIDTH * 100.0;
        let class = if left > 96.0 { " class=\"last\"" } else { "" };
        writeln!(page, "<span{class} style=\"left:{left:.2}%\">{}</span>", show::time_mark(mark))?;
    }
    writeln!(page, "</div>\n</div>\n</div>")?;
    list(page, report)
}

struct Scale {
    end: f64,
    most: u64,
    top: u64,
}

impl Scale {
    fn new(report: &Report, points: &[Point]) -> Self {
        let most = points.iter().map(Point::most).max().unwrap_or(0);
        let top = show::size_marks(most).last().copied().unwrap_or(1);
        Self { end: report.last, most, top }
    }

    fn x(&self, at: f64) -> f64 {
        (at / self.end).clamp(0.0, 1.0) * WIDTH
    }

    fn y(&self, bytes: u64) -> f64 {
        HEIGHT - (bytes as f64 / self.top as f64).clamp(0.0, 1.0) * HEIGHT
    }
}

fn legend(page: &mut String, points: &[Point]) -> fmt::Result {
    writeln!(page, "<ul class=\"legend\">")?;
    let used = points.iter().any(|point| point.used.is_some());
    let held = points.iter().any(|point| point.held.is_some());
    for (class, text, shown) in [
        ("requested", "requested", true),
        ("plugged", "plugged", true),
        ("used", "used by the guest, after each step", used),
        ("held", "held by the host", held),
    ] {
        if shown {
            writeln!(page, "<li><i class=\"{class}\"></i>{text}</li>")?;
        }
    }
    writeln!(page, "</ul>")
}

fn curves(page: &mut String, points: &[Point], scale: &Scale) -> fmt::Result {
    let line = |value: fn(&Point) -> Option<u64>| {
        let known = points.iter().filter_map(|point| Some((scale.x(point.at), scale.y(value(point)?))));
        known.collect::<Vec<_>>()
    };
    let path = |line: &[(f64, f64)], steps: bool| {
        let mut path = String::new();
        for (index, (x, y)) in line.iter().enumerate() {
            // Writing to a string does not fail.
            let _ = match (index, steps) {
                (0, _) => write!(path, "M{x:.1} {y:.2}"),
                (_, true) => write!(path, "H{x:.1}V{y:.2}"),
                (_, false) => write!(path, "L{x:.1} {y:.2}"),
            };
        }
        path
    };
    let plugged = line(|point| Some(point.plugged));
    if let (Some(first), Some(last)) = (plugged.first(), plugged.last()) {
        let (first, last) = (first.0, last.0);
        let area = path(&plugged, false);
        writeln!(
            page,
            "<path class=\"plugged area\" d=\"{area}L{last:.1} {HEIGHT}L{first:.1} {HEIGHT}Z\"/>"
        )?;
        writeln!(page, "<path class=\"plugged\" d=\"{area}\"/>")?;
    }
    writeln!(page, "<path class=\"held\" d=\"{}\"/>", path(&line(|point| point.held), false))?;
    writeln!(page, "<path class=\"used\" d=\"{}\"/>", path(&line(|point| point.used), false))?;
    let requested = path(&line(|point| Some(point.requested)), true);
    writeln!(page, "<path class=\"requested\" d=\"{requested}\"/>")
}

/// A bar for the boot and for each step, below the curves. What has room shows its command.
fn steps(page: &mut String, report: &Report, scale: &Scale) -> fmt::Result {
    let place = |start: f64, took: f64| {
        let (from, to) = (scale.x(start), scale.x(start + took));
        (from / WIDTH * 100.0, (to - from) / WIDTH * 100.0)
    };
    writeln!(page, "<div class=\"steps\">")?;
    let rows = report.steps.rows();
    let boot = report.steps.rows().next().map_or(report.last, |row| row.start);
    let (left, width) = place(0.0, boot);
    writeln!(
        page,
        "<span class=\"boot\" title=\"boot\" style=\"left:{left:.2}%;width:{width:.2}%\">boot</span>"
    )?;
    for row in rows.take(MAX_STEPS) {
        let (left, width) = place(row.start, row.took);
        let class = if row.ok { "step" } else { "step bad" };
        writeln!(
            page,
            "<span class=\"{class}\" title=\"{}\" style=\"left:{left:.2}%;width:{width:.2}%\">{}</span>",
            Escaped(row.title()),
            Escaped(&row.command)
        )?;
    }
    writeln!(page, "</div>")
}

/// The numbers of marks, above their lines.
fn numbers(page: &mut String, report: &Report, scale: &Scale) -> fmt::Result {
    if report.marks.all().is_empty() {
        return Ok(());
    }
    writeln!(page, "<div class=\"numbers\">")?;
    let mut last = f64::NEG_INFINITY;
    for (index, mark) in report.marks.all().iter().enumerate() {
        let x = scale.x(mark.at) / WIDTH;
        if x - last < NUMBER_GAP {
            continue;
        }
        last = x;
        let class = mark.kind.class();
        writeln!(page, "<b class=\"{class}\" style=\"left:{:.2}%\">{}</b>", x * 100.0, index + 1)?;
    }
    writeln!(page, "</div>")
}

fn list(page: &mut String, report: &Report) -> fmt::Result {
    if !report.marks.all().is_empty() {
        writeln!(page, "<ol class=\"marks\">")?;
        for (index, mark) in report.marks.all().iter().enumerate() {
            let (class, at) = (mark.kind.class(), show::time(mark.at));
            let text = Escaped(&mark.text);
            writeln!(
                page,
                "<li><b class=\"{class}\">{}</b><span class=\"at\">{at}</span><span>{text}</span></li>",
                index + 1
            )?;
        }
        writeln!(page, "</ol>")?;
    }
    if report.marks.left_out() > 0 {
        nothing(page, &format!("{} more are not shown.", report.marks.left_out()))?;
    }
    if report.series.count() > crate::series::MAX_POINTS as u64 {
        nothing(
            page,
            &format!("{} were measured; some of them are drawn.", number(report.series.count(), "sample")),
        )?;
    }
    Ok(())
}
