//! `cr run` and `cr attach` as a wrapper: exit codes, signals, `--kill`, what the job prints.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use cr_tests::{Finished, Job, cr, process_exists, run, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn cr_run(line: &[&str]) -> Finished {
    let folder = tempfile::tempdir().expect("a folder");
    // Standard output and error as files: a pipe whose other end the test holds could not be checkpointed.
    let file = |name: &str| fs::File::create(folder.path().join(name)).expect("an output file");
    let mut command = Command::new("sh");
    command.args(["-c", "\"$@\" >\"$OUT\" 2>\"$ERR\"; code=$?; cat \"$OUT\"; cat \"$ERR\" >&2; exit $code", "sh"]);
    command.env("OUT", folder.path().join("out")).env("ERR", folder.path().join("err"));
    drop((file("out"), file("err")));
    command.arg(cr().get_program()).args(["run", "--interval", "1h", "--store"]).arg(folder.path().join("store"));
    run(command.arg("--").args(line))
}

#[test]
fn passes_the_exit_code_on() {
    cr_run(&["true"]).expect(0);
    cr_run(&["sh", "-c", "exit 7"]).expect(7);
    cr_run(&["sh", "-c", "kill -TERM $$"]).expect(128 + 15);
    cr_run(&["sh", "-c", "kill -KILL $$"]).expect(128 + 9);
    let finished = cr_run(&["sh", "-c", "echo to stdout; echo to stderr >&2"]);
    assert!(finished.stdout == "to stdout\n" && finished.stderr.contains("to stderr\n"), "{finished}");
}

#[test]
fn command_not_found_or_not_executable() {
    cr_run(&["/no/such/program"]).refuses(127, &["/no/such/program"]);
    cr_run(&["no-such-program-anywhere"]).refuses(127, &["no-such-program-anywhere"]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).expect("its mode");
    cr_run(&[&file.path().to_string_lossy()]).refuses(126, &[&file.path().to_string_lossy()]);
}

#[test]
fn forwards_signals() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let folder = tempfile::tempdir().expect("a folder");
        // A shell has what it runs in the background ignore SIGINT, and that is inherited.
        let mut controller = Command::new("env")
            .arg("--default-signal=INT")
            .arg(cr().get_program())
            .args(["run", "--interval", "1h", "--store"])
            .arg(folder.path().join("store"))
            .args(["--", "sleep", "100"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cr run");
        wait_until("the controller listens", || folder.path().join("store/control.sock").exists());
        kill(Pid::from_raw(controller.id().cast_signed()), signal).expect("signal the controller");
        let mut status = None;
        wait_until("cr run has ended", || {
            status = controller.try_wait().expect("wait for cr run");
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(code), "{signal}");
    }
}

/// With `--kill` the job is ended, but only once its checkpoint is durable.
#[test]
fn checkpoint_and_kill() {
    let mut job = Job::start("writer", &["--mib", "8"]);
    job.advance(3);
    run(job.checkpoint_command().arg("--kill")).expect(0);
    job.kill(); // there is nothing left to kill, but the test is the job's parent and has to wait for it
    job.verify();
    job.restore();
    job.advance(3);
    job.finish();
}

#[test]
fn attach_to_a_running_job_and_let_go() {
    let mut job = Job::start("writer", &["--mib", "8"]);
    job.attach(&[]);
    job.wait_for_controller();
    let full = job.checkpoint();
    job.advance(3);
    let delta = job.checkpoint();
    delta.expect_delta_on(&full);
    // The controller dies: the job runs on, and the next checkpoint is right.
    job.kill_controller();
    job.advance(3);
    job.checkpoint();
    job.advance(3);
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
}

#[test]
fn attach_detached_passes_nothing_on_but_keeps_the_chain() {
    let mut job = Job::start("writer", &["--mib", "8"]);
    run(job.cr("attach").args([&job.pid().to_string(), "--detach", "--interval", "1h"])).expect(0);
    let full = job.checkpoint();
    job.advance(3);
    job.checkpoint().expect_delta_on(&full);
    job.kill();
    job.restore_detached();
    job.advance(3);
    job.finish();
    assert!(!process_exists(job.pid()));
}

/// A restored job's exit code is passed on by `cr restore`, and a signal that ends it as well.
#[test]
fn restore_passes_the_exit_code_on() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    job.checkpoint();
    job.kill();
    let mut restore = job.cr("restore");
    let mut controller =
        restore.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cr restore");
    job.advance(3);
    kill(Pid::from_raw(job.pid()), Signal::SIGTERM).expect("signal the job");
    let status = controller.wait().expect("cr restore ends");
    assert_eq!(status.code(), Some(143));
}

/// Without a terminal no colours, and nothing but JSON on standard output where JSON was asked for.
#[test]
fn plain_in_a_pipe() {
    let mut job = Job::start_resident("writer", &["--mib", "1"]);
    job.checkpoint();
    for subcommand in ["list", "show", "verify"] {
        let table = run(&mut job.cr(subcommand));
        table.expect(0);
        assert!(!table.said().contains('\u{1b}'), "escape sequences\n{table}");
        run(job.cr(subcommand).arg("--json")).json();
    }
    let shown = run(job.cr("show").arg("--json")).json();
    let count = |name: &str| shown[name].as_array().map_or(0, Vec::len);
    assert!(count("threads") == 1 && count("mappings") > 5 && count("files") >= 3, "{shown}");
    job.finish();
}
