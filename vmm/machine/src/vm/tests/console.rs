//! The console at a socket that the VMM listens at: clients that come, go, say much, or do not read.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{ECHO, Kernel, LIMIT, POWER_OFF, kvm, start};
use crate::config::{Config, ConsoleMode};
use crate::error::StartError;
use crate::socket::SocketError;
use crate::vm::{End, Vm};

/// A VM that runs `code`, and the path of its console.
fn listening(code: &[u8]) -> (Vm, PathBuf, Kernel) {
    let kernel = Kernel::new(code);
    let path = kernel.0.with_extension("socket");
    let vm = start(Config { console: ConsoleMode::Socket(path.clone()), ..kernel.config() }).unwrap();
    (vm, path, kernel)
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client
}

#[track_caller]
fn echo(client: &mut UnixStream, text: &[u8]) {
    client.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

#[test]
fn clients_of_the_console_come_and_go_one_at_a_time() {
    if !kvm() {
        return;
    }
    // ECHO; jmp -17
    let (vm, path, kernel) = listening(&[ECHO.as_slice(), &[0xeb, 0xef]].concat());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut first = connect(&path);
    echo(&mut first, b"a");
    let mut said = String::new();
    connect(&path).read_to_string(&mut said).unwrap();
    assert!(said.contains("the console has another client"), "{said}");
    echo(&mut first, b"b");
    // A client that has no more to say still reads.
    let last = vec![b'c'; 1000];
    first.write_all(&last).unwrap();
    first.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = vec![0; last.len()];
    first.read_exact(&mut back).unwrap();
    assert_eq!(back, last, "more than the serial port has room for at once");
    drop(first);
    for _ in 0..20 {
        echo(&mut connect(&path), b"d");
    }

    // As the console of a second VM the path is taken.
    let config = Config { console: ConsoleMode::Socket(path.clone()), ..kernel.config() };
    let error = start(config.clone()).unwrap_err();
    assert!(matches!(error, StartError::ConsoleSocket(SocketError::Live { .. })), "{error}");
    assert!(error.to_string().starts_with("--console socket:/") && !error.is_refusal(), "{error}");
    drop(vm.stop(LIMIT));
    await_removal(&path);

    // The socket of a process that did not remove it.
    drop(UnixListener::bind(&path).unwrap());
    let vm = start(config).unwrap();
    echo(&mut connect(&path), b"e");
    drop(vm.stop(LIMIT));
    await_removal(&path);
}

fn await_removal(path: &Path) {
    let start = Instant::now();
    while path.exists() {
        assert!(start.elapsed() < LIMIT, "{} stays", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The guest reads slower than the client writes, which leaves at once.
#[test]
fn what_a_client_said_before_it_left_reaches_the_guest() {
    if !kvm() {
        return;
    }
    // mov ecx, 2000; wait: mov dx, 0x3fd; in al, dx; test al, 1; jz -5; mov dx, 0x3f8; in al, dx; loop wait
    let mut code = vec![0xb9, 0xd0, 0x07, 0, 0, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb];
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xe2, 0xf0]);
    code.extend(POWER_OFF);
    let (vm, path, _kernel) = listening(&code);
    connect(&path).write_all(&[b'x'; 2000]).unwrap();
    vm.wait(LIMIT, "the end", |state| state.ended().then_some(())).unwrap();
    assert_eq!(vm.stop(LIMIT), End::PoweredOff);
}

#[test]
fn a_client_that_does_not_read_stalls_nothing_and_is_told_what_it_lost() {
    const WRITES: u64 = 20_000;
    if !kvm() {
        return;
    }
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp -3
    let (vm, path, _kernel) = listening(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd]);
    let client = connect(&path);
    let written = || vm.exits().iter().map(|exits| exits.io).sum::<u64>();
    let (before, start) = (written(), Instant::now());
    while written() < before + WRITES {
        assert!(start.elapsed() < LIMIT, "the guest stands still after {} writes", written() - before);
        std::thread::sleep(Duration::from_millis(1));
    }
    let (mut client, mut said) = (client, String::new());
    while !said.contains(" bytes of output were lost here]") {
        let mut bytes = [0; 4096];
        let size = client.read(&mut bytes).unwrap();
        said.push_str(std::str::from_utf8(&bytes[..size]).unwrap());
    }
    assert!(said.starts_with("xxx"), "{said}");
    drop(vm.stop(LIMIT));
}
