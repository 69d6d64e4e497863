//! Bad input on the command line: the wrong pid, the wrong store, the wrong command. One clear sentence, a documented exit code,
//! nothing lost.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use cr_tests::{Finished, Job, cr, note_skip, run, skip};

fn checkpoint_of(pid: &str, store: &Path) -> Finished {
    run(cr().args(["checkpoint", pid, "--json", "--store"]).arg(store))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

// ---------------------------------------------------------------------------------------------------- the wrong pid

#[test]
fn no_such_pid() {
    let folder = folder();
    let store = folder.path().join("store");
    let mut child = Command::new("true").spawn().expect("true");
    let pid = child.id().to_string();
    child.wait().expect("true ends");
    checkpoint_of(&pid, &store).refuses(121, &[&pid]);
    run(cr().args(["check", &pid])).refuses(121, &[&pid]);
    run(cr().args(["attach", &pid, "--store"]).arg(&store)).refuses(121, &[&pid]);
    assert!(!store.join("00000001.cr").exists(), "an image of nothing");
}

#[test]
fn not_a_pid() {
    let folder = folder();
    for pid in ["0", "-5", "abc", "99999999999999999999", ""] {
        let finished = run(cr().args(["checkpoint", "--store"]).arg(folder.path().join("store")).arg("--").arg(pid));
        assert!(matches!(finished.code, Some(2 | 121)), "pid {pid:?}\n{finished}");
        assert!(!finished.said().contains("panicked"), "pid {pid:?}\n{finished}");
    }
}

#[test]
fn kernel_thread() {
    let kernel_thread = fs::read_to_string("/proc/2/stat").is_ok_and(|stat| stat.contains("(kthreadd)"));
    if !kernel_thread {
        skip!("pid 2 is no kernel thread here");
    }
    checkpoint_of("2", &folder().path().join("store")).refuses(121, &["kernel thread"]);
}

#[test]
fn init() {
    checkpoint_of("1", &folder().path().join("store")).refuses(121, &["1", "init"]);
}

#[test]
fn cr_itself() {
    let folder = folder();
    let line = format!("exec {:?} checkpoint $$ --store {}", cr().get_program(), folder.path().join("store").display());
    run(Command::new("sh").args(["-c", &line])).refuses(121, &["itself"]);
}

/// Another user's job: refused to whoever could not kill it either, and the job does not notice.
#[test]
fn someone_elses() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    let program = job.folder().join("cr");
    fs::copy(cr().get_program(), &program).expect("a copy of cr where everybody can run it");
    fs::DirBuilder::new().mode(0o777).create(job.folder().join("open")).expect("a folder for the store");
    fs::set_permissions(job.folder().join("open"), fs::Permissions::from_mode(0o777)).expect("its mode");
    let finished = run(Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(program)
        .args(["checkpoint", &job.pid().to_string(), "--store"])
        .arg(job.folder().join("open/store")));
    finished.refuses(121, &[&job.pid().to_string()]);
    job.advance(3);
    job.finish();
}

/// A job that a debugger holds cannot be frozen; it is refused, and fine again once the debugger has let go.
#[test]
fn traced_by_another() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    let gdb = Command::new("gdb")
        .args(["--batch", "--nx", "--pid", &job.pid().to_string(), "-ex", "shell sleep 2", "-ex", "detach"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(mut gdb) = gdb else { skip!("no gdb to trace the job") };
    let status = format!("/proc/{}/status", job.pid());
    job.wait("gdb traces it", |_| !fs::read_to_string(&status).unwrap_or_default().contains("TracerPid:\t0\n"));
    let finished = run(&mut job.checkpoint_command());
    assert!(matches!(finished.code, Some(120 | 121)), "{finished}");
    finished.refuses(finished.code.unwrap_or_default(), &["trac"]);
    gdb.wait().expect("gdb ends");
    job.checkpoint();
    job.finish();
}

// ---------------------------------------------------------------------------------------------------- the wrong store

#[test]
fn store_that_is_not_ours() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    fs::create_dir(job.store()).expect("a folder");
    fs::write(job.store().join("thesis.tex"), "years of work").expect("a file of somebody's");
    run(&mut job.checkpoint_command()).refuses(122, &[&job.store().to_string_lossy()]);
    for subcommand in ["list", "show", "verify", "restore"] {
        run(&mut job.cr(subcommand)).refuses(122, &[&job.store().to_string_lossy()]);
    }
    let left: Vec<_> =
        fs::read_dir(job.store()).expect("the folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["thesis.tex"], "the folder that is not a store was changed");
    job.advance(3);
    job.finish();
}

#[test]
fn store_that_is_a_file() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    fs::write(job.store(), "a file").expect("a file");
    run(&mut job.checkpoint_command()).refuses(122, &[&job.store().to_string_lossy()]);
    assert_eq!(fs::read_to_string(job.store()).expect("still a file"), "a file");
    job.finish();
}

#[test]
fn store_that_does_not_exist() {
    let folder = folder();
    for subcommand in ["list", "show", "verify", "restore"] {
        run(cr().args([subcommand, "--store"]).arg(folder.path().join("nowhere"))).refuses(122, &["nowhere"]);
    }
    assert!(!folder.path().join("nowhere").exists(), "a reader made a store");
}

#[test]
fn store_of_a_newer_format() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    job.checkpoint();
    let marker = job.store().join("cr-store.json");
    let text = fs::read_to_string(&marker).expect("the marker");
    let newer = text.replace("\"format\":1", "\"format\":999").replace("\"format\": 1", "\"format\": 999");
    assert_ne!(text, newer, "the marker says {text}");
    fs::write(&marker, newer).expect("the marker of tomorrow");
    run(&mut job.checkpoint_command()).refuses(122, &["999"]);
    for subcommand in ["list", "verify", "restore"] {
        run(&mut job.cr(subcommand)).refuses(122, &["999"]);
    }
    job.advance(3);
    job.finish();
}

/// One store holds one job's chain: another job must not be appended to it.
#[test]
fn store_of_another_job() {
    let mut first = Job::start("writer", &["--mib", "1"]);
    let mut second = Job::start("writer", &["--mib", "2"]);
    first.checkpoint();
    let finished = checkpoint_of(&second.pid().to_string(), &first.store());
    finished.refuses(122, &[]);
    assert_eq!(first.list().len(), 1);
    second.advance(3);
    second.finish();
    first.kill();
    first.restore();
    first.finish();
}

#[test]
fn store_locked_by_another_controller() {
    let mut job = Job::start_resident("writer", &["--mib", "1"]);
    job.checkpoint();
    let pid = job.pid().to_string();
    run(cr().args(["attach", &pid, "--store"]).arg(job.store())).refuses(122, &[]);
    job.checkpoint();
    job.finish();
}

#[test]
fn nothing_to_restore() {
    let mut job = Job::start("unsupported", &["io_uring"]);
    run(&mut job.checkpoint_command()).expect(120);
    job.try_restore(&[]).refuses(122, &[]);
    let mut other = Job::start("writer", &["--mib", "1"]);
    other.checkpoint();
    other.kill();
    other.try_restore(&["--id", "77"]).refuses(122, &["77"]);
    run(other.cr("show").args(["--id", "77"])).refuses(122, &["77"]);
    other.restore();
    other.finish();
    job.finish();
}

/// A control socket is for the store's owner: others are refused even where the file's mode would let them in.
#[test]
fn control_socket_is_private() {
    let mut job = Job::start_resident("writer", &["--mib", "1"]);
    job.checkpoint();
    let mode =
        |name: &str| fs::metadata(job.store().join(name)).expect("a file of the store").permissions().mode() & 0o777;
    assert_eq!(fs::metadata(job.store()).expect("the store").permissions().mode() & 0o777, 0o700);
    assert_eq!(mode("control.sock"), 0o600);
    assert_eq!(mode("00000001.cr"), 0o600);
    job.finish();
}

// ---------------------------------------------------------------------------------------------------- a taken pid

#[test]
fn pid_is_taken() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    job.checkpoint();
    job.advance(3);
    let finished = job.try_restore(&[]);
    finished.refuses(123, &[&job.pid().to_string(), "writer"]); // who owns it
    job.advance(3);
    job.finish();
}

/// The number of a thread, not of the process, is taken: found as well, and nothing is left behind.
#[test]
fn tid_is_taken() {
    let mut job = Job::start("writer", &["--mib", "1", "--threads", "2"]);
    let tids = fs::read_dir(format!("/proc/{}/task", job.pid())).expect("the tasks").flatten();
    let tids: Vec<i32> = tids.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    let second = *tids.iter().find(|&&tid| tid != job.pid()).expect("a second thread");
    job.checkpoint();
    job.kill();
    // The next pid is the one after the last given out, which the kernel lets root set.
    let Ok(()) = fs::write("/proc/sys/kernel/ns_last_pid", (second - 1).to_string()) else {
        skip!("ns_last_pid cannot be written");
    };
    let mut squatter = Command::new("sleep").arg("60").spawn().expect("sleep");
    if squatter.id().cast_signed() == second {
        job.try_restore(&[]).refuses(123, &[&second.to_string(), "sleep"]);
        assert!(!cr_tests::process_exists(job.pid()), "a part of the job was left behind");
    } else {
        note_skip("another process was faster to take the tid");
    }
    squatter.kill().and_then(|()| squatter.wait()).expect("sleep ends");
    job.restore();
    job.finish();
}

// ---------------------------------------------------------------------------------------------------- usage

#[test]
fn usage_errors() {
    for line in [
        &["frobnicate"][..],
        &["checkpoint"],
        &["run", "--store", "/tmp/x"],
        &["restore", "--files", "shred"],
        &["run", "--interval", "soon"],
    ] {
        run(cr().args(line)).refuses(2, &["usage"]);
    }
    for subcommand in ["check", "run", "attach", "checkpoint", "restore", "list", "show", "verify"] {
        let help = run(cr().args([subcommand, "--help"]));
        help.expect(0);
        assert!(help.stdout.lines().count() > 8, "a help text worth reading\n{help}");
    }
}

/// Errors are JSON where JSON was asked for.
#[test]
fn errors_as_json() {
    let folder = folder();
    let finished = checkpoint_of("1", &folder.path().join("store"));
    let error: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished}"));
    assert!(error["error"]["code"] == 121 && error["error"]["message"].is_string(), "{finished}");
}

#[test]
fn check_says_what_this_kernel_offers() {
    let report = run(cr().args(["check", "--json"])).json();
    assert!(report["ok"] == true && report["tracker"].is_string(), "{report}");
    let features = report["features"].as_array().expect("features");
    assert!(features.len() >= 5 && features.iter().all(|feature| feature["name"].is_string()), "{report}");
}
