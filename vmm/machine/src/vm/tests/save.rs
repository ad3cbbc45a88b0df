//! Machines that are saved and restored, with guests of a few instructions.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread::sleep;

use tempfile::tempdir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{
    Config, ConsoleMode, Duration, End, FORCED, HOLE_END, Instant, Kernel, LIMIT, MIB, Size, StartError, Vm,
    kvm, locked_in,
};
use crate::memory::range::GuestRange;
use crate::snapshot::folder::Destination;
use crate::snapshot::opened::{RestoreError, Snapshot};
use crate::snapshot::write::{SaveError, Saved};

/// xor ecx, ecx; mov dx, 0x3fd; again: inc ecx; mov [0x200000], ecx; xor eax, eax; in al, dx; test al, al; jnz again; hlt. KVM
/// ends a reading access when the vCPU enters again: a guest that was saved before that reads 0, and halts.
const COUNTS: &[u8] = &[
    0x31, 0xc9, 0x66, 0xba, 0xfd, 0x03, 0x41, 0x89, 0x0d, 0, 0, 0x20, 0, 0x31, 0xc0, 0xec, 0x84, 0xc0, 0x75,
    0xf2, 0xf4, 0xeb, 0xfd,
];

/// Where [`COUNTS`] counts.
const COUNTER: GuestAddress = GuestAddress(2 * MIB);

fn saved_to(config: Config, path: &Path) -> Config {
    Config { save: Some(Destination::make(path).unwrap()), ..config }
}

/// The machine of `config`, from the snapshot at `path`.
fn restored(config: Config, path: &Path) -> Result<Config, RestoreError> {
    Ok(Config { restore: Some(Snapshot::open(path)?), ..config })
}

/// How far the guest has counted.
fn counter(vm: &Vm) -> u64 {
    vm.shared.memory.view().read_obj::<u32>(COUNTER).unwrap().into()
}

fn until(what: &str, mut found: impl FnMut() -> bool) {
    let start = Instant::now();
    while !found() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(1));
    }
}

/// Saves `config`'s machine when its guest has counted for a while. Returns the port accesses and the count at that moment.
fn save_counting(config: Config) -> (u64, u64) {
    locked_in(config, |vm| {
        until("the guest counts", || counter(&vm) > 100);
        until("all vCPUs out of the guest", || vm.pause().unwrap());
        let Saved { content, .. } = vm.save(b"mine").unwrap();
        assert!(
            content.0 >= 4096 && content < Size::mib(1),
            "the kernel, its tables and the counter: {content}"
        );
        assert!(vm.state().paused, "it stands still as before");
        let seen = (vm.exits()[0].io, counter(&vm));
        assert!(matches!(vm.save(b""), Err(SaveError::AlreadySaved(_))));
        vm.resume();
        until("the guest goes on", || counter(&vm) > seen.1 + 10);
        assert_eq!(vm.stop(LIMIT), FORCED);
        seen
    })
    .unwrap()
}

/// Twice from the same snapshot. A vCPU that was saved in the middle of an access would make it once more, or lose what
/// it read.
#[test]
fn a_guest_goes_on_where_it_was_and_makes_no_access_twice() {
    if !kvm() {
        return;
    }
    let (kernel, scratch) = (Kernel::new(COUNTS), tempdir().unwrap());
    let path = scratch.path().join("snapshot");
    let (accesses, count) = save_counting(saved_to(kernel.config(), &path));
    assert!([accesses, accesses + 1].contains(&count), "{accesses} accesses, and counted to {count}");
    assert_eq!(Snapshot::open(&path).unwrap().embedder(), b"mine");
    for _ in 0..2 {
        locked_in(restored(kernel.config(), &path).unwrap(), |vm| {
            until("the guest goes on", || counter(&vm) > count + 100);
            until("all vCPUs out of the guest", || vm.pause().unwrap());
            let (all, counted) = (accesses + vm.exits()[0].io, counter(&vm));
            assert!([all, all + 1].contains(&counted), "{all} accesses, and counted to {counted}");
            vm.resume();
            assert_eq!(vm.stop(LIMIT), FORCED);
        })
        .unwrap();
    }
}

/// The file has a place for each byte of memory, and blocks on the disk for what was touched. Reading the rest would have made
/// it resident.
#[test]
fn memory_that_nobody_touched_is_neither_read_nor_written() {
    if !kvm() {
        return;
    }
    let (kernel, scratch) = (Kernel::new(COUNTS), tempdir().unwrap());
    let path = scratch.path().join("snapshot");
    let config = Config { memory: Size::gib(1), pmem: vec![Size::gib(1)], ..kernel.config() };
    let held = locked_in(saved_to(config, &path), |vm| {
        until("the guest counts", || counter(&vm) > 0);
        until("all vCPUs out of the guest", || vm.pause().unwrap());
        let held = || vm.shared.memory.boot_held().unwrap();
        let before = held();
        vm.save(b"").unwrap();
        (before, held())
    });
    let file = fs::metadata(path.join("memory")).unwrap();
    assert_eq!(file.len(), 3 << 30, "boot memory, the region, and device memory");
    assert!(file.blocks() * 512 < 4 * MIB, "{} bytes on the disk", file.blocks() * 512);
    let (before, after) = held.unwrap();
    assert_eq!(before, after, "a save makes nothing resident");
}

fn refusal(config: Config, path: &Path) -> String {
    let start = restored(config, path).map_err(StartError::from).and_then(|config| locked_in(config, drop));
    start.expect_err("a snapshot that cannot be").to_string()
}

/// A byte here and there: `snapshot::format` has a test with all of them.
#[test]
fn a_snapshot_that_is_cut_off_or_changed_or_of_another_machine_is_refused() {
    if !kvm() {
        return;
    }
    let (kernel, scratch) = (Kernel::new(COUNTS), tempdir().unwrap());
    let path = scratch.path().join("snapshot");
    save_counting(saved_to(kernel.config(), &path));
    for file in ["state", "memory"] {
        let name = path.join(file);
        let whole = fs::metadata(&name).unwrap().len();
        for length in [0, 1, whole / 2, whole - 1, whole + 1] {
            fs::copy(&name, scratch.path().join("copy")).unwrap();
            File::options().write(true).open(&name).unwrap().set_len(length).unwrap();
            let text = refusal(kernel.config(), &path);
            assert!(text.contains(file) && text.contains("not complete"), "{file} of {length} bytes: {text}");
            fs::rename(scratch.path().join("copy"), &name).unwrap();
        }
    }
    let flip = |file: &str, at: u64| {
        let file = File::options().read(true).write(true).open(path.join(file)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    let whole = fs::metadata(path.join("state")).unwrap().len();
    for at in (20..whole).step_by(997) {
        flip("state", at);
        let text = refusal(kernel.config(), &path);
        assert!(text.contains("state: the file is damaged"), "byte {at}: {text}");
        flip("state", at);
    }
    for at in [COUNTER.0, COUNTER.0 + 4096, 4 * MIB - 1] {
        flip("memory", at);
        let text = refusal(kernel.config(), &path);
        assert!(text.contains("memory: the piece at 0x200000 is damaged"), "byte {at}: {text}");
        flip("memory", at);
    }
    let text = refusal(Config { cpus: 2, ..kernel.config() }, &path);
    assert!(text.contains("--cpus: the saved machine has 1, and this one 2"), "{text}");
    let text = refusal(Config { hotplug: Vec::new(), ..kernel.config() }, &path);
    assert!(text.contains("--hotplug"), "{text}");
    let text = refusal(Kernel::new(&COUNTS[2..]).config(), &path);
    assert!(text.contains("the kernel") && text.contains("has changed since"), "{text}");
    fs::remove_file(path.join("memory")).unwrap();
    assert!(refusal(kernel.config(), &path).contains("cannot read memory"));
    let text = refusal(kernel.config(), scratch.path());
    assert!(text.contains("cannot read state"), "a folder that is no snapshot: {text}");
}

/// Another process has made the folder by then, so that the snapshot cannot have its name.
#[test]
fn a_save_that_fails_leaves_the_machine_as_it_was_and_no_snapshot() {
    if !kvm() {
        return;
    }
    let (kernel, scratch) = (Kernel::new(COUNTS), tempdir().unwrap());
    let path = scratch.path().join("snapshot");
    let config = saved_to(kernel.config(), &path);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("mine"), "").unwrap();
    locked_in(config, |vm| {
        until("the guest counts", || counter(&vm) > 0);
        let error = vm.save(b"").unwrap_err();
        assert!(matches!(error, SaveError::Write { .. }), "{error:?}");
        assert!(!vm.state().paused);
        let before = counter(&vm);
        until("the guest goes on", || counter(&vm) > before + 10);
        let (vm, error) = *vm.end_saved(b"").unwrap_err();
        assert!(matches!(error, SaveError::Write { .. }), "{error:?}");
        assert_eq!(vm.stop(LIMIT), FORCED);
    })
    .unwrap();
    let names = fs::read_dir(&path).unwrap().count();
    assert_eq!(names, 1, "what was there is there");
    let text = locked_in(kernel.config(), |vm| vm.save(b"").unwrap_err().to_string()).unwrap();
    assert!(text.contains("not made to be saved"), "{text}");
}

/// tidevm's own guest plugs 128 MiB. After the restore exactly these are in the VMM's view and open on the host, and the next device
/// block is neither.
#[test]
fn what_is_not_plugged_is_out_of_reach_after_a_restore() {
    if !kvm() {
        return;
    }
    const PLUGGED: Size = Size::mib(128);
    let scratch = tempdir().unwrap();
    let path = scratch.path().join("snapshot");
    let config = Config { kernel: None, memory: Size::mib(128), ..Kernel::new(COUNTS).config() };
    let limit = Duration::from_secs(60);
    locked_in(saved_to(config, &path), |vm| {
        vm.wait(limit, "the guest", |state| state.ready).unwrap();
        vm.resize(0, PLUGGED).unwrap();
        vm.wait(limit, "the resize", |state| state.mem[0].settled(PLUGGED, true, false)).unwrap();
        vm.end_saved(b"").map_err(|failed| failed.1).unwrap();
    })
    .unwrap();
    let snapshot = Snapshot::open(&path).unwrap();
    let config = snapshot.config(Config { console: ConsoleMode::Off, ..Config::default() }).unwrap();
    // The thread that is locked in opens no file.
    let maps = File::open("/proc/self/maps").unwrap();
    locked_in(Config { restore: Some(snapshot), ..config }, |vm| {
        assert_eq!(vm.state().mem[0].plugged, PLUGGED);
        let (memory, start) = (&vm.shared.memory, HOLE_END);
        let reachable: u64 = memory.view().iter().map(GuestMemoryRegion::len).sum();
        assert_eq!(reachable, 2 * PLUGGED.0, "boot memory, and what is plugged");
        let usable = |from, to| memory.is_usable(GuestRange::new(start + from..start + to).unwrap());
        assert!(usable(0, PLUGGED.0) && !usable(PLUGGED.0, PLUGGED.0 + 2 * MIB));
        assert_eq!(open_bytes(&vm, &maps), PLUGGED.0, "the host has closed the rest");
        assert_eq!(vm.stop(limit), End::PoweredOff);
    })
    .unwrap();
}

/// Bytes of the hotplug region that the host lets this process read and write.
fn open_bytes(vm: &Vm, maps: &File) -> u64 {
    let region = vm.shared.memory.host_range_of_region(0);
    let (mut text, mut part) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match maps.read_at(&mut part, text.len() as u64).unwrap() {
            0 => break,
            length => text.extend(&part[..length]),
        }
    }
    let text = String::from_utf8(text).unwrap();
    let open = text.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16).unwrap());
        (region.contains(&start) && rest.starts_with("rw")).then_some(end - start)
    });
    open.sum()
}
