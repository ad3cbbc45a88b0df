//! The map of each region: a column per step, a row per memory block, and a colour per state.

use std::fmt::{self, Write};

use super::nothing;
use crate::region::{Cell, Region, State};
use crate::{Escaped, Report, show};

/// The part of a row's height that marks a memmap.
const MEMMAP: f64 = 0.2;

/// Most labels of columns.
const MAX_LABELS: usize = 6;

/// Pixels of a row, and of the lowest and highest map.
const ROW: usize = 12;
const HEIGHTS: (usize, usize) = (72, 320);

pub fn draw(page: &mut String, report: &Report) -> fmt::Result {
    let regions = report.regions.all();
    if regions.is_empty() {
        return nothing(
            page,
            "The guest told no memory blocks: it has no hotplug memory, did not boot, or is another kernel.",
        );
    }
    let cells = || regions.iter().flat_map(|region| region.columns()).flat_map(|column| &column.cells);
    legend(page, cells())?;
    for (index, region) in regions.iter().enumerate() {
        map(page, index, region)?;
    }
    let incomplete = regions.iter().flat_map(|region| region.columns()).any(|column| !column.complete);
    if incomplete {
        nothing(
            page,
            "After some steps the guest's memory was too fragmented to be told completely: the upper part of a column is missing.",
        )?;
    }
    Ok(())
}

fn legend<'c>(page: &mut String, cells: impl Iterator<Item = &'c Cell> + Clone) -> fmt::Result {
    writeln!(page, "<ul class=\"legend\">")?;
    for (state, text) in [
        (State::Movable, "online, zone Movable"),
        (State::Kernel, "online, zone of the kernel"),
        (State::Deferred, "deferred"),
        (State::Offline, "offline"),
        (State::Absent, "not added"),
    ] {
        if state == State::Movable || state == State::Absent || cells.clone().any(|cell| cell.state == state)
        {
            writeln!(page, "<li><i class=\"cell {}\"></i>{text}</li>", state.class())?;
        }
    }
    if cells.clone().any(|cell| cell.state != State::Absent && cell.quarters < 4) {
        writeln!(page, "<li><i class=\"cell movable q2\"></i>plugged in part</li>")?;
    }
    if cells.clone().any(|cell| cell.memmap) {
        writeln!(
            page,
            "<li><i class=\"cell movable\"><i class=\"memmap\"></i></i>memmap on the memory</li>"
        )?;
    }
    writeln!(page, "</ul>")
}

fn map(page: &mut String, index: usize, region: &Region) -> fmt::Result {
    let (rows, columns) = (region.rows(), region.columns().len());
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let (size, row) = (show::size(region.size), show::size(region.row));
    writeln!(
        page,
        "<p class=\"caption\">Region {index}: {size} at {:#x}. A row is {row}, a column is the state after a step.</p>",
        region.address
    )?;
    writeln!(page, "<div class=\"plot map\">\n<div class=\"y\">")?;
    let marks = show::size_marks(region.size);
    for mark in marks.iter().filter(|mark| **mark <= region.size) {
        let top = 100.0 - *mark as f64 / (rows as f64 * region.row as f64) * 100.0;
        writeln!(page, "<span style=\"top:{top:.2}%\">{}</span>", show::size(*mark))?;
    }
    writeln!(page, "</div>\n<div class=\"area\">")?;
    let height = (rows * ROW).clamp(HEIGHTS.0, HEIGHTS.1);
    writeln!(
        page,
        "<svg class=\"blocks\" style=\"height:{height}px\" viewBox=\"0 0 {columns} {rows}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Memory blocks of region {index} after each step\">"
    )?;
    writeln!(page, "<rect class=\"absent\" width=\"{columns}\" height=\"{rows}\"/>")?;
    for row in 0..rows {
        let y = rows - 1 - row;
        runs(page, region, row, |page, cell, from, length| {
            let class = cell.state.class();
            writeln!(
                page,
                "<rect class=\"{class} q{}\" x=\"{from}\" y=\"{y}\" width=\"{length}\" height=\"1\"/>",
                cell.quarters
            )?;
            if cell.memmap {
                let y = y as f64 + 1.0 - MEMMAP;
                writeln!(
                    page,
                    "<rect class=\"memmap\" x=\"{from}\" y=\"{y:.2}\" width=\"{length}\" height=\"{MEMMAP}\"/>"
                )?;
            }
            Ok(())
        })?;
    }
    for (x, column) in region.columns().iter().enumerate() {
        let title = Escaped(format!("after {} at {}", column.command, show::time(column.at)));
        writeln!(
            page,
            "<rect class=\"hover\" x=\"{x}\" y=\"0\" width=\"1\" height=\"{rows}\"><title>{title}</title></rect>"
        )?;
    }
    writeln!(page, "</svg>\n<div class=\"x\">")?;
    let every = columns.div_ceil(MAX_LABELS);
    for (x, column) in region.columns().iter().enumerate().step_by(every) {
        let left = (x as f64 + 0.5) / columns as f64 * 100.0;
        writeln!(page, "<span style=\"left:{left:.2}%\">{}</span>", show::time(column.at))?;
    }
    writeln!(page, "</div>\n</div>\n</div>")
}

/// Calls `draw` for each run of equal cells in a row, except where nothing was added.
fn runs(
    page: &mut String,
    region: &Region,
    row: usize,
    draw: impl Fn(&mut String, Cell, usize, usize) -> fmt::Result,
) -> fmt::Result {
    let cell = |column: usize| region.columns()[column].cells.get(row).copied().unwrap_or_default();
    let mut from = 0;
    for column in 1..=region.columns().len() {
        if column < region.columns().len() && cell(column) == cell(from) {
            continue;
        }
        if cell(from).state != State::Absent {
            draw(page, cell(from), from, column - from)?;
        }
        from = column;
    }
    Ok(())
}
