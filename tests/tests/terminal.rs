//! A job on a terminal comes back on the terminal that `cr restore` is called from.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use cr_tests::{cr, guest, process_exists, run, skip, wait_until};

/// Runs a command line on a terminal of its own whose output goes to `log`: util-linux's script(1) provides it.
fn on_a_terminal(line: &str, log: &Path) -> Option<std::process::Child> {
    Command::new("script")
        .args(["--quiet", "--flush", "--return", "--command", line])
        .arg(log)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

#[test]
fn moves_to_the_terminal_of_the_restore() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, store) = (folder.path().join("job"), folder.path().join("store"));
    let (first, second) = (folder.path().join("first.log"), folder.path().join("second.log"));
    fs::create_dir(&dir).expect("the guest's folder");
    let Some(mut before) = on_a_terminal(&format!("exec {} {}", guest("terminal").display(), dir.display()), &first)
    else {
        skip!("no script(1) to provide a terminal");
    };
    let said = |name: &str| fs::read_link(dir.join(name)).ok().map(|text| text.to_string_lossy().into_owned());
    wait_until("the guest is ready", || said("ready").is_some());
    let pid: i32 = said("ready").expect("just seen").parse().expect("a pid");
    let step = || fs::metadata(dir.join("step")).map_or(0, |step| step.len());
    wait_until("it has taken some steps", || step() > 10);
    run(cr().args(["checkpoint", "--kill", "--store"]).arg(&store).arg(pid.to_string())).expect(0);
    wait_until("the job is gone", || !process_exists(pid));
    before.wait().expect("script ends with the job");
    fs::File::options().write(true).open(dir.join("step")).and_then(|file| file.set_len(0)).expect("the step file");

    let line = format!("exec {:?} restore --store {}", cr().get_program(), store.display());
    let mut after = on_a_terminal(&line, &second).expect("script was there a moment ago");
    wait_until("the restored job steps", || step() > 0);
    fs::File::create(dir.join("finish")).expect("the finish file");
    let ended = {
        let mut status = None;
        wait_until("cr restore has ended", || {
            status = after.try_wait().expect("wait for script");
            status.is_some()
        });
        status.expect("just seen")
    };
    let log = fs::read_to_string(&second).unwrap_or_default();
    assert!(said("result").as_deref() == Some("ok"), "verdict {:?}; the second terminal shows:\n{log}", said("result"));
    assert!(ended.success(), "cr restore ended with {ended}; the second terminal shows:\n{log}");
    assert!(log.contains("step ") && log.contains("answer "), "the second terminal shows:\n{log}");
}

/// A job in the foreground has settings of its own, and its group gets what is typed. So it is after a restore; and when it ends,
/// the terminal is the caller's again.
#[test]
fn comes_back_into_the_foreground() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, store) = (folder.path().join("job"), folder.path().join("store"));
    let (first, second) = (folder.path().join("first.log"), folder.path().join("second.log"));
    fs::create_dir(&dir).expect("the guest's folder");
    // A shell with job control gives each command a group.
    let line = format!("set -m; {} {} --raw; true", guest("terminal").display(), dir.display());
    let Some(mut before) = on_a_terminal(&line, &first) else {
        skip!("no script(1) to provide a terminal");
    };
    let said = |name: &str| fs::read_link(dir.join(name)).ok().map(|text| text.to_string_lossy().into_owned());
    wait_until("the guest is ready", || said("ready").is_some() || said("result").is_some());
    let pid: i32 = said("ready").unwrap_or_else(|| panic!("{:?}", said("result"))).parse().expect("a pid");
    let step = || fs::metadata(dir.join("step")).map_or(0, |step| step.len());
    wait_until("it has taken some steps", || step() > 10);
    run(cr().args(["checkpoint", "--kill", "--store"]).arg(&store).arg(pid.to_string())).expect(0);
    wait_until("the job is gone", || !process_exists(pid));
    before.wait().expect("script ends with the job");
    fs::File::options().write(true).open(dir.join("step")).and_then(|file| file.set_len(0)).expect("the step file");

    let after = folder.path().join("settings");
    let line = format!(
        "stty rows 30; {:?} restore --store {}; echo ended $?; stty -a >{}",
        cr().get_program(),
        store.display(),
        after.display()
    );
    let mut second_script = on_a_terminal(&line, &second).expect("script was there a moment ago");
    wait_until("the restored job steps", || step() > 3 || said("result").is_some());
    let mut keys = second_script.stdin.take().expect("it is a pipe");
    keys.write_all(b"k").expect("a key");
    wait_until("the key has come", || said("say.key").is_some() || said("result").is_some());
    keys.write_all(b"\x03").expect("Ctrl-C");
    wait_until("Ctrl-C has come", || said("say.interrupts").is_some() || said("result").is_some());
    // Ctrl-Z stops the job, and cr with it; nobody but us is there to let them go on.
    keys.write_all(b"\x1a").expect("Ctrl-Z");
    let state = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_stopped = |pid: i32| state(pid).rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'));
    wait_until("the job stops", || is_stopped(pid));
    let parent: i32 = {
        let stat = state(pid);
        let rest = stat.rsplit(") ").next().expect("fields").to_owned();
        rest.split(' ').nth(1).expect("its parent").parse().expect("a pid")
    };
    wait_until("cr stops", || is_stopped(parent));
    let stopped_at = step();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::Signal::SIGCONT).expect("SIGCONT");
    wait_until("both go on", || step() > stopped_at + 3 || said("result").is_some());
    fs::File::create(dir.join("finish")).expect("the finish file");
    wait_until("script has ended", || second_script.try_wait().expect("wait for script").is_some());
    let log = fs::read_to_string(&second).unwrap_or_default();
    assert!(said("result").as_deref() == Some("ok"), "verdict {:?}; the second terminal shows:\n{log}", said("result"));
    assert!(log.contains("ended 0"), "the second terminal shows:\n{log}");
    let settings = fs::read_to_string(&after).expect("the settings afterwards");
    assert!(settings.contains("rows 30") && settings.contains(" icanon") && settings.contains(" echo "), "{settings}");
}
