//! The fuzzer of the target `records`: libFuzzer around [`tidevm_fuzz::records::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::records::check(data));
