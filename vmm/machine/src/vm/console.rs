//! Opening what [`ConsoleMode`] names: where the serial port's output goes, and where its input comes from.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::config::ConsoleMode;
use crate::error::{StartError, host};
use crate::process::standard_input;
use crate::serial::Sink;

/// The sink of the serial port's output, and the source of its input if there is one.
pub(super) fn open(mode: &ConsoleMode) -> Result<(Sink, Option<File>), StartError> {
    let failed = |kind, path: &PathBuf| {
        let path = path.clone();
        move |error| StartError::Console { kind, path, error }
    };
    Ok(match mode {
        ConsoleMode::Off => (Sink::Lines(Box::new(io::sink())), None),
        ConsoleMode::Stderr => (Sink::Lines(Box::new(io::stderr())), None),
        ConsoleMode::Stdio => {
            let input = standard_input().map_err(host("open standard input"))?;
            let output = io::stdout().as_fd().try_clone_to_owned().map_err(host("share standard output"))?;
            (Sink::Bytes(Box::new(File::from(output))), Some(input))
        }
        ConsoleMode::File(path) => {
            let file = File::create(path).map_err(failed("file", path))?;
            (Sink::RawLines(Box::new(file)), None)
        }
        ConsoleMode::Socket(path) => {
            let output = UnixStream::connect(path).map_err(failed("socket", path))?;
            let input = output.try_clone().map_err(host("share a socket"))?;
            (Sink::Bytes(Box::new(output)), Some(File::from(OwnedFd::from(input))))
        }
    })
}
