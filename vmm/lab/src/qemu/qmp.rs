//! QEMU's machine protocol (QMP): one JSON object per line in each direction. Mirrors the parts of QEMU's
//! `docs/interop/qmp-spec.rst` that the tests need.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

/// A connection to a running QEMU.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    limit: Duration,
}

impl Qmp {
    /// Reads the greeting and enters command mode. Each answer may take `limit`.
    ///
    /// # Errors
    /// QEMU sends no greeting in time, or an unexpected one.
    pub fn new(stream: UnixStream, limit: Duration) -> Result<Self, String> {
        let ready = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(limit)));
        ready.map_err(|error| format!("cannot prepare the socket of QMP: {error}"))?;
        let mut qmp = Self { stream: BufReader::new(stream), limit };
        let greeting = qmp.read("its greeting")?;
        if greeting.get("QMP").is_none() {
            return Err(format!("QEMU greets with {greeting}"));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its result. Events before the answer are dropped.
    ///
    /// # Errors
    /// QEMU refuses the command, or does not answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        let sent = self.stream.get_mut().write_all(format!("{request}\n").as_bytes());
        sent.map_err(|error| format!("cannot send {request} to QEMU: {error}"))?;
        loop {
            let mut answer = self.read(&format!("its answer to {request}"))?;
            if let Some(error) = answer.get("error") {
                return Err(format!("QEMU refuses {request}: {error}"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn read(&mut self, what: &str) -> Result<Value, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(format!("QEMU hung up; waited for {what}")),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("QEMU sent {line:?}: {error}")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(format!("waited {:?} for QEMU to send {what}", self.limit))
            }
            Err(error) => Err(format!("cannot read from QEMU: {error}; waited for {what}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use serde_json::json;

    use super::Qmp;

    /// A connection to a QEMU that has sent `lines` and sends nothing more.
    fn conversation(lines: &[&str], limit: Duration) -> (Result<Qmp, String>, UnixStream) {
        let (host, mut qemu) = UnixStream::pair().unwrap();
        qemu.write_all(lines.concat().as_bytes()).unwrap();
        (Qmp::new(host, limit), qemu)
    }

    #[test]
    fn events_are_no_answers() {
        let lines = [
            "{\"QMP\": {}}\r\n{\"return\": {}}\r\n",
            "{\"event\": \"X\"}\r\n{\"return\": 5}\r\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
        ];
        let (qmp, _qemu) = conversation(&lines, Duration::from_millis(50));
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.execute("qom-get", json!({ "path": "a" })), Ok(json!(5)));
        assert!(qmp.execute("x", json!({})).unwrap_err().contains("\"desc\":\"no\""));
        assert!(qmp.execute("y", json!({})).unwrap_err().starts_with("waited 50ms for QEMU to send"));
    }

    #[test]
    fn strangers_are_refused() {
        let limit = Duration::from_millis(50);
        assert!(conversation(&["{}\n"], limit).0.is_err());
        assert!(conversation(&["hello\n"], limit).0.is_err());
        assert!(conversation(&[], limit).0.is_err());
    }
}
