//! The other end of the socket: the calls of a program that uses the API, such as `tidevm ctl`.
//!
//! Mirrors what curl does with `--unix-socket`: HTTP/1.1, one call per connection, heads parsed by `httparse`. Differs on
//! purpose: each call has a deadline from its connection to the last byte of its answer, and an answer has a bound.
//!
//! Invariant: the server is not trusted. An answer that is late, endless or malformed is a [`CallError`].

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::http::Method;

pub use lines::{Lines, NextLine};

mod lines;

/// Most bytes of the head of an answer.
const MOST_HEAD: usize = 16 << 10;

/// Most bytes of the body of an answer, and of a line of a stream.
pub const MOST_BODY: usize = 16 << 20;

/// Most header lines of an answer.
const MOST_HEADERS: usize = 64;

/// Bytes that are read at once.
const READ_SIZE: usize = 16 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No process listens there, or this user may not connect.
    #[error("cannot connect to {}: {error}; is a machine running with --api-sock?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The answer did not come in time.
    #[error("{call}: no answer within {after:?}")]
    Deadline {
        /// The call.
        call: String,
        /// The limit.
        after: Duration,
    },
    /// The connection broke.
    #[error("{call}: the connection broke: {error}")]
    Broken {
        /// The call.
        call: String,
        /// The system's error.
        error: io::Error,
    },
    /// The connection ended within the answer.
    #[error("{call}: the connection ended before the answer did; the machine may have ended")]
    Ended {
        /// The call.
        call: String,
    },
    /// The answer is not one.
    #[error("{call}: the answer is no HTTP: {why}; does another program listen there?")]
    NotHttp {
        /// The call.
        call: String,
        /// The fault.
        why: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200, 204 or 400, for instance.
    pub status: u16,
    /// What it says: JSON, text, or nothing.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether the call did what it asked.
    #[must_use]
    pub fn is_done(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Why the call was refused, in the API's words.
    #[must_use]
    pub fn fault(&self) -> String {
        match self.json()["fault_message"].as_str() {
            Some(text) => text.to_owned(),
            None => format!("status {} without a reason", self.status),
        }
    }
}

/// Calls the API at a socket.
#[derive(Clone, Debug)]
pub struct Caller {
    path: PathBuf,
}

impl Caller {
    /// Calls the API at `path`. Connects at each call.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Makes a call, whose whole answer has to come within `limit`.
    ///
    /// # Errors
    /// [`CallError`]. A fault of the API is an [`Answer`].
    pub fn call(
        &self,
        method: Method,
        target: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, CallError> {
        let until = Some(Instant::now() + limit);
        let (mut connection, head) = self.send(method, target, body, limit)?;
        let mut bytes = std::mem::take(&mut connection.bytes);
        let length = if head.status == 204 { Some(0) } else { head.length };
        if length.is_some_and(|length| length > MOST_BODY) {
            return Err(connection.not_http("the body is too large"));
        }
        while length.is_none_or(|length| bytes.len() < length) {
            if bytes.len() > MOST_BODY {
                return Err(connection.not_http("the body is too large"));
            }
            if connection.read(until)? == Got::End {
                if length.is_none() {
                    break;
                }
                return Err(CallError::Ended { call: connection.call });
            }
            bytes.append(&mut connection.bytes);
        }
        bytes.truncate(length.unwrap_or(bytes.len()));
        Ok(Answer { status: head.status, body: bytes })
    }

    /// Asks for lines that go on until the server ends them. The head has to come within `limit`.
    ///
    /// # Errors
    /// [`CallError`]. The inner error is a refusal of the API.
    pub fn lines(&self, target: &str, limit: Duration) -> Result<Result<Lines, Answer>, CallError> {
        let (connection, head) = self.send(Method::Get, target, None, limit)?;
        if head.status == 200 && head.chunked {
            return Ok(Ok(Lines::new(connection)));
        }
        // Its text is asked for anew, because refusals are short and a stream that is refused is rare.
        self.call(Method::Get, target, None, limit).map(Err)
    }

    /// Connects, sends a request, and reads the head of its answer. What follows the head is in the connection.
    fn send(
        &self,
        method: Method,
        target: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<(Connection, Head), CallError> {
        let until = Instant::now() + limit;
        let call = format!("{} {target}", method.name());
        let stream = connect(&self.path, limit)
            .map_err(|error| CallError::Connect { path: self.path.clone(), error })?;
        let mut connection = Connection { stream, call, limit, bytes: Vec::new() };
        let mut request =
            format!("{} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", method.name());
        if let Some(body) = body {
            let body = body.to_string();
            request.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        } else {
            request.push_str("\r\n");
        }
        let written = connection.stream.write_all(request.as_bytes());
        written.map_err(|error| connection.failed(error))?;
        loop {
            if let Some(head) = connection.take_head()? {
                return Ok((connection, head));
            }
            if connection.bytes.len() > MOST_HEAD {
                return Err(connection.not_http("the head is too large"));
            }
            if connection.read(Some(until))? == Got::End {
                return Err(CallError::Ended { call: connection.call });
            }
        }
    }
}

/// Connects, and waits at most `limit` if the server has not taken earlier clients.
fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Connections to Unix sockets wait as long as a write may.
    socket.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

/// The head of an answer, as far as it is used.
#[derive(Clone, Copy, Debug)]
struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Bytes,
    End,
}

/// A connection on which one call was made.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// The call, for messages.
    call: String,
    limit: Duration,
    /// What has come and was not used.
    bytes: Vec<u8>,
}

impl Connection {
    /// Reads what there is, or waits for it until `until`.
    fn read(&mut self, until: Option<Instant>) -> Result<Got, CallError> {
        let mut bytes = [0; READ_SIZE];
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(self.late());
            }
            let result = self.stream.set_read_timeout(left).and_then(|()| self.stream.read(&mut bytes));
            match result {
                Ok(0) => return Ok(Got::End),
                Ok(size) => {
                    self.bytes.extend_from_slice(&bytes[..size]);
                    return Ok(Got::Bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn take_head(&mut self) -> Result<Option<Head>, CallError> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let size = match parsed.parse(&self.bytes) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(self.not_http(&error.to_string())),
        };
        let mut head = Head { status: parsed.code.unwrap_or(0), length: None, chunked: false };
        let mut bad = false;
        for header in parsed.headers.iter() {
            let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
            if header.name.eq_ignore_ascii_case("content-length") {
                head.length = value.parse().ok();
                bad |= head.length.is_none();
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = value.eq_ignore_ascii_case("chunked");
            }
        }
        if bad {
            return Err(self.not_http("the length is no number"));
        }
        self.bytes.drain(..size);
        Ok(Some(head))
    }

    fn late(&self) -> CallError {
        CallError::Deadline { call: self.call.clone(), after: self.limit }
    }

    fn not_http(&self, why: &str) -> CallError {
        CallError::NotHttp { call: self.call.clone(), why: why.to_owned() }
    }

    fn failed(&self, error: io::Error) -> CallError {
        // What a socket with a time limit says when the time is over.
        if error.kind() == ErrorKind::WouldBlock {
            return self.late();
        }
        CallError::Broken { call: self.call.clone(), error }
    }
}

#[cfg(test)]
mod tests;
