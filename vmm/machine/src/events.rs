//! The event loop: one thread that serves all queues, timers, signals, terminal input and resets.
//!
//! It waits in `epoll` without a timeout, so a machine in which nothing happens costs nothing.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{Error, EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::process::{self, Signals, Terminal};
use crate::serial::Serial;
use crate::state::{Death, DeathKind, SharedState};
use crate::virtio::control::{CALLS, Control, REPORTS};
use crate::virtio::mem::{Mem, RETRY_AFTER};

/// From one reset to the next at least: a guest that resets without end shall not keep the host busy with
/// making machines of KVM. vCPUs that did not ask for the next run until it comes.
pub(crate) const RESET_PAUSE: Duration = Duration::from_millis(100);

/// Everything that the loop listens to.
pub(crate) struct Sources {
    pub(crate) shared: Arc<SharedState>,
    /// Each device and what is written when its queue has requests.
    pub(crate) mem: Vec<(Arc<Mutex<Mem>>, EventFd)>,
    pub(crate) console: Arc<Mutex<Control>>,
    /// Written when the queue with the same index has new buffers.
    pub(crate) console_kicks: [EventFd; 2],
    /// Written when the guest asks for a reset, and what resets the machine.
    pub(crate) reset: (EventFd, Box<dyn FnMut() + Send>),
    pub(crate) signals: Signals,
    /// To be restored when a signal has to end the process; the machine owns it.
    pub(crate) terminal: Weak<Terminal>,
    pub(crate) input: Option<Input>,
}

/// Input for the serial port, from a terminal or whatever is in its place. What cannot be waited for (a
/// regular file, `/dev/null`) is no input.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) source: File,
    pub(crate) serial: Arc<Serial>,
    /// Written when the port has room again.
    pub(crate) drained: EventFd,
}

/// The running loop.
#[derive(Debug)]
pub(crate) struct EventLoop {
    thread: Option<JoinHandle<()>>,
    stop: EventFd,
}

impl EventLoop {
    /// Starts the loop's thread.
    ///
    /// # Errors
    /// The host gives no thread or descriptor.
    pub(crate) fn start(sources: Sources) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let timers =
            sources.mem.iter().map(|_| TimerFd::new().map_err(io::Error::from)).collect::<Result<_, _>>()?;
        let pause = TimerFd::new()?;
        let shared = Arc::clone(&sources.shared);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| run(sources, timers, pause, stopped)));
            let (kind, report) = match result {
                Ok(Ok(())) => return,
                Ok(Err(error)) => (DeathKind::VmmPanic, format!("  the event loop failed: {error}")),
                Err(_) => (DeathKind::VmmPanic, "  the event loop panicked".to_owned()),
            };
            shared.change(|state| state.died(Death { kind, report }));
        })?;
        Ok(Self { thread: Some(thread), stop })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            log::error!("the event loop cannot be stopped: {error}");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // Panics were caught and reported in the thread itself.
            drop(thread.join());
        }
    }
}

fn run(sources: Sources, timers: Vec<TimerFd>, pause: TimerFd, stop: EventFd) -> Result<(), Error> {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new()?;
    for ((device, kick), timer) in sources.mem.into_iter().zip(timers) {
        manager.add_subscriber(Box::new(MemQueue { device, kick, timer }));
    }
    let (console, kicks) = (sources.console, sources.console_kicks);
    manager.add_subscriber(Box::new(ConsoleQueues { console, kicks }));
    let (request, act) = sources.reset;
    manager.add_subscriber(Box::new(Reset { request, act, last: None, timer: pause, waiting: false }));
    let (signals, shared, terminal) = (sources.signals, sources.shared, sources.terminal);
    manager.add_subscriber(Box::new(Termination { signals, shared, terminal, came: false }));
    if let Some(input) = sources.input {
        manager.add_subscriber(Box::new(input));
    }
    let stopped = Rc::new(Cell::new(false));
    manager.add_subscriber(Box::new(Stop { event: stop, stopped: Rc::clone(&stopped) }));
    while !stopped.get() {
        manager.run()?;
    }
    Ok(())
}

/// Listens to `source` and calls it `data`. A source that cannot be listened to is reported.
fn listen(ops: &mut EventOps<'_>, source: &impl std::os::fd::AsRawFd, data: u32) {
    if let Err(error) = ops.add(Events::with_data(source, data, EventSet::IN)) {
        log::error!("an event source is not listened to: {error}");
    }
}

/// Has an event come again after the others had their turn.
fn again(event: &EventFd) {
    if let Err(error) = event.write(1) {
        log::debug!("event: {error}");
    }
}

/// Takes note of an event. It does not matter how often it was raised.
fn clear(event: &EventFd) {
    if let Err(error) = event.read() {
        log::debug!("event: {error}");
    }
}

/// Takes note of the end of a time.
fn expire(timer: &mut TimerFd) {
    if let Err(error) = timer.wait() {
        log::debug!("timer: {error}");
    }
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

struct MemQueue {
    device: Arc<Mutex<Mem>>,
    kick: EventFd,
    timer: TimerFd,
}

impl MemQueue {
    const KICK: u32 = 0;
    const TIMER: u32 = 1;
}

impl MutEventSubscriber for MemQueue {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.kick, Self::KICK);
        listen(ops, &self.timer, Self::TIMER);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.data() == Self::TIMER {
            expire(&mut self.timer);
            lock(&self.device).retry();
            return;
        }
        clear(&self.kick);
        let served = lock(&self.device).serve();
        if served.busy
            && let Err(error) = self.timer.reset(RETRY_AFTER, None)
        {
            log::warn!("the driver is not told when to retry: {error}");
        }
        if served.more {
            again(&self.kick);
        }
    }
}

struct ConsoleQueues {
    console: Arc<Mutex<Control>>,
    kicks: [EventFd; 2],
}

impl MutEventSubscriber for ConsoleQueues {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.kicks[CALLS], CALLS as u32);
        listen(ops, &self.kicks[REPORTS], REPORTS as u32);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let queue = events.data() as usize;
        clear(&self.kicks[queue]);
        let mut console = lock(&self.console);
        let more = if queue == CALLS { console.serve_calls() } else { console.serve_reports() };
        drop(console);
        if more {
            again(&self.kicks[queue]);
        }
    }
}

/// The machine is reset by the loop: with no queue being served, and by none of the vCPUs.
struct Reset {
    request: EventFd,
    act: Box<dyn FnMut() + Send>,
    /// When the last one was over.
    last: Option<Instant>,
    /// Runs while a request waits for its time.
    timer: TimerFd,
    waiting: bool,
}

impl Reset {
    const REQUEST: u32 = 0;
    const TIMER: u32 = 1;
}

impl MutEventSubscriber for Reset {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.request, Self::REQUEST);
        listen(ops, &self.timer, Self::TIMER);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.data() == Self::TIMER {
            expire(&mut self.timer);
            self.waiting = false;
        } else {
            clear(&self.request);
        }
        if self.waiting {
            return;
        }
        let left = self.last.map_or(Duration::ZERO, |last| RESET_PAUSE.saturating_sub(last.elapsed()));
        if !left.is_zero() {
            match self.timer.reset(left, None) {
                Ok(()) => return self.waiting = true,
                Err(error) => log::warn!("a reset comes without a pause: {error}"),
            }
        }
        (self.act)();
        self.last = Some(Instant::now());
    }
}

/// The first signal is noted, and whoever runs the machine ends it; the next, or the end of the
/// grace time, ends the process.
struct Termination {
    signals: Signals,
    shared: Arc<SharedState>,
    terminal: Weak<Terminal>,
    came: bool,
}

impl MutEventSubscriber for Termination {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.signals, 0);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        while let Some(signal) = self.signals.next() {
            if self.came {
                process::exit(signal, &self.terminal);
            }
            self.came = true;
            self.shared.change(|state| state.signal = Some(signal));
            if let Err(error) = process::exit_after_grace(signal, Weak::clone(&self.terminal)) {
                log::warn!("only another signal will end a session that is stuck: {error}");
            }
        }
    }
}

impl Input {
    const SOURCE: u32 = 0;
    const DRAINED: u32 = 1;

    /// Reads what fits into the port.
    fn pass_on(&mut self) -> Reading {
        let mut bytes = vec![0; self.serial.room()];
        if bytes.is_empty() {
            return Reading::Full;
        }
        match self.source.read(&mut bytes) {
            Ok(0) => Reading::Ended,
            Ok(size) => {
                self.serial.input(&bytes[..size]);
                Reading::On
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Reading::On,
            Err(_) => Reading::Ended,
        }
    }
}

/// Whether there is any use in listening to the source. When there is none it is not listened to
/// at all: an input at its end, or one that is not read, would wake the loop for ever.
enum Reading {
    On,
    Full,
    Ended,
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        match ops.add(Events::with_data(&self.source, Self::SOURCE, EventSet::IN)) {
            Ok(()) => listen(ops, &self.drained, Self::DRAINED),
            Err(Error::Epoll(error)) if error.errno() == libc::EPERM => {}
            Err(error) => log::error!("console input is not listened to: {error}"),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == Self::DRAINED {
            clear(&self.drained);
            // Fails when it is being listened to already, which is as good.
            drop(ops.add(Events::with_data(&self.source, Self::SOURCE, EventSet::IN)));
            return;
        }
        let reading = self.pass_on();
        let removed = match reading {
            Reading::On => Ok(()),
            Reading::Full => ops.remove(Events::empty(&self.source)),
            Reading::Ended => {
                ops.remove(Events::empty(&self.source)).and(ops.remove(Events::empty(&self.drained)))
            }
        };
        if let Err(error) = removed {
            log::warn!("console input: {error}");
        }
    }
}

struct Stop {
    event: EventFd,
    stopped: Rc<Cell<bool>>,
}

impl MutEventSubscriber for Stop {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.event, 0);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.stopped.set(true);
    }
}
