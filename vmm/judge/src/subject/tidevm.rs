//! tidevm, by its program and its API.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tidevm_api::http::Method;

use super::{BLOCK, MEMORY, REGION, Vmm, cmdline, mib, rest};

/// tidevm.
pub struct Tidevm;

impl Vmm for Tidevm {
    type Api = PathBuf;

    const NAME: &'static str = "tidevm";
    const BINARY: &'static str = "tidevm";
    const VERSION: &'static str = "tidevm ";

    fn arguments(&self, command: &mut Command, folder: &Path, kernel: &Path) {
        command
            .args(["run", "--console", "stdio", "--memory", &MEMORY.to_string()])
            .args(["--hotplug", &format!("size={REGION},block={BLOCK}"), "--cmdline", &cmdline()])
            .arg("--api-sock")
            .arg(rest::socket(folder))
            .arg("--kernel")
            .arg(kernel);
    }

    fn connect(&self, folder: &Path, _: &Path) -> Result<Option<PathBuf>, String> {
        Ok(rest::socket(folder).exists().then(|| folder.to_owned()))
    }

    /// A target that is waited for can be set before the guest drives the device. A millisecond is the shortest wait.
    fn resize(folder: &mut PathBuf, bytes: u64, limit: Duration) -> Result<(), String> {
        let body = json!({ "requested_size_mib": mib(bytes)? });
        let done = rest::call(folder, Method::Patch, "/hotplug/memory?wait=1ms", &body, limit)?;
        done.ok_or_else(|| "the API is gone".to_owned())
    }
}
