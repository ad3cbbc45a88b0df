//! Booting a bzImage, the form in which distributions ship Linux.
//!
//! Mirrors Linux's 32-bit boot protocol (`Documentation/arch/x86/boot.rst`): the protected-mode part of the
//! file is loaded at 1 MiB and entered there in the same flat mode as with PVH, with the address of the boot
//! parameters ("zero page") in `esi`. The kernel unpacks itself.

use std::io::Cursor;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::hvm_memmap_table_entry;
use linux_loader::loader::{BzImage, KernelLoader};
use tidevm_abi::Size;
use vm_memory::{Address, GuestAddress};

use super::{BootError, CMDLINE, Initrd};
use crate::memory::View;

const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const LOAD_ADDRESS: GuestAddress = GuestAddress(0x10_0000);

/// Offset of the setup header's magic number.
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8; 4] = b"HdrS";
/// The boot loader type for boot loaders without an assigned number.
const LOADER_OTHER: u8 = 0xff;
/// `loadflags`: the kernel must not load segment registers. Kernels up to 5.6 would do that before they have
/// a descriptor table; later kernels ignore the flag.
const KEEP_SEGMENTS: u8 = 1 << 6;
/// The first protocol version that states how much memory unpacking needs (Linux 2.6.31).
const VERSION: u16 = 0x20a;

/// Whether `bytes` start like a bzImage.
pub(super) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(MAGIC_AT..MAGIC_AT + 4) == Some(MAGIC)
}

/// A loaded bzImage.
pub(super) struct Loaded {
    header: setup_header,
    /// Its entry point.
    pub(super) entry: u64,
    /// The end of the memory that the kernel needs before it has read the memory map.
    pub(super) end: u64,
}

/// Loads the kernel `name` from the file content `bytes`, if it fits below `low`.
pub(super) fn load(name: &str, bytes: &[u8], low: u64, view: &View) -> Result<Loaded, BootError> {
    let size = bytes.len() as u64;
    if LOAD_ADDRESS.0 + size > low {
        let what = format!("the kernel {name}");
        return Err(BootError::NoRoom { what, end: LOAD_ADDRESS.0 + size, low: Size(low) });
    }
    let loaded = BzImage::load(view, Some(LOAD_ADDRESS), &mut Cursor::new(bytes), None)
        .map_err(|error| BootError::NotBzImage { name: name.to_owned(), reason: error.to_string() })?;
    let header = loaded.setup_header.unwrap_or_default();
    let version = header.version;
    if version < VERSION {
        let reason = format!("boot protocol {version:#x} is older than {VERSION:#x}");
        return Err(BootError::NotBzImage { name: name.to_owned(), reason });
    }
    let end = loaded.kernel_end.max(header.pref_address.saturating_add(header.init_size.into()));
    if end > low {
        return Err(BootError::NoRoom { what: format!("the kernel {name}, unpacked,"), end, low: Size(low) });
    }
    Ok(Loaded { header, entry: loaded.kernel_load.raw_value(), end })
}

impl Loaded {
    /// The highest possible end of an initrd when low memory ends at `low`.
    pub(super) fn initrd_end(&self, low: u64) -> u64 {
        low.min(u64::from(self.header.initrd_addr_max) + 1)
    }

    /// Writes the zero page and returns its address, which goes to `esi`.
    pub(super) fn write_zero_page(
        &self,
        map: &[hvm_memmap_table_entry],
        initrd: Option<Initrd>,
        root_pointer: GuestAddress,
        view: &View,
    ) -> Result<u64, BootError> {
        let mut params = boot_params { hdr: self.header, ..Default::default() };
        params.hdr.type_of_loader = LOADER_OTHER;
        params.hdr.loadflags |= KEEP_SEGMENTS;
        params.hdr.cmd_line_ptr = CMDLINE.raw_value() as u32;
        if let Some(initrd) = initrd {
            // Both numbers are below 4 GiB: the initrd is in low memory.
            params.hdr.ramdisk_image = initrd.start as u32;
            params.hdr.ramdisk_size = initrd.size as u32;
        }
        params.acpi_rsdp_addr = root_pointer.raw_value();
        params.e820_entries = map.len() as u8;
        for (entry, range) in params.e820_table.iter_mut().zip(map) {
            *entry = boot_e820_entry { addr: range.addr, size: range.size, r#type: range.type_ };
        }
        let params = BootParams::new(&params, ZERO_PAGE);
        LinuxBootConfigurator::write_bootparams(&params, view)
            .map_err(|error| super::write("boot parameters", &error))?;
        Ok(ZERO_PAGE.raw_value())
    }
}
