//! A session as one page, and as results that CI reads: the events of `tidevm run --json` in; HTML, JUnit and TAP out.
//!
//! Pure: it reads no file and no clock. [`Report`] takes the lines of a session one by one, and [`Report::page`] is a
//! document that needs no other file and no script. [`Results`] takes them too, for [`Results::junit`] and [`Results::tap`].
//!
//! | module | keeps | bound |
//! | --- | --- | --- |
//! | `series` | memory over time | [`series::MAX_POINTS`] |
//! | `steps` | the steps | [`steps::FIRST`] and [`steps::LAST`] |
//! | `marks` | failures, resets and the end | [`marks::MAX_MARKS`] |
//! | `region` | memory blocks after each step | [`region::MAX_COLUMNS`] |
//! | `thinned` | evenly spread items of a row without end | what its owner says |
//! | `latency` | how long steps took | one number for each bar |
//! | `page` | shows all of it | |
//! | `cases` | the steps as test cases | [`cases::MAX_CASES`], [`cases::MAX_FAILURES`] of each |
//! | `junit`, `tap` | show the cases | |
//!
//! Invariant: the lines are not trusted. Any numbers and texts give a page, each line is looked at once, and what is kept of
//! a session has a bound.

mod cases;
mod escape;
mod junit;
mod latency;
mod marks;
mod page;
mod region;
mod series;
mod show;
mod steps;
mod tap;
mod thinned;

use std::cmp::Ordering;

use tidevm_events::{End, Event, Line, Ready, Sampled, Start, Step};

pub use cases::{Planned, Results};
pub use escape::Escaped;

use latency::{Kind, Latencies};
use marks::Marks;
use region::Regions;
use series::{Point, Series};
use steps::Steps;

/// What a page tells of a session.
#[derive(Clone, Debug, Default)]
pub struct Report {
    start: Option<Start>,
    /// Seconds until the guest was ready, if it told.
    boot: Option<f64>,
    series: Series,
    steps: Steps,
    marks: Marks,
    regions: Regions,
    latencies: Latencies,
    end: Option<End>,
    /// The time of the last line.
    last: f64,
    resets: u64,
    /// What was plugged after the last step.
    plugged: u64,
}

impl Report {
    /// Takes the next line of a session.
    pub fn take(&mut self, line: &Line) {
        let at = seconds(line.at_seconds);
        self.last = self.last.max(at);
        match &line.event {
            Event::Start(start) => self.start = Some(start.as_ref().clone()),
            Event::Ready(ready) => self.ready(at, ready),
            Event::Sample(sampled) => {
                self.sampled(at, sampled);
            }
            Event::Step(step) => self.step(at, step),
            Event::End(end) => {
                self.marks.end(at, end);
                self.end = Some(end.as_ref().clone());
            }
        }
    }

    /// The page: a whole document.
    #[must_use]
    pub fn page(&self) -> String {
        page::page(self)
    }

    /// The timeline alone, for a page that has [`STYLE`].
    #[must_use]
    pub fn timeline(&self) -> String {
        page::timeline_alone(self)
    }

    fn ready(&mut self, at: f64, ready: &Ready) {
        self.boot = ready.seconds.map(seconds);
        self.plugged = self.sampled(at, &ready.sampled);
        self.regions.take(at, "boot", &ready.sampled);
    }

    fn step(&mut self, at: f64, step: &Step) {
        let after = self.sampled(at, &step.sampled);
        let kind = match after.cmp(&self.plugged) {
            Ordering::Greater => Kind::Plug,
            Ordering::Less => Kind::Unplug,
            Ordering::Equal => Kind::Other,
        };
        self.plugged = after;
        self.latencies.take(kind, seconds(step.seconds));
        self.regions.take(at, &step.command, &step.sampled);
        if !step.ok {
            let start = seconds(step.start_seconds);
            self.marks.failed(start + seconds(step.seconds), &step.command, step.reason.as_deref());
        }
        self.steps.take(step);
    }

    /// Takes what was plugged and more, and returns what was plugged.
    fn sampled(&mut self, at: f64, sampled: &Sampled) -> u64 {
        if sampled.resets > self.resets {
            self.marks.reset(at, sampled.resets);
            self.resets = sampled.resets;
        }
        let point = Point::new(at, sampled);
        self.series.take(point);
        point.plugged
    }
}

/// Who ran what, where and when, as HTML for a page that has [`STYLE`].
#[must_use]
pub fn facts(start: &Start) -> String {
    page::facts(start)
}

/// The style of a page, and of what a page takes over.
pub const STYLE: &str = include_str!("page/style.css");

/// A time that can be drawn: JSON has negative numbers, too.
fn seconds(seconds: f64) -> f64 {
    /// Longer than any session.
    const MOST: f64 = 1e12;
    if seconds.is_finite() { seconds.clamp(0.0, MOST) } else { 0.0 }
}

#[cfg(test)]
mod tests;
