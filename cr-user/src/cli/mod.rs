//! The command line: arguments in, tables or JSON out.

mod attach;
mod check;
mod checkpoint;
mod common;
mod compact;
mod export;
mod faults;
mod intact;
mod keygen;
mod keys;
mod list;
mod logger;
mod output;
mod place;
mod prune;
mod restore;
mod run;
mod show;
mod usage;
mod verify;
mod watch;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use output::Output;

const ABOUT: &str = "\
Checkpoint and restart of running, unmodified Linux jobs.

cr takes checkpoints of a process with all its threads while it runs, each a small delta on the one before, and restarts \
the job from any of them: after a crash, a reboot or a preemption, with the same pid, memory, threads and open files. \
The job needs no change, no preloaded library and no wrapper.";

const AFTER: &str = "\
Examples:
  cr check                                          can checkpoints be taken on this machine?
  cr run --store ckpt --interval 60s -- ./solver    run a job, with a checkpoint each minute
  cr checkpoint 4711 --store ckpt                   take one checkpoint of a running process
  cr watch 4711                                     how the job and its checkpoints are doing, live
  cr list --store ckpt                              what is in the store
  cr restore --store ckpt                           restart the job from the newest checkpoint
  cr prune --store ckpt --keep-last 10              remove old checkpoints that nothing builds on
  cr compact --store ckpt                           make one full image of the newest checkpoint
  cr export --store ckpt --core core                a process of a checkpoint, for a debugger

Exit codes:
    0  done
    2  wrong usage
  119  keys: the store is sealed and its key is missing or wrong, a key file is not to be used, a new passphrase was not typed
       the same twice, or nobody who is trusted has signed the checkpoint; nothing was changed
  120  the job holds something that could not be restored: named, and nothing was changed
  121  no such job, process or memory, or not one that may be checkpointed (init, a kernel thread, another user's, cr itself)
  122  the store: not one of ours, of a newer format, damaged, or in use
  123  the checkpoint cannot be restored here and now (a pid is taken, a file changed, the CPU lacks a feature; from verify: the
       spool of a bucket lacks pages)
  124  input or output failed (a full disk, say): the older checkpoints are intact
  125  anything else that went wrong in cr
  run, attach and restore pass on the job's own exit code: 128 and the signal's number if a signal ended it;
  126 and 127 if the command of run cannot be executed or is not found

Environment:
  CR_LOG     error, warn (the default), info, debug or trace: how much to say on standard error
  NO_COLOR   no colours, not even on a terminal";

/// What was typed.
#[derive(Debug, Parser)]
#[command(name = "cr", version, about = "Checkpoint and restart of running, unmodified Linux jobs", long_about = ABOUT)]
#[command(after_help = "`cr help COMMAND` explains a command; `cr --help` lists the exit codes.", after_long_help = AFTER)]
struct Cli {
    /// Say more on standard error: once for what is done, twice for how.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Run(run::Args),
    Attach(attach::Args),
    Checkpoint(checkpoint::Args),
    Restore(restore::Args),
    List(list::Args),
    Show(show::Args),
    Verify(verify::Args),
    Prune(prune::Args),
    Compact(compact::Args),
    Export(export::Args),
    Keygen(keygen::Args),
    Watch(watch::Args),
    #[command(hide = true)]
    FaultPoints(faults::Args),
}

/// What a subcommand does, and how it says so.
trait Execute {
    /// Whether standard output gets JSON.
    fn json(&self) -> bool;

    /// What is wrong with the arguments, taken together.
    fn contradiction(&self) -> Option<String> {
        None
    }

    /// Does it, and gives the exit code.
    fn execute(&self, output: Output) -> cr::Result<u8>;
}

impl Command {
    fn as_execute(&self) -> &dyn Execute {
        match self {
            Self::Check(args) => args,
            Self::Run(args) => args,
            Self::Attach(args) => args,
            Self::Checkpoint(args) => args,
            Self::Restore(args) => args,
            Self::List(args) => args,
            Self::Show(args) => args,
            Self::Verify(args) => args,
            Self::Prune(args) => args,
            Self::Compact(args) => args,
            Self::Export(args) => args,
            Self::Keygen(args) => args,
            Self::Watch(args) => args,
            Self::FaultPoints(args) => args,
        }
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error),
    };
    logger::init(cli.verbose);
    for told in cr::netlock::clean_up() {
        eprintln!("cr: {told}");
    }
    let command = cli.command.as_execute();
    if let Some(wrong) = command.contradiction() {
        return usage::report(&clap::Error::raw(ErrorKind::ArgumentConflict, format!("{wrong}\n")));
    }
    let output = Output::new(command.json());
    let code = command.execute(output).unwrap_or_else(|error| {
        output.error(&error);
        error.exit_code()
    });
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_a_long_help_with_an_example() {
        for mut subcommand in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()).cloned() {
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains("Example"), "{}:\n{help}", subcommand.get_name());
        }
    }
}
