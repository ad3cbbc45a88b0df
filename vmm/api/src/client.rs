//! One client: its connection, the requests that have come, the answers that it has not read.
//!
//! Invariants: the socket never makes the thread wait. At most [`MOST_OUT`] bytes of answers are kept, beside the one answer
//! that went over it; no further request is served meanwhile, and events are dropped and counted.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use crate::backend::Waiter;
use crate::http::{HttpError, Next, Parser, Request};
use crate::response::{self, Response};

/// Most bytes of answers that a client leaves unread before it gets no more.
pub const MOST_OUT: usize = 64 << 10;

/// How long a client may take to send a request that it has begun, or to read a part of its answers.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes that are read at once, so that one client does not keep the others waiting.
const READ_SIZE: usize = 16 << 10;

/// What a client waits for.
#[derive(Debug)]
pub enum Serving {
    /// Nothing: it may send the next request.
    Nothing,
    /// An answer that is not there yet.
    Answer(Request, Waiter),
    /// The start of the machine.
    Start(Request),
    /// Events; so many of them were dropped since the last one that it got.
    Events(u64),
}

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its connection.
    pub stream: UnixStream,
    /// What it waits for.
    pub serving: Serving,
    /// It may ask for metrics alone.
    pub scrapes: bool,
    parser: Parser,
    out: Vec<u8>,
    written: usize,
    /// No request follows: the connection ends with the last answer.
    ending: bool,
    /// It has sent all that it will send.
    eof: bool,
    /// What it has sent holds no whole request that was not served.
    starved: bool,
    /// When it last sent or read something, or connected.
    pub active: Instant,
    /// The begin of the time in which it has to send the rest of a request, or to read its answers.
    slow_since: Option<Instant>,
    /// The events that are listened to.
    pub listened: Interest,
}

/// What is listened to on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
}

impl Interest {
    /// For `epoll`.
    #[must_use]
    pub fn events(self) -> EventSet {
        let mut events = EventSet::empty();
        events.set(EventSet::IN, self.read);
        events.set(EventSet::OUT, self.write);
        events
    }
}

impl Client {
    /// A new client, whose connection does not wait.
    #[must_use]
    pub fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            serving: Serving::Nothing,
            scrapes: false,
            parser: Parser::default(),
            out: Vec::new(),
            written: 0,
            ending: false,
            eof: false,
            starved: true,
            active: now,
            slow_since: None,
            listened: Interest { read: true, write: false },
        }
    }

    /// What to listen to now.
    #[must_use]
    pub fn interest(&self) -> Interest {
        let room = self.parser.room() > 0 || matches!(self.serving, Serving::Events(_));
        Interest { read: room && !self.eof && !self.ending, write: self.unread() > 0 }
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn read(&mut self, now: Instant) -> io::Result<()> {
        let mut bytes = [0; READ_SIZE];
        let events = matches!(self.serving, Serving::Events(_));
        let most = if events { READ_SIZE } else { READ_SIZE.min(self.parser.room()) };
        match self.stream.read(&mut bytes[..most]) {
            Ok(0) => self.eof = true,
            Ok(size) => {
                self.active = now;
                // A client of events has nothing more to say.
                if !events {
                    self.parser.push(&bytes[..size]);
                    self.starved = false;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The next request, if the client may have one served.
    pub fn take_request(&mut self) -> Option<Request> {
        if self.ending || !matches!(self.serving, Serving::Nothing) || self.unread() > MOST_OUT {
            return None;
        }
        match self.parser.take() {
            Ok(Next::Request(request)) => return Some(request),
            Ok(Next::PartialExpected) => self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Ok(Next::Partial) => self.starved = true,
            Err(error) => self.refuse(&error),
        }
        None
    }

    /// Answers what is no request, and ends.
    fn refuse(&mut self, error: &HttpError) {
        self.out.extend(Response::fault(&error.to_string()).to_bytes(false));
        self.ending = true;
    }

    /// Appends the answer to `request`.
    pub fn answer(&mut self, request: &Request, response: &Response) {
        self.out.extend(response.to_bytes(request.keep_alive));
        self.ending |= !request.keep_alive;
        self.serving = Serving::Nothing;
    }

    /// Begins a stream of events.
    pub fn begin_events(&mut self) {
        self.out.extend_from_slice(response::STREAM_HEAD);
        self.serving = Serving::Events(0);
    }

    /// Appends events, as far as there is room. A line about those that were dropped goes in front of the next one.
    pub fn tell(&mut self, lines: &[String]) {
        for line in lines {
            let unread = self.unread();
            let Serving::Events(lost) = &mut self.serving else { return };
            let mut chunk = Vec::new();
            if *lost > 0 {
                chunk = response::chunk(&format!("{{\"event\":\"lost\",\"lost\":{lost}}}"));
            }
            chunk.extend(response::chunk(line));
            if unread + chunk.len() > MOST_OUT {
                *lost += 1;
            } else {
                *lost = 0;
                self.out.extend(chunk);
            }
        }
    }

    /// Ends a stream of events.
    pub fn end_events(&mut self) {
        if let Serving::Events(lost) = std::mem::replace(&mut self.serving, Serving::Nothing) {
            if lost > 0 {
                self.out.extend(response::chunk(&format!("{{\"event\":\"lost\",\"lost\":{lost}}}")));
            }
            self.out.extend_from_slice(response::STREAM_END);
            self.ending = true;
        }
    }

    /// Writes what the client takes.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self, now: Instant) -> io::Result<()> {
        while self.unread() > 0 {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(size) => {
                    self.written += size;
                    self.active = now;
                    self.slow_since = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // Moves bytes only when at least as many were written.
        if self.written >= self.out.len() - self.written {
            self.out.drain(..self.written);
            self.written = 0;
            if self.out.is_empty() && self.out.capacity() > MOST_OUT {
                self.out = Vec::new();
            }
        }
        Ok(())
    }

    /// Bytes of answers that the client has not taken.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.out.len() - self.written
    }

    /// Whether the connection is to be closed: all is said.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let said = self.unread() == 0;
        said && (self.ending || (self.eof && self.starved && matches!(self.serving, Serving::Nothing)))
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.serving, Serving::Nothing) && self.unread() == 0 && !self.parser.has_part()
    }

    /// Whether it has sent a part of a request and may go on.
    fn owes(&self) -> bool {
        match self.serving {
            Serving::Nothing => self.unread() > 0 || self.parser.has_part(),
            // Events that are not read are dropped.
            Serving::Events(_) => false,
            Serving::Answer(..) | Serving::Start(_) => self.unread() > 0,
        }
    }

    /// Until when the client has to go on, if it owes something.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.owes() {
            Some(*self.slow_since.get_or_insert(now) + PATIENCE)
        } else {
            self.slow_since = None;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that can be read now.
    fn read(client: &mut Client, other: &mut UnixStream) -> String {
        let mut text = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            client.write(Instant::now()).unwrap();
            match other.read(&mut bytes) {
                Ok(size) => text.extend_from_slice(&bytes[..size]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(text).unwrap()
    }

    fn pair() -> (Client, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (Client::new(one, Instant::now()), other)
    }

    #[test]
    fn a_reader_that_sleeps_loses_events_and_is_told_how_many() {
        let (mut client, mut other) = pair();
        client.begin_events();
        let line = format!("{{\"event\":\"{}\"}}", "x".repeat(1000));
        for _ in 0..500 {
            client.tell(std::slice::from_ref(&line));
            assert!(client.unread() <= MOST_OUT, "what is kept is bounded");
        }
        let kept = read(&mut client, &mut other).matches("xx\"").count();
        assert!((50..70).contains(&kept), "{kept}");
        client.tell(&["{}".to_owned()]);
        client.tell(&["{}".to_owned()]);
        let later = read(&mut client, &mut other);
        let lost = 500 - kept;
        let told = format!("{{\"event\":\"lost\",\"lost\":{lost}}}");
        assert_eq!(
            later.lines().filter(|line| line.starts_with('{')).collect::<Vec<_>>(),
            [&told, "{}", "{}"]
        );
        for _ in 0..500 {
            client.tell(std::slice::from_ref(&line));
        }
        let kept = read(&mut client, &mut other).matches("xx\"").count();
        client.end_events();
        let end = read(&mut client, &mut other);
        assert!(
            end.contains(&format!("\"lost\":{}}}", 500 - kept)),
            "told without an event that follows: {end}"
        );
        assert!(end.ends_with("0\r\n\r\n") && client.is_done());
    }

    #[test]
    fn a_client_that_leaves_its_answers_unread_gets_no_more_of_them() {
        let (mut client, mut other) = pair();
        let request = b"GET / HTTP/1.1\r\n\r\n";
        let answer = Response::json(&"x".repeat(30_000));
        let mut served = 0;
        for _ in 0..100 {
            other.write_all(request).unwrap();
            client.read(Instant::now()).unwrap();
            if let Some(request) = client.take_request() {
                client.answer(&request, &answer);
                served += 1;
            }
        }
        assert_eq!(served, 3, "{MOST_OUT} bytes, and the answer that goes over them");
        let now = Instant::now();
        let deadline = client.deadline(now).expect("it owes a read");
        assert_eq!(deadline, now + PATIENCE);
        let later = now + Duration::from_secs(3);
        assert_eq!(client.deadline(later), Some(deadline), "the time runs on while it reads nothing");
        read(&mut client, &mut other);
        assert!(client.take_request().is_some(), "the next request is served when there is room");
    }

    #[test]
    fn nothing_is_read_after_what_is_no_request() {
        let (mut client, mut other) = pair();
        other.write_all(b"POST / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n").unwrap();
        client.read(Instant::now()).unwrap();
        assert!(client.take_request().is_none() && client.take_request().is_none());
        assert_eq!(client.interest(), Interest { read: false, write: true });
        let answer = read(&mut client, &mut other);
        assert_eq!(answer.matches("Unsupported HTTP method.").count(), 1, "{answer}");
        assert!(client.is_done());
    }

    #[test]
    fn reading_a_part_of_the_answers_wins_time() {
        let (mut client, mut other) = pair();
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let now = Instant::now();
        client.read(now).unwrap();
        let request = client.take_request().expect("a request");
        client.answer(&request, &Response::json(&"x".repeat(10 << 20)));
        client.write(now).unwrap();
        assert_eq!(client.deadline(now), Some(now + PATIENCE));
        let later = now + Duration::from_secs(9);
        other.read_exact(&mut [0; 64 << 10]).unwrap();
        client.write(later).unwrap();
        assert!(client.unread() > 0);
        assert_eq!(client.deadline(later), Some(later + PATIENCE));
    }

    #[test]
    fn half_a_request_has_a_deadline_and_none_has_none() {
        let (mut client, mut other) = pair();
        let now = Instant::now();
        assert!(client.deadline(now).is_none() && client.is_idle());
        other.write_all(b"GET").unwrap();
        client.read(now).unwrap();
        assert!(client.take_request().is_none() && !client.is_idle());
        assert_eq!(client.deadline(now), Some(now + PATIENCE));
        other.write_all(b" / HTTP/1.1\r\n").unwrap();
        client.read(now).unwrap();
        let later = now + Duration::from_secs(9);
        assert_eq!(client.deadline(later), Some(now + PATIENCE), "bytes alone win no time");
        other.write_all(b"\r\n").unwrap();
        client.read(later).unwrap();
        let request = client.take_request().expect("a request");
        let waiter = Waiter::Pause { until: later, next: later };
        client.serving = Serving::Answer(request.clone(), waiter);
        assert!(client.deadline(later).is_none() && !client.is_idle(), "it is the server's turn");
        client.answer(&request, &Response::done());
        assert_eq!(client.deadline(later), Some(later + PATIENCE), "the time for reading is another one");
        client.write(later).unwrap();
        assert!(client.deadline(later).is_none() && client.is_idle());
    }
}
