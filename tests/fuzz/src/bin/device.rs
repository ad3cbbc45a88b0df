//! The fuzzer of the target `device`: libFuzzer around [`tidevm_fuzz::device::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::device::check(data));
