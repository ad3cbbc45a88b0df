//! The fuzzer of the target `http`: libFuzzer around [`tidevm_fuzz::http::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::http::check(data));
