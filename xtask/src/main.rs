//! Set-up, build, run, test and bench of cr.
fn main() {}
