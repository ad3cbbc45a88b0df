//! The event loop: one thread that serves all queues, timers, terminal input and resets. Signals have a loop of
//! their own: see [`super::signals`].
//!
//! The loop waits in `epoll` without a timeout, so an idle VM costs no CPU time.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{Error, EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::devices::{event, share};
use super::hardware::Hardware;
use super::shared::VmShared;
use crate::confine::Confinement;
use crate::confine::rules::Kind;
use crate::confine::thread::{Gate, spawn};
use crate::death::{Death, DeathKind};
use crate::error::{StartError, host};
use crate::state::SharedState;
use crate::sync::lock;
use crate::virtio::control::{CALLS, REPORTS};

mod balloon;
mod mem;

/// Least time from one reset to the next: a guest that resets without end must not keep the host busy with
/// making machines of KVM. vCPUs that did not ask for the next reset run until it comes.
pub(super) const RESET_PAUSE: Duration = Duration::from_millis(100);

/// Everything that the loop serves.
pub(super) struct Sources {
    pub(super) shared: Arc<VmShared>,
    /// For resets: the loop performs them, since it is not a vCPU and serves no queue meanwhile.
    pub(super) hardware: Arc<Mutex<Hardware>>,
    /// The input of the serial port, or the clients of a console at a socket.
    pub(super) console: Vec<Subscriber>,
}

/// Starts the loop that serves `sources`.
///
/// # Errors
/// The host provides no thread or descriptor, or the thread cannot be locked in.
pub(super) fn start(sources: Sources) -> Result<EventLoop, StartError> {
    let Sources { shared, hardware, console } = sources;
    let share = || Arc::clone(&shared);
    let mut subscribers: Vec<Subscriber> = Vec::new();
    for index in 0..shared.devices.mem.len() {
        subscribers.push(Box::new(mem::Queue::new(share(), index, timer()?)));
    }
    if shared.devices.balloon.is_some() {
        subscribers.push(Box::new(balloon::Queues::new(share(), timer()?)));
    }
    subscribers.push(Box::new(ControlQueues { shared: share() }));
    let timer = timer()?;
    subscribers.push(Box::new(Reset { shared: share(), hardware, last: None, timer, waiting: false }));
    subscribers.extend(console);
    let config = &shared.config;
    let kind = Kind::Events { resets: config.can_reset() };
    EventLoop::start("events", config.confinement, kind, Arc::clone(&shared.state), subscribers)
}

fn timer() -> Result<TimerFd, StartError> {
    TimerFd::new().map_err(|error| host("make a timer")(error.into()))
}

/// What a loop serves.
pub(super) type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A running loop.
#[derive(Debug)]
pub(super) struct EventLoop {
    thread: Option<JoinHandle<()>>,
    stop: EventFd,
}

impl EventLoop {
    /// Starts a thread called `name` that serves `subscribers` until the value is dropped, locked in as `kind`. A
    /// failure of the thread ends the VM.
    ///
    /// # Errors
    /// The host provides no thread or descriptor, or the thread cannot be locked in.
    pub(super) fn start(
        name: &'static str,
        confinement: Confinement,
        kind: Kind,
        state: Arc<SharedState>,
        subscribers: Vec<Subscriber>,
    ) -> Result<Self, StartError> {
        let stop = event()?;
        let stopped = share(&stop)?;
        let what = "start the thread of an event loop";
        let thread = spawn(what, name.to_owned(), confinement, kind, move |gate| {
            let result = catch_unwind(AssertUnwindSafe(|| run(subscribers, stopped, gate)));
            let (kind, text) = match result {
                Ok(Ok(())) => return,
                Ok(Err(error)) => (failure(&error), format!("  the event loop ({name}) failed: {error}")),
                Err(_) => (DeathKind::VmmPanic, format!("  the event loop ({name}) panicked")),
            };
            state.change(|state| state.died(Death { kind, text }));
        })?;
        Ok(Self { thread: Some(thread), stop })
    }
}

/// The death that follows from a loop's error.
fn failure(error: &Error) -> DeathKind {
    DeathKind::EventLoop { errno: if let Error::Epoll(error) = error { error.errno() } else { 0 } }
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

fn run(subscribers: Vec<Subscriber>, stop: EventFd, gate: Gate) -> Result<(), Error> {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new()?;
    for subscriber in subscribers {
        manager.add_subscriber(subscriber);
    }
    let stopped = Rc::new(Cell::new(false));
    manager.add_subscriber(Box::new(Stop { event: stop, stopped: Rc::clone(&stopped) }));
    if !gate.pass() {
        return Ok(());
    }
    while !stopped.get() {
        manager.run()?;
    }
    Ok(())
}

/// Listens to `source` and calls it `data`. Failures are logged.
pub(super) fn listen(ops: &mut EventOps<'_>, source: &impl std::os::fd::AsRawFd, data: u32) {
    if let Err(error) = ops.add(Events::with_data(source, data, EventSet::IN)) {
        log::error!("an event source is not listened to: {error}");
    }
}

/// Raises an event again, so that its subscriber continues after the others had their turn.
fn again(event: &EventFd) {
    if let Err(error) = event.write(1) {
        log::debug!("event: {error}");
    }
}

/// Acknowledges an event, however often it was raised.
pub(super) fn clear(event: &EventFd) {
    if let Err(error) = event.read() {
        log::debug!("event: {error}");
    }
}

/// Acknowledges the end of a timer.
fn expire(timer: &mut TimerFd) {
    if let Err(error) = timer.wait() {
        log::debug!("timer: {error}");
    }
}

/// The queues of the control channel.
struct ControlQueues {
    shared: Arc<VmShared>,
}

impl MutEventSubscriber for ControlQueues {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let kicks = &self.shared.devices.control_kicks;
        listen(ops, &kicks[CALLS], CALLS as u32);
        listen(ops, &kicks[REPORTS], REPORTS as u32);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let queue = events.data() as usize;
        let kick = &self.shared.devices.control_kicks[queue];
        clear(kick);
        let mut control = lock(&self.shared.devices.control);
        let more = if queue == CALLS { control.serve_calls() } else { control.serve_reports() };
        drop(control);
        if more {
            again(kick);
        }
    }
}

/// Resets of the VM.
struct Reset {
    shared: Arc<VmShared>,
    hardware: Arc<Mutex<Hardware>>,
    /// When the last reset was complete.
    last: Option<Instant>,
    /// Runs while a request waits for the pause to end.
    timer: TimerFd,
    waiting: bool,
}

impl Reset {
    const REQUEST: u32 = 0;
    const TIMER: u32 = 1;
}

impl MutEventSubscriber for Reset {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.shared.reset, Self::REQUEST);
        listen(ops, &self.timer, Self::TIMER);
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.data() == Self::TIMER {
            expire(&mut self.timer);
            self.waiting = false;
        } else {
            clear(&self.shared.reset);
        }
        // Several requests before a reset are one reset. The later ones have woken the loop too.
        if self.waiting || !self.shared.resets() {
            return;
        }
        let left = self.last.map_or(Duration::ZERO, |last| RESET_PAUSE.saturating_sub(last.elapsed()));
        if !left.is_zero() {
            match self.timer.reset(left, None) {
                Ok(()) => return self.waiting = true,
                Err(error) => log::warn!("a reset comes without a pause: {error}"),
            }
        }
        log::info!("the machine is reset");
        lock(&self.hardware).reset();
        self.last = Some(Instant::now());
    }
}

/// The end of a loop.
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

#[cfg(test)]
mod tests {
    use super::{DeathKind, Error, failure};

    #[test]
    fn a_loop_that_cannot_wait_is_no_panic() {
        let epoll = |errno| failure(&Error::Epoll(vmm_sys_util::errno::Error::new(errno)));
        let full = epoll(libc::EMFILE);
        assert_eq!((full, full.is_refusal()), (DeathKind::EventLoop { errno: libc::EMFILE }, true));
        let broken = epoll(libc::EBADF);
        assert!(!broken.is_refusal());
        assert_eq!(broken.to_string(), format!("an event loop of the VMM failed: errno {}", libc::EBADF));
        assert_eq!(failure(&Error::InvalidId), DeathKind::EventLoop { errno: 0 });
    }
}
