//! The port of virtio-console on which calls come in and reports go out, one record per buffer (see `tidevm_abi`).
//!
//! Linux's `virtio_console` makes a device `vportNp0` of it (`drivers/char/virtio_console.c`). One read takes one buffer of
//! the VMM, and one write is one buffer. The driver may be a module that the user's init loads, so the device may come late.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::inotify;
use rustix::io::Errno;
use tidevm_abi::{BadRecord, Call, MAX_RECORD, Report, decode, encode};

use crate::files::Files;

/// Begins the name of a port's device.
const DEVICE: &str = "vport";

/// How often a port that is about to come is looked for, and the time between two looks: ten seconds in all.
const LOOKS: u32 = 500;
const NAP: Duration = Duration::from_millis(20);

/// The open port.
pub struct Port(File);

impl Port {
    /// Waits until the port is there, and opens it.
    ///
    /// # Errors
    /// It cannot be opened, or devices cannot be watched.
    pub fn open(files: &Files) -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        // The kernel sets the mode of a device after it has made it.
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::ATTRIB;
        inotify::add_watch(&watch, files.dev("."), flags)?;
        // Looked for after the watch has begun, so that no device is missed.
        loop {
            if let Some(port) = find(files)? {
                return Ok(Self(port));
            }
            let mut events = [0; 4096];
            rustix::io::read(&watch, &mut events)?;
        }
    }

    /// Sends a report. Waits for room in the queue.
    ///
    /// # Errors
    /// The port is gone.
    pub fn send(&mut self, report: &Report) -> io::Result<()> {
        let mut buffer = [0; MAX_RECORD];
        let record = encode(report, &mut buffer).expect("every record fits into MAX_RECORD");
        self.forward(record)
    }

    /// Sends the bytes of a report.
    ///
    /// # Errors
    /// The port is gone.
    pub fn forward(&mut self, record: &[u8]) -> io::Result<()> {
        match self.0.write(record)? {
            written if written == record.len() => Ok(()),
            written => Err(io::Error::other(format!("the port took {written} of {} bytes", record.len()))),
        }
    }

    /// Takes the next call, which may be unreadable.
    ///
    /// # Errors
    /// The port is gone.
    pub fn receive(&mut self) -> io::Result<Result<Call, BadRecord>> {
        let mut buffer = [0; MAX_RECORD];
        match self.0.read(&mut buffer)? {
            0 => Err(io::Error::other("the VMM has closed the port")),
            size => Ok(decode(&buffer[..size])),
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens a port whose device is there. The kernel makes the device a moment before it knows the port by it (`add_port`), and
/// tells nobody when it does.
fn open(device: &Path) -> io::Result<File> {
    let mut looks = LOOKS;
    loop {
        match OpenOptions::new().read(true).write(true).open(device) {
            Err(error) if looks > 0 && error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
                looks -= 1;
                thread::sleep(NAP);
            }
            result => return result,
        }
    }
}

/// The port, if its device is there. The machine has one device of this kind, with one port.
fn find(files: &Files) -> io::Result<Option<File>> {
    for entry in fs::read_dir(files.dev("."))? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with(DEVICE)) {
            let found = open(&files.dev(name));
            return found.map(Some).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot open the port {name}: {error}"))
            });
        }
    }
    Ok(None)
}
