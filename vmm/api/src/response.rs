//! Answers of HTTP/1.1.
//!
//! Mirrors Firecracker's answers: 200 with JSON, 204 without a body, 400 with `{"fault_message": ...}`.

use serde::Serialize;
use serde_json::json;

/// An answer with its body, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200, 204, 400 or 503.
    pub status: u16,
    /// JSON, unless `content_type` says otherwise.
    pub body: Option<String>,
    /// The type of the body.
    pub content_type: &'static str,
    /// The request had a field that Firecracker calls deprecated.
    pub deprecated: bool,
}

impl Response {
    /// 200 with `value`.
    ///
    /// # Panics
    /// When `value` has no form in JSON: maps whose keys are no text.
    pub fn json(value: &impl Serialize) -> Self {
        let body = serde_json::to_string(value).expect("a value with a form in JSON");
        Self { status: 200, body: Some(body), content_type: "application/json", deprecated: false }
    }

    /// 200 with a text of this type.
    #[must_use]
    pub fn text(text: String, content_type: &'static str) -> Self {
        Self { status: 200, body: Some(text), content_type, deprecated: false }
    }

    /// 204: done, and nothing to say.
    #[must_use]
    pub fn done() -> Self {
        Self { status: 204, body: None, content_type: "", deprecated: false }
    }

    /// 400, with the reason.
    #[must_use]
    pub fn fault(text: &str) -> Self {
        Self { status: 400, ..Self::json(&json!({ "fault_message": text })) }
    }

    /// 503: too many clients.
    #[must_use]
    pub fn full() -> Self {
        Self { status: 503, ..Self::fault("Too many clients.") }
    }

    /// Its bytes on a connection that stays open, or not, after it.
    #[must_use]
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            _ => "Service Unavailable",
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut text =
            format!("HTTP/1.1 {} {reason}\r\nServer: tidevm\r\nConnection: {connection}\r\n", self.status);
        if self.deprecated {
            text.push_str("Deprecation: true\r\n");
        }
        if let Some(body) = &self.body {
            text.push_str(&format!(
                "Content-Type: {}\r\nContent-Length: {}\r\n",
                self.content_type,
                body.len()
            ));
        }
        text.push_str("\r\n");
        text.push_str(self.body.as_deref().unwrap_or_default());
        text.into_bytes()
    }
}

/// The head of an answer that goes on until the connection ends: a JSON object per line, in chunks.
pub const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: tidevm\r\nConnection: close\r\n\
    Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";

/// The end of such an answer.
pub const STREAM_END: &[u8] = b"0\r\n\r\n";

/// One line of such an answer as a chunk.
#[must_use]
pub fn chunk(line: &str) -> Vec<u8> {
    format!("{:x}\r\n{line}\n\r\n", line.len() + 1).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{Response, chunk};

    #[test]
    fn answers_have_the_form_of_http() {
        let text = |response: Response, keep_alive| String::from_utf8(response.to_bytes(keep_alive)).unwrap();
        assert_eq!(
            text(Response::done(), true),
            "HTTP/1.1 204 No Content\r\nServer: tidevm\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            text(Response { deprecated: true, ..Response::fault("a \"b\"") }, false),
            "HTTP/1.1 400 Bad Request\r\nServer: tidevm\r\nConnection: close\r\nDeprecation: true\r\n\
             Content-Type: application/json\r\nContent-Length: 27\r\n\r\n{\"fault_message\":\"a \\\"b\\\"\"}"
        );
        assert_eq!(chunk("0123456789abcde"), b"10\r\n0123456789abcde\n\r\n");
    }
}
