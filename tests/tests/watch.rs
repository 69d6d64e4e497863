//! `cr watch`: what it shows of a running job, where, and when there is none.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cr_tests::{Job, JobOptions, cr, run, skip, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn watch(args: &[&str]) -> Command {
    let mut command = cr();
    command.arg("watch").args(args);
    command
}

/// A live view whose output goes to a file.
fn follow(args: &[&str], to: &Path) -> Child {
    let out = File::create(to).expect("a file for the output");
    watch(args).stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn().expect("cr watch")
}

fn lines(of: &Path) -> Vec<String> {
    fs::read_to_string(of).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn shows_a_running_job_once() {
    let mut job = Job::start_resident("writer", &["--mib", "32", "--rate", "20"]);
    let pid = job.pid().to_string();
    let before = run(&mut watch(&[&pid, "--once", "--json"])).json();
    assert_eq!(
        (&before["taken"], &before["last"], &before["auto"]),
        (&0.into(), &Value::Null, &Value::Null),
        "{before}"
    );
    assert_eq!((&before["pid"], &before["interval_ms"]), (&job.pid().into(), &3_600_000.into()), "{before}");
    assert!(number(&before["next_ms"]) > 3_000_000.0, "{before}");
    let full = job.checkpoint();
    job.advance(3);
    let delta = job.checkpoint();
    // The job, its controller, and the store are three names for the same.
    let (store, controller) =
        (job.store().display().to_string(), job.controller_pid().expect("a controller").to_string());
    for named in [&["--store", store.as_str()][..], &[pid.as_str()], &[controller.as_str()]] {
        let shown = run(watch(named).args(["--once", "--json"])).json();
        assert_eq!(
            (&shown["pid"], &shown["taken"], &shown["failed"]),
            (&job.pid().into(), &2.into(), &0.into()),
            "{shown}"
        );
        let last = &shown["last"];
        assert_eq!(
            (&last["id"], &last["kind"], &last["stored_bytes"]),
            (&delta.id.into(), &"delta".into(), &delta.stored_bytes.into())
        );
        let frozen: Vec<f64> = shown["frozen_ms"].as_array().expect("a list").iter().map(number).collect();
        assert_eq!(frozen, [full.frozen_ms, delta.frozen_ms], "{shown}");
        assert!(number(&shown["written_mib_s"]) > 0.5 && number(&shown["faults_s"]) > 100.0, "{shown}");
        assert_eq!(
            (&shown["busy"], &shown["age_ms"], &shown["lost"]),
            (&false.into(), &0.into(), &0.into()),
            "{shown}"
        );
        assert!(shown["scans"].as_str().is_some_and(|scans| !scans.is_empty()), "{shown}");
    }
    job.finish();
}

/// One that fails, one that is slow enough to be seen under way, and its end.
#[test]
fn compactions_are_shown() {
    let options = JobOptions {
        args: ["--mib", "6", "--rate", "5"].map(str::to_owned).to_vec(),
        controller: Some("1h".into()),
        controller_args: ["--compact-after", "2", "--compact-bandwidth", "1M/s"].map(str::to_owned).to_vec(),
        env: vec![("CR_FAULT".into(), "compact.copy:error:1".into())],
        ..JobOptions::default()
    };
    let mut job = Job::start_with("writer", &options);
    let pid = job.pid().to_string();
    let shown = || run(&mut watch(&[&pid, "--once", "--json"])).json()["compaction"].clone();
    job.checkpoint();
    assert_eq!(shown(), Value::Null);
    job.advance(2);
    job.checkpoint();
    wait_until("it has failed", || shown()["state"] == "failed");
    let failed = shown();
    assert!(failed["from"] == 2 && failed["error"]["code"] == 125 && number(&failed["age_ms"]) < 60e3, "{failed}");
    let line = run(&mut watch(&[&pid, "--once"])).stdout;
    let why = failed["error"]["message"].as_str().expect("a message").replace('\n', " ");
    assert!(line.contains("compacted not 2, tried ") && line.contains(&why), "{line}");

    // Not at once: the controller waits until as many images have come again.
    job.advance(2);
    job.checkpoint();
    job.advance(2);
    job.checkpoint();
    wait_until("one is under way", || shown()["state"] == "under_way");
    let under_way = shown();
    assert!(under_way["from"] == 4 && number(&under_way["left_pages"]) > 0.0, "{under_way}");
    let line = run(&mut watch(&[&pid, "--once"])).stdout;
    assert!(line.contains("compacted 4 under way for ") && line.contains(" MiB left"), "{line}");
    wait_until("it is done", || shown()["state"] == "done");
    let done = shown();
    let image = job.store().join("00000005.cr");
    let size = fs::metadata(image).expect("the full image").len();
    assert_eq!((&done["from"], &done["id"], &done["stored_bytes"]), (&4.into(), &5.into(), &size.into()), "{done}");
    assert!(number(&done["total_ms"]) > 3000.0 && number(&done["age_ms"]) < 60e3, "{done}");
    let line = run(&mut watch(&[&pid, "--once"])).stdout;
    assert!(line.contains("compacted 4 into 5, "), "{line}");
    job.finish();
}

/// A process of the job is as good a name for it as its first.
#[test]
fn finds_the_job_by_any_of_its_processes() {
    let mut job = Job::start_foreign("sh", Command::new("setsid").args(["sh", "-c", "sleep 100 & wait"]));
    job.attach(&[]);
    job.wait_for_controller();
    wait_until("there is a child", || job.processes().len() > 1);
    let child = job.processes().into_iter().find(|pid| *pid != job.pid()).expect("just seen");
    let shown = run(&mut watch(&[&child.to_string(), "--once", "--json"])).json();
    assert_eq!(shown["pid"], job.pid());
    job.kill();
}

#[test]
fn values_move_as_the_job_writes() {
    let mut job = Job::start_resident("writer", &["--mib", "32", "--rate", "0", "--once-mib", "16"]);
    job.checkpoint();
    let out = job.folder().join("watched");
    let mut watching = follow(&[&job.pid().to_string(), "--every", "200ms", "--json"], &out);
    let peak = |from: usize| {
        let parse = |line: &String| serde_json::from_str::<Value>(line).ok()?["faults_s"].as_f64();
        lines(&out).iter().skip(from).filter_map(parse).fold(0.0, f64::max)
    };
    wait_until("there are samples of rest", || lines(&out).len() > 3);
    assert!(peak(1) < 1000.0, "at rest: {} faults/s", peak(1));
    kill(Pid::from_raw(job.pid()), Signal::SIGUSR1).expect("a signal for the job");
    // 4096 pages at once, in one sample or two.
    wait_until("the writes are seen", || peak(3) > 5000.0);
    let last =
        |name: &str| serde_json::from_str::<Value>(lines(&out).last().expect("a line")).expect("JSON")[name].clone();
    let checkpoint = job.checkpoint();
    wait_until("the checkpoint is seen", || last("last")["id"] == checkpoint.id);
    job.finish();
    // The view ends with the job.
    let mut ended = None;
    wait_until("the view has ended", || {
        ended = watching.try_wait().expect("wait for cr watch");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}

#[test]
fn is_a_plain_line_a_sample_in_a_pipe() {
    let mut job = Job::start_resident("writer", &["--mib", "4"]);
    job.checkpoint();
    let out = job.folder().join("watched");
    let mut watching = follow(&[&job.pid().to_string(), "--every", "100ms"], &out);
    wait_until("there are samples", || lines(&out).len() >= 5);
    kill(Pid::from_raw(watching.id().cast_signed()), Signal::SIGINT).expect("a signal for the view");
    assert_eq!(watching.wait().expect("cr watch ends").code(), Some(0));
    for line in lines(&out) {
        assert!(!line.chars().any(char::is_control) && line.contains(" MiB/s, "), "{line:?}");
        assert!(line.contains("last 1 full, ") && line.contains(&format!(" pid {} ", job.pid())), "{line:?}");
    }
    // Nobody reads on: then there is nobody to show anything to.
    let line = format!("{} watch {} --every 100ms | head -1", cr().get_program().display(), job.pid());
    let started = Instant::now();
    let finished = run(Command::new("sh").args(["-c", &line]));
    assert!(
        finished.expect(0).stdout.lines().count() == 1 && started.elapsed() < Duration::from_secs(10),
        "{finished}"
    );
    job.finish();
}

#[test]
fn redraws_a_terminal_and_gives_it_back() {
    const CLEAR: &str = "\x1b[H\x1b[2J";
    let mut job = Job::start_resident("writer", &["--mib", "4"]);
    job.checkpoint();
    let log = job.folder().join("terminal");
    // Ctrl-C reaches the shell, too: without the trap some shells end of it, and others wait for the view.
    let view = format!("{} watch {} --every 30s", cr().get_program().display(), job.pid());
    let line = format!("trap : INT; stty cols 60; {view}; echo ended $?");
    let script = Command::new("script")
        .env("SHELL", "/bin/sh")
        .args(["--quiet", "--flush", "--command", &line])
        .arg(&log)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut script) = script else {
        job.finish();
        skip!("no script(1) to provide a terminal");
    };
    let shown = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    wait_until("it is drawn", || shown().matches(CLEAR).count() == 1 && shown().contains("lost "));
    let view = {
        let text = run(Command::new("pgrep").args(["-f", &format!("watch {} --every 30s$", job.pid())])).stdout;
        let of = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("cr"));
        text.lines().filter_map(|pid| pid.parse::<i32>().ok()).find(of).expect("the view runs")
    };
    kill(Pid::from_raw(view), Signal::SIGWINCH).expect("a signal for the view");
    wait_until("it is redrawn", || shown().matches(CLEAR).count() == 2);
    let drawn = shown().rsplit(CLEAR).next().expect("a view").to_owned();
    assert!(drawn.lines().all(|line| line.trim_end().chars().count() <= 60), "{drawn}");
    script.stdin.as_mut().expect("it is a pipe").write_all(b"\x03").expect("Ctrl-C");
    wait_until("it has ended", || shown().contains("ended 0"));
    let _ = script.wait();
    let (after, text) = (shown().rfind("\x1b[?1049l").expect("the screen is given back"), shown());
    assert!(text.find("\x1b[?1049h").is_some_and(|entered| entered < after), "{text:?}");
    assert!(
        text[after..].contains("written ") && text[after..].contains("\x1b[?25h")
            || text.contains("\x1b[?25h\x1b[?1049l"),
        "{text:?}"
    );
    // Ctrl-C is for the view, and not for the job.
    job.advance(3);
    job.finish();
}

#[test]
fn says_when_there_is_nobody_to_ask() {
    let mut job = Job::start("writer", &["--mib", "1"]);
    let pid = job.pid().to_string();
    run(&mut watch(&[&pid, "--once"])).refuses(121, &["no controller", &pid, "cr attach"]);
    job.checkpoint();
    let store = job.store().display().to_string();
    run(&mut watch(&["--store", &store, "--once", "--json"])).refuses(121, &["no controller", &store]);
    let folder = job.dir().display().to_string();
    run(&mut watch(&["--store", &folder, "--once"])).refuses(122, &[&folder]);
    run(&mut watch(&["--store", &store, &pid])).refuses(2, &["--store"]);
    run(&mut watch(&[])).refuses(2, &["PID"]);
    run(&mut watch(&[&pid, "--every", "1ms"])).refuses(2, &["100ms"]);
    job.finish();
    run(&mut watch(&[&pid, "--once"])).refuses(121, &["no process", &pid]);
    // A controller whose job has ended is gone with it.
    let mut job = Job::start_resident("writer", &["--mib", "1"]);
    let (pid, store) = (job.pid().to_string(), job.store().display().to_string());
    job.finish();
    run(&mut watch(&[&pid, "--once", "--json"])).refuses(121, &[&pid]);
    run(&mut watch(&["--store", &store, "--once"])).refuses(121, &["no controller"]);
}

/// The controller answers at once, also in the middle of a checkpoint: with what it last knew, and says so.
#[test]
fn is_answered_during_a_checkpoint() {
    let mut job = Job::start_resident("writer", &["--mib", "256", "--rate", "20"]);
    let status = || cr::supervise::status(&job.store()).expect("an answer").expect("a controller");
    let known = status();
    assert!(!known.busy && known.activity.is_some() && known.activity_age_ms < 5000, "{known:?}");
    let mut checkpoint = job.checkpoint_command().stdout(Stdio::null()).spawn().expect("cr checkpoint");
    let mut busy = 0;
    while checkpoint.try_wait().expect("wait for cr checkpoint").is_none() {
        let asked = Instant::now();
        let status = status();
        assert!(asked.elapsed() < Duration::from_secs(1), "the answer took {:?}", asked.elapsed());
        if status.busy {
            busy += 1;
            let (now, then) = (status.activity.expect("as before"), known.activity.clone().expect("just seen"));
            assert!(now.write_faults >= then.write_faults, "{now:?} after {then:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(busy > 0, "a full checkpoint of 256 MiB was over too soon to be seen");
    let after = status();
    assert!(!after.busy && after.taken == 1, "{after:?}");
    job.finish();
}
