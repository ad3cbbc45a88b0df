//! REST calls at a Unix socket, as Firecracker, Cloud Hypervisor and tidevm take them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tidevm_api::caller::{CallError, Caller};
use tidevm_api::http::Method;

/// The name of the socket in a machine's folder.
const SOCKET: &str = "api";

/// The path of the socket of a machine with this folder.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

/// Makes a call. `None` while nothing listens at the socket.
///
/// # Errors
/// The VMM refuses the call, or does not answer in time.
pub fn call(
    folder: &Path,
    method: Method,
    target: &str,
    body: &Value,
    limit: Duration,
) -> Result<Option<()>, String> {
    match Caller::new(&socket(folder)).call(method, target, Some(body), limit) {
        Ok(answer) if answer.is_done() => Ok(Some(())),
        Ok(answer) => {
            let text = String::from_utf8_lossy(&answer.body);
            Err(format!("status {}: {}", answer.status, text.trim()))
        }
        Err(CallError::Connect { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
