//! The memory blocks in `/sys/devices/system/memory` (Linux `Documentation/admin-guide/mm/memory-hotplug.rst`).
//!
//! sysfs does not say whether a memory block was there at boot. Here a memory block counts as added if `/proc/iomem` has
//! `System RAM (virtio_mem)` in it. How much of it is plugged, and where its memmap lies, Linux tells nowhere.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use tidevm_abi::{Answer, BLOCK_RUNS, BlockRun, BlockState, Size};

use crate::files::{self, Files};
use crate::zoneinfo;

/// Memory of virtio-mem devices in `/proc/iomem`.
const VIRTIO_MEM: &str = "System RAM (virtio_mem)";

/// A memory block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address.
    pub addr: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Whether a zone has its memory.
    pub online: bool,
    /// The zone, of one that is online and in one zone only.
    pub zone: Option<String>,
    /// Its node.
    pub node: u8,
    /// Whether it was there at boot.
    pub boot: bool,
}

/// The memory blocks from address `from` on, ascending.
///
/// # Errors
/// The kernel has none: it was built without `CONFIG_MEMORY_HOTPLUG`.
pub fn read(files: &Files, from: u64) -> io::Result<Vec<Block>> {
    let folder = files.sys("devices/system/memory");
    let size = number(&read_line(&folder.join("block_size_bytes"))?, 16)?;
    let added = ranges(&files::proc("iomem")?, VIRTIO_MEM);
    let mut blocks = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(index) = name.strip_prefix("memory").and_then(|index| index.parse::<u64>().ok()) else {
            continue;
        };
        let addr = index.saturating_mul(size);
        if addr < from {
            continue;
        }
        match block(&folder.join(name), addr, size, &added) {
            Ok(block) => blocks.push(block),
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    blocks.sort_by_key(|block| block.addr);
    Ok(blocks)
}

fn block(folder: &Path, addr: u64, size: u64, added: &[Range<u64>]) -> io::Result<Block> {
    let online = read_line(&folder.join("state"))? == "online";
    let zones = read_line(&folder.join("valid_zones"))?;
    // Of a memory block that is not online these are the zones that it could go to.
    let zone = Some(zones).filter(|zones| online && zoneinfo::zone_name(zones).is_some());
    let node = fs::read_dir(folder)?
        .find_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("node")?.parse::<u8>().ok());
    let boot = !added.iter().any(|range| range.start < addr + size && addr < range.end);
    Ok(Block { addr, size, online, zone, node: node.unwrap_or(0), boot })
}

fn read_line(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}

fn number(text: &str, radix: u32) -> io::Result<u64> {
    u64::from_str_radix(text, radix).map_err(|error| io::Error::other(format!("`{text}`: {error}")))
}

/// The ranges that a text in the form of `/proc/iomem` calls `name`.
fn ranges(text: &str, name: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let (range, found) = line.trim().split_once(" : ")?;
        let (start, last) = range.split_once('-').filter(|_| found == name)?;
        Some(number(start, 16).ok()?..number(last, 16).ok()?.checked_add(1)?)
    };
    text.lines().filter_map(range).collect()
}

/// `blocks` as an answer: neighbours that are alike together, as many as fit into one.
pub fn answer(blocks: &[Block]) -> Answer {
    let mut runs: Vec<BlockRun> = Vec::new();
    let mut next = None;
    for run in blocks.iter().map(run) {
        if let Some(last) = runs.last_mut().filter(|last| continues(last, &run)) {
            last.count += 1;
        } else if runs.len() < BLOCK_RUNS {
            runs.push(run);
        } else {
            next = Some(run.addr);
            break;
        }
    }
    let mut answer = [None; BLOCK_RUNS];
    answer.iter_mut().zip(runs).for_each(|(place, run)| *place = Some(run));
    Answer::Blocks { runs: answer, next }
}

fn run(block: &Block) -> BlockRun {
    BlockRun {
        addr: block.addr,
        count: 1,
        size: Size(block.size),
        boot: block.boot,
        state: if block.online { BlockState::Online } else { BlockState::Offline },
        zone: block.zone.as_deref().and_then(zoneinfo::zone_name),
        node: block.node,
        plugged: None,
        memmap: None,
    }
}

/// Whether `run` begins where `before` ends, and is otherwise alike.
fn continues(before: &BlockRun, run: &BlockRun) -> bool {
    *run == BlockRun { addr: before.addr + before.count * before.size.0, count: run.count, ..*before }
}

#[cfg(test)]
mod tests {
    use tidevm_abi::{Answer, BlockState, ZoneName};

    use super::{Block, answer, ranges};

    #[test]
    fn memory_of_the_driver_is_found() {
        let text = "00001000-0009ffff : System RAM\n140000000-1bfffffff : virtio0\n  \
                    140000000-147ffffff : System RAM (virtio_mem)\n  148000000-14fffffff : System RAM (virtio_mem)\n";
        let found = ranges(text, super::VIRTIO_MEM);
        assert_eq!(found, [0x1_4000_0000..0x1_4800_0000, 0x1_4800_0000..0x1_5000_0000]);
    }

    #[test]
    fn neighbours_that_are_alike_are_one_run() {
        const SIZE: u64 = 128 << 20;
        let block = |index: u64, zone: Option<&str>| Block {
            addr: index * SIZE,
            size: SIZE,
            online: zone.is_some(),
            zone: zone.map(str::to_owned),
            node: 0,
            boot: index < 4,
        };
        let blocks = [
            block(0, Some("DMA32")),
            block(1, Some("DMA32")),
            block(32, Some("Movable")),
            block(34, Some("Movable")),
            block(35, None),
            block(36, Some("Normal")),
        ];
        let Answer::Blocks { runs, next } = answer(&blocks) else { panic!("no list") };
        let shown: Vec<_> = runs.iter().flatten().map(|run| (run.addr / SIZE, run.count, run.zone)).collect();
        let movable = Some(ZoneName::Movable);
        assert_eq!(shown, [(0, 2, Some(ZoneName::Dma32)), (32, 1, movable), (34, 1, movable), (35, 1, None)]);
        assert_eq!(runs[3].unwrap().state, BlockState::Offline);
        assert_eq!(next, Some(36 * SIZE));
        let Answer::Blocks { runs, next } = answer(&blocks[5..]) else { panic!("no list") };
        assert_eq!((runs.iter().flatten().count(), next), (1, None));
    }
}
