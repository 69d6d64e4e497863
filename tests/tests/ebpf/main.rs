//! The eBPF hints against a process whose doings are known: what must be in the record is, what cannot be is named, and
//! the iterators agree with what the process says about itself and with `/proc`.

mod events;
mod guest;
mod iterators;
mod record;

use std::{os::unix::process::CommandExt as _, process::Command, time::Duration};

use cr::track::hints::{AddressSpaceId, Hints, HintsError, REGIONS};
use cr_tests::{note_skip, skip};

use guest::Guest;

/// The hints, or why the test cannot run.
fn hints() -> Option<Hints> {
    hints_with(REGIONS)
}

fn hints_with(regions: u32) -> Option<Hints> {
    match Hints::with_regions(regions) {
        Ok(hints) => Some(hints),
        Err(error @ (HintsError::NoPrivilege { .. } | HintsError::NoBtf(_))) => {
            note_skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_cannot_be_followed_is_a_typed_error() {
    let Some(mut hints) = hints() else { return };
    let mut gone = Command::new("true").spawn().expect("true");
    gone.wait().expect("true ends");
    let pid = gone.id().cast_signed();
    assert!(matches!(hints.follow(pid), Err(HintsError::NoProcess { pid: told }) if told == pid));
    let mut zombie = Command::new("true").spawn().expect("true");
    std::thread::sleep(Duration::from_millis(100));
    assert!(matches!(hints.follow(zombie.id().cast_signed()), Err(HintsError::NoProcess { .. })));
    zombie.wait().expect("true ends");
    // A thread that is not the leader is no process.
    let guest = Guest::start();
    let thread = guest.told("sleeper") as i32;
    assert!(matches!(hints.follow(thread), Err(HintsError::NoProcess { .. })));
    assert_ne!(hints.follow(guest.pid()).expect("follow"), AddressSpaceId(0));
}

#[test]
fn no_object_and_a_damaged_object_are_typed_errors() {
    assert!(matches!(Hints::load_object(&[], REGIONS), Err(HintsError::NoObject)));
    let error = Hints::load_object(b"not an object", REGIONS).expect_err("not an object");
    assert!(matches!(error, HintsError::Refused { .. } | HintsError::NoBtf(_)), "{error}");
}

#[test]
fn no_privilege_is_a_typed_error() {
    const INNER: &str = "CR_TEST_WITHOUT_PRIVILEGE";
    if std::env::var_os(INNER).is_some() {
        let error = Hints::load().expect_err("nobody may not load programs");
        assert!(matches!(error, HintsError::NoPrivilege { .. }), "{error}");
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        skip!("only root can become nobody");
    }
    let mut again = again("no_privilege_is_a_typed_error");
    again.env(INNER, "1").uid(65534).gid(65534);
    run_again(again);
}

/// As in a container: `cr` and the job see other pids than the first namespace's.
#[test]
fn all_this_works_in_a_fresh_pid_namespace() {
    const INNER: &str = "CR_TEST_IN_PID_NAMESPACE";
    if std::env::var_os(INNER).is_some() {
        return;
    }
    if hints().is_none() {
        return;
    }
    let program = std::env::current_exe().expect("this program");
    let mut again = Command::new("unshare");
    again.args(["--pid", "--fork", "--mount-proc"]).arg(program).env(INNER, "1");
    again.args(["--skip", "no_privilege", "--nocapture", "--test-threads", "2"]);
    run_again(again);
}

/// This test program, to run one test again.
fn again(test: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", test, "--nocapture"]);
    command
}

fn run_again(mut command: Command) {
    let output = command.output().expect("this program can be run again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok"), "{text}");
}
