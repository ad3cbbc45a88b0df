//! Clients that come, and those that have to go: for want of room, or because they keep others waiting.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{LISTENER, METRICS, MOST_CLIENTS, Server};
use crate::backend::Backend;
use crate::client::Client;
use crate::http::{Method, Request};
use crate::response::Response;

/// The pause before clients are taken again when the process has no more descriptors.
const NO_DESCRIPTORS: Duration = Duration::from_secs(1);

impl Server {
    pub(super) fn accept(&mut self, now: Instant) {
        let taken = self.listener.accept().map(|(stream, _)| Client::new(stream, now));
        self.take(taken, now);
    }

    /// Takes a client that may ask for metrics alone.
    pub(super) fn accept_scraper(&mut self, now: Instant) {
        let Some(listener) = &self.metrics else { return };
        let taken = listener.accept().map(|(stream, _)| {
            // A connection is bytes both ways, whatever kind of socket it has.
            let mut client = Client::new(UnixStream::from(OwnedFd::from(stream)), now);
            client.scrapes = true;
            client
        });
        self.take(taken, now);
    }

    fn take(&mut self, taken: std::io::Result<Client>, now: Instant) {
        match taken {
            Ok(client) => self.welcome(client, now),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => {
                log::warn!("a client cannot be taken: {error}");
                self.hear_clients(false);
                self.deaf_until = Some(now + NO_DESCRIPTORS);
            }
        }
    }

    fn welcome(&mut self, mut client: Client, now: Instant) {
        if client.stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() >= MOST_CLIENTS && !self.drop_idle() {
            // One try: a client that does not read it learns it from the end of the connection.
            let request = Request {
                method: Method::Get,
                path: String::new(),
                query: String::new(),
                body: None,
                keep_alive: false,
            };
            client.answer(&request, &Response::full());
            drop(client.write(now));
            return;
        }
        let token = self.next_client;
        self.next_client += 1;
        let event = EpollEvent::new(EventSet::IN, token);
        match self.epoll.ctl(ControlOperation::Add, client.stream.as_raw_fd(), event) {
            Ok(()) => drop(self.clients.insert(token, client)),
            Err(error) => log::warn!("a client cannot be listened to: {error}"),
        }
    }

    /// Closes the connection of the client that has been idle the longest. Returns whether there was one.
    fn drop_idle(&mut self) -> bool {
        let idle = self.clients.iter().filter(|(_, client)| client.is_idle());
        let oldest = idle.min_by_key(|(_, client)| client.active).map(|(token, _)| *token);
        oldest.is_some_and(|token| self.clients.remove(&token).is_some())
    }

    /// Starts or stops to listen for clients.
    pub(super) fn hear_clients(&mut self, hear: bool) {
        let events = if hear { EventSet::IN } else { EventSet::empty() };
        let scrapers = self.metrics.as_ref().map(|listener| (listener.as_raw_fd(), METRICS));
        for (fd, token) in [(self.listener.as_raw_fd(), LISTENER)].into_iter().chain(scrapers) {
            let event = EpollEvent::new(events, token);
            if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, event) {
                log::error!("clients cannot be listened for: {error}");
            }
        }
    }

    /// Drops clients that owe something for too long, and listens for new ones again if it is time.
    pub(super) fn drop_late(&mut self, backend: &mut dyn Backend, now: Instant) {
        let late = |client: &mut Client| client.deadline(now).is_some_and(|deadline| now >= deadline);
        let late: Vec<u64> =
            self.clients.iter_mut().filter_map(|(token, client)| late(client).then_some(*token)).collect();
        late.into_iter().for_each(|token| self.remove(token, backend));
        if self.deaf_until.is_some_and(|until| now >= until) {
            self.deaf_until = None;
            self.hear_clients(true);
        }
    }
}
