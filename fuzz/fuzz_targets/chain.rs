#![no_main]

cr_fuzz_targets::target!("chain");
