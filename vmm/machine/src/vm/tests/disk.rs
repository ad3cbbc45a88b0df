//! Disks of a VM that is locked in. The guest halts, and the test plays its driver on the guest's memory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;

use tempfile::{TempDir, tempdir};

use super::{
    Config, Duration, End, FORCED, Instant, Kernel, LIMIT, MIB, Size, StartError, Vm, kvm, locked_in,
};
use crate::config::{BalloonConfig, DiskConfig};
use crate::disk::DiskError;
use crate::snapshot::folder::Destination;
use crate::snapshot::opened::{RestoreError, Snapshot};
use crate::snapshot::write::SaveError;
use crate::sync::lock;
use crate::virtio::fake::{Buffer, Ring, initialise};

/// hlt; jmp to it
const HALTS: &[u8] = &[0xf4, 0xeb, 0xfd];

const FLUSH: u32 = 1 << 9;
const OUT: u8 = 1;
const SYNC: u8 = 4;

/// A file of `sectors` sectors.
fn image(sectors: u64) -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(sectors * 512).unwrap();
    (folder, path)
}

/// A machine with a balloon and a disk behind it.
fn config(kernel: &Kernel, path: &Path) -> Config {
    Config {
        balloon: Some(BalloonConfig { reporting: true, stats_interval: None }),
        disks: vec![DiskConfig { path: path.to_owned(), read_only: false }],
        ..kernel.config()
    }
}

/// A driver of the first disk of `vm`.
fn drive(vm: &Vm) -> Ring {
    let shared = &vm.shared;
    let ring = Ring::new(&shared.memory, 4 * MIB);
    ring.fill(4 * MIB, &[0; 0x1000]);
    initialise(&mut *lock(&shared.devices.disks[0].device), FLUSH, &[&ring]);
    ring
}

/// Offers a request of `kind`, which writes `byte` to `sector`, as the ioeventfd of the queue does.
fn offer(vm: &Vm, ring: &mut Ring, kind: u8, sector: u8, byte: u8) {
    let (head, data, status) = (ring.place(0), ring.place(1), ring.place(2));
    let mut header = [0; 16];
    (header[0], header[8]) = (kind, sector);
    ring.fill(head, &header);
    ring.fill(data, &[byte; 512]);
    ring.fill(status, &[0xee]);
    let read = |address, size| Buffer { address, size, writable: false };
    let buffers = [read(head, 16), read(data, 512), Buffer { address: status, size: 1, writable: true }];
    ring.offer(0, &buffers);
    vm.shared.devices.disks[0].kick.write(1).unwrap();
}

fn until(what: &str, mut found: impl FnMut() -> bool) {
    let start = Instant::now();
    while !found() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(1));
    }
}

fn answered(ring: &Ring, count: u16) {
    until("the answer", || ring.used() == count);
    assert_eq!(ring.bytes(ring.place(2), 1), [0]);
}

#[test]
fn the_thread_of_a_disk_that_is_locked_in_serves_it() {
    if !kvm() {
        return;
    }
    let (kernel, (_folder, path)) = (Kernel::new(HALTS), image(8));
    locked_in(config(&kernel, &path), |vm| {
        let mut ring = drive(&vm);
        assert!(vm.state().disks[0].driver);
        offer(&vm, &mut ring, OUT, 7, 0x5a);
        answered(&ring, 1);
        offer(&vm, &mut ring, SYNC, 0, 0);
        answered(&ring, 2);
        let counts = vm.disk_requests();
        assert_eq!((counts[0].by[1][0], counts[0].by[2][0], counts[0].written), (1, 1, Size(512)));
        assert_eq!(vm.stop(LIMIT), FORCED);
    })
    .unwrap();
    assert_eq!(fs::read(&path).unwrap()[3584..], [0x5a; 512]);
}

#[test]
fn a_guest_that_stands_still_has_idle_disks_and_a_pause_waits_for_them() {
    if !kvm() {
        return;
    }
    let (kernel, (_folder, path)) = (Kernel::new(HALTS), image(8));
    locked_in(config(&kernel, &path), |vm| {
        let mut ring = drive(&vm);
        let device = &vm.shared.devices.disks[0].device;
        lock(device).pretend_work(true);
        until("all vCPUs out of the guest", || {
            assert!(!vm.pause().unwrap(), "a request is under way");
            let hardware = lock(&vm.hardware);
            hardware.park()
        });
        assert!(!vm.pause().unwrap());
        lock(device).pretend_work(false);
        until("the pause", || vm.pause().unwrap());
        offer(&vm, &mut ring, OUT, 1, 1);
        sleep(Duration::from_millis(50));
        assert_eq!(ring.used(), 0, "no request begins");
        vm.resume();
        answered(&ring, 1);
        assert_eq!(vm.stop(LIMIT), FORCED);
    })
    .unwrap();
}

/// A reset, a pause and the end of the VM come while the thread of the disk can do nothing.
#[test]
fn a_vm_ends_without_a_disk_that_does_not_answer() {
    if !kvm() {
        return;
    }
    let (kernel, (_folder, path)) = (Kernel::new(HALTS), image(8));
    locked_in(config(&kernel, &path), |vm| {
        let mut ring = drive(&vm);
        let device = std::sync::Arc::clone(&vm.shared.devices.disks[0].device);
        let stuck = lock(&device);
        offer(&vm, &mut ring, OUT, 1, 1);
        assert_eq!(vm.stop(LIMIT), FORCED);
        drop(stuck);
    })
    .unwrap();
}

#[test]
fn a_reset_takes_the_driver_of_a_disk_away() {
    if !kvm() {
        return;
    }
    let (kernel, (_folder, path)) = (Kernel::new(HALTS), image(8));
    locked_in(Config { resets: true, ..config(&kernel, &path) }, |vm| {
        drive(&vm);
        let request = vm.reset().unwrap();
        vm.wait(LIMIT, "the reset", |state| (state.reset_request >= request).then_some(())).unwrap();
        assert!(!vm.state().disks[0].driver);
        let mut ring = drive(&vm);
        offer(&vm, &mut ring, OUT, 2, 2);
        answered(&ring, 1);
        assert!(matches!(vm.stop(LIMIT), End::Forced { .. }));
    })
    .unwrap();
    assert_eq!(fs::read(&path).unwrap()[1024], 2);
}

#[test]
fn two_machines_cannot_write_to_one_disk() {
    if !kvm() {
        return;
    }
    let (kernel, (_folder, path)) = (Kernel::new(HALTS), image(8));
    let refused = |config| {
        let error = locked_in(config, |_| ()).unwrap_err();
        assert!(matches!(error, StartError::Disk(DiskError::InUse { .. })), "{error}");
        assert!(!error.is_refusal());
    };
    let first = super::start(config(&kernel, &path)).unwrap();
    refused(config(&kernel, &path));
    drop(first);
    let mut twice = config(&kernel, &path);
    twice.disks.push(DiskConfig { path: path.clone(), read_only: true });
    refused(twice);
}

#[test]
fn a_restored_machine_has_its_disk_if_that_has_the_size() {
    if !kvm() {
        return;
    }
    let (kernel, (folder, path)) = (Kernel::new(HALTS), image(8));
    let snapshot = folder.path().join("snapshot");
    let save = Some(Destination::make(&snapshot).unwrap());
    locked_in(Config { save, ..config(&kernel, &path) }, |vm| {
        let mut ring = drive(&vm);
        lock(&vm.shared.devices.disks[0].device).pretend_work(true);
        assert!(matches!(vm.save(b""), Err(SaveError::DiskBusy { disk: 0, .. })));
        lock(&vm.shared.devices.disks[0].device).pretend_work(false);
        offer(&vm, &mut ring, OUT, 3, 3);
        answered(&ring, 1);
        until("the pause", || vm.pause().unwrap());
        // It waits in the queue when the machine is saved.
        offer(&vm, &mut ring, OUT, 4, 4);
        vm.save(b"").unwrap();
        assert_eq!(vm.stop(LIMIT), FORCED);
    })
    .unwrap();
    let restored = || Config { restore: Some(Snapshot::open(&snapshot).unwrap()), ..config(&kernel, &path) };
    File::options().write(true).open(&path).unwrap().set_len(9 * 512).unwrap();
    let error = locked_in(restored(), |_| ()).unwrap_err();
    assert!(matches!(error, StartError::Restore(RestoreError::Differs { .. })), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("--disk #0: the saved machine has a disk of 4K, and") && text.ends_with("has 4608"),
        "{text}"
    );
    File::options().write(true).open(&path).unwrap().set_len(8 * 512).unwrap();
    locked_in(restored(), |vm| {
        assert!(vm.state().disks[0].driver);
        until("the answer", || vm.disk_requests()[0].by[1][0] == 1);
        assert_eq!(vm.stop(LIMIT), FORCED);
    })
    .unwrap();
    let content = fs::read(&path).unwrap();
    assert_eq!((content[3 * 512], content[4 * 512]), (3, 4));
}
