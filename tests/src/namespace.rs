//! The same test once more inside a fresh pid namespace, as in a container.

use std::process::Command;
use std::time::Duration;

use crate::{note_skip, run_for};

const INSIDE: &str = "CR_TEST_INSIDE_PID_NAMESPACE";

/// Runs `body` in a new pid namespace with a `/proc` of its own, by running this test program again for the one test `name`
/// (its full name, as `cargo test -- --list` prints it). A shell is the namespace's init, so orphans are reaped.
pub fn in_pid_namespace(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return;
    }
    let test = std::env::current_exe().expect("the test program's path");
    let probe = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return note_skip(&format!("{name}: no pid namespace: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Err(error) => return note_skip(&format!("{name}: no unshare(1): {error}")),
    }
    let finished = run_for(
        Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", "\"$@\"; exit $?", "sh"])
            .arg(test)
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1"),
        Duration::from_secs(150),
    );
    for line in finished.stderr.lines().filter(|line| line.starts_with("skipped:")) {
        note_skip(&format!("{} (in a pid namespace)", line.trim_start_matches("skipped: ")));
    }
    assert!(finished.stdout.contains("1 passed") && finished.code == Some(0), "{name} in a pid namespace\n{finished}");
}
