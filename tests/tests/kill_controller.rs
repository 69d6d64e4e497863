//! The controller dies, or a step of its work fails, at every point that `cr fault-points` names. The job must go on undisturbed, and
//! the next checkpoint must be right: the restored guest compares every page.
//!
//! `CR_FAULT=POINT:kill` makes `cr` kill itself with SIGKILL when it comes to the point, `CR_FAULT=POINT:error` makes that step fail;
//! `:2` after either picks the second pass of the point.

use cr_tests::{Finished, Job, cr, process_exists, run, wait_until};

const GUEST: [&str; 6] = ["--mib", "4", "--threads", "2", "--rate", "20"];

/// Has the job stand still before the frozen window too, which else only large ones do.
const STRICT: (&str, &str) = ("CR_AUDIT", "pages");

fn points() -> Vec<String> {
    let points: Vec<String> = run(cr().arg("fault-points")).expect(0).stdout.lines().map(str::to_owned).collect();
    assert!(points.len() >= 8, "too few points: {points:?}");
    points
}

fn killed(finished: &Finished) -> bool {
    finished.code == Some(128 + 9)
}

/// The job goes on, the next checkpoint succeeds, and it is right.
#[track_caller]
fn expect_unharmed(job: &mut Job, what: &str) {
    eprintln!("after {what}:");
    job.advance(3);
    job.checkpoint();
    job.advance(3);
    job.kill();
    job.verify();
    job.restore();
    job.advance(3);
    job.finish();
}

/// Runs `fault` for each point; at least `least` of them must have struck. Says which did.
fn at_each_point(least: usize, mut fault: impl FnMut(&str) -> bool) -> Vec<String> {
    let struck: Vec<String> = points().into_iter().filter(|point| fault(point)).collect();
    assert!(struck.len() >= least, "only {struck:?} struck");
    struck
}

#[test]
fn killed_in_a_checkpoint() {
    at_each_point(4, |point| {
        let mut job = Job::start("writer", &GUEST);
        let finished = run(job.checkpoint_command().env("CR_FAULT", format!("{point}:kill")));
        assert!(killed(&finished) || finished.code == Some(0), "{point}\n{finished}");
        if killed(&finished) {
            expect_unharmed(&mut job, &format!("kill at {point}"));
        } else {
            job.finish();
        }
        killed(&finished)
    });
}

#[test]
fn error_in_a_checkpoint() {
    at_each_point(4, |point| {
        let mut job = Job::start("writer", &GUEST);
        let finished = run(job.checkpoint_command().env("CR_FAULT", format!("{point}:error")));
        let failed = finished.code != Some(0);
        if failed {
            assert!(matches!(finished.code, Some(120..=125)), "{point}\n{finished}");
            finished.refuses(finished.code.unwrap_or_default(), &[]);
            expect_unharmed(&mut job, &format!("error at {point}"));
        } else {
            job.finish();
        }
        failed
    });
}

/// A resident controller that dies when it passes a point for the first time: while it attaches or takes the full checkpoint.
#[test]
fn resident_controller_killed_in_its_first_checkpoint() {
    at_each_point(4, |point| resident_controller_killed(&format!("{point}:kill:1")));
}

/// A resident controller that dies when it passes a point for the second time: while it takes a delta.
#[test]
fn resident_controller_killed_in_a_delta() {
    let struck = at_each_point(4, |point| resident_controller_killed(&format!("{point}:kill:2")));
    assert!(struck.iter().any(|point| point == "precopy.still"), "the job did not stand still twice: {struck:?}");
}

fn resident_controller_killed(fault: &str) -> bool {
    let mut job = Job::start("writer", &GUEST);
    job.attach(&[("CR_FAULT", fault), STRICT]);
    job.wait_for_controller();
    for _ in 0..2 {
        run(&mut job.checkpoint_command()); // once the controller is dead, it is taken without one
        job.advance(2);
    }
    let struck = !job.controller_pid().is_some_and(|pid| process_exists(pid) && !is_zombie(pid));
    if struck {
        job.kill_controller();
        expect_unharmed(&mut job, fault);
    } else {
        job.finish();
    }
    struck
}

/// A resident controller for which one step of a delta fails keeps what was dirty and holds the job on: the same controller's next
/// checkpoint is right, and a delta.
#[test]
fn error_in_a_resident_delta() {
    at_each_point(3, |point| {
        let mut job = Job::start("writer", &GUEST);
        let fault = format!("{point}:error:2");
        job.attach(&[("CR_FAULT", &fault), STRICT]);
        job.wait_for_controller();
        let codes: Vec<Option<i32>> = std::iter::repeat_with(|| {
            let code = run(&mut job.checkpoint_command()).code;
            job.advance(2);
            code
        })
        .take(3)
        .collect();
        assert!(codes[2] == Some(0), "{fault}: exit codes {codes:?}\n{}", job.diagnosis());
        let struck = codes.iter().any(|&code| code != Some(0));
        if struck {
            assert!(codes.iter().all(|code| matches!(code, Some(0 | 120..=125))), "{fault}: exit codes {codes:?}");
            assert!(job.list().last().is_some_and(|last| last.is_delta), "{fault}: {:?}", job.list());
            expect_unharmed(&mut job, &fault);
        } else {
            job.finish();
        }
        struck
    });
}

/// `cr restore` that dies or fails half-way leaves nothing behind (or a job that is whole), and the next one succeeds.
#[test]
fn killed_or_failed_in_a_restore() {
    let mut job = Job::start("writer", &GUEST);
    job.checkpoint();
    job.advance(3);
    job.checkpoint();
    job.kill();
    at_each_point(4, |point| {
        let mut struck = false;
        for fault in ["kill", "error"] {
            let finished = run(job.cr("restore").arg("--detach").env("CR_FAULT", format!("{point}:{fault}")));
            struck |= finished.code != Some(0);
            if finished.code == Some(0) {
                job.advance(1);
                job.kill();
                continue;
            }
            assert!(killed(&finished) || matches!(finished.code, Some(120..=125)), "{point}:{fault}\n{finished}");
            let what = format!("{fault} at {point}: nothing is left of the half-restored job");
            wait_until(&what, || !process_exists(job.pid()));
        }
        struck
    });
    job.after_death();
    job.restore();
    job.advance(3);
    job.finish();
}

/// SIGKILL from outside, at no particular point: while the job runs, and while a checkpoint is being taken.
#[test]
fn resident_controller_killed_from_outside() {
    for delay in [0, 3, 6, 12, 25, 50] {
        let mut job = Job::start_resident("writer", &["--mib", "32", "--rate", "100"]);
        job.checkpoint();
        let mut delta = job.checkpoint_command().stdout(std::process::Stdio::null()).spawn().expect("cr checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(delay));
        job.kill_controller();
        wait_until("the client of the dead controller has ended", || delta.try_wait().expect("wait").is_some());
        expect_unharmed(&mut job, &format!("SIGKILL of the controller after {delay} ms"));
    }
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
