//! The server: one thread, one `epoll`, every client in its turn.
//!
//! Mirrors Firecracker's API thread. Differs on purpose: there, the thread waits for the VMM's answer to one request before it
//! reads the next; here a request that takes time waits beside the others.
//!
//! Bounds: [`MOST_CLIENTS`] clients, each of which has the bounds of [`Client`]; [`REQUESTS_PER_TURN`] requests of one client before
//! the others have their turn. Changes of the VM are looked at [`CHANGE_PAUSE`] apart, and not at all while nothing waits for them.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use tidevm_machine::Changes;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::backend::{Backend, Reply};
use crate::client::{Client, Serving};
use crate::response::Response;
use crate::route::{Action, route};

/// Most clients at once.
pub const MOST_CLIENTS: usize = 200;

/// Most requests of one client in one turn.
const REQUESTS_PER_TURN: usize = 8;

/// Most events of `epoll` in one turn: those of all clients, so that what each has sent is known before one of them is held for
/// idle.
const EVENTS_PER_TURN: usize = MOST_CLIENTS + 4;

/// Least time between two looks at what changed. The changes between are one.
const CHANGE_PAUSE: Duration = Duration::from_millis(5);

/// How long the last answers may take to be read when the VM ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The fault of a call that `--metrics-listen` does not serve.
const ONLY_METRICS: &str = "Only GET /metrics is served here.";

const LISTENER: u64 = 0;
const CHANGES: u64 = 1;
const OVER: u64 = 2;
const METRICS: u64 = 3;
const FIRST_CLIENT: u64 = 4;

/// What the server listens to beside its clients.
#[derive(Debug)]
pub struct Machine {
    /// Raised when the state of the VM changed.
    pub changes: Changes,
    /// Raised when the VM ends.
    pub over: EventFd,
}

/// A server and its clients.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    /// Where metrics alone are served.
    metrics: Option<TcpListener>,
    epoll: Epoll,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// When to listen for clients again, if not now.
    deaf_until: Option<Instant>,
    /// Whether changes are listened to, and from when on they may be.
    changes_heard: bool,
    changes_from: Instant,
}

/// Why a server stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The machine is to start. The client that said so waits.
    Start,
    /// The VM has ended.
    Over,
}

impl Server {
    /// A server behind a socket that listens.
    ///
    /// # Errors
    /// The host provides no descriptor.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(EventSet::IN, LISTENER))?;
        Ok(Self {
            listener,
            metrics: None,
            epoll,
            clients: BTreeMap::new(),
            next_client: FIRST_CLIENT,
            deaf_until: None,
            changes_heard: false,
            changes_from: Instant::now(),
        })
    }

    /// Serves `GET /metrics`, and nothing else, to the clients of `listener` too.
    ///
    /// # Errors
    /// The host refuses.
    pub fn serve_metrics(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let event = EpollEvent::new(EventSet::IN, METRICS);
        self.epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        self.metrics = Some(listener);
        Ok(())
    }

    /// Listens to a VM from now on.
    ///
    /// # Errors
    /// The host refuses.
    pub fn listen_to(&mut self, machine: &Machine) -> io::Result<()> {
        let fd = machine.over.as_raw_fd();
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, OVER))
    }

    /// Serves clients until the machine is to start or has ended.
    ///
    /// # Errors
    /// `epoll` fails.
    pub fn serve(&mut self, backend: &mut dyn Backend, machine: Option<&Machine>) -> io::Result<Stopped> {
        let mut ready = [EpollEvent::default(); EVENTS_PER_TURN];
        let mut more = Vec::new();
        loop {
            let now = Instant::now();
            self.hear_changes(machine, now)?;
            let due = if more.is_empty() { self.due(backend, machine, now) } else { Some(now) };
            let count = match self.epoll.wait(timeout(due, now), &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            let now = Instant::now();
            let mut turns: Vec<u64> = std::mem::take(&mut more);
            for event in &ready[..count] {
                match event.data() {
                    LISTENER | METRICS => {}
                    CHANGES => self.changed(backend, machine, now),
                    OVER => {
                        self.say_last_words(backend, machine, now)?;
                        return Ok(Stopped::Over);
                    }
                    client => {
                        self.communicate(client, event.event_set(), backend, now);
                        turns.push(client);
                    }
                }
            }
            for client in turns {
                if self.serve_requests(client, backend, now) {
                    more.push(client);
                }
            }
            let raised = |source| ready[..count].iter().any(|event| event.data() == source);
            let (changed, called, scraped) = (raised(CHANGES), raised(LISTENER), raised(METRICS));
            more.extend(self.serve_waiters(backend, now, changed, false));
            if called {
                self.accept(now);
            }
            if scraped {
                self.accept_scraper(now);
            }
            self.drop_late(backend, now);
            backend.tick(now);
            self.settle(backend);
            if self.clients.values().any(|client| matches!(client.serving, Serving::Start(_))) {
                return Ok(Stopped::Start);
            }
        }
    }

    /// Answers the client that had the machine started.
    pub fn answer_start(&mut self, backend: &mut dyn Backend, response: &Response) {
        for client in self.clients.values_mut() {
            if let Serving::Start(request) = &client.serving {
                let request = request.clone();
                client.answer(&request, response);
                backend.count(&request, response.status);
            }
        }
        self.settle(backend);
    }

    /// Listens to changes if something waits for them, but not all the time.
    fn hear_changes(&mut self, machine: Option<&Machine>, now: Instant) -> io::Result<()> {
        let Some(machine) = machine else { return Ok(()) };
        let waits = |client: &Client| matches!(client.serving, Serving::Answer(..) | Serving::Events(_));
        let hear = now >= self.changes_from && self.clients.values().any(waits);
        if hear != self.changes_heard {
            let operation = if hear { ControlOperation::Add } else { ControlOperation::Delete };
            let fd = machine.changes.as_raw_fd();
            self.epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, CHANGES))?;
            self.changes_heard = hear;
        }
        Ok(())
    }

    fn changed(&mut self, backend: &mut dyn Backend, machine: Option<&Machine>, now: Instant) {
        if let Some(machine) = machine {
            machine.changes.clear();
        }
        self.changes_from = now + CHANGE_PAUSE;
        self.tell_events(backend);
    }

    fn tell_events(&mut self, backend: &mut dyn Backend) {
        if self.clients.values().any(|client| matches!(client.serving, Serving::Events(_))) {
            let lines = backend.events();
            self.clients.values_mut().for_each(|client| client.tell(&lines));
        }
    }

    /// When the next thing is due that no descriptor tells of.
    fn due(&mut self, backend: &dyn Backend, machine: Option<&Machine>, now: Instant) -> Option<Instant> {
        let waiters = self.clients.values().filter_map(|client| match &client.serving {
            Serving::Answer(_, waiter) => Some(waiter.due()),
            _ => None,
        });
        let waiting = waiters.min();
        let owing = self.clients.values_mut().filter_map(|client| client.deadline(now)).min();
        let changes = (machine.is_some() && now < self.changes_from).then_some(self.changes_from);
        [waiting, owing, changes, self.deaf_until, backend.due()].into_iter().flatten().min()
    }

    fn communicate(&mut self, token: u64, events: EventSet, backend: &mut dyn Backend, now: Instant) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let mut result = Ok(());
        if events.contains(EventSet::IN) {
            result = client.read(now);
        }
        if events.contains(EventSet::OUT) {
            result = result.and_then(|()| client.write(now));
        }
        // The client has closed its end for reading too: it takes no answer.
        let gone = events.intersects(EventSet::ERROR | EventSet::HANG_UP) && !events.contains(EventSet::IN);
        if result.is_err() || gone {
            self.remove(token, backend);
        }
    }

    fn remove(&mut self, token: u64, backend: &mut dyn Backend) {
        // Closing the descriptor takes it out of epoll.
        if let Some(Client { serving: Serving::Answer(_, waiter), .. }) = self.clients.remove(&token) {
            backend.forget(&waiter);
        }
    }

    /// Serves the requests of a client, as many as are due in one turn. Returns whether there may be more.
    fn serve_requests(&mut self, token: u64, backend: &mut dyn Backend, now: Instant) -> bool {
        let Some(client) = self.clients.get_mut(&token) else { return false };
        for _ in 0..REQUESTS_PER_TURN {
            let Some(request) = client.take_request() else { return false };
            let (reply, deprecated) = match route(&request) {
                Ok(routed) if client.scrapes && routed.action != Action::GetMetrics => {
                    (Reply::Now(Response::fault(ONLY_METRICS)), None)
                }
                Ok(routed) => (backend.answer(routed.action, now), routed.deprecated),
                Err(fault) => (Reply::Now(Response::fault(&fault)), None),
            };
            match reply {
                Reply::Now(response) => {
                    if let Some(warning) = deprecated {
                        log::warn!("{warning}");
                    }
                    let response = Response { deprecated: deprecated.is_some(), ..response };
                    client.answer(&request, &response);
                    backend.count(&request, response.status);
                }
                Reply::Later(waiter) => client.serving = Serving::Answer(request, waiter),
                Reply::Start => client.serving = Serving::Start(request),
                Reply::Stream => {
                    backend.count(&request, 200);
                    // What changed before concerns the earlier listeners alone.
                    let lines = backend.events();
                    self.clients.values_mut().for_each(|client| client.tell(&lines));
                    if let Some(client) = self.clients.get_mut(&token) {
                        client.begin_events();
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Gives the answers that are there now, after a change or in time. Returns the clients that got one: what they have
    /// sent meanwhile is not announced again.
    fn serve_waiters(
        &mut self,
        backend: &mut dyn Backend,
        now: Instant,
        changed: bool,
        over: bool,
    ) -> Vec<u64> {
        let mut answered = Vec::new();
        for (token, client) in &mut self.clients {
            if let Serving::Answer(request, waiter) = &mut client.serving
                && (changed || over || waiter.due() <= now)
                && let Some(response) = backend.poll(waiter, now, over)
            {
                let request = request.clone();
                client.answer(&request, &response);
                backend.count(&request, response.status);
                answered.push(*token);
            }
        }
        answered
    }

    /// Writes what can be written, closes what is done, and listens to what each client is expected to do next.
    fn settle(&mut self, backend: &mut dyn Backend) {
        let now = Instant::now();
        let mut gone = Vec::new();
        for (token, client) in &mut self.clients {
            if (client.unread() > 0 && !client.listened.write && client.write(now).is_err())
                || client.is_done()
            {
                gone.push(*token);
                continue;
            }
            let wanted = client.interest();
            if wanted != client.listened {
                let event = EpollEvent::new(wanted.events(), *token);
                let fd: RawFd = client.stream.as_raw_fd();
                if self.epoll.ctl(ControlOperation::Modify, fd, event).is_err() {
                    gone.push(*token);
                }
                client.listened = wanted;
            }
        }
        gone.into_iter().for_each(|token| self.remove(token, backend));
    }

    /// The VM has ended: gives every answer that is still due, and waits a moment until they are read.
    fn say_last_words(
        &mut self,
        backend: &mut dyn Backend,
        machine: Option<&Machine>,
        now: Instant,
    ) -> io::Result<()> {
        self.hear_clients(false);
        if let Some(machine) = machine {
            self.epoll.ctl(ControlOperation::Delete, machine.over.as_raw_fd(), EpollEvent::default())?;
            if std::mem::take(&mut self.changes_heard) {
                self.epoll.ctl(
                    ControlOperation::Delete,
                    machine.changes.as_raw_fd(),
                    EpollEvent::default(),
                )?;
            }
        }
        self.tell_events(backend);
        self.serve_waiters(backend, now, true, true);
        self.clients.values_mut().for_each(Client::end_events);
        let until = now + LAST_WORDS;
        let mut ready = [EpollEvent::default(); EVENTS_PER_TURN];
        loop {
            self.settle(backend);
            let now = Instant::now();
            if now >= until || self.clients.values().all(|client| client.unread() == 0) {
                return Ok(());
            }
            let count = match self.epoll.wait(timeout(Some(until), now), &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            let events: Vec<_> =
                ready[..count].iter().map(|event| (event.data(), event.event_set())).collect();
            for (token, events) in events {
                // Further requests of this client find no VM.
                self.communicate(token, events - EventSet::IN, backend, now);
            }
        }
    }
}

/// How long to wait for events, in milliseconds, rounded up.
fn timeout(due: Option<Instant>, now: Instant) -> i32 {
    let Some(due) = due else { return -1 };
    let left = due.saturating_duration_since(now);
    i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

mod door;
#[cfg(test)]
mod tests;
