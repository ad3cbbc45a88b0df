//! Stock Linux's virtio_blk driver on disks: an ext2 that it mounts, writes, flushes, mounts again and reads, and a disk
//! that it can only read.
//!
//! The file system is made here, so that the test needs no program for it.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tidevm_machine::{DiskConfig, Size};
use tidevm_tests::Test;

use crate::guest::Linux;

pub const TESTS: &[Test] = &[
    ("linux_mounts_writes_and_reads_a_disk", linux_mounts_writes_and_reads_a_disk),
    ("linux_finds_its_disk_after_a_reset", linux_finds_its_disk_after_a_reset),
];

const BLOCK: u64 = 1024;
const BLOCKS: u32 = 4096;
const INODES: u32 = 128;

/// The text of the file that the guest writes 64 times.
const TEXT: &str = "written by the guest";

/// A file that goes with the value.
struct Image(PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

impl Image {
    fn new(name: &str) -> (Self, File) {
        let path = env::temp_dir().join(format!("tidevm-{}-{name}.img", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(u64::from(BLOCKS) * BLOCK).unwrap();
        (Self(path), file)
    }

    fn disk(&self, read_only: bool) -> DiskConfig {
        DiskConfig { path: self.0.clone(), read_only }
    }
}

/// Little-endian numbers, one after another.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn halves(mut self, values: &[u16]) -> Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn words(mut self, values: &[u32]) -> Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }
}

/// A bitmap of one block, whose first `used` bits and whose bits from `end` on are set.
fn bitmap(used: u32, end: u32) -> Vec<u8> {
    let bit = |n: u32| n < used || n >= end;
    (0..BLOCK as u32).map(|byte| (0..8).fold(0, |bits, n| bits | u8::from(bit(byte * 8 + n)) << n)).collect()
}

/// An empty ext2 of revision 0 (Linux's `Documentation/filesystems/ext2.rst`): one group, with the superblock in block 1,
/// the group's descriptor, the two bitmaps, the inodes from block 5 on, and the root folder behind them.
fn ext2(file: &File) {
    const TABLE: u32 = 5;
    const ROOT: u32 = TABLE + INODES * 128 / BLOCK as u32;
    // Inodes up to 10 are reserved.
    let (free_blocks, free_inodes) = (BLOCKS - 1 - ROOT, INODES - 10);
    let superblock = Bytes::default()
        .words(&[INODES, BLOCKS, 0, free_blocks, free_inodes, 1, 0, 0, 8192, 8192, INODES, 0, 0])
        // Never mounted, with the magic number, clean, and going on after errors.
        .halves(&[0, 0xffff, 0xef53, 1, 1, 0])
        .words(&[0, 0, 0, 0])
        .halves(&[0, 0]);
    let group = Bytes::default().words(&[3, 4, TABLE]).halves(&[free_blocks as u16, free_inodes as u16, 1]);
    let root = Bytes::default()
        .halves(&[0o40755, 0])
        .words(&[BLOCK as u32, 0, 0, 0, 0])
        .halves(&[0, 2])
        .words(&[2, 0, 0, ROOT]);
    let mut folder = Bytes::default().words(&[2]).halves(&[12, 1]).0;
    folder.extend(b".\0\0\0");
    folder.extend(Bytes::default().words(&[2]).halves(&[BLOCK as u16 - 12, 2]).0);
    folder.extend(b"..\0\0");
    for (at, bytes) in [
        (BLOCK, superblock.0),
        (2 * BLOCK, group.0),
        // Bit 0 is block 1.
        (3 * BLOCK, bitmap(ROOT, BLOCKS - 1)),
        (4 * BLOCK, bitmap(10, INODES)),
        // The second inode.
        (u64::from(TABLE) * BLOCK + 128, root.0),
        (u64::from(ROOT) * BLOCK, folder),
    ] {
        file.write_all_at(&bytes, at).unwrap();
    }
}

/// How often `text` is in the file of `image`.
fn count(image: &Image, text: &str) -> usize {
    fs::read(&image.0).unwrap().windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

fn linux_mounts_writes_and_reads_a_disk() {
    let (image, file) = Image::new("ext2");
    ext2(&file);
    let (second, file) = Image::new("read-only");
    file.write_all_at(b"only to be read", 0).unwrap();
    let linux = Linux::boot("disk=check", |config| config.disks = vec![image.disk(false), second.disk(true)]);
    linux.await_text("the guest has done with its disks");
    let text = linux.text();
    for line in [
        "disk vda: 8192 sectors of 512 bytes, read-only 0, tidevm-disk0",
        "disk vdb: 8192 sectors of 512 bytes, read-only 1, tidevm-disk1",
        "disk vda is mounted",
        "disk vda has what was written",
        "disk vdb: only to be read",
        "disk vdb cannot be written",
    ] {
        assert!(text.contains(line), "no `{line}`:\n{text}");
    }
    // It was flushed: what the guest wrote is in the file while the guest still runs.
    assert_eq!(count(&image, TEXT), 64);
    assert_eq!(count(&second, "only to be read"), 1);
    linux.await_state("the drivers", |state| state.disks.iter().all(|disk| disk.driver).then_some(()));
    let counts = linux.vm.disk_requests();
    let [inputs, outputs, flushes, names, others] = counts[0].by;
    assert!(inputs[0] > 0 && outputs[0] > 0 && flushes[0] > 0 && names[0] > 0, "{counts:?}");
    assert_eq!((inputs[1], outputs[1], flushes[1], others), (0, 0, 0, [0; 3]), "{counts:?}");
    assert!(counts[0].written > Size(64 * 512), "{counts:?}");
    assert_eq!((counts[1].written, counts[1].by[1]), (Size(0), [0; 3]), "{counts:?}");
    // Memory comes and goes beside the disks.
    linux.resize(0, 256);
    linux.resize(0, 0);
    linux.assert_content();
}

fn linux_finds_its_disk_after_a_reset() {
    let (image, file) = Image::new("reset");
    ext2(&file);
    let linux = Linux::boot("disk=keep", |config| {
        config.disks = vec![image.disk(false)];
        config.resets = true;
    });
    linux.await_text("disk vda has 1 lines");
    // A nested host takes long for two boots, and a test that says nothing for minutes is ended.
    println!("the guest has written a line, and is reset");
    linux.vm.reset().expect("it can be reset");
    linux.await_text("disk vda has 2 lines");
    assert_eq!(linux.vm.state().resets, 1);
    linux.assert_content();
}
