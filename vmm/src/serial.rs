//! The serial port: text for people, to and from the guest.
//!
//! The UART itself is `vm-superio`'s. Here is where its bytes go and what is kept of them: the
//! last [`TAIL`] bytes, so that a report of a death can show what the guest said last, whatever
//! the console mode.

use std::collections::VecDeque;
use std::io::{self, Write};

use vm_superio::serial::{Error, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of output that are kept.
const TAIL: usize = 4096;

/// Longest line that is held back until it is complete.
const LINE: usize = 1024;

/// The serial port.
#[derive(Debug)]
pub struct Port {
    uart: Serial<Line, Drained, Output>,
}

/// The port's interrupt line.
#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Written when the guest has read all input, and there is room for more.
#[derive(Debug)]
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if let Err(error) = self.0.write(1) {
            log::debug!("no more console input: {error}");
        }
    }
}

impl Port {
    /// A port whose output goes to `sink`. `interrupt` reaches the guest, `drained` is written when
    /// there is room for input again.
    pub fn new(sink: Sink, interrupt: EventFd, drained: EventFd) -> Self {
        let output = Output { sink: Some(sink), line: Vec::new(), tail: VecDeque::new() };
        Self { uart: Serial::with_events(Line(interrupt), Drained(drained), output) }
    }

    /// A guest's write to the register at `offset`.
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.uart.write(offset, value) {
            log::debug!("serial port: {error}");
        }
    }

    /// A guest's read of the register at `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// How many bytes of input fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Gives the guest input, at most [`Port::room`] bytes.
    pub fn input(&mut self, bytes: &[u8]) {
        match self.uart.enqueue_raw_bytes(bytes) {
            Ok(_) => {}
            Err(Error::FullFifo) => log::debug!("console input is lost"),
            Err(error) => log::debug!("serial port: {error}"),
        }
    }

    /// The last lines of output.
    #[must_use]
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = self.uart.writer().tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).replace('\r', "").trim_end().to_owned()
    }

    /// Shows an incomplete last line, too.
    pub fn flush(&mut self) {
        self.uart.writer_mut().pass_on();
    }
}

/// Where the guest's output goes.
pub enum Sink {
    /// Whole lines, so that they do not mix with what the VMM prints.
    Lines(Box<dyn Write + Send>),
    /// Every byte at once, as a terminal needs it.
    Bytes(Box<dyn Write + Send>),
}

/// The guest's output on its way.
struct Output {
    /// [`None`] after it failed: a guest must not notice, nor fill a log.
    sink: Option<Sink>,
    line: Vec<u8>,
    tail: VecDeque<u8>,
}

impl Output {
    fn pass_on(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some(Sink::Lines(sink) | Sink::Bytes(sink)) = &mut self.sink
            && let Err(error) = sink.write_all(&line).and_then(|()| sink.flush())
        {
            log::warn!("console output is lost from here on: {error}");
            self.sink = None;
        }
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(byte);
            let at_once = matches!(self.sink, Some(Sink::Bytes(_)));
            if at_once || byte == b'\n' || self.line.len() == LINE {
                self.pass_on();
            }
        }
        Ok(bytes.len())
    }

    /// The UART flushes after every byte; lines are held back all the same.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{EventFd, Port, Sink};

    fn port() -> Port {
        let event = || EventFd::new(0).unwrap();
        Port::new(Sink::Lines(Box::new(std::io::sink())), event(), event())
    }

    #[test]
    fn the_tail_is_what_came_last() {
        let mut port = port();
        for byte in std::iter::repeat_n(b"0123456789\r\n", 1000).flatten() {
            port.write(0, *byte);
        }
        port.write(0, b'!');
        let tail = port.tail();
        assert!(tail.ends_with("0123456789\n!") && tail.len() <= super::TAIL, "{tail}");
    }

    #[test]
    fn input_waits_in_the_fifo() {
        let mut port = port();
        let room = port.room();
        port.input(b"ab");
        assert_eq!(port.room(), room - 2);
        assert_eq!((port.read(0), port.read(0)), (b'a', b'b'));
        assert_eq!(port.room(), room);
    }
}
