//! Forks, execs and exits.

use std::{
    io::{BufRead as _, Write as _},
    sync::Mutex,
    time::{Duration, Instant},
};

use cr::track::hints::{Hints, TaskEvent};
use nix::time::{ClockId, clock_gettime};

use crate::{guest::Guest, hints, record::covers};

#[test]
fn forks_execs_and_exits_are_told_and_followed() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let pid = guest.pid();
    let parent = hints.follow(pid).expect("follow");

    // The guest's child writes page 20 of its copy, then ends.
    let child = i32::try_from(guest.obey("fork 20")).expect("a pid");
    let ended = |events: &[TaskEvent]| {
        events.iter().any(|event| matches!(event, TaskEvent::Exit { pid, last_thread: true, .. } if *pid == child))
    };
    let events = events_until(&mut hints, ended);
    let TaskEvent::Fork { pid: by, tid, child_pid, child_tid, space } = events[0] else {
        panic!("no fork: {events:?}");
    };
    assert_eq!((by, tid, child_pid, child_tid), (pid, pid, child, child));
    assert_ne!(space, parent);
    assert!(covers(&hints.drain_written(space).expect("drain"), guest.page(20)), "the child was not followed");
    let TaskEvent::Exit { at, .. } = events[1] else { panic!("no exit: {events:?}") };
    assert_eq!(events[1], TaskEvent::Exit { pid: child, tid: child, last_thread: true, space, at });
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the time"));
    let is_recent = now.checked_sub(at).is_some_and(|ago| ago < Duration::from_secs(60));
    assert!(is_recent, "it ended at {at:?}, and now it is {now:?}");

    let thread = i32::try_from(guest.obey("thread")).expect("a tid");
    let events = events_until(&mut hints, |events| events.len() >= 2);
    let [fork, TaskEvent::Exit { pid: of, tid, last_thread: false, space, .. }] = events[..] else {
        panic!("not a fork and an exit: {events:?}");
    };
    assert_eq!(fork, TaskEvent::Fork { pid, tid: pid, child_pid: pid, child_tid: thread, space: parent });
    assert_eq!((of, tid, space), (pid, thread, parent));

    // The new image is the guest again, which says its first line again.
    writeln!(guest.commands, "exec").expect("the guest listens");
    let mut line = String::new();
    guest.answers.read_line(&mut line).expect("the guest's first line");
    let execs = |events: &[TaskEvent]| events.iter().any(|event| matches!(event, TaskEvent::Exec { .. }));
    let events = events_until(&mut hints, execs);
    let exec = events.iter().find_map(|event| match event {
        TaskEvent::Exec { pid, old, new } => Some((*pid, *old, *new)),
        _ => None,
    });
    let (by, old, new) = exec.expect("an exec");
    assert_eq!((by, old), (pid, parent));
    assert_ne!(new, parent);
    assert_eq!(hints.space_of(pid).expect("its address space"), new);
    let record = hints.drain_written(new).expect("drain");
    assert!(!record.pages.is_empty(), "the new image is not followed");

    drop(guest);
    let gone = |events: &[TaskEvent]| {
        events.iter().any(|event| matches!(event, TaskEvent::Exit { pid: of, last_thread: true, .. } if *of == pid))
    };
    events_until(&mut hints, gone);
}

/// What the programs say reaches the `log` crate, with nothing but calls to [`Hints`]: no runtime, no thread.
#[test]
fn what_the_programs_log_reaches_the_log_crate() {
    static LOGGED: Logged = Logged(Mutex::new(Vec::new()));
    log::set_logger(&LOGGED).expect("no other test sets a logger");
    // The programs log what the level was when they were loaded.
    log::set_max_level(log::LevelFilter::Debug);
    let loaded = hints();
    log::set_max_level(log::LevelFilter::Off);
    let Some(mut hints) = loaded else { return };
    let mut guest = Guest::start();
    hints.follow(guest.pid()).expect("follow");
    let child = guest.obey("fork 1");
    events_until(&mut hints, |events| events.len() >= 2);
    hints.flush_logs();
    let said = format!("pid {} forked pid {child}", guest.pid());
    let logged = LOGGED.0.lock().expect("the log");
    assert!(logged.iter().any(|line| line.starts_with(&said)), "{said}: {logged:?}");
}

struct Logged(Mutex<Vec<String>>);

impl log::Log for Logged {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().expect("the log").push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Waits for events that come a little later than what caused them.
fn events_until(hints: &mut Hints, done: impl Fn(&[TaskEvent]) -> bool) -> Vec<TaskEvent> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut events = Vec::new();
    while !done(&events) {
        assert!(Instant::now() < deadline, "the events did not come: {events:?}");
        events.extend(hints.events().expect("events"));
        std::thread::sleep(Duration::from_millis(5));
    }
    events
}
