//! Shows a session to people: one aligned row per step, printed after the step.
//!
//! ```text
//!                               ─── hotplug ──── ──── zone Movable, pages ───── kernel memmap ...
//! step                     time requested plugged spanned present managed    free  free in boot ...
//! ```
//!
//! `requested`, `plugged` and `held` are sums over all devices. `kernel free` counts the free pages of the
//! zones DMA32 and Normal. `memmap in boot` counts the pages of hot-added memory's memmap that lie in boot
//! memory. Columns are fixed when the header is printed. A terminal too narrow for one line per step gets
//! two. A step's text that is too long for its column gets a line of its own. A `step "NAME"` is a line with the name alone.
//!
//! The text is styled. The owner of the stream strips the styles where they do not belong.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tidevm_abi::{Command, Counted, Kernel, NodeStats, Size, Stats, ZoneName, ZoneStats, either};
use tidevm_machine::VcpuReport;

use crate::session::{Booted, Ended, Observer, Sample, StepRun, Summary};

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const HEAD: Style = Style::new().bold();
const SIDE: Style = Style::new().dimmed();

/// Between columns of a group, between groups, before the mark.
const GAP: usize = 1;
const GROUP_GAP: usize = 2;
const MARK: usize = 6;

/// Least width of the column of steps. Where it does not fit, a row takes two lines.
const MIN_STEP: usize = 16;

/// A number of a row.
#[derive(Clone, Copy)]
enum Cell {
    Time,
    Requested,
    Plugged,
    Spanned,
    Present,
    Managed,
    Free,
    KernelFree,
    MemmapInBoot,
    Migrated,
    Held,
}

/// Columns under one title.
struct Group {
    title: &'static str,
    columns: Vec<(Cell, &'static str, usize)>,
}

impl Group {
    fn width(&self) -> usize {
        let columns: usize = self.columns.iter().map(|(_, _, width)| width).sum();
        columns + GAP * (self.columns.len() - 1)
    }
}

/// One line of a row.
struct Line {
    /// Width before the first group.
    lead: usize,
    groups: Vec<Group>,
}

/// Shows a session as a table.
pub struct Table<W> {
    out: W,
    terminal: Option<usize>,
    longest_step: usize,
    /// Empty until the boot is shown.
    lines: Vec<Line>,
}

impl<W: Write> Table<W> {
    /// A table on `out` for a terminal with so many columns (`None`: of any width), and for steps whose texts
    /// have at most `longest_step` characters.
    pub fn new(out: W, terminal: Option<usize>, longest_step: usize) -> Table<W> {
        Table { out, terminal, longest_step, lines: Vec::new() }
    }

    fn header(&mut self) -> io::Result<()> {
        for (index, line) in self.lines.iter().enumerate() {
            let (mut titles, mut heads) = (" ".repeat(line.lead), " ".repeat(line.lead));
            if index == 0 {
                heads = format!("{:lead$}", "step", lead = line.lead);
            }
            for group in &line.groups {
                let (width, title) = (group.width(), group.title);
                if group.columns.len() == 1 {
                    let _ = write!(titles, "{:GROUP_GAP$}{title:>width$}", "");
                } else {
                    let _ = write!(titles, "{:GROUP_GAP$}{:─^width$}", "", format!(" {title} "));
                }
                for (column, (_, head, width)) in group.columns.iter().enumerate() {
                    let gap = if column == 0 { GROUP_GAP } else { GAP };
                    let _ = write!(heads, "{:gap$}{head:>width$}", "");
                }
            }
            writeln!(self.out, "{HEAD}{}{HEAD:#}", titles.trim_end())?;
            writeln!(self.out, "{HEAD}{}{HEAD:#}", heads.trim_end())?;
        }
        Ok(())
    }

    fn row(&mut self, text: &str, took: Option<Duration>, sample: &Sample, good: bool) -> io::Result<()> {
        for (index, line) in self.lines.iter().enumerate() {
            let mut row = if index == 0 { text.to_owned() } else { String::new() };
            if row.chars().count() > line.lead {
                writeln!(self.out, "{row}")?;
                row.clear();
            }
            row = format!("{row:lead$}", lead = line.lead);
            for group in &line.groups {
                for (column, (cell, _, width)) in group.columns.iter().enumerate() {
                    let gap = if column == 0 { GROUP_GAP } else { GAP };
                    let _ = write!(row, "{:gap$}{:>width$}", "", cell.show(took, sample));
                }
            }
            if index == 0 {
                let (style, mark) = if good { (GOOD, "ok") } else { (BAD, "FAIL") };
                let _ = write!(row, "  {style}{mark}{style:#}");
            }
            writeln!(self.out, "{row}")?;
        }
        Ok(())
    }

    /// Prints text for which a row has no room, indented.
    fn aside(&mut self, style: Style, text: &str) -> io::Result<()> {
        let width = self.terminal.unwrap_or(usize::MAX).saturating_sub(4).max(20);
        for line in text.lines().flat_map(|line| wrap(line, width)) {
            writeln!(self.out, "    {style}{line}{style:#}")?;
        }
        Ok(())
    }

    /// The vCPUs of a guest that did not answer.
    fn vcpus(&mut self, vcpus: &[VcpuReport]) -> io::Result<()> {
        vcpus.iter().try_for_each(|vcpu| self.aside(Style::new(), &vcpu.to_string()))
    }

    fn zones(&mut self, stats: &Stats) -> io::Result<()> {
        let nodes = stats.nodes.iter().take(stats.nr_nodes.into());
        // With one node, its number says nothing.
        let width = if nodes.len() > 1 { "node 0 Movable".len() } else { "Movable ".len() };
        let mut row = |style: Style, name: &str, cells: &[String]| {
            let line = cells.iter().fold(format!("{name:width$}"), |line, cell| format!("{line} {cell:>9}"));
            self.aside(style, &line)
        };
        let keys = ZoneStats::COUNTERS.iter().map(|counter| counter.key.to_owned());
        row(HEAD, "zone", &keys.collect::<Vec<_>>())?;
        let zones: Vec<(String, ZoneStats)> = if nodes.len() > 1 {
            let of_node = |(number, node): (usize, &NodeStats)| {
                node.zones.map(|zone| (format!("node {number} {}", zone.name), zone))
            };
            nodes.enumerate().flat_map(of_node).collect()
        } else {
            stats.zones.iter().map(|zone| (zone.name.to_string(), *zone)).collect()
        };
        for (name, zone) in zones {
            let numbers = ZoneStats::COUNTERS.iter().map(|counter| (counter.read)(&zone).to_string());
            row(Style::new(), &name, &numbers.collect::<Vec<_>>())?;
        }
        self.aside(Style::new(), &stats.to_string())
    }
}

impl<W: Write> Observer for Table<W> {
    fn boot(&mut self, booted: &Booted) -> io::Result<()> {
        self.lines = layout(self.terminal, self.longest_step, &booted.sample);
        self.header()?;
        self.row("boot", booted.ready.map(|ready| ready.after), &booted.sample, true)?;
        self.out.flush()
    }

    fn step(&mut self, run: &StepRun) -> io::Result<()> {
        if let Command::Step(name) = &run.command {
            writeln!(self.out, "{HEAD}{name}{HEAD:#}")?;
        } else {
            self.row(&run.command.to_string(), Some(run.took), &run.sample, run.is_done())?;
        }
        match &run.result {
            Ok(Some(note)) => self.aside(SIDE, note)?,
            Ok(None) => {}
            Err(failure) => self.aside(BAD, &failure.to_string())?,
        }
        self.vcpus(&run.vcpus)?;
        if let (Command::Stats, Some(stats)) = (&run.command, &run.sample.guest) {
            self.zones(stats)?;
        }
        self.out.flush()
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        writeln!(self.out)?;
        let style = if summary.ended == Ended::Done { GOOD } else { BAD };
        let text = ending(summary);
        for line in wrap(&text, self.terminal.unwrap_or(usize::MAX)) {
            writeln!(self.out, "{style}{line}{style:#}")?;
        }
        for line in wrap(&numbers(summary), self.terminal.unwrap_or(usize::MAX)) {
            writeln!(self.out, "{line}")?;
        }
        self.vcpus(&summary.vcpus)?;
        self.out.flush()
    }
}

/// The columns: in one line if there is room, otherwise in two.
fn layout(terminal: Option<usize>, longest_step: usize, sample: &Sample) -> Vec<Line> {
    let regions: Size = sample.devices.iter().map(|device| device.region_size).sum();
    let pages = regions.pages().to_string().len().max("spanned".len());
    let group = |title, columns| Group { title, columns };
    let time = || group("", vec![(Cell::Time, "time", 8)]);
    let hotplug = || group("hotplug", vec![(Cell::Requested, "requested", 9), (Cell::Plugged, "plugged", 7)]);
    let movable = || {
        let columns = [
            (Cell::Spanned, "spanned", pages),
            (Cell::Present, "present", pages),
            (Cell::Managed, "managed", pages),
            (Cell::Free, "free", pages),
        ];
        group("zone Movable, pages", columns.to_vec())
    };
    let kernel = || group("kernel", vec![(Cell::KernelFree, "free", 7)]);
    let memmap = || group("memmap", vec![(Cell::MemmapInBoot, "in boot", 7)]);
    let migrated = || group("pages", vec![(Cell::Migrated, "migrated", 8)]);
    let held = || group("host", vec![(Cell::Held, "held", 6)]);

    let width = |groups: &[Group]| groups.iter().map(|group| GROUP_GAP + group.width()).sum::<usize>() + MARK;
    let longest_step = longest_step.max(MIN_STEP);
    let one = vec![time(), hotplug(), movable(), kernel(), memmap(), migrated(), held()];
    match terminal.map(|terminal| terminal.saturating_sub(width(&one))) {
        None => vec![Line { lead: longest_step, groups: one }],
        Some(room) if room >= MIN_STEP => vec![Line { lead: longest_step.min(room), groups: one }],
        Some(_) => {
            let first = vec![time(), migrated(), held()];
            let room = terminal.unwrap_or_default().saturating_sub(width(&first));
            let second = vec![hotplug(), movable(), kernel(), memmap()];
            let lead = longest_step.min(room).max(width(&second).saturating_sub(width(&first)) + 2);
            vec![Line { lead, groups: first }, Line { lead: 2, groups: second }]
        }
    }
}

impl Cell {
    fn show(self, took: Option<Duration>, sample: &Sample) -> String {
        let movable = sample.zone(ZoneName::Movable);
        let guest = sample.guest.as_ref();
        let number = match self {
            Cell::Time => return took.map_or_else(|| "-".to_owned(), seconds),
            Cell::Requested => {
                return sample.devices.iter().map(|device| device.requested).sum::<Size>().to_string();
            }
            Cell::Plugged => {
                return sample.devices.iter().map(|device| device.plugged).sum::<Size>().to_string();
            }
            Cell::Held => {
                let held: Option<Size> = sample.devices.iter().map(|device| device.held).sum();
                return held.map_or_else(|| "-".to_owned(), about);
            }
            Cell::Spanned => movable.map(|zone| zone.spanned),
            Cell::Present => movable.map(|zone| zone.present),
            Cell::Managed => movable.map(|zone| zone.managed),
            Cell::Free => movable.map(|zone| zone.free),
            Cell::KernelFree => guest.map(|stats| {
                let kernel = stats.zones.iter().filter(|zone| zone.name != ZoneName::Movable);
                // Saturating: a guest may report any number.
                kernel.map(|zone| zone.free).fold(0, u64::saturating_add)
            }),
            Cell::MemmapInBoot => {
                guest.filter(|stats| stats.kernel == Kernel::Tidevm).map(|stats| stats.memmap_boot_pages)
            }
            Cell::Migrated => guest.map(|stats| stats.pages_migrated),
        };
        number.map_or_else(|| "-".to_owned(), |number: u64| number.to_string())
    }
}

/// A time to a millisecond: `0.290 s`. Less than half of one is `0 s`.
fn seconds(time: Duration) -> String {
    shown_seconds(time.as_secs_f64())
}

fn shown_seconds(seconds: f64) -> String {
    match format!("{seconds:.3} s") {
        none if none == "0.000 s" => "0 s".to_owned(),
        some => some,
    }
}

/// A size to about three digits: `0`, `12K`, `1.5M`, `130M`, `1.02G`.
fn about(size: Size) -> String {
    let bytes = size.0;
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| bytes >> shift > 0) else {
        return bytes.to_string();
    };
    let value = bytes as f64 / (1_u64 << shift) as f64;
    match value {
        _ if value.fract() == 0.0 => format!("{value:.0}{unit}"),
        _ if value >= 100.0 => format!("{value:.0}{unit}"),
        _ if value >= 10.0 => format!("{value:.1}{unit}"),
        _ => format!("{value:.2}{unit}"),
    }
}

fn ending(summary: &Summary) -> String {
    let (steps, failed) = (summary.steps, summary.failed);
    let counted = Counted(steps, "step");
    let time = seconds(summary.total);
    let ended = match &summary.ended {
        Ended::Done => format!("{counted} done in {time}"),
        Ended::Failed { reason: None } => format!("{failed} of {counted} failed in {time}"),
        Ended::Failed { reason: Some(reason) } => {
            format!("ended after {counted} in {time}: {reason}")
        }
        Ended::Misread(_) => format!("ended after {counted} in {time}: a line is wrong"),
        Ended::Died(_) => format!("the guest died after {counted} in {time}"),
        Ended::TimedOut { reason } => format!("the session was ended after {counted} in {time}: {reason}"),
        Ended::Signal { signal } => format!("ended by signal {signal} after {counted} in {time}"),
    };
    match &summary.saved {
        None => ended,
        Some(saved) => format!("{ended}; saved in {}, {} of memory", saved.path.display(), saved.content),
    }
}

fn numbers(summary: &Summary) -> String {
    let mut parts = Vec::new();
    if let Some(boot) = summary.boot {
        parts.push(format!("guest ready after {}", seconds(boot)));
    }
    for (what, rate) in [("plug", summary.plug), ("unplug", summary.unplug)] {
        if let Some(per_gib) = rate.seconds_per_gib() {
            parts.push(format!("{what} {}/GiB", shown_seconds(per_gib)));
        }
    }
    let exits = summary.exits;
    let total = exits.io + exits.mmio + exits.stray + exits.interrupted + exits.other;
    parts.push(format!("{} ({} port, {} MMIO)", Counted(total, "exit"), exits.io, exits.mmio + exits.stray));
    for (count, one, more) in [
        (summary.resets, "reset", "resets"),
        (summary.stray_accesses, "access to nothing", "accesses to nothing"),
        (summary.bad_records, "bad record", "bad records"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {}", either(count, one, more)));
        }
    }
    parts.join(", ")
}

/// Breaks `line` at spaces into pieces of at most `width` characters. A longer word stays whole.
fn wrap(line: &str, width: usize) -> Vec<String> {
    if line.chars().count() <= width {
        return vec![line.to_owned()];
    }
    let mut pieces = vec![String::new()];
    for word in line.split(' ') {
        let last = pieces.last_mut().map_or(0, |piece| piece.chars().count());
        if last > 0 && last + 1 + word.chars().count() > width {
            pieces.push(String::new());
        }
        if let Some(piece) = pieces.last_mut() {
            if !piece.is_empty() {
                piece.push(' ');
            }
            piece.push_str(word);
        }
    }
    pieces
}

#[cfg(test)]
mod tests;
