//! The fuzzer of the target `mm`: libFuzzer around [`tidevm_fuzz::mm::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::mm::check(data));
