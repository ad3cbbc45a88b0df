//! The errors of the library: each is an `Error` that can cross threads, and says something.

use core::any::type_name;
use core::error::Error;

use virtio_mem::device::{self, Refusal, Refused, ResizeError, StateError};
use virtio_mem::wire::BadRequest;
use virtio_mem::{IdleReason, driver};

use super::*;

/// The name of an error's type, and its text as a caller sees it that takes any error.
fn named<E: Error + Send + Sync + 'static>(error: E) -> (&'static str, String) {
    let name = type_name::<E>().rsplit("::").next().unwrap_or_default();
    let error: Box<dyn Error + Send + Sync> = Box::new(error);
    (name, error.to_string())
}

#[test]
fn every_error_is_an_error_and_says_what_is_wrong() {
    let errors = [
        (named(device::ConfigError::Wraps), "address space"),
        (named(driver::ConfigError::Wraps), "address space"),
        (named(ResizeError::BeyondRegion { region_size: REGION }), "1073741824"),
        (named(StateError::Version { found: 7 }), "version 7"),
        (named(BadRequest::UnknownType(9)), "9"),
        (named(Refusal::OverAsk), "requested size"),
        (named(Busy::call("madvise", 11)), "madvise"),
        (named(IdleReason::NoRoom), "memory"),
    ];
    for ((name, text), says) in &errors {
        assert!(text.contains(says), "{name}: {text}");
    }
    // A new error gets a row above.
    let ends = [include_str!("../../src/device.rs"), include_str!("../../src/driver.rs")];
    let words = ends.iter().flat_map(|text| text.split(|c: char| !c.is_alphanumeric()));
    for word in words
        .filter(|word| word.ends_with("Error") && !["Error", "DeviceError", "TryReserveError"].contains(word))
    {
        assert!(errors.iter().any(|((name, _), _)| *name == word), "{word} is not named in this test");
    }
}

#[test]
fn a_request_that_is_refused_is_an_error_with_its_reason() {
    let request = Request { kind: RequestKind::Plug, addr: ADDR, nb_blocks: 1 };
    let mut device = device();
    device.handle(&request.to_bytes()[..5], &mut Host::new());
    let refused: Refused = *device.refused().expect("it was too short");
    assert_eq!(named(refused), ("Refused", "5 bytes are too short for a request".to_owned()));
}
