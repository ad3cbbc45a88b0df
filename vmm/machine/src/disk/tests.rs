//! Files that are disks, and files that are none.

use std::io::Write;
use std::os::unix::net::UnixListener;

use tempfile::{TempDir, tempdir};

use super::*;

/// A file of `bytes` bytes in a folder of its own.
fn image(bytes: u64) -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    (folder, path)
}

fn disk(path: &Path, read_only: bool) -> Result<Disk, DiskError> {
    Disk::open(&DiskConfig { path: path.to_owned(), read_only })
}

fn refused(path: &Path, read_only: bool) -> String {
    disk(path, read_only).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_in_the_file() {
    let (_folder, path) = image(4096);
    let disk = disk(&path, false).unwrap();
    assert_eq!((disk.sectors(), disk.is_read_only(), disk.path()), (8, false, &*path));
    disk.write(&[7; 512], 3584).unwrap();
    disk.flush().unwrap();
    assert_eq!(fs::read(&path).unwrap()[3584..], [7; 512]);
    let mut bytes = [0; 1024];
    disk.read(&mut bytes, 3072).unwrap();
    assert_eq!((bytes[0], bytes[512]), (0, 7));
    assert!(disk.read(&mut bytes, 3584).is_err(), "the file has become shorter");
}

#[test]
fn what_is_no_disk_is_refused_with_the_reason() {
    let (folder, path) = image(0);
    assert!(refused(&path, false).contains("it is empty; make it as large"), "{}", refused(&path, false));
    for bytes in [1, 511, 1000] {
        File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        let text = refused(&path, true);
        let rest = format!("its {bytes} bytes are no multiple of 512, so the last {} would", bytes % 512);
        let advice = format!("`truncate -s {}`", bytes.next_multiple_of(512));
        assert!(text.contains(&rest) && text.contains(&advice), "{text}");
    }
    let text = refused(folder.path(), false);
    assert!(text.ends_with("this is a directory, and not a raw image or a block device"), "{text}");
    assert!(refused(Path::new("/dev/null"), false).contains("this is a character device"));
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(refused(&socket, false).contains("this is a socket"));
    let text = refused(&folder.path().join("none"), false);
    assert!(text.contains("cannot open it for reading and writing: No such file"), "{text}");
    assert!(!text.contains(",ro"), "{text}");
}

/// No user may write to a program that runs.
#[test]
fn a_file_that_can_only_be_read_is_refused_with_that_advice() {
    let path = std::env::current_exe().unwrap();
    if File::options().write(true).open(&path).is_ok() {
        // Not with a macro: the test harness captures the output of macros.
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        writeln!(io::stderr(), "SKIP {name}: this kernel lets a program be written that runs").unwrap();
        return;
    }
    let text = refused(&path, false);
    assert!(text.ends_with("; it can be read: --disk PATH,ro does not write to it"), "{text}");
    let text = disk(&path, true).map_or_else(|error| error.to_string(), |_| String::new());
    assert!(!text.contains("cannot open"), "{text}");
}

/// The locks are those of descriptors, so that one process can show both sides.
#[test]
fn a_disk_that_is_written_is_nobody_elses() {
    let (_folder, path) = image(512);
    let writer = disk(&path, false).unwrap();
    for read_only in [false, true] {
        let text = refused(&path, read_only);
        assert!(text.contains("in use by another VM, or by another --disk"), "{text}");
    }
    drop(writer);
    let readers = [disk(&path, true).unwrap(), disk(&path, true).unwrap()];
    assert!(matches!(disk(&path, false), Err(DiskError::InUse { writable: true, .. })));
    drop(readers);
    drop(disk(&path, false).unwrap());
}
