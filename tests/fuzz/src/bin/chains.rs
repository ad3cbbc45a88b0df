//! The fuzzer of the target `chains`: libFuzzer around [`tidevm_fuzz::chains::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::chains::check(data));
