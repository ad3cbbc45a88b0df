//! The table of figures, with references and targets.

use std::fmt;

/// One figure.
pub struct Row {
    what: String,
    ours: String,
    reference: String,
    ratio: String,
    target: String,
    met: Option<bool>,
}

/// The figures, in the order in which they were added.
#[derive(Default)]
pub struct Table(Vec<Row>);

impl Row {
    /// The figure `ours` for `what`.
    pub fn new(what: impl Into<String>, ours: impl Into<String>) -> Self {
        let dash = || "-".to_owned();
        Self {
            what: what.into(),
            ours: ours.into(),
            reference: dash(),
            ratio: dash(),
            target: dash(),
            met: None,
        }
    }

    /// Adds the reference that was measured beside it.
    #[must_use]
    pub fn beside(mut self, reference: impl Into<String>, ratio: f64) -> Self {
        self.reference = reference.into();
        self.ratio = format!("{ratio:.2}");
        self
    }

    /// Adds the target, and whether the figure meets it.
    #[must_use]
    pub fn target(mut self, target: impl Into<String>, met: bool) -> Self {
        self.target = target.into();
        self.met = Some(met);
        self
    }

    fn cells(&self) -> [&str; 6] {
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        [&self.what, &self.ours, &self.reference, &self.ratio, &self.target, met]
    }
}

impl Table {
    /// Adds a figure, and prints it to standard error at once.
    pub fn add(&mut self, row: Row) {
        eprintln!("    {}: {}", row.what, row.ours);
        self.0.push(row);
    }

    /// Adds a heading.
    pub fn section(&mut self, name: &str) {
        self.0.push(Row { what: format!("# {name}"), ..Row::new("", "") });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["what", "ours", "reference", "ratio", "target", ""];
        let rows: Vec<[&str; 6]> = [head].into_iter().chain(self.0.iter().map(Row::cells)).collect();
        let is_heading = |row: &[&str; 6]| row[0].starts_with("# ");
        let figures = || rows.iter().filter(|row| !is_heading(row));
        let width: [usize; 6] =
            std::array::from_fn(|at| figures().map(|row| row[at].chars().count()).max().unwrap_or(0));
        for row in &rows {
            if is_heading(row) {
                writeln!(f, "\n{}", &row[0][2..])?;
                continue;
            }
            let cells = row.iter().zip(width).enumerate().map(|(at, (cell, width))| match at {
                0 => format!("{cell:width$}"),
                _ => format!("  {cell:>width$}"),
            });
            writeln!(f, "{}", cells.collect::<String>().trim_end())?;
        }
        Ok(())
    }
}

/// A text for `ns` nanoseconds in a suitable unit.
#[must_use]
pub fn time(ns: f64) -> String {
    match ns {
        _ if ns < 1e3 => format!("{ns:.2} ns"),
        _ if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        _ if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}
