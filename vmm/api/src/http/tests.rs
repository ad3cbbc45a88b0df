//! Requests of whole and split streams, and streams that are none.

use super::{HttpError, MOST_BODY, MOST_HEAD, Method, Next, Parser, Request};

/// What a parser makes of `stream`, given in parts of `part` bytes, and how often the client is to be told to go on.
fn parse(stream: &[u8], part: usize) -> (Vec<Request>, Result<usize, HttpError>) {
    let (mut parser, mut requests, mut expected) = (Parser::default(), Vec::new(), 0);
    for bytes in stream.chunks(part) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let taken = bytes.len().min(parser.room());
            assert!(taken > 0, "a parser that takes no more has a request");
            parser.push(&bytes[..taken]);
            bytes = &bytes[taken..];
            loop {
                match parser.take() {
                    Ok(Next::Request(request)) => requests.push(request),
                    Ok(Next::PartialExpected) => {
                        expected += 1;
                        assert!(expected <= stream.len(), "a parser that says it for ever");
                    }
                    Ok(Next::Partial) => break,
                    Err(error) => return (requests, Err(error)),
                }
            }
        }
    }
    (requests, Ok(expected))
}

fn error(stream: &str) -> HttpError {
    let (requests, end) = parse(stream.as_bytes(), 7);
    assert_eq!(requests, [], "{stream:?}");
    end.expect_err(stream)
}

#[test]
fn a_stream_is_the_same_requests_however_it_is_split() {
    let stream = b"\r\n\r\n\nGET /vm/config?x=1 HTTP/1.1\r\nHost: a\r\n\r\n\
        PUT /actions HTTP/1.1\r\ncontent-LENGTH: 5\r\nExpect: 100-continue\r\n\r\nhello\
        PATCH http://localhost/vm HTTP/1.0\nContent-Length: 0\n\n\
        DELETE / HTTP/1.1\r\nConnection: close\r\n\r\n";
    let request = |method, path: &str, query: &str, body: Option<&[u8]>, keep_alive| {
        let (path, query, body) = (path.to_owned(), query.to_owned(), body.map(<[u8]>::to_vec));
        Request { method, path, query, body, keep_alive }
    };
    let expected = [
        request(Method::Get, "/vm/config", "x=1", None, true),
        request(Method::Put, "/actions", "", Some(b"hello"), true),
        request(Method::Patch, "/vm", "", None, false),
        request(Method::Delete, "/", "", None, false),
    ];
    for part in 1..=stream.len() {
        let (requests, end) = parse(stream, part);
        assert_eq!(requests, expected, "in parts of {part}");
        assert!(end.is_ok());
    }
    assert_eq!(parse(stream, 1).1, Ok(1), "the client is told to go on before its body");
}

#[test]
fn limits_are_met_exactly() {
    let with_head = |size: usize| {
        let start = "GET / HTTP/1.1\r\na: ";
        format!("{start}{}\r\n\r\n", "x".repeat(size - start.len() - 4))
    };
    assert_eq!(parse(with_head(MOST_HEAD).as_bytes(), 100).0.len(), 1);
    assert_eq!(error(&with_head(MOST_HEAD + 1)), HttpError::HeadTooLarge);
    assert_eq!(error(&"x".repeat(MOST_HEAD + 1)), HttpError::HeadTooLarge, "a head without an end");
    let with_body =
        |size: usize| format!("PUT / HTTP/1.1\r\nContent-Length: {size}\r\n\r\n{}", "x".repeat(size));
    let (requests, _) = parse(with_body(MOST_BODY).as_bytes(), 1000);
    assert_eq!(requests[0].body.as_ref().map(Vec::len), Some(MOST_BODY));
    // The largest request, behind another one that still lies in front of it.
    let start = format!("PUT / HTTP/1.1\r\nContent-Length: {MOST_BODY}\r\na: ");
    let head = format!("{start}{}\r\n\r\n", "x".repeat(MOST_HEAD - start.len() - 4));
    let largest = format!("GET / HTTP/1.1\r\n\r\n{head}{}", "x".repeat(MOST_BODY));
    assert_eq!(parse(largest.as_bytes(), 30_000).0.len(), 2);
    let too_large = error(&with_body(MOST_BODY + 1));
    assert_eq!(too_large, HttpError::BodyTooLarge(51_201));
    assert_eq!(
        too_large.to_string(),
        "Request payload with size 51201 is larger than the limit of 51200 allowed by server."
    );
}

#[test]
fn what_is_no_request_is_an_error() {
    let put = |header: &str| error(&format!("PUT / HTTP/1.1\r\n{header}\r\n\r\n"));
    assert_eq!(error("POST / HTTP/1.1\r\n\r\n"), HttpError::Method);
    assert_eq!(error("GET x HTTP/1.1\r\n\r\n"), HttpError::Uri);
    assert!(matches!(error("GET / HTTP/2\r\n\r\n"), HttpError::Head(httparse::Error::Version)));
    assert!(matches!(error("\0\0\n\n"), HttpError::Head(_)));
    for value in ["-1", "+1", "1 2", "", "99999999999999999999", "0x10"] {
        assert_eq!(put(&format!("Content-Length: {value}")), HttpError::Header("Content-Length"), "{value}");
    }
    assert!(matches!(put("Content-Length: 1\r\nContent-Length: 1"), HttpError::Unsupported(_)));
    assert_eq!(put("Transfer-Encoding: chunked"), HttpError::Unsupported("Transfer-Encoding"));
    assert_eq!(put("Expect: a miracle"), HttpError::Header("Expect"));
}

#[test]
fn requests_without_end_take_no_room_without_end() {
    let mut parser = Parser::default();
    for _ in 0..10_000 {
        parser.push(b"GET / HTTP/1.1\r\n\r\nGET ");
        assert!(matches!(parser.take(), Ok(Next::Request(_))));
        assert_eq!(parser.take(), Ok(Next::Partial));
        parser.push(b"/ HTTP/1.1\r\n\r\n");
        assert!(matches!(parser.take(), Ok(Next::Request(_))));
        assert!(parser.bytes.len() < 200 && !parser.has_part());
    }
}
