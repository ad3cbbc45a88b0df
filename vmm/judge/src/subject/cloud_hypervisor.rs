//! Cloud Hypervisor, by its REST API.
//!
//! Its sizes are those of all memory: boot memory and what is plugged. It refuses the size that there is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tidevm_api::http::Method;

use super::{MEMORY, REGION, Vmm, cmdline, rest};

/// Cloud Hypervisor. Its device blocks have 2 MiB.
pub struct CloudHypervisor;

impl Vmm for CloudHypervisor {
    type Api = PathBuf;

    const NAME: &'static str = "Cloud Hypervisor";
    const BINARY: &'static str = "cloud-hypervisor";
    const VERSION: &'static str = "cloud-hypervisor v";

    fn arguments(&self, command: &mut Command, folder: &Path, kernel: &Path) {
        let (memory, region) = (MEMORY.0 >> 20, REGION.0 >> 20);
        command
            .args(["--cpus", "boot=1", "--serial", "tty", "--console", "off"])
            .args(["--memory", &format!("size={memory}M,hotplug_method=virtio-mem,hotplug_size={region}M")])
            .args(["--cmdline", &cmdline(), "--kernel"])
            .arg(kernel)
            .arg("--api-socket")
            .arg(rest::socket(folder));
    }

    fn connect(&self, folder: &Path, _: &Path) -> Result<Option<PathBuf>, String> {
        Ok(rest::socket(folder).exists().then(|| folder.to_owned()))
    }

    fn resize(folder: &mut PathBuf, bytes: u64, limit: Duration) -> Result<(), String> {
        let body = json!({ "desired_ram": MEMORY.0 + bytes });
        let done = rest::call(folder, Method::Put, "/api/v1/vm.resize", &body, limit)?;
        done.ok_or_else(|| "the API is gone".to_owned())
    }
}
