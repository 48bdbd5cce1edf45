#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hyperkit_fuzz::inputs::check_kernel(bytes));
