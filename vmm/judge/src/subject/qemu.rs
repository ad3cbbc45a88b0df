//! QEMU's q35 with a `virtio-mem-pci`, by QMP.
//!
//! QEMU's microvm is no subject. It takes `-device virtio-mem`, over virtio-mmio, but has no place for memory devices: the
//! region has the address 0, and the guest's address space does not have its memory (seen with QEMU 7.2).
//!
//! QEMU emulates the CPU, so that no KVM is needed: the device is the same.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tidevm_lab::qemu::qmp::Qmp;

use super::{BLOCK, CALL_LIMIT, MEMORY, REGION, Vmm, cmdline};

/// QEMU.
pub struct Qemu;

/// The device's path among QEMU's objects.
const DEVICE: &str = "/machine/peripheral/mem0";
/// The name of QMP's socket in a machine's folder.
const SOCKET: &str = "qmp";

impl Vmm for Qemu {
    type Api = Qmp;

    const NAME: &'static str = "QEMU";
    const BINARY: &'static str = "qemu-system-x86_64";
    const VERSION: &'static str = "QEMU emulator version ";

    fn arguments(&self, command: &mut Command, folder: &Path, kernel: &Path) {
        let (memory, region, block) = (MEMORY.0, REGION.0, BLOCK.0);
        let most = memory + region;
        command
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1"])
            .args(["-m", &format!("{}M,slots=1,maxmem={most}B", memory >> 20)])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", folder.join(SOCKET).display())])
            .args(["-object", &format!("memory-backend-ram,id=ram0,reserve=off,size={region}B")])
            .args(["-device", &format!("virtio-mem-pci,id=mem0,memdev=ram0,block-size={block}B")])
            .args(["-append", &cmdline(), "-kernel"])
            .arg(kernel);
    }

    fn connect(&self, folder: &Path, _: &Path) -> Result<Option<Qmp>, String> {
        match UnixStream::connect(folder.join(SOCKET)) {
            Ok(stream) => Qmp::new(stream, CALL_LIMIT).map(Some),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(format!("QMP: {error}")),
        }
    }

    fn resize(qmp: &mut Qmp, bytes: u64, _: Duration) -> Result<(), String> {
        let arguments = json!({ "path": DEVICE, "property": "requested-size", "value": bytes });
        qmp.execute("qom-set", arguments).map(drop)
    }
}
