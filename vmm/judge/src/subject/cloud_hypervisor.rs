//! Cloud Hypervisor, by its REST API.
//!
//! It reads its serial line from a terminal or not at all. Its sizes are those of all memory: boot memory and what is plugged. It refuses the size that there is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tidevm_api::http::Method;

use super::{Input, MEMORY, REGION, Vmm, cmdline, rest};

/// Cloud Hypervisor. Its device blocks have 2 MiB.
pub struct CloudHypervisor;

impl Vmm for CloudHypervisor {
    type Api = PathBuf;

    const NAME: &'static str = "Cloud Hypervisor";
    const BINARY: &'static str = "cloud-hypervisor";
    const VERSION: &'static str = "cloud-hypervisor v";
    const INPUT: Input = Input::Terminal;

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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;
    use std::time::Duration;

    use super::{CloudHypervisor, MEMORY, Vmm, rest};
    use crate::subject::child::Folder;

    /// Serves one call at `listener` with `answer`, and returns the first line and the body.
    fn serve(listener: &UnixListener, answer: &str) -> (String, String) {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = BufReader::new(stream);
        let mut lines = Vec::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            lines.push(line);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
        (lines.swap_remove(0), String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_target_is_all_memory_and_a_refusal_is_told() {
        let folder = Folder::new().unwrap();
        let listener = UnixListener::bind(rest::socket(folder.path())).unwrap();
        let answers = [
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 6\r\n\r\n[\"no\"]",
        ];
        let served = thread::spawn(move || answers.map(|answer| serve(&listener, answer)));
        let limit = Duration::from_secs(10);
        let mut api = folder.path().to_owned();
        assert_eq!(CloudHypervisor::resize(&mut api, 5 << 20, limit), Ok(()));
        let refused = CloudHypervisor::resize(&mut api, 6 << 20, limit).unwrap_err();
        assert_eq!(refused, "status 500: [\"no\"]");
        let [first, _] = served.join().unwrap();
        assert_eq!(first.0, "PUT /api/v1/vm.resize HTTP/1.1");
        assert_eq!(first.1, format!("{{\"desired_ram\":{}}}", MEMORY.0 + (5 << 20)));
    }
}
