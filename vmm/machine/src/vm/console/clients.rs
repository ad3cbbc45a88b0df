//! The console at a socket that the VMM listens at: one client at a time, who may come and go.
//!
//! Mirrors QEMU's `-chardev socket,server=on,wait=off`. Where QEMU lets a second client wait, this one is told at once
//! that there is another, and where QEMU waits for a client that does not read, its output is lost.
//!
//! Invariants: a write to the console never waits, neither for a client nor without one. The socket of a client is
//! in the loop as long as the client is in [`Clients::client`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::socket::Listener;
use crate::sync::lock;
use crate::vm::events::{clear, listen};
use crate::vm::shared::VmShared;

/// What a client is told while there is another.
const OCCUPIED: &[u8] = b"[tidevm: the console has another client]\r\n";

/// Most bytes of input that wait for the guest.
const MOST_INPUT: usize = 64 << 10;

/// The client that output goes to, if there is one. The event loop puts it here.
pub(in crate::vm) type Seat = Arc<Mutex<Option<Arc<File>>>>;

/// The console's output, for the client at a [`Seat`].
pub(super) struct Output {
    seat: Seat,
    /// Bytes that the client was too slow for, since its last notice.
    lost: u64,
}

impl Output {
    pub(super) fn to(seat: &Seat) -> Self {
        Self { seat: Arc::clone(seat), lost: 0 }
    }
}

impl Write for Output {
    /// Takes all of `bytes`, or all that the client has room for.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut seat = lock(&self.seat);
        let Some(client) = &*seat else {
            self.lost = 0;
            return Ok(bytes.len());
        };
        let mut client: &File = client;
        if self.lost > 0 {
            let notice = format!("\r\n[tidevm: {} bytes of output were lost here]\r\n", self.lost);
            match client.write(notice.as_bytes()) {
                // A part of the notice is as good: the client is still too slow.
                Ok(_) => self.lost = 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                // Nothing comes before the notice.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.lost += bytes.len() as u64;
                    return Ok(bytes.len());
                }
                // It has left, as the next write finds.
                Err(_) => {}
            }
        }
        match client.write(bytes) {
            Ok(size) if size > 0 => Ok(size),
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.lost += bytes.len() as u64;
                Ok(bytes.len())
            }
            // It has left. The loop is told so, too.
            Ok(_) | Err(_) => {
                *seat = None;
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The socket and its client.
pub(in crate::vm) struct Clients {
    shared: Arc<VmShared>,
    socket: Listener,
    seat: Seat,
    client: Option<Arc<File>>,
    /// Input that the guest has no room for yet, at most [`MOST_INPUT`] bytes. It stays when its client leaves.
    input: VecDeque<u8>,
    /// The client will say nothing more, and may still read.
    mute: bool,
}

impl Clients {
    const SOCKET: u32 = 0;
    const DRAINED: u32 = 1;
    const CLIENT: u32 = 2;

    /// Serves the clients of `socket`, who get what is written to the output at `seat`.
    pub(in crate::vm) fn new(shared: Arc<VmShared>, (socket, seat): (Listener, Seat)) -> Self {
        Self { shared, socket, seat, client: None, input: VecDeque::new(), mute: false }
    }

    /// A client comes. A host without a descriptor for it has no further client: the loop would be woken for ever.
    fn welcome(&mut self, ops: &mut EventOps<'_>) {
        let accepted = self.socket.accept().and_then(|stream| {
            stream.set_nonblocking(true)?;
            // As a file, it is written to by `write`, which every filter allows, and not by `send`.
            Ok(File::from(OwnedFd::from(stream)))
        });
        let client = match accepted {
            Ok(client) => client,
            Err(error) => {
                let passes = [ErrorKind::Interrupted, ErrorKind::WouldBlock, ErrorKind::ConnectionAborted];
                if !passes.contains(&error.kind()) {
                    log::warn!("the console takes no further client: {error}");
                    drop(ops.remove(Events::empty(&self.socket)));
                }
                return;
            }
        };
        if let Some(before) = self.client.clone() {
            // The end of a client may be told after the next one. A write of nothing fails when the other side is closed.
            if (&*before).write(&[]).is_ok() {
                drop((&client).write(OCCUPIED));
                return;
            }
            self.dismiss(&before, ops);
        }
        let client = Arc::new(client);
        match ops.add(Events::with_data(&*client, Self::CLIENT, self.interest())) {
            Ok(()) => {
                *lock(&self.seat) = Some(Arc::clone(&client));
                self.client = Some(client);
            }
            Err(error) => log::warn!("the console does not listen to a client: {error}"),
        }
    }

    /// The client has something to say, or leaves.
    fn serve(&mut self, set: EventSet, ops: &mut EventOps<'_>) {
        let Some(client) = self.client.clone() else { return };
        let gone = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if gone {
            self.dismiss(&client, ops);
        } else {
            self.read(&client);
            self.shared.devices.serial.feed(&mut self.input);
            self.listen_to(&client, ops);
        }
    }

    /// The client has left. What it said before counts.
    fn dismiss(&mut self, client: &Arc<File>, ops: &mut EventOps<'_>) {
        while self.read(client) {}
        self.shared.devices.serial.feed(&mut self.input);
        *lock(&self.seat) = None;
        (self.client, self.mute) = (None, false);
        if let Err(error) = ops.remove(Events::empty(&**client)) {
            log::warn!("the console's client: {error}");
        }
    }

    /// Takes some of what the client said, if there is room for it. Returns whether there may be more.
    fn read(&mut self, mut client: &File) -> bool {
        let mut bytes = [0; 4096];
        if self.input.len() + bytes.len() > MOST_INPUT {
            return false;
        }
        match client.read(&mut bytes) {
            Ok(0) => self.mute = true,
            Ok(size) => self.input.extend(&bytes[..size]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
        !self.mute
    }

    /// What the loop waits for, beside the end of the client. Input that the guest has no room for would wake it for
    /// ever.
    fn interest(&self) -> EventSet {
        if self.input.is_empty() && !self.mute { EventSet::IN } else { EventSet::empty() }
    }

    fn listen_to(&self, client: &Arc<File>, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.modify(Events::with_data(&**client, Self::CLIENT, self.interest())) {
            log::warn!("the console's client: {error}");
        }
    }
}

impl MutEventSubscriber for Clients {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        listen(ops, &self.socket, Self::SOCKET);
        listen(ops, &self.shared.devices.serial_drained, Self::DRAINED);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            Self::SOCKET => self.welcome(ops),
            Self::DRAINED => {
                clear(&self.shared.devices.serial_drained);
                self.shared.devices.serial.feed(&mut self.input);
                if let Some(client) = &self.client {
                    self.listen_to(client, ops);
                }
            }
            // The last client's end may come after the next client.
            _ if self.client.as_ref().is_some_and(|client| client.as_raw_fd() == events.fd()) => {
                self.serve(events.event_set(), ops);
            }
            _ => {}
        }
    }
}
