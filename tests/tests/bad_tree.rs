//! Trees of which one process is not ours to take: named, and none of them is harmed.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::process::Command;

use cr_tests::{Job, cr, run, skip, wait_until};

/// The first child of a process.
fn child(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_descendant_is_traced_by_a_debugger() {
    let mut job = Job::start("knobs", &["--fork"]);
    let child = child(job.pid()).expect("the guest's child");
    let gdb = Command::new("gdb")
        .args(["--batch", "--nx", "--pid", &child.to_string(), "-ex", "shell sleep 3", "-ex", "detach"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(mut gdb) = gdb else { skip!("no gdb to trace the job") };
    let status = format!("/proc/{child}/status");
    wait_until("gdb traces it", || !fs::read_to_string(&status).unwrap_or_default().contains("TracerPid:\t0\n"));
    let (place, who) = (format!("thread {child}"), format!("is traced by pid {} (gdb)", gdb.id()));
    for finished in [run(&mut job.checkpoint_command()), run(cr().args(["check", &job.pid().to_string()]))] {
        finished.refuses(120, &[&place, &who, "detach"]);
    }
    assert!(!job.store().join("00000001.cr").exists(), "there is an image in the store");
    gdb.wait().expect("gdb ends");
    job.checkpoint();
    job.advance(3);
    job.finish();
}

#[test]
fn a_descendant_belongs_to_another_user() {
    let folder = tempfile::Builder::new().prefix("cr-test-").tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::copy(cr().get_program(), at("cr")).expect("a copy of cr where everybody can run it");
    fs::DirBuilder::new().mode(0o777).create(at("open")).expect("a folder for the store");
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o777)).expect("its mode");
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let line = format!("sleep 60 & exec setpriv {} sleep 60", user.join(" "));
    let mut root = Command::new("sh").args(["-c", &line]).spawn().expect("a small tree");
    let pid = root.id().cast_signed();
    wait_until("the tree is there", || {
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name(pid) == "sleep\n" && child(pid).is_some_and(|child| name(child) == "sleep\n")
    });
    let theirs = child(pid).expect("its child");
    let mut checkpoint = Command::new("setpriv");
    checkpoint.args(user).arg(at("cr")).args(["checkpoint", &pid.to_string(), "--store"]).arg(at("open/store"));
    let finished = run(&mut checkpoint);
    let both_live = cr_tests::process_exists(pid) && cr_tests::process_exists(theirs);
    for pid in [theirs, pid] {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    root.wait().expect("the tree ends");
    finished.refuses(
        121,
        &[&format!("cannot checkpoint pid {theirs}: it belongs to another user (root)"), "run cr as root"],
    );
    assert!(both_live, "it was harmed");
}
