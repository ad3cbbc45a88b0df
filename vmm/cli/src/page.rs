//! `tidevm report`: reads the events of a session, and makes its page.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use tidevm_events::{ReadError, Reader};
use tidevm_report::Report;

/// Why a session has no page.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The file cannot be opened.
    #[error("cannot read the session {name}")]
    File {
        /// The file.
        name: String,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// The text is no session.
    #[error("{name}")]
    Text {
        /// The file.
        name: String,
        /// The line, the fault, and what helps.
        #[source]
        error: ReadError,
    },
}

/// The page of the session in the file `session`, or on standard input if that is `-`.
///
/// # Errors
/// [`SessionError`].
pub fn page(session: &Path) -> Result<String, SessionError> {
    let name = session.display().to_string();
    let text: Box<dyn BufRead> = if session.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(session).map_err(|error| SessionError::File { name: name.clone(), error })?;
        Box::new(BufReader::new(file))
    };
    let mut report = Report::default();
    for line in Reader::new(text) {
        report.take(&line.map_err(|error| SessionError::Text { name: name.clone(), error })?);
    }
    Ok(report.page())
}
