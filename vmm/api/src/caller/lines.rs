//! An answer of lines that goes on until the server ends it: `GET /events`.
//!
//! Mirrors the chunks of RFC 9112, section 7.1. Trailers are not read, because the connection ends behind them.

use std::time::Instant;

use super::{CallError, Connection, Got, MOST_BODY};

/// Lines of a stream.
#[derive(Debug)]
pub struct Lines {
    connection: Connection,
    /// Text that has no end of a line yet, and lines that were not taken.
    text: Vec<u8>,
    /// Bytes of the text that hold no end of a line.
    scanned: usize,
    /// Bytes of the chunk that are still to come, with the two that end it.
    chunk: usize,
    ended: bool,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextLine {
    /// A line, without its end.
    Line(String),
    /// Nothing came in time.
    Late,
    /// The server has ended the stream.
    End,
}

/// The end of a chunk.
const CRLF: usize = 2;

impl Lines {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, text: Vec::new(), scanned: 0, chunk: 0, ended: false }
    }

    /// The next line. Without `until` it waits until the server sends or ends something.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn next(&mut self, until: Option<Instant>) -> Result<NextLine, CallError> {
        loop {
            if let Some(at) = self.text[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let end = self.scanned + at;
                let line: Vec<u8> = self.text.drain(..=end).collect();
                self.scanned = 0;
                return Ok(NextLine::Line(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            self.scanned = self.text.len();
            if self.ended {
                return Ok(NextLine::End);
            }
            if self.text.len() > MOST_BODY {
                return Err(self.connection.not_http("a line is too long"));
            }
            if self.decode()? {
                continue;
            }
            match self.connection.read(until) {
                Ok(Got::Bytes) => {}
                // A machine that is killed ends no stream.
                Ok(Got::End) => self.ended = true,
                Err(CallError::Deadline { .. }) => return Ok(NextLine::Late),
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves what has come of chunks into the text. Returns whether it did something.
    fn decode(&mut self) -> Result<bool, CallError> {
        let bytes = &mut self.connection.bytes;
        if self.chunk == 0 {
            let (start, size) = match httparse::parse_chunk_size(bytes) {
                Ok(httparse::Status::Complete(found)) => found,
                Ok(httparse::Status::Partial) => return Ok(false),
                Err(_) => return Err(self.connection.not_http("the size of a chunk is no number")),
            };
            match usize::try_from(size) {
                Ok(size) if size <= MOST_BODY => self.chunk = size + CRLF,
                _ => return Err(self.connection.not_http("a chunk is too large")),
            }
            bytes.drain(..start);
            self.ended = size == 0;
            return Ok(true);
        }
        let size = bytes.len().min(self.chunk);
        let data = size.min(self.chunk.saturating_sub(CRLF));
        self.text.extend_from_slice(&bytes[..data]);
        bytes.drain(..size);
        self.chunk -= size;
        Ok(size > 0)
    }
}
