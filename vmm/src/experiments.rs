//! `tidevm experiment`: runs them, and leaves what came of them where it was asked for.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use tidevm::experiment::host::Host;
use tidevm::experiment::{ALL, Halt, Outcome, data, html, text};

use crate::Unshown;
use crate::cli::Experiment;

/// Runs the experiments that `options` name, and gives the exit status.
///
/// # Errors
/// The host cannot run one, or what came of them cannot be written.
pub fn run(options: &Experiment) -> anyhow::Result<u8> {
    let all = options.name == "all";
    let folder = options.output.as_deref().or(all.then_some(Path::new(".")));
    if let Some(folder) = folder {
        // Before all that time is spent.
        fs::create_dir_all(folder).with_context(|| format!("--output {}", folder.display()))?;
    }
    let mut lab = Host(io::stderr());
    let mut outcomes = Vec::new();
    for experiment in ALL.iter().filter(|experiment| all || experiment.name == options.name) {
        match experiment.run(&mut lab) {
            Ok(outcome) => outcomes.push(outcome),
            Err(Halt::Start(error)) => return Err(error.into()),
            Err(Halt::Signal(signal)) => return Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        }
    }
    let written = folder.map_or(Ok(()), |folder| write(folder, &outcomes));
    let shown = if options.json { data::json(&outcomes) } else { text::text(&outcomes) };
    io::stdout().write_all(shown.as_bytes()).context(Unshown)?;
    written?;
    Ok(u8::from(!outcomes.iter().all(Outcome::passed)))
}

fn write(folder: &Path, outcomes: &[Outcome]) -> anyhow::Result<()> {
    for (name, content) in [
        ("experiments.txt", text::text(outcomes)),
        ("experiments.json", data::json(outcomes)),
        ("experiments.html", html::page(outcomes)),
    ] {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
