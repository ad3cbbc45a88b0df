//! [`KvmLab`]: runs the sessions of experiments on VMs of this host.

use std::fs;
use std::io::Write;
use std::time::Instant;

use tidevm_machine::{Config, StartError, Vm};
use tidevm_session::Ended;
use tidevm_session::script::Script;

use super::{Halt, Lab, Record};

/// Runs sessions on VMs of this host, and writes the progress, because sessions take their time.
pub struct KvmLab<W>(pub W);

impl<W: Write> KvmLab<W> {
    fn tell(&mut self, text: std::fmt::Arguments<'_>) {
        // A closed stream must not end the experiment.
        drop(self.0.write_fmt(text).and_then(|()| self.0.flush()));
    }
}

impl<W: Write> Lab for KvmLab<W> {
    /// # Panics
    /// When an experiment's own script is wrong.
    fn session(&mut self, label: &str, config: Config, script: &str) -> Result<Record, Halt> {
        let script = Script::parse(label, script).unwrap_or_else(|errors| panic!("{errors}"));
        script.fit(&config).unwrap_or_else(|errors| panic!("{errors}"));
        config.validate().map_err(StartError::from)?;
        self.tell(format_args!("{label} ... "));
        let start = Instant::now();
        let record = Vm::start(config).map(|vm| tidevm_session::record(vm, &script));
        self.tell(format_args!("{:.1} s\n", start.elapsed().as_secs_f64()));
        let record = record?;
        match record.summary.ended {
            Ended::Signal { signal } => Err(Halt::Signal(signal)),
            _ => Ok(record),
        }
    }

    fn available(&self) -> Option<u64> {
        let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }
}
