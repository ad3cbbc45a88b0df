//! [`KvmLab`]: runs the sessions of experiments on VMs of this host.

use std::fs;
use std::io::{self, Write};
use std::time::Instant;

use tidevm_events::Line;
use tidevm_machine::{Config, Confinement, StartError, Vm};
use tidevm_report::Report;
use tidevm_session::script::Script;
use tidevm_session::{Ended, json};
use tidevm_sizer::{Pace, Sizer, Status, Wish};

use super::{Drawing, Halt, Lab, Record};

/// Runs sessions on VMs of this host. Each has a thread of its own, which is locked in with its VM.
pub struct KvmLab<W> {
    /// Where the progress is written, because sessions take their time.
    pub progress: W,
    /// What each session gives away.
    pub confinement: Confinement,
    drawings: Vec<Drawing>,
}

/// There is no event descriptor for a VM.
fn no_descriptor(error: io::Error) -> StartError {
    StartError::Host { what: "make an eventfd", error }
}

impl<W: Write> KvmLab<W> {
    /// A lab that has run nothing.
    pub fn new(progress: W, confinement: Confinement) -> Self {
        Self { progress, confinement, drawings: Vec::new() }
    }

    fn run(
        &mut self,
        label: &str,
        config: Config,
        sizer: Option<&Sizer>,
        script: &str,
    ) -> Result<(Record, Option<Status>), Halt> {
        let script = Script::parse(label, script).unwrap_or_else(|errors| panic!("{errors}"));
        script.fit(&config).unwrap_or_else(|errors| panic!("{errors}"));
        config.validate().map_err(StartError::from)?;
        self.tell(format_args!("{label} ... "));
        let config = Config { confinement: self.confinement, ..config };
        let start = Instant::now();
        let companions = sizer.map(Sizer::beside).into_iter().collect();
        let ran = Vm::apart_with(config, companions, |vm| {
            let handle = vm.handle();
            let record = tidevm_session::record(vm, &script);
            (record, sizer.and_then(|sizer| sizer.status(&handle)))
        });
        self.tell(format_args!("{:.1} s\n", start.elapsed().as_secs_f64()));
        let (record, status) = ran?;
        self.drawings.push(draw(label, &record));
        match record.summary.ended {
            Ended::Signal { signal } => Err(Halt::Signal(signal)),
            _ => Ok((record, status)),
        }
    }

    fn tell(&mut self, text: std::fmt::Arguments<'_>) {
        // A closed stream must not end the experiment.
        drop(self.progress.write_fmt(text).and_then(|()| self.progress.flush()));
    }
}

impl<W: Write> Lab for KvmLab<W> {
    /// # Panics
    /// When an experiment's own script is wrong.
    fn session(&mut self, label: &str, config: Config, script: &str) -> Result<Record, Halt> {
        self.run(label, config, None, script).map(|(record, _)| record)
    }

    /// # Panics
    /// When an experiment's own script is wrong, or the machine cannot be sized so.
    fn sized(
        &mut self,
        label: &str,
        config: Config,
        (wish, pace): (Wish, Pace),
        script: &str,
    ) -> Result<(Record, Option<Status>), Halt> {
        let bounds = wish.bounds(&config).unwrap_or_else(|error| panic!("{error}"));
        let sizer = Sizer::new(pace, Some(bounds)).map_err(no_descriptor)?;
        self.run(label, config, Some(&sizer), script)
    }

    fn available(&self) -> Option<u64> {
        let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }

    fn drawings(&mut self) -> Vec<Drawing> {
        std::mem::take(&mut self.drawings)
    }
}

fn draw(label: &str, record: &Record) -> Drawing {
    let mut report = Report::default();
    let take = |line: &Line| {
        report.take(line);
        Ok(())
    };
    record.retell(&mut json::Events(take)).expect("a report takes every line");
    Drawing { label: label.to_owned(), timeline: report.timeline() }
}
