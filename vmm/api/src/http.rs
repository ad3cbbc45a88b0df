//! Requests of HTTP/1.1, as far as a control plane needs them: a head, a body of known length, requests one after another
//! on one connection.
//!
//! Mirrors RFC 9112 and Firecracker's `micro_http`: the same methods, the same limit of a body. Heads are parsed by
//! `httparse`. Differs on purpose: bodies in chunks are refused, and so are two lengths, because two readers of one stream
//! must not disagree where a request ends.
//!
//! Invariants: a [`Parser`] holds at most [`MOST`] bytes, and looks at each byte a bounded number of times, however the bytes
//! are split.

use thiserror::Error;

/// Most bytes of a head.
pub const MOST_HEAD: usize = 8 << 10;

/// Most bytes of a body: Firecracker's limit.
pub const MOST_BODY: usize = 51_200;

/// Most bytes that a parser holds: a head and a body.
pub const MOST: usize = MOST_HEAD + MOST_BODY;

/// Most header lines of a head.
const MOST_HEADERS: usize = 64;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Reads.
    Get,
    /// Sets.
    Put,
    /// Changes.
    Patch,
    /// Takes back.
    Delete,
}

impl Method {
    /// Its name in HTTP.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// A whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it does.
    pub method: Method,
    /// To what, without the query; it begins with a slash.
    pub path: String,
    /// What follows the `?`, without it.
    pub query: String,
    /// The body, unless it is empty.
    pub body: Option<Vec<u8>>,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
}

/// Why bytes are no request. Where the next request would begin is not known then, so the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HttpError {
    /// The head is not one of HTTP/1.0 or 1.1.
    #[error("Invalid request: {0}.")]
    Head(httparse::Error),
    /// The head does not end.
    #[error("Request head is larger than the limit of {MOST_HEAD} bytes.")]
    HeadTooLarge,
    /// The method is none of [`Method`].
    #[error("Unsupported HTTP method.")]
    Method,
    /// The path does not begin with a slash, or is no text.
    #[error("Invalid URI.")]
    Uri,
    /// A header has a value that cannot be.
    #[error("Invalid value of header {0}.")]
    Header(&'static str),
    /// The body is in chunks, or has two lengths.
    #[error("Unsupported header {0}.")]
    Unsupported(&'static str),
    /// The body is too long.
    #[error("Request payload with size {0} is larger than the limit of {MOST_BODY} allowed by server.")]
    BodyTooLarge(u64),
}

/// The head of a request whose body is still to come.
#[derive(Debug)]
struct Head {
    request: Request,
    length: usize,
    /// The client waits for a word before it sends the body.
    expects: bool,
}

/// What is next in a stream of bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Not a whole request yet.
    Partial,
    /// Not a whole request yet, and the client waits to be told to go on. Said once per request.
    PartialExpected,
    /// A request.
    Request(Request),
}

/// Makes requests of a stream of bytes.
#[derive(Debug, Default)]
pub struct Parser {
    bytes: Vec<u8>,
    /// The bytes before this one belong to earlier requests.
    start: usize,
    /// The bytes before this one hold no end of a head.
    scanned: usize,
    head: Option<Head>,
}

impl Parser {
    /// How many bytes [`Parser::push`] still takes.
    #[must_use]
    pub fn room(&self) -> usize {
        MOST - (self.bytes.len() - self.start)
    }

    /// Whether a part of a request has come.
    #[must_use]
    pub fn has_part(&self) -> bool {
        self.head.is_some() || self.start < self.bytes.len()
    }

    /// Appends bytes of the stream, at most [`Parser::room`].
    pub fn push(&mut self, bytes: &[u8]) {
        // Moves bytes only when at least as many have been used.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(self.room())]);
    }

    /// Takes the next request.
    ///
    /// # Errors
    /// [`HttpError`]; nothing sensible follows in this stream.
    pub fn take(&mut self) -> Result<Next, HttpError> {
        let mut told = None;
        if self.head.is_none() {
            let Some(end) = self.find_head()? else { return Ok(Next::Partial) };
            let head = parse_head(&self.bytes[self.start..end])?;
            self.start = end;
            self.scanned = end;
            told = head.expects.then_some(Next::PartialExpected);
            self.head = Some(head);
        }
        match self.head.take_if(|head| self.bytes.len() - self.start >= head.length) {
            None => Ok(told.unwrap_or(Next::Partial)),
            Some(Head { mut request, length, .. }) => {
                let body = &self.bytes[self.start..self.start + length];
                request.body = (length > 0).then(|| body.to_vec());
                self.start += length;
                self.scanned = self.start;
                Ok(Next::Request(request))
            }
        }
    }

    /// The end of the head that begins at `start`. Empty lines before a head are skipped.
    fn find_head(&mut self) -> Result<Option<usize>, HttpError> {
        while self.scanned == self.start && matches!(self.bytes.get(self.start), Some(b'\r' | b'\n')) {
            self.start += 1;
            self.scanned += 1;
        }
        while let Some(at) = self.bytes[self.scanned..].iter().position(|&byte| byte == b'\n') {
            let line_end = self.scanned + at;
            match self.bytes[line_end + 1..] {
                [b'\n', ..] => return self.head_at(line_end + 2),
                [b'\r', b'\n', ..] => return self.head_at(line_end + 3),
                // Looked at again when more has come.
                [] | [b'\r'] => {
                    self.scanned = line_end;
                    break;
                }
                _ => self.scanned = line_end + 1,
            }
        }
        self.head_at(self.bytes.len()).map(|_| None)
    }

    /// Checks the size of a head that ends at `end`.
    fn head_at(&self, end: usize) -> Result<Option<usize>, HttpError> {
        if end - self.start > MOST_HEAD { Err(HttpError::HeadTooLarge) } else { Ok(Some(end)) }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Head, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(HttpError::Head(httparse::Error::NewLine)),
        Err(error) => return Err(HttpError::Head(error)),
    }
    let method = match parsed.method {
        Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        Some("PATCH") => Method::Patch,
        Some("DELETE") => Method::Delete,
        _ => return Err(HttpError::Method),
    };
    let target = origin_form(parsed.path.unwrap_or_default()).ok_or(HttpError::Uri)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (mut length, mut expects, mut keep_alive) = (None, false, parsed.version == Some(1));
    for header in parsed.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = || std::str::from_utf8(header.value).map(str::trim).unwrap_or("\0");
        if is("content-length") {
            if length.is_some() {
                return Err(HttpError::Unsupported("Content-Length, twice"));
            }
            length = Some(body_length(value())?);
        } else if is("transfer-encoding") {
            return Err(HttpError::Unsupported("Transfer-Encoding"));
        } else if is("expect") {
            if !value().eq_ignore_ascii_case("100-continue") {
                return Err(HttpError::Header("Expect"));
            }
            expects = true;
        } else if is("connection") {
            let has = |word: &str| value().split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
            keep_alive = !has("close") && (keep_alive || has("keep-alive"));
        }
    }
    let length = length.unwrap_or(0);
    let request = Request { method, path: path.to_owned(), query: query.to_owned(), body: None, keep_alive };
    Ok(Head { request, length, expects })
}

/// The target without `http://host`, which only proxies need.
fn origin_form(target: &str) -> Option<&str> {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    target.starts_with('/').then_some(target)
}

fn body_length(value: &str) -> Result<usize, HttpError> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let length = value.parse::<u64>().ok().filter(|_| digits).ok_or(HttpError::Header("Content-Length"))?;
    match usize::try_from(length) {
        Ok(length) if length <= MOST_BODY => Ok(length),
        _ => Err(HttpError::BodyTooLarge(length)),
    }
}

#[cfg(test)]
mod tests;
