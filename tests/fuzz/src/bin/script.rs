//! The fuzzer of the target `script`: libFuzzer around [`tidevm_fuzz::script::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::script::check(data));
