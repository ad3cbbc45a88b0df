//! The fuzzer of the target `kernel`: libFuzzer around [`tidevm_fuzz::kernel::check`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidevm_fuzz::kernel::check(data));
