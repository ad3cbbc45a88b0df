//! Input for the serial port, from a terminal, a pipe or a socket.
//!
//! A pipe or a socket is read as far as the port has room, and its writer waits. A terminal is always read, because a
//! person must be able to leave: [`Keys`] finds Ctrl-a x, as in QEMU. What the guest has no room for is kept up to
//! [`PENDING`], and lost beyond that, as on a line whose reader is too slow.
//!
//! Invariant: a guest that does not read its port makes no thread wait and nothing grow.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use event_manager::{Error, EventOps, EventSet, Events, MutEventSubscriber};

use super::events::{clear, listen};
use super::shared::VmShared;
use super::signals::Ending;

/// Most bytes of a terminal that wait for room in the port.
const PENDING: usize = 1024;

/// Input for the serial port. A source that `epoll` cannot wait for (a regular file, `/dev/null`) is no input.
pub(super) struct Input {
    shared: Arc<VmShared>,
    source: File,
    /// For a terminal.
    person: Option<Person>,
}

/// A person at a terminal.
struct Person {
    keys: Keys,
    /// Keys for which the port has no room yet.
    pending: VecDeque<u8>,
    ending: Ending,
}

impl Input {
    const SOURCE: u32 = 0;
    const DRAINED: u32 = 1;

    /// Input from `source`. With `ending`, it is a terminal, at which a person may wish the VM to end.
    pub(super) fn new(shared: Arc<VmShared>, source: File, ending: Option<Ending>) -> Self {
        let person = ending.map(|ending| Person { keys: Keys::default(), pending: VecDeque::new(), ending });
        Self { shared, source, person }
    }

    /// Reads as much as fits into the serial port, or all that a person has typed.
    fn pass_on(&mut self) -> Reading {
        let serial = &self.shared.devices.serial;
        let mut bytes = vec![0; if self.person.is_some() { PENDING } else { serial.room() }];
        if bytes.is_empty() {
            return Reading::Full;
        }
        match self.source.read(&mut bytes) {
            Ok(0) => return Reading::Ended,
            Ok(size) => bytes.truncate(size),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Reading::On,
            Err(_) => return Reading::Ended,
        }
        match &mut self.person {
            Some(person) => {
                person.type_keys(&bytes);
                self.feed();
            }
            None => serial.input(&bytes),
        }
        Reading::On
    }

    /// Gives the guest the keys that wait, as far as they fit.
    fn feed(&mut self) {
        if let Some(person) = &mut self.person {
            self.shared.devices.serial.feed(&mut person.pending);
        }
    }
}

impl Person {
    fn type_keys(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match self.keys.press(byte) {
                Some(Key::Quit) => self.ending.wish(libc::SIGTERM),
                Some(Key::Byte(byte)) if self.pending.len() < PENDING => self.pending.push_back(byte),
                Some(Key::Byte(_)) | None => {}
            }
        }
    }
}

/// Whether to go on listening to the source. A source at its end, and one that is not read because the serial
/// port is full, would wake the loop for ever.
enum Reading {
    On,
    Full,
    Ended,
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        match ops.add(Events::with_data(&self.source, Self::SOURCE, EventSet::IN)) {
            Ok(()) => listen(ops, &self.shared.devices.serial_drained, Self::DRAINED),
            Err(Error::Epoll(error)) if error.errno() == libc::EPERM => {}
            Err(error) => log::error!("console input is not listened to: {error}"),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == Self::DRAINED {
            clear(&self.shared.devices.serial_drained);
            self.feed();
            // Fails when the loop listens to the source already.
            drop(ops.add(Events::with_data(&self.source, Self::SOURCE, EventSet::IN)));
            return;
        }
        let reading = self.pass_on();
        let removed = match reading {
            Reading::On => Ok(()),
            Reading::Full => ops.remove(Events::empty(&self.source)),
            Reading::Ended => {
                let drained = &self.shared.devices.serial_drained;
                ops.remove(Events::empty(&self.source)).and(ops.remove(Events::empty(drained)))
            }
        };
        if let Err(error) = removed {
            log::warn!("console input: {error}");
        }
    }
}

/// Finds what is meant for the VMM among the keys for the guest: Ctrl-a and another key (QEMU's `-serial mon:stdio`).
#[derive(Debug, Default)]
struct Keys {
    /// The last key was Ctrl-a.
    escaped: bool,
}

/// A key that was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// For the guest.
    Byte(u8),
    /// Ctrl-a x: the VM is to end.
    Quit,
}

impl Keys {
    /// Takes a byte of the terminal. `None` for Ctrl-a, and for a key behind it that means nothing.
    fn press(&mut self, byte: u8) -> Option<Key> {
        const CTRL_A: u8 = 1;
        match (std::mem::take(&mut self.escaped), byte) {
            (false, CTRL_A) => {
                self.escaped = true;
                None
            }
            (false, byte) => Some(Key::Byte(byte)),
            (true, b'x') => Some(Key::Quit),
            (true, b'a' | CTRL_A) => Some(Key::Byte(CTRL_A)),
            (true, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Weak};
    use std::time::Instant;

    use super::{Ending, Key, Keys, PENDING, Person};
    use crate::state::SharedState;

    #[test]
    fn keys_that_no_guest_reads_are_kept_up_to_a_bound() {
        let ending = Ending::new(Arc::new(SharedState::new(Instant::now(), Vec::new())), Weak::new());
        let mut person = Person { keys: Keys::default(), pending: VecDeque::new(), ending };
        person.type_keys(b"begin");
        (0..100).for_each(|_| person.type_keys(&[b'x'; PENDING]));
        assert_eq!(person.pending.len(), PENDING);
        assert!(person.pending.iter().copied().take(5).eq(*b"begin"), "what came first is kept");
    }

    #[test]
    fn ctrl_a_x_is_for_the_vmm_and_ctrl_a_twice_for_the_guest() {
        let pressed = |bytes: &[u8]| {
            let mut keys = Keys::default();
            bytes.iter().filter_map(|&byte| keys.press(byte)).collect::<Vec<_>>()
        };
        assert_eq!(pressed(b"xa\x03"), [Key::Byte(b'x'), Key::Byte(b'a'), Key::Byte(3)]);
        assert_eq!(pressed(b"\x01x"), [Key::Quit]);
        assert_eq!(pressed(b"\x01\x01x"), [Key::Byte(1), Key::Byte(b'x')]);
        assert_eq!(pressed(b"\x01a\x01yx"), [Key::Byte(1), Key::Byte(b'x')]);
    }
}
