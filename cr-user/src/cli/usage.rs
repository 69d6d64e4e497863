//! Wrong usage, and the texts of `--help` and `--version`.

use std::process::ExitCode;

use clap::CommandFactory;

use super::Cli;

/// Prints what clap has to say. Where it names only a wrong value, the usage of the subcommand is added.
pub(super) fn report(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.exit_code() == 0 {
        return ExitCode::SUCCESS;
    }
    if !error.to_string().contains("Usage:") {
        eprintln!("\n{}", usage());
    }
    ExitCode::from(2)
}

/// The usage of the subcommand that was typed.
fn usage() -> String {
    let mut cli = Cli::command();
    cli.build();
    let typed = std::env::args().skip(1).find(|word| cli.find_subcommand(word).is_some());
    let subcommand = typed.and_then(|name| cli.find_subcommand_mut(name));
    match subcommand {
        Some(subcommand) => subcommand.render_usage().to_string(),
        None => cli.render_usage().to_string(),
    }
}
