//! What a client of the API sends: requests are the same however the bytes are split, and what is accepted of a body is what
//! it says as JSON.
//!
//! The first byte is the size of the parts in which the rest is given. Nothing is opened: a boot source is only parsed.

use serde_json::Value;
use tidevm_api::Draft;
use tidevm_api::http::{HttpError, MOST, MOST_BODY, Next, Parser, Request};
use tidevm_api::response::Response;
use tidevm_api::route::{Action, MOST_WAIT, route};
use tidevm_machine::Config;

use crate::heap;

/// Most bytes of heap that one byte of a client may cost, beside [`BASE`].
const PER_BYTE: usize = 64;
const BASE: usize = 64 << 10;

/// Reads one stream of requests.
///
/// # Panics
/// When the parts matter, or more is accepted than was said, or memory is out of bounds.
pub fn check(data: &[u8]) {
    let Some((&part, stream)) = data.split_first() else { return };
    let (whole, held) = heap::highest(|| requests(stream, stream.len().max(1)));
    let most = BASE + PER_BYTE * stream.len();
    assert!(held <= most, "{held} bytes of heap for {}, {most} are the most", stream.len());
    let parts = requests(stream, usize::from(part).max(1));
    assert_eq!(whole, parts, "in parts of {part} bytes");
    for request in &whole.0 {
        same_again(request);
        check_route(request);
    }
    if let Some(error) = whole.1 {
        check_response(&error.to_string());
    }
}

/// The requests in `stream`, given in parts of `part` bytes, and the error that ends them.
fn requests(stream: &[u8], part: usize) -> (Vec<Request>, Option<HttpError>) {
    let (mut parser, mut found) = (Parser::default(), Vec::new());
    let mut rest = stream;
    while !rest.is_empty() {
        let room = parser.room();
        assert!(room > 0 && room <= MOST, "a parser that is full has a request or an error");
        let (now, later) = rest.split_at(part.min(room).min(rest.len()));
        rest = later;
        parser.push(now);
        loop {
            match parser.take() {
                Ok(Next::Request(request)) => {
                    assert!(request.body.as_ref().is_none_or(|body| (1..=MOST_BODY).contains(&body.len())));
                    found.push(request);
                }
                Ok(Next::PartialExpected) => {}
                Ok(Next::Partial) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

/// A request that is printed in the simplest form is the same request.
fn same_again(request: &Request) {
    let Request { method, path, query, body, keep_alive } = request;
    let body = body.as_deref().unwrap_or_default();
    let (mark, connection) =
        (if query.is_empty() { "" } else { "?" }, if *keep_alive { "keep-alive" } else { "close" });
    let head = format!(
        "{} {path}{mark}{query} HTTP/1.1\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n",
        method.name(),
        body.len()
    );
    let printed = [head.as_bytes(), body].concat();
    let (again, error) = requests(&printed, printed.len());
    // The two lines of headers may be what is too much.
    if error != Some(HttpError::HeadTooLarge) {
        assert_eq!((again.as_slice(), error), (std::slice::from_ref(request), None), "{printed:?}");
    }
}

/// What a request asks for is what it says.
fn check_route(request: &Request) {
    let action = match route(request) {
        Ok(routed) => routed.action,
        Err(fault) => return check_response(&fault),
    };
    // Nothing is read of the body for a device that is not there.
    if matches!(action, Action::NoSuchDevice(_)) {
        return;
    }
    let body = request.body.as_deref().unwrap_or(b"null");
    let parsed = serde_json::from_slice(body);
    // Fields that `PUT /metrics` does not know are skipped, as in Firecracker, and escapes in them are not looked at.
    if parsed.is_err() && matches!(action, Action::SetMetrics(_)) {
        return;
    }
    let json: Value = parsed.expect("a body that is accepted is JSON");
    let number = |key: &str| json[key].as_u64();
    let mut draft = Draft::default();
    match action {
        Action::Resize(update, query) => {
            assert_eq!(Some(u64::from(update.requested_size_mib)), number("requested_size_mib"));
            assert_eq!(json.as_object().map(serde_json::Map::len), Some(1), "no other field");
            assert!(query.wait.is_none_or(|wait| wait <= MOST_WAIT));
        }
        Action::SetMemory(memory) => {
            assert_eq!(Some(u64::from(memory.total_size_mib)), number("total_size_mib"));
            if draft.set_memory(memory).is_ok() {
                let (block, total) = (memory.block_size_mib, memory.total_size_mib);
                assert!(block.is_power_of_two() && total.is_multiple_of(block) && total.is_multiple_of(128));
                assert_eq!(number("block_size_mib").unwrap_or(2), u64::from(block));
            }
        }
        Action::SetMachine(update) => {
            assert_eq!(update.mem_size_mib.map(|size| size as u64), number("mem_size_mib"));
            assert_eq!(update.vcpu_count.map(u64::from), number("vcpu_count"));
            if draft.set_machine(&update).is_ok() {
                draft.set_boot(builtin()).expect("the built-in guest");
                let config = draft.config(&Config::default()).expect("a machine");
                let mib = draft.machine().mem_size_mib as u64;
                let exact = u128::from(mib) << 20;
                assert_eq!(u128::from(config.memory.0), exact.min(u64::MAX.into()), "no size wraps around");
                drop(config.validate());
            }
        }
        Action::SetBootSource(boot) => {
            assert_eq!(json["kernel_image_path"].as_str(), Some(boot.kernel_image_path.as_str()));
        }
        _ => {}
    }
}

fn builtin() -> tidevm_api::body::BootSource {
    tidevm_api::body::BootSource {
        kernel_image_path: tidevm_api::body::BUILTIN.to_owned(),
        ..tidevm_api::body::BootSource::default()
    }
}

/// A fault is a whole answer, and its text is in it.
fn check_response(fault: &str) {
    let bytes = Response::fault(fault).to_bytes(true);
    let text = String::from_utf8(bytes).expect("an answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    assert_eq!(length.parse(), Ok(body.len()));
    let value: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(value["fault_message"].as_str(), Some(fault));
}
