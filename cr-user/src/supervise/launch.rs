//! Starting the command that becomes the job.

use std::ffi::OsString;
use std::process;

use nix::sys::signal::SigSet;

use crate::error::{Error, Result};
use crate::sys::process::start_with_mask;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// A path, or a name to be looked for in `PATH`.
    pub program: OsString,
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
}

/// Starts the command as a child in our own process group and session, with our standard streams and with `mask`, the
/// signals that were blocked when we were started. Returns its pid.
///
/// # Errors
/// [`Error::Command`] when it is not found or cannot be executed.
pub(super) fn start(command: &Command, mask: SigSet) -> Result<i32> {
    let mut child = process::Command::new(&command.program);
    child.args(&command.args);
    let child = start_with_mask(&mut child, mask)
        .spawn()
        .map_err(|source| Error::Command { program: command.program.to_string_lossy().into_owned(), source })?;
    Ok(child.id() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_has_the_exit_codes_of_shells() {
        let code = |program: &str| {
            let command = Command { program: program.into(), args: Vec::new() };
            start(&command, SigSet::empty()).unwrap_err().exit_code()
        };
        assert_eq!(code("/does/not/exist"), 127);
        assert_eq!(code("no-program-has-this-name"), 127);
        assert_eq!(code("/etc/passwd"), 126);
        assert_eq!(code("/"), 126);
    }
}
