//! What the programs of `cargo fuzz` have in common.

#[doc(hidden)]
pub use cr_fuzz;
#[doc(hidden)]
pub use libfuzzer_sys;

/// The target of that name of `cr-fuzz`, with its mutations, and one time in four libFuzzer's own.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            let target = $crate::cr_fuzz::Target::find($name).expect("it is in the list");
            (target.run)(input);
        });

        $crate::libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            if seed % 4 == 0 {
                return $crate::libfuzzer_sys::fuzzer_mutate(data, size, max_size);
            }
            let mut input = data[..size].to_vec();
            $crate::cr_fuzz::mutate(&mut input, max_size, &mut $crate::cr_fuzz::Random::new(seed.into()));
            data[..input.len()].copy_from_slice(&input);
            input.len()
        });
    };
}
