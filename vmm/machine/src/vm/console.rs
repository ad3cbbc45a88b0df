//! Opening what [`ConsoleMode`] names: where the serial port's output goes, and where its input comes from.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::config::{ConsoleMode, ConsoleWatch};
use crate::error::{StartError, host};
use crate::output::create_file;
use crate::process::standard_input;
use crate::serial::Sink;
use crate::socket::{self, Listener};

pub(super) mod clients;

use clients::Seat;

/// Most bytes of a guest's output that a file gets. A guest can write without end, and the host's disk has one.
const FILE_LIMIT: u64 = 64 << 20;

/// What a file that is full ends with.
const LAST_LINE: &[u8] = b"\n[tidevm: the console's output ends here: a file gets at most 64 MiB]\n";

/// An open console.
pub(super) struct Console {
    /// For the serial port's output.
    pub(super) sink: Sink,
    /// For the same output.
    pub(super) copy: Option<Sink>,
    /// Where its input comes from, if that is one place.
    pub(super) input: Option<File>,
    /// The socket whose clients have the console, and the place of the one that has it now.
    pub(super) clients: Option<(Listener, Seat)>,
}

impl ConsoleMode {
    /// Makes the socket of [`ConsoleMode::Socket`], as the start of a VM does otherwise. Call it before [`Jail::fork`]: a
    /// process in the jail removes no socket at its end. The process has one thread.
    ///
    /// # Errors
    /// Another process listens there, the file is no socket, or the host refuses.
    ///
    /// [`Jail::fork`]: crate::Jail::fork
    pub fn listen(&mut self) -> Result<(), StartError> {
        if let Self::Socket(path) = self {
            *self = Self::Listening(Listener::new(socket::listen("--console socket:", path)?));
        }
        Ok(())
    }
}

/// Opens what `mode` and `watch` name.
pub(super) fn open(mode: &mut ConsoleMode, watch: &ConsoleWatch) -> Result<Console, StartError> {
    mode.listen()?;
    let copy = watch.copy.as_deref().map(file).transpose()?;
    if let ConsoleMode::Listening(listener) = mode {
        let seat = Seat::default();
        let sink = Sink::Bytes(Box::new(clients::Output::to(&seat)));
        return Ok(Console { sink, copy, input: None, clients: Some((listener.clone(), seat)) });
    }
    let (sink, input) = open_one(mode)?;
    Ok(Console { sink, copy, input, clients: None })
}

/// The sink that is a file.
fn file(path: &Path) -> Result<Sink, StartError> {
    let failed = |error| StartError::Console { kind: "file", path: path.to_owned(), error };
    let writer = create_file(path).map_err(failed)?;
    Ok(Sink::RawLines(Box::new(Limited { writer, left: FILE_LIMIT, last_line: LAST_LINE })))
}

/// The sink of the serial port's output, and the source of its input if there is one.
fn open_one(mode: &ConsoleMode) -> Result<(Sink, Option<File>), StartError> {
    let failed = |kind, path: &PathBuf| {
        let path = path.clone();
        move |error| StartError::Console { kind, path, error }
    };
    Ok(match mode {
        // These have clients, who come and go.
        ConsoleMode::Socket(_) | ConsoleMode::Listening(_) | ConsoleMode::Off => {
            (Sink::Lines(Box::new(io::sink())), None)
        }
        ConsoleMode::Stderr => (Sink::Lines(Box::new(io::stderr())), None),
        ConsoleMode::Stdio => {
            let input = standard_input().map_err(host("open standard input"))?;
            let output = io::stdout().as_fd().try_clone_to_owned().map_err(host("share standard output"))?;
            (Sink::Bytes(Box::new(File::from(output))), Some(input))
        }
        ConsoleMode::File(path) => (file(path)?, None),
        ConsoleMode::Connect(path) => {
            let output = UnixStream::connect(path).map_err(failed("connect", path))?;
            let input = output.try_clone().map_err(host("share a socket"))?;
            // As a file, so that it is written to by `write`, which every filter allows, and not by `send`.
            (Sink::Bytes(Box::new(File::from(OwnedFd::from(output)))), Some(File::from(OwnedFd::from(input))))
        }
    })
}

/// A writer that takes a number of bytes and a last line. Further bytes are lost.
struct Limited<W> {
    writer: W,
    left: u64,
    /// The rest of the last line that was not written yet.
    last_line: &'static [u8],
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            while !self.last_line.is_empty() {
                match self.writer.write(self.last_line)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    size => self.last_line = &self.last_line[size..],
                }
            }
            return Ok(bytes.len());
        }
        let fits = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let size = self.writer.write(&bytes[..fits])?;
        self.left -= size as u64;
        Ok(size)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tidevm_abi::Size;

    use super::{FILE_LIMIT, LAST_LINE, Limited};

    #[test]
    fn a_file_gets_so_much_and_a_last_line_that_says_so() {
        let mut file = Limited { writer: Vec::new(), left: 10, last_line: LAST_LINE };
        file.write_all(b"1234567\n").unwrap();
        file.write_all(b"90").unwrap();
        assert_eq!(file.writer, b"1234567\n90", "all of it fits");
        for _ in 0..1000 {
            file.write_all(b"and more\n").unwrap();
        }
        assert_eq!(file.writer, [b"1234567\n90", LAST_LINE].concat());
        let limit = format!("at most {} MiB", FILE_LIMIT / Size::mib(1).0);
        assert!(String::from_utf8_lossy(LAST_LINE).contains(&limit));
    }
}
