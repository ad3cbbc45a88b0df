//! The files of the experiments' verdicts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tidevm_events::Start;
use tidevm_lab::experiment::{Verdict, html, json, text};

/// A file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    #[source]
    error: io::Error,
}

/// Writes `verdicts` into `folder`: as text, as JSON, and as a page.
///
/// # Errors
/// The first file that cannot be written.
pub fn write(folder: &Path, start: &Start, verdicts: &[Verdict]) -> Result<(), WriteError> {
    for (name, content) in [
        ("experiments.txt", text::text(verdicts)),
        ("experiments.json", json::json(verdicts)),
        ("experiments.html", html::page(start, verdicts)),
    ] {
        let path = folder.join(name);
        fs::write(&path, content).map_err(|error| WriteError { path, error })?;
    }
    Ok(())
}
