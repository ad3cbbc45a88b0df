//! The fuzzer of the target `registers`: libFuzzer around [`tidevm_fuzz::registers::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::registers::check(data));
