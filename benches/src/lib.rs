//! What the benches share: jobs, the commands of `cr` that are timed, samples, and the machine.

pub mod commands;
pub mod guest;
pub mod machine;
pub mod sample;

/// Arguments from anything that can be printed.
pub fn strings(args: &[&dyn std::fmt::Display]) -> Vec<String> {
    args.iter().map(ToString::to_string).collect()
}
