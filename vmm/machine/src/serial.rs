//! The serial port: text for people, to and from the guest.
//!
//! The UART itself is `vm-superio`'s. This file passes its output on, to a [`Sink`] and maybe to a file too. In every console
//! mode its [`Transcript`] keeps the last lines, for the text about a death, or more of them, for an embedder that reads them.
//!
//! There are two locks. The UART's is held for moments, the sink's as long as a write takes. The process at
//! the other end of a pipe may stop reading. Then the vCPU that writes waits in the write until it is
//! stopped; the event loop, other vCPUs and the end of the VM do not wait with it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{Error, SerialEvents, SerialState as UartState};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::config::ConsoleWatch;
use crate::printable::printable;
use crate::sync::lock;
use crate::transcript::{Alarms, Completed, Heard, Transcript};

/// Longest line that is held back until it is complete.
const LINE: usize = 1024;

/// The serial port.
#[derive(Debug)]
pub struct Serial {
    uart: Mutex<Uart<Line, Drained, Output>>,
    outlet: Mutex<Outlet>,
    /// While it is set, vCPUs do not wait for the sink.
    stop: Arc<AtomicBool>,
    /// Called at the end of each line, if somebody waits for lines.
    news: Option<News>,
}

/// What is done at the end of a line.
struct News(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("News").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Outlet {
    /// [`None`] after it failed: the guest must not notice, and must not fill a log.
    sink: Option<Sink>,
    /// Gets the same bytes.
    copy: Option<Sink>,
    /// The sink accepted nothing more when a vCPU had to stop.
    stuck: bool,
}

/// The port's interrupt line.
#[derive(Clone, Debug)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Written when the guest has read all input, so that there is room for more.
#[derive(Clone, Debug)]
struct Drained(Arc<EventFd>);

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

impl Serial {
    /// A serial port whose output goes to `sink`. `interrupt` reaches the guest. `drained` is written when
    /// there is room for input again. While `stop` is set, a signal ends a write that waits for the sink.
    pub fn new(sink: Sink, interrupt: EventFd, drained: EventFd, stop: Arc<AtomicBool>) -> Self {
        let at_once = matches!(sink, Sink::Bytes(_));
        let output = Output { at_once, ..Output::default() };
        let uart = Uart::with_events(Line(Arc::new(interrupt)), Drained(Arc::new(drained)), output);
        let outlet = Outlet { sink: Some(sink), copy: None, stuck: false };
        Self { uart: Mutex::new(uart), outlet: Mutex::new(outlet), stop, news: None }
    }

    /// The same port, of whose output an embedder wants to know what `watch` says. `copy` gets all output too, and `news` is
    /// called at the end of each line that is kept.
    #[must_use]
    pub fn watched(
        self,
        watch: &ConsoleWatch,
        copy: Option<Sink>,
        news: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        self.uart().writer_mut().transcript = Transcript::new(watch.kept, watch.alarms);
        lock(&self.outlet).copy = copy;
        Self { news: watch.kept.then(|| News(Box::new(news))), ..self }
    }

    /// The guest writes the register at `offset`. Waits for the sink if the write completes a line. Returns whether that is
    /// the last line of a kernel that has panicked, if alarms are wanted.
    pub fn write(&self, offset: u8, value: u8) -> bool {
        let mut uart = self.uart();
        if let Err(error) = uart.write(offset, value) {
            log::debug!("serial port: {error}");
        }
        let output = uart.writer_mut();
        let (due, completed) = (std::mem::take(&mut output.due), std::mem::take(&mut output.completed));
        drop(uart);
        if !due.is_empty() {
            lock(&self.outlet).pass_on(&due, &self.stop);
        }
        if let Some(News(news)) = self.news.as_ref().filter(|_| completed.line) {
            news();
        }
        completed.halted
    }

    /// The guest reads the register at `offset`.
    pub fn read(&self, offset: u8) -> u8 {
        self.uart().read(offset)
    }

    /// Bytes of input that fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.uart().fifo_capacity()
    }

    /// Gives the guest input, at most [`Serial::room`] bytes.
    pub fn input(&self, bytes: &[u8]) {
        match self.uart().enqueue_raw_bytes(bytes) {
            Ok(_) => {}
            Err(Error::FullFifo) => log::debug!("console input is lost"),
            Err(error) => log::debug!("serial port: {error}"),
        }
    }

    /// Gives the guest as much of `pending` as it has room for.
    pub fn feed(&self, pending: &mut VecDeque<u8>) {
        let some: Vec<u8> = pending.drain(..self.room().min(pending.len())).collect();
        if !some.is_empty() {
            self.input(&some);
        }
    }

    /// System reset: the UART's registers are as at the start and input is gone. Output continues.
    pub fn reset(&self) {
        let mut uart = self.uart();
        let (line, drained) = (uart.interrupt_evt().clone(), uart.events().clone());
        let mut output = std::mem::take(uart.writer_mut());
        output.transcript.reset();
        *uart = Uart::with_events(line, drained, output);
        uart.events().in_buffer_empty();
    }

    /// The registers and the input that the guest has not read.
    #[must_use]
    pub fn state(&self) -> SerialState {
        let state = self.uart().state();
        let divisor = [state.baud_divisor_low, state.baud_divisor_high];
        let interrupts = [state.interrupt_enable, state.interrupt_identification];
        let line = [state.line_control, state.line_status];
        let modem = [state.modem_control, state.modem_status];
        SerialState { divisor, interrupts, line, modem, scratch: state.scratch, input: state.in_buffer }
    }

    /// Takes on `state`. Output continues.
    ///
    /// # Errors
    /// There is more input than fits, or the interrupt cannot be raised; nothing changed.
    pub fn restore(&self, state: &SerialState) -> io::Result<()> {
        let mut uart = self.uart();
        let (line, drained) = (uart.interrupt_evt().clone(), uart.events().clone());
        let registers = UartState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupts[0],
            interrupt_identification: state.interrupts[1],
            line_control: state.line[0],
            line_status: state.line[1],
            modem_control: state.modem[0],
            modem_status: state.modem[1],
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        };
        let mut new = Uart::from_state(&registers, line, drained, Output::default())
            .map_err(|error| io::Error::other(error.to_string()))?;
        *new.writer_mut() = std::mem::take(uart.writer_mut());
        *uart = new;
        Ok(())
    }

    /// The last lines of output, [`printable`].
    #[must_use]
    pub fn tail(&self) -> String {
        self.uart().writer().transcript.tail()
    }

    /// The output from the byte with the number `from` on, as far as it is kept.
    #[must_use]
    pub fn heard(&self, from: u64) -> Heard {
        self.uart().writer().transcript.from(from)
    }

    /// The alarms since the last call, if they are wanted.
    #[must_use]
    pub fn take_alarms(&self) -> Alarms {
        self.uart().writer_mut().transcript.take_alarms()
    }

    /// Whether the guest's kernel said that it panics, since the last reset, if alarms are wanted.
    #[must_use]
    pub fn has_panicked(&self) -> bool {
        self.uart().writer().transcript.has_panicked()
    }

    /// Shows the incomplete last line too, unless the sink is stuck.
    pub fn flush(&self) {
        let line = std::mem::take(&mut self.uart().writer_mut().line);
        let mut outlet = match self.outlet.try_lock() {
            Ok(outlet) => outlet,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !line.is_empty() && !outlet.stuck {
            outlet.pass_on(&line, &self.stop);
        }
    }

    /// Whether a vCPU writes to the sink at this moment.
    #[cfg(test)]
    pub fn is_writing(&self) -> bool {
        matches!(self.outlet.try_lock(), Err(TryLockError::WouldBlock))
    }

    fn uart(&self) -> MutexGuard<'_, Uart<Line, Drained, Output>> {
        lock(&self.uart)
    }
}

/// The UART on its way to another process: its registers in pairs (low and high, enable and identification, control and
/// status), and its input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    divisor: [u8; 2],
    interrupts: [u8; 2],
    line: [u8; 2],
    modem: [u8; 2],
    scratch: u8,
    input: Vec<u8>,
}

/// Where the guest's output goes. The writers must return [`io::ErrorKind::Interrupted`] when a signal ends a
/// write; writers with a buffer of their own retry instead.
pub enum Sink {
    /// Whole lines, so that they do not mix with the VMM's own output. They are made [`printable`], because a
    /// terminal may show them.
    Lines(Box<dyn Write + Send>),
    /// Whole lines, exactly the bytes that the guest wrote.
    RawLines(Box<dyn Write + Send>),
    /// Every byte at once, for a terminal that the guest has to itself.
    Bytes(Box<dyn Write + Send>),
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl Outlet {
    fn pass_on(&mut self, bytes: &[u8], stop: &AtomicBool) {
        let is_copied = pass_to(&mut self.copy, bytes, stop);
        self.stuck = !pass_to(&mut self.sink, bytes, stop) || !is_copied;
    }
}

/// Writes `bytes` to `sink`, which is [`None`] after a failure. Returns whether all was written, or never will be.
fn pass_to(sink: &mut Option<Sink>, bytes: &[u8], stop: &AtomicBool) -> bool {
    let result = match sink {
        Some(Sink::Lines(writer)) => write_all(writer, printable(bytes).as_bytes(), stop),
        Some(Sink::RawLines(writer) | Sink::Bytes(writer)) => write_all(writer, bytes, stop),
        None => return true,
    };
    result.unwrap_or_else(|error| {
        log::warn!("console output is lost from here on: {error}");
        *sink = None;
        true
    })
}

/// Writes all of `bytes`, unless a signal comes while `stop` is set. Then the rest is lost. Returns whether
/// all was written.
fn write_all(writer: &mut impl Write, mut bytes: &[u8], stop: &AtomicBool) -> io::Result<bool> {
    while !bytes.is_empty() {
        match writer.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(size) => bytes = &bytes[size..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                if stop.load(Ordering::Acquire) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    writer.flush()?;
    Ok(true)
}

/// The guest's output between the UART and the sink.
#[derive(Debug, Default)]
struct Output {
    at_once: bool,
    /// The current line, which is held back until it is complete.
    line: Vec<u8>,
    /// To be passed on by the thread that wrote the last byte.
    due: Vec<u8>,
    /// What the last byte completed.
    completed: Completed,
    transcript: Transcript,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            self.completed = self.transcript.push(byte);
            if self.at_once || byte == b'\n' || self.line.len() == LINE {
                self.due.append(&mut self.line);
            }
        }
        Ok(bytes.len())
    }

    /// The UART flushes after every byte. Lines are held back all the same.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::{ConsoleWatch, EventFd, Ordering, Serial, Sink};

    fn serial_to(sink: Sink) -> Serial {
        let event = || EventFd::new(0).unwrap();
        Serial::new(sink, event(), event(), Arc::default())
    }

    fn serial() -> Serial {
        serial_to(Sink::Lines(Box::new(io::sink())))
    }

    fn print(serial: &Serial, text: &[u8]) {
        for &byte in text {
            assert!(!serial.write(0, byte), "no kernel panicked");
        }
    }

    /// A writer that keeps everything.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            crate::sync::lock(&self.0).extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A pipe that is not read: it announces a write, and lets the writer wait.
    struct Stuck(SyncSender<()>, Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_tail_is_what_came_last() {
        let serial = serial();
        for _ in 0..1000 {
            print(&serial, b"0123456789\r\n");
        }
        print(&serial, b"!");
        let tail = serial.tail();
        assert!(tail.ends_with("0123456789\n!") && tail.len() <= 4096, "{tail}");
    }

    #[test]
    fn a_copy_gets_the_same_bytes_and_a_reader_is_told_of_lines() {
        let (paper, copy) = (Paper::default(), Paper::default());
        let lines = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&lines);
        let news = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let watch = ConsoleWatch { kept: true, ..ConsoleWatch::default() };
        let sink = Sink::RawLines(Box::new(copy.clone()));
        let serial = serial_to(Sink::Bytes(Box::new(paper.clone()))).watched(&watch, Some(sink), news);
        print(&serial, b"one\r\ntwo");
        assert_eq!((paper.text(), copy.text()), ("one\r\ntwo".to_owned(), "one\r\ntwo".to_owned()));
        assert_eq!(lines.load(Ordering::Relaxed), 1);
        assert_eq!(serial.heard(0).text, b"one\ntwo");
        assert_eq!(serial.heard(4).text, b"two");
        serial.reset();
        assert_eq!((serial.heard(0).since_reset, serial.heard(0).text.len()), (7, 7));
    }

    #[test]
    fn input_waits_in_the_fifo() {
        let serial = serial();
        let room = serial.room();
        serial.input(b"ab");
        assert_eq!(serial.room(), room - 2);
        assert_eq!((serial.read(0), serial.read(0)), (b'a', b'b'));
        assert_eq!(serial.room(), room);
    }

    #[test]
    fn a_reset_empties_the_fifo_and_keeps_what_was_said() {
        let drained = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let paper = Paper::default();
        let sink = Sink::Lines(Box::new(paper.clone()));
        let interrupt = EventFd::new(0).unwrap();
        let serial = Serial::new(sink, interrupt, drained.try_clone().unwrap(), Arc::default());
        let (scratch, room) = (7, serial.room());
        serial.write(scratch, 0x55);
        serial.input(b"ab");
        print(&serial, b"one\ntw");
        serial.reset();
        assert_eq!((serial.room(), serial.read(scratch)), (room, 0));
        // The event loop, which waits for room, is told.
        assert_eq!(drained.read().ok(), Some(1));
        print(&serial, b"o\n");
        assert_eq!((paper.text().as_str(), serial.tail().as_str()), ("one\ntwo\n", "one\ntwo"));
    }

    #[test]
    fn a_guest_commands_no_terminal_that_is_not_its_own() {
        let raw = b"\x1b]0;mine\x07\tt\xc3\xb6\xc2\x9b2J\x9b\x7f\r\nend";
        let safe = "\\u{1b}]0;mine\\u{7}\ttö\\u{9b}2J\u{fffd}\\u{7f}\nend";
        let paper = Paper::default();
        let writer = || Box::new(paper.clone());
        let serial = serial_to(Sink::Lines(writer()));
        print(&serial, raw);
        assert!(safe.starts_with(&paper.text()) && paper.text().ends_with('\n'), "{:?}", paper.text());
        serial.flush();
        assert_eq!((paper.text().as_str(), serial.tail().as_str()), (safe, safe));
        for sink in [Sink::RawLines(writer()), Sink::Bytes(writer())] {
            paper.0.lock().unwrap().clear();
            let serial = serial_to(sink);
            print(&serial, raw);
            serial.flush();
            assert_eq!(*paper.0.lock().unwrap(), raw);
            assert_eq!(serial.tail(), safe);
        }
    }

    #[test]
    fn only_the_writer_waits_for_the_sink() {
        let ((reached, wait), (go, stuck)) = (sync_channel(0), sync_channel(0));
        let serial = Arc::new(serial_to(Sink::Bytes(Box::new(Stuck(reached, stuck)))));
        let vcpu = Arc::clone(&serial);
        let writer = thread::spawn(move || vcpu.write(0, b'x'));
        wait.recv().unwrap();
        serial.input(b"a");
        assert_eq!(serial.read(0), b'a');
        assert_eq!(serial.tail(), "x");
        serial.flush();
        go.send(()).unwrap();
        writer.join().unwrap();
    }

    /// Accepts one byte; then signals come.
    struct Interrupted(u32);

    impl Write for Interrupted {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            assert!(self.0 < 3, "tried once after the vCPU was told to stop");
            if self.0 == 1 { Ok(1) } else { Err(io::ErrorKind::Interrupted.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stopped_vcpu_waits_for_no_sink() {
        let event = || EventFd::new(0).unwrap();
        let sink = Sink::Lines(Box::new(Interrupted(0)));
        let serial = Serial::new(sink, event(), event(), Arc::new(true.into()));
        print(&serial, b"a line\nand more");
        assert_eq!(serial.tail(), "a line\nand more");
        serial.flush();
    }
}
