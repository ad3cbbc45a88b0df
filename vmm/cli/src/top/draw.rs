//! Draws a view: the chart, the map of the regions, the regions as a table, counters, and the last events.
//!
//! Colours are the terminal's own sixteen, so that they fit its scheme. A terminal that is too small for all of it gets
//! what matters most.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Axis, Block, Cell, Chart, Dataset, GraphType, Padding, Paragraph, Row, Table, Wrap};
use tidevm_abi::Size;

use super::view::{Point, Region, Run, SHOWN, View};

const REQUESTED: Color = Color::Gray;
const PLUGGED: Color = Color::Blue;
const USED: Color = Color::Green;
const HELD: Color = Color::Yellow;
const SOFT: Style = Style::new().add_modifier(Modifier::DIM);

/// Lines of a screen that has no room for more than the table.
const SMALL: u16 = 16;

/// Most lines of the map.
const MAX_MAP: u16 = 6;

/// The unit of the map if the guest has told no memory block.
const USUAL_BLOCK: u64 = 128 << 20;

pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let regions = u16::try_from(view.regions.len()).unwrap_or(u16::MAX).saturating_add(3).min(8);
    let reasons = Text::from(reasons(view));
    let reason_lines = u16::try_from(reasons.lines.len()).unwrap_or(0).min(3);
    if area.height < SMALL {
        let [head, table, why] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(regions), Constraint::Fill(1)])
                .areas(area);
        draw_head(frame, head, view);
        draw_regions(frame, table, view);
        frame.render_widget(Paragraph::new(reasons).wrap(Wrap { trim: true }), why);
        return;
    }
    let map = map_lines(view, area.width.saturating_sub(4));
    let map_height = u16::try_from(map.len()).unwrap_or(MAX_MAP).min(MAX_MAP) + 3;
    let [head, chart, map_area, table, why, rest] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(3),
        Constraint::Length(if area.height >= 28 { map_height } else { 0 }),
        Constraint::Length(regions),
        Constraint::Length(reason_lines),
        Constraint::Fill(2),
    ])
    .areas(area);
    draw_head(frame, head, view);
    draw_chart(frame, chart, view);
    if map_area.height > 0 {
        let title = if view.silent { "memory blocks, as last told" } else { "memory blocks" };
        draw_map(frame, map_area, title, map);
    }
    draw_regions(frame, table, view);
    frame.render_widget(Paragraph::new(reasons).block(Block::new().padding(Padding::horizontal(2))), why);
    let [events, counters] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(rest);
    draw_events(frame, events, view);
    draw_counters(frame, counters, view);
}

fn titled(title: &str) -> Block<'_> {
    Block::bordered()
        .border_style(SOFT)
        .title(Span::styled(format!(" {title} "), Style::new().bold()))
        .padding(Padding::horizontal(1))
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let now = view.now();
    let left = Line::from(vec![
        Span::styled(" tidevm top ", Style::new().bold().reversed()),
        Span::raw(format!(" {}  ", view.id)),
        Span::styled(view.state.clone(), Style::new().fg(if view.state == "Running" { USED } else { HELD })),
        Span::raw(format!("  {} plugged of {}", Size(now.plugged), Size(now.requested))),
    ]);
    frame.render_widget(left, area);
    frame.render_widget(Line::styled("q quits ", SOFT).right_aligned(), area);
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let end = view.now().at.as_secs_f64();
    let begin = end - SHOWN.as_secs_f64();
    let shown = || view.points.iter().filter(|point| point.at.as_secs_f64() >= begin);
    let most = shown().map(most).max().unwrap_or(0).max(1 << 20);
    let top = most.div_ceil(4).next_power_of_two().saturating_mul(4).max(1);
    let line = |value: fn(&Point) -> Option<u64>| -> Vec<(f64, f64)> {
        shown().filter_map(|point| Some((point.at.as_secs_f64(), value(point)? as f64))).collect()
    };
    let lines = [
        ("held", HELD, line(|point| point.held)),
        ("used", USED, line(|point| point.used)),
        ("plugged", PLUGGED, line(|point| Some(point.plugged))),
        ("requested", REQUESTED, line(|point| Some(point.requested))),
    ];
    let datasets = lines.iter().map(|(_, color, points)| {
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(*color).data(points)
    });
    let sizes =
        [0, top / 4, top / 2, top / 4 * 3, top].map(|size| Line::styled(Size(size).to_string(), SOFT));
    let seconds = SHOWN.as_secs();
    let times = [format!("{seconds} s ago"), format!("{} s", seconds / 2), "now".to_owned()];
    let legend = lines.iter().rev().map(|(name, color, points)| {
        let now = points.last().map_or_else(|| "-".to_owned(), |(_, value)| about(*value as u64));
        [Span::styled("\u{25a0} ", *color), Span::raw(format!("{name} {now}   "))]
    });
    let block = titled("memory").title(Line::from(legend.flatten().collect::<Vec<_>>()).right_aligned());
    let chart = Chart::new(datasets.collect())
        .block(block)
        .legend_position(None)
        .x_axis(Axis::default().style(SOFT).bounds([begin, end]).labels(times))
        .y_axis(Axis::default().style(SOFT).bounds([0.0, top as f64]).labels(sizes));
    frame.render_widget(chart, area);
}

fn most(point: &Point) -> u64 {
    [Some(point.requested), Some(point.plugged), point.used, point.held]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(0)
}

/// A size to about three digits.
fn about(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| bytes >> shift > 0) else {
        return bytes.to_string();
    };
    let value = bytes as f64 / (1_u64 << shift) as f64;
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}{unit}")
    } else {
        format!("{value:.1}{unit}")
    }
}

/// A character for each memory block, or for several of a region that has more of them than there is room.
fn map_lines(view: &View, width: u16) -> Vec<Line<'static>> {
    let width = u64::from(width.max(1));
    let Some(runs) = &view.runs else {
        return vec![Line::styled("the guest does not tell its memory blocks", SOFT)];
    };
    let unit = runs.iter().map(|run| run.size).find(|size| *size >= USUAL_BLOCK).unwrap_or(USUAL_BLOCK);
    let all: u64 =
        view.regions.iter().map(|region| region.size.0.div_ceil(unit)).fold(0, u64::saturating_add);
    let room = width * u64::from(MAX_MAP).saturating_sub(view.regions.len() as u64).max(1);
    let unit = unit.saturating_mul(all.div_ceil(room).max(1));
    let mut lines = Vec::new();
    for region in &view.regions {
        let cells = region.size.0.div_ceil(unit).min(room);
        let spans: Vec<Span<'_>> = (0..cells)
            .map(|cell| {
                let start = region.address.saturating_add(cell.saturating_mul(unit));
                let (symbol, style) = cell_of(start, start.saturating_add(unit), runs);
                Span::styled(symbol, style)
            })
            .collect();
        let width = usize::try_from(width).unwrap_or(1);
        lines.extend(spans.chunks(width).map(|spans| Line::from(spans.to_vec())));
    }
    lines
}

/// How the memory from `start` to `end` is shown.
fn cell_of(start: u64, end: u64, runs: &[Run]) -> (&'static str, Style) {
    let mut plugged: u128 = 0;
    let mut color = None;
    for run in runs.iter().filter(|run| run.size > 0) {
        let last = run.address.saturating_add(run.count.saturating_mul(run.size));
        let part = last.min(end).saturating_sub(run.address.max(start));
        if part > 0 {
            plugged += u128::from(part) * u128::from(run.plugged.min(run.size)) / u128::from(run.size);
            color = Some(match (run.state.as_str(), run.zone.as_str()) {
                ("online", "Movable") => PLUGGED,
                ("online", _) => Color::Magenta,
                _ => Color::Red,
            });
        }
    }
    let quarters = (plugged * 4).div_ceil(u128::from((end - start).max(1)));
    match (color, quarters) {
        (None, _) => ("\u{b7}", SOFT),
        (Some(color), 0 | 1) => ("\u{2591}", Style::new().fg(color)),
        (Some(color), 2) => ("\u{2592}", Style::new().fg(color)),
        (Some(color), 3) => ("\u{2593}", Style::new().fg(color)),
        (Some(color), _) => ("\u{2588}", Style::new().fg(color)),
    }
}

fn draw_map(frame: &mut Frame<'_>, area: Rect, title: &str, mut lines: Vec<Line<'static>>) {
    let legend = [
        ("\u{2588}", Style::new().fg(PLUGGED), " Movable   "),
        ("\u{2588}", Style::new().fg(Color::Magenta), " kernel   "),
        ("\u{2588}", Style::new().fg(Color::Red), " offline   "),
        ("\u{2592}", Style::new().fg(PLUGGED), " plugged in part   "),
        ("\u{b7}", SOFT, " not added"),
    ];
    let legend = legend
        .into_iter()
        .flat_map(|(symbol, style, text)| [Span::styled(symbol, style), Span::styled(text, SOFT)]);
    lines.truncate(MAX_MAP.into());
    lines.push(Line::from(legend.collect::<Vec<_>>()));
    frame.render_widget(Paragraph::new(lines).block(titled(title)), area);
}

fn draw_regions(frame: &mut Frame<'_>, area: Rect, view: &View) {
    if view.regions.is_empty() {
        let text = Line::styled("no hotplug memory", SOFT);
        frame.render_widget(Paragraph::new(text).block(titled("devices")), area);
        return;
    }
    let head = ["device", "plugged", "requested", "size", "guest uses", "host holds", "state"];
    let row = |(index, region): (usize, &Region)| {
        let number = |size: Option<Size>| size.map_or_else(|| "-".to_owned(), |size| about(size.0));
        let cells = [
            index.to_string(),
            region.plugged.to_string(),
            region.requested.to_string(),
            region.size.to_string(),
            number(region.guest_uses),
            number(region.held),
        ];
        let (state, color) = standing(region);
        let cells = cells.into_iter().map(|cell| Cell::from(Text::from(cell).right_aligned()));
        Row::new(cells.chain([Cell::from(Span::styled(format!(" {state}"), color))]))
    };
    let titles = head.iter().enumerate().map(|(column, title)| {
        let last = column == head.len() - 1;
        Cell::from(if last { Text::from(format!(" {title}")) } else { Text::from(*title).right_aligned() })
    });
    let widths = [6, 8, 9, 8, 10, 10].map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let table = Table::new(view.regions.iter().enumerate().map(row), widths)
        .header(Row::new(titles).style(SOFT))
        .block(titled("devices"));
    frame.render_widget(table, area);
}

/// How a region stands, in a word or two.
fn standing(region: &Region) -> (&'static str, Color) {
    match () {
        () if region.converged => ("at its target", USED),
        () if !region.driver => ("no driver", Color::Red),
        () if region.at_work || region.reason.is_none() => ("on its way", HELD),
        () => ("stuck", Color::Red),
    }
}

/// Why regions are not at their targets.
fn reasons(view: &View) -> Vec<Line<'static>> {
    let reason = |(index, region): (usize, &Region)| {
        let reason = region.reason.as_ref().filter(|_| !region.converged)?;
        Some(Line::from(vec![
            Span::styled(format!("device {index}: "), SOFT),
            Span::styled(reason.clone(), Style::new().fg(HELD)),
        ]))
    };
    view.regions.iter().enumerate().filter_map(reason).collect()
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let room = usize::from(area.height.saturating_sub(2));
    let first = view.events.len().saturating_sub(room);
    let lines: Vec<Line<'_>> =
        view.events.iter().skip(first).map(|event| Line::raw(event.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(titled("events")), area);
}

fn draw_counters(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let width = usize::from(area.width.saturating_sub(4));
    let lines: Vec<Line<'_>> = if view.counters.is_empty() {
        vec![Line::styled("the guest tells no counters", SOFT)]
    } else {
        let line = |(name, value): &(String, u64)| {
            let room = width.saturating_sub(name.chars().count());
            Line::from(vec![Span::styled(name.clone(), SOFT), Span::raw(format!("{value:>room$}"))])
        };
        // There is no room for all of them, and those that count nothing say least.
        view.counters.iter().filter(|(_, value)| *value > 0).map(line).collect()
    };
    frame.render_widget(Paragraph::new(lines).block(titled("counters")), area);
}

#[cfg(test)]
mod tests;
