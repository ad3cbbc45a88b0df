//! Files in guest memory at boot: memory map, command line, initrd, and images that are refused.

use std::path::Path;

use super::*;
use crate::config::{BalloonConfig, HotplugConfig};
use crate::memory::fake::memory;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn ranges(memory: u64) -> Vec<(u64, u64)> {
    let config = Config { memory: Size(memory), ..Config::default() };
    memory_map(&config).into_iter().map(|entry| (entry.addr, entry.addr + entry.size)).collect()
}

/// If the memory map showed a hotplug region, the guest would use its memory before it is plugged.
#[test]
fn the_memory_map_holds_boot_memory_and_no_hotplug_region() {
    assert_eq!(ranges(256 * MIB), [(0, 0xa_0000), (MIB, 256 * MIB)]);
    assert_eq!(ranges(3 * GIB), [(0, 0xa_0000), (MIB, 3 * GIB)]);
    assert_eq!(ranges(4 * GIB), [(0, 0xa_0000), (MIB, 3 * GIB), (4 * GIB, 5 * GIB)]);
    for memory in [32 * MIB, 3 * GIB, 3 * GIB + 2 * MIB, 64 * GIB] {
        let regions = layout::regions(Size(memory), [GIB, 128 * MIB].map(Size)).unwrap();
        for (start, end) in ranges(memory) {
            assert!(regions.iter().all(|region| end <= region.start().0 || region.end().0 <= start));
        }
    }
}

#[test]
fn device_memory_is_in_the_memory_map_by_its_own_type() {
    let config = Config {
        hotplug: vec![HotplugConfig::new(Size(GIB))],
        pmem: vec![Size(GIB), Size(128 * MIB)],
        ..Config::default()
    };
    let map = memory_map(&config).into_iter().map(|entry| (entry.addr, entry.size, entry.type_));
    let device: Vec<_> = map.filter(|&(_, _, kind)| kind != MEMMAP_RAM).collect();
    assert_eq!(device, [(5 * GIB, GIB, 12), (6 * GIB, 128 * MIB, 12)]);
}

#[test]
fn the_command_line_describes_the_vm() {
    let config = Config {
        cpus: 2,
        hotplug: vec![HotplugConfig::new(Size(GIB))],
        memmap_on_memory: false,
        cmdline: Some("mine=1".to_owned()),
        ..Config::default()
    };
    let line = cmdline(&config, 2_600_000, true).unwrap().as_cstring().unwrap().into_string().unwrap();
    assert_eq!(
        line,
        "nr_cpus=2 tsc_early_khz=2600000 memory_hotplug.memmap_on_memory=off \
         tidevm.memory_block=128M tidevm.pcp_disable=on tidevm.init=lazy tidevm.zeroed=on pci=off virtio_mmio.device=4K@0xd0000000:5 \
         virtio_mmio.device=4K@0xd0001000:6 mine=1"
    );
}

#[test]
fn the_largest_vm_fits_on_the_command_line() {
    let hotplug = vec![HotplugConfig::new(Size(GIB)); tidevm_abi::MAX_MEM_DEVICES];
    let balloon = Some(BalloonConfig { reporting: true, stats_interval: None });
    let config = Config { cpus: 254, hotplug, balloon, ..Config::default() };
    let length = |config: &Config| {
        cmdline(config, u32::MAX, true).map(|line| line.as_cstring().unwrap().as_bytes().len())
    };
    assert!(length(&config).unwrap() < CMDLINE_SIZE / 2);
    let config = Config { cmdline: Some("x".repeat(CMDLINE_SIZE)), ..config };
    assert!(matches!(length(&config), Err(BootError::Cmdline)));
}

fn load_image(bytes: &[u8], memory_size: u64) -> BootError {
    let kernel = Image::new("k".to_owned(), bytes.to_vec().into());
    let config = Config { memory: Size(memory_size), ..Config::default() };
    load(&config, &kernel, None, 1, &memory(memory_size, &[]).0.view()).unwrap_err()
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    assert!(
        load_image(b"#!/bin/sh\n", 32 * MIB)
            .to_string()
            .starts_with("--kernel k: neither a bzImage nor a 64-bit x86 ELF file")
    );
    assert!(
        load_image(&[], 32 * MIB)
            .to_string()
            .starts_with("--kernel k: neither a bzImage nor a 64-bit x86 ELF file")
    );
    // The program that runs this test is an ELF file, but no kernel.
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let text = load_image(&own, 2 * GIB).to_string();
    assert!(text.starts_with("--kernel k: "), "{text}");
    let error = Image::open(Some(Path::new("/nonexistent/kernel"))).unwrap_err().to_string();
    assert_eq!(error, "cannot read --kernel /nonexistent/kernel: No such file or directory (os error 2)");
}

/// Each header can name the whole file, so that work would grow with the square of the file's size.
#[test]
fn a_kernel_of_headers_or_notes_without_end_is_refused() {
    // A program header of the type PT_NOTE, with `size` bytes in the file.
    let header = |size: u64| {
        let mut header = [0; 56];
        header[0] = 4;
        header[32..40].copy_from_slice(&size.to_le_bytes());
        header
    };
    let elf = |headers: Vec<[u8; 56]>| {
        let mut elf = [0; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (elf[16], elf[18], elf[20], elf[32]) = (2, 62, 1, 64);
        elf[52..58].copy_from_slice(&[64, 0, 56, 0, headers.len() as u8, 0]);
        elf[58] = 64;
        [elf.to_vec(), headers.concat()].concat()
    };
    let refused = |headers| load_image(&elf(headers), 32 * MIB).to_string();
    assert!(refused(vec![header(12); 64]).contains("no segments to load"));
    assert!(refused(vec![header(12); 65]).contains("65 program headers, 64 are the most"));
    let text = refused(vec![header(1 << 19); 3]);
    assert!(text.contains("1572864 bytes of notes, 1048576 are the most"), "{text}");
}

#[test]
fn a_kernel_file_without_end_is_refused() {
    // A file of holes, which costs no disk.
    let path = std::env::temp_dir().join(format!("tidevm-test-{}-endless", std::process::id()));
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = Image::open(Some(&path)).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(error.to_string().ends_with("file too large"), "{error}");
}

#[test]
fn an_initrd_goes_to_the_end_of_low_memory_or_is_refused() {
    let (memory, _) = memory(32 * MIB, &[]);
    let entry = load_initrd(b"initrd", MIB, 32 * MIB, &memory.view()).unwrap();
    assert_eq!((entry.start, entry.size), (32 * MIB - 4096, 6));
    let mut bytes = [0; 6];
    memory.view().read_slice(&mut bytes, GuestAddress(entry.start)).unwrap();
    assert_eq!(&bytes, b"initrd");
    let error = load_initrd(&[0; 8192], 32 * MIB - 4096, 32 * MIB, &memory.view()).unwrap_err();
    assert!(matches!(error, BootError::NoRoom { .. }), "{error}");
}

/// A kernel that jumps to the reset vector finds no firmware there, but code that resets, as firmware would.
#[test]
fn the_reset_vector_resets() {
    let config = Config { memory: Size(64 * MIB), ..Config::default() };
    let (memory, _) = memory(config.memory.0, &[]);
    let Files { kernel, initrd } = Files::open(&config).unwrap();
    load(&config, &kernel, initrd.as_deref(), 1, &memory.view()).unwrap();
    let mut code = [0; 4];
    memory.view().read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
    assert_eq!(code, [0xb0, 0xfe, 0xe6, 0x64], "mov al, 0xfe; out 0x64, al");
    assert!(ranges(config.memory.0).iter().all(|&(start, end)| end <= 0xf_fff0 || start >= MIB));
}
