//! Firecracker, by its REST API.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tidevm_api::http::Method;

use super::{BLOCK, CALL_LIMIT, MEMORY, REGION, Vmm, cmdline, mib, rest};

/// Firecracker, from 1.14 on.
pub struct Firecracker;

impl Vmm for Firecracker {
    type Api = PathBuf;

    const NAME: &'static str = "Firecracker";
    const BINARY: &'static str = "firecracker";
    const VERSION: &'static str = "Firecracker v";

    fn arguments(&self, command: &mut Command, folder: &Path, _: &Path) {
        command.arg("--api-sock").arg(rest::socket(folder));
    }

    /// Configures the machine and starts it: its serial line is the process's standard input and output.
    fn connect(&self, folder: &Path, kernel: &Path) -> Result<Option<PathBuf>, String> {
        let calls = [
            ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": mib(MEMORY.0)? })),
            (
                "/boot-source",
                json!({ "kernel_image_path": kernel.to_string_lossy(), "boot_args": cmdline() }),
            ),
            ("/hotplug/memory", json!({ "total_size_mib": mib(REGION.0)?, "block_size_mib": mib(BLOCK.0)? })),
            ("/actions", json!({ "action_type": "InstanceStart" })),
        ];
        for (target, body) in calls {
            let done = rest::call(folder, Method::Put, target, &body, CALL_LIMIT)
                .map_err(|why| format!("PUT {target}: {why}"))?;
            // Nothing listens yet. That can be so at the first call only.
            if done.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(folder.to_owned()))
    }

    fn resize(folder: &mut PathBuf, bytes: u64, limit: Duration) -> Result<(), String> {
        let body = json!({ "requested_size_mib": mib(bytes)? });
        let done = rest::call(folder, Method::Patch, "/hotplug/memory", &body, limit)?;
        done.ok_or_else(|| "the API is gone".to_owned())
    }
}
