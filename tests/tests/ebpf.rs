//! The eBPF hints against a process whose doings are known: what must be in the record is, what cannot be is named, and
//! the iterators agree with what the process says about itself and with `/proc`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    ops::Range,
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use cr::track::hints::{AddressSpaceId, Hints, HintsError, REGIONS, TaskEvent, WrittenRecord};
use cr_tests::{guest, note_skip, skip};
use nix::{
    libc,
    sys::{signal::Signal, uio, wait},
    unistd::Pid,
};

const PAGE: u64 = 4096;

/// What the guest does is in `guests/ebpf.c`: it obeys one command a line and answers each with one line.
struct Guest {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// `name=value` pairs of its first line.
    told: Vec<(String, u64)>,
}

impl Guest {
    fn start() -> Self {
        let mut child = Command::new(guest("ebpf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the guest can be started");
        let commands = child.stdin.take().expect("piped");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("the guest's first line");
        let told = line.split_whitespace().map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("not name=value: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line}")))
        });
        let told = told.collect();
        Self { child, commands, answers, told }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn told(&self, name: &str) -> u64 {
        self.told.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("the guest told no {name}")).1
    }

    fn page(&self, index: u64) -> u64 {
        self.told("memory") + index * PAGE
    }

    fn obey(&mut self, command: &str) -> i64 {
        writeln!(self.commands, "{command}").expect("the guest listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the guest answers");
        line.trim().parse().unwrap_or_else(|_| panic!("{command}: the guest answered {line:?}"))
    }

    fn stop(&self) {
        let pid = Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, Signal::SIGSTOP).expect("our own child");
        let status = wait::waitpid(pid, Some(wait::WaitPidFlag::WUNTRACED)).expect("our own child");
        assert!(matches!(status, wait::WaitStatus::Stopped(..)), "{status:?}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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

fn covers(record: &WrittenRecord, page: u64) -> bool {
    record.pages.iter().any(|range| range.contains(&page))
}

fn within(record: &WrittenRecord, range: &Range<u64>) -> Vec<Range<u64>> {
    record.pages.iter().filter(|pages| pages.start < range.end && range.start < pages.end).cloned().collect()
}

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock");
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
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

#[test]
fn the_record_covers_what_the_job_writes_and_nothing_else() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    for page in [3, 4, 5, 63, 64, 511, 512, 1500] {
        guest.obey(&format!("write {page}"));
    }
    guest.obey("load 9");
    let memory = guest.page(0)..guest.page(16384);
    let record = hints.drain_written(space).expect("drain");
    assert_eq!(record.lost, 0);
    let expected = [3..6, 63..65, 511..513, 1500..1501].map(|pages| guest.page(pages.start)..guest.page(pages.end));
    assert_eq!(within(&record, &memory), expected);

    // Each page is handed out once; a write that raises no new fault is not seen again, one that does is.
    guest.obey("write 3");
    guest.obey("drop 4");
    guest.obey("write 4");
    let record = hints.drain_written(space).expect("drain");
    assert_eq!(within(&record, &memory), [guest.page(4)..guest.page(5)]);
}

#[test]
fn the_record_covers_what_the_kernel_writes_for_the_job() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    assert_eq!(guest.obey("read 7"), 4096);
    assert!(covers(&hints.drain_written(space).expect("drain"), guest.page(7)));
}

/// The known blind spot: another process's write goes through `get_user_pages`, which raises no fault. The oracle sees it.
#[test]
fn the_record_is_blind_to_another_process_writing() {
    let Some(mut hints) = hints() else { return };
    let guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    let remote = uio::RemoteIoVec { base: guest.page(8) as usize, len: 4096 };
    let data = [7; 4096];
    let written =
        uio::process_vm_writev(Pid::from_raw(guest.pid()), &[std::io::IoSlice::new(&data)], &[remote]).expect("write");
    assert_eq!(written, 4096);
    let record = hints.drain_written(space).expect("drain");
    assert!(!covers(&record, guest.page(8)), "this kernel shows such writes: the list of blind spots can shrink");
    assert_eq!(record.lost, 0);
}

#[test]
fn a_process_that_is_not_followed_is_not_recorded() {
    let Some(mut hints) = hints() else { return };
    let (mut followed, mut other) = (Guest::start(), Guest::start());
    let space = hints.follow(followed.pid()).expect("follow");
    other.obey("write 3");
    followed.obey("write 4");
    let elsewhere = hints.space_of(other.pid()).expect("its address space");
    assert!(hints.drain_written(elsewhere).expect("drain").pages.is_empty());
    assert!(covers(&hints.drain_written(space).expect("drain"), followed.page(4)));

    hints.unfollow(space).expect("unfollow");
    followed.obey("write 5");
    assert_eq!(hints.drain_written(space).expect("drain"), WrittenRecord::default());
}

#[test]
fn a_full_record_says_that_it_lost_pages_and_recovers() {
    const REGION: u64 = 512;
    let Some(mut hints) = hints_with(4) else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    for region in 0..20 {
        guest.obey(&format!("write {}", region * REGION));
    }
    let record = hints.drain_written(space).expect("drain");
    assert!(record.lost > 0, "20 regions fit into 4: {record:?}");
    // The emptied record may have lost more, which the next one owns up to; then it is whole again.
    assert!(hints.drain_written(space).expect("drain").lost > 0);
    guest.obey("drop 0");
    guest.obey("write 0");
    let record = hints.drain_written(space).expect("drain");
    assert_eq!(record.lost, 0);
    assert!(covers(&record, guest.page(0)));
}

#[test]
fn nothing_is_lost_between_readings_while_the_job_writes() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    let space = hints.follow(guest.pid()).expect("follow");
    let pages = 16384;
    writeln!(guest.commands, "sweep {pages}").expect("the guest listens");
    let mut seen = std::collections::BTreeMap::<u64, u32>::new();
    let memory = guest.page(0)..guest.page(pages);
    let mut take = |hints: &mut Hints| {
        let record = hints.drain_written(space).expect("drain");
        assert_eq!(record.lost, 0);
        for range in within(&record, &memory) {
            (range.start..range.end).step_by(PAGE as usize).for_each(|page| *seen.entry(page).or_default() += 1);
        }
    };
    for _ in 0..200 {
        take(&mut hints);
    }
    let mut line = String::new();
    guest.answers.read_line(&mut line).expect("the guest answers");
    take(&mut hints);
    assert_eq!(seen.len() as u64, pages);
    assert!(seen.values().all(|times| *times == 1), "a page was handed out twice");
}

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
    assert_eq!(events[1], TaskEvent::Exit { pid: child, tid: child, last_thread: true, space });

    let thread = i32::try_from(guest.obey("thread")).expect("a tid");
    let events = events_until(&mut hints, |events| events.len() >= 2);
    assert_eq!(
        events,
        [
            TaskEvent::Fork { pid, tid: pid, child_pid: pid, child_tid: thread, space: parent },
            TaskEvent::Exit { pid, tid: thread, last_thread: false, space: parent },
        ]
    );

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

#[test]
fn the_task_iterator_tells_what_the_job_knows_about_itself() {
    let Some(hints) = hints() else { return };
    let guest = Guest::start();
    let before = monotonic_ns();
    // The sleeper is interrupted in its system call, so that the kernel keeps the time left.
    std::thread::sleep(Duration::from_millis(50));
    guest.stop();
    let tasks = hints.tasks(guest.pid()).expect("tasks");
    assert_eq!(tasks.len(), 2, "the leader and the sleeper");
    let (leader, sleeper) = (&tasks[0], &tasks[1]);
    let pid = guest.pid().cast_unsigned();
    assert_eq!((leader.record.seen_tgid, leader.record.seen_tid), (pid, pid));
    assert_eq!(u64::from(sleeper.record.seen_tid), guest.told("sleeper"));
    assert_eq!(sleeper.record.seen_tgid, pid);
    assert_eq!(sleeper.record.mm, leader.record.mm);

    assert_eq!(leader.record.clear_child_tid, guest.told("clear_child_tid"));
    assert_eq!(leader.record.robust_list, guest.told("robust_list"));
    assert_eq!(leader.record.sas_ss_sp, guest.told("altstack"));
    assert_eq!(leader.record.sas_ss_size, guest.told("altstack_size"));
    assert_eq!(leader.record.timer_slack_ns, 12345);
    assert_eq!(leader.record.pdeath_signal, libc::SIGWINCH.cast_unsigned());
    assert_eq!(leader.record.exit_signal, libc::SIGCHLD);
    assert_eq!(sleeper.record.exit_signal, -1);
    assert_eq!(leader.record.blocked, 1 << (libc::SIGUSR1 - 1));
    assert_eq!(leader.record.mm_flags & 3, 1, "dumpable");

    let actions = leader.actions.as_ref().expect("the leader's handlers");
    assert!(sleeper.actions.is_none());
    let usr2 = actions[libc::SIGUSR2 as usize - 1];
    assert_eq!(usr2.handler, guest.told("handler"));
    assert_eq!(usr2.mask, 1 << (libc::SIGHUP - 1));
    let flags = (libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK) as u64;
    assert_eq!(usr2.flags & !0x0400_0000, flags, "SA_RESTORER aside");
    assert_eq!(actions[libc::SIGPIPE as usize - 1].handler, libc::SIG_IGN as u64);
    assert_eq!(actions[libc::SIGTERM as usize - 1].handler, libc::SIG_DFL as u64);

    assert_eq!(leader.record.real_timer_armed, 1);
    assert_eq!(leader.record.real_timer_interval_ns, 500_000_000_000);
    let second = 1_000_000_000;
    assert!(leader.record.real_timer_expires_ns.abs_diff(before + 1000 * second) < 30 * second);

    let sleep = sleeper.restart_sleep();
    assert_eq!((sleep.clock, sleep.report), (libc::CLOCK_MONOTONIC, 1), "{sleep:?}");
    assert_eq!(sleep.remaining, guest.told("remaining"));
    assert!(sleep.expires_ns.abs_diff(before + 2000 * second) < 30 * second, "{sleep:?} at {before}");

    // Fields 26 to 28, 45 to 51 of stat(5) are the bounds, where the reader may trace the process.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<u64> = stat
        .rsplit_once(") ")
        .expect("stat")
        .1
        .split(' ')
        .skip(1)
        .map(|field| field.trim().parse().unwrap_or(0))
        .collect();
    let field = |number: usize| fields[number - 4];
    let [start_code, end_code, start_data, end_data, start_brk, _, start_stack, arg_start, arg_end, env_start, env_end] =
        leader.record.mm_bounds;
    assert_eq!([start_code, end_code, start_stack], [field(26), field(27), field(28)]);
    assert_eq!([start_data, end_data, start_brk], [field(45), field(46), field(47)]);
    assert_eq!([arg_start, arg_end, env_start, env_end], [field(48), field(49), field(50), field(51)]);
}

#[test]
fn the_task_iterator_tells_every_thread_of_a_crowd() {
    let Some(hints) = hints() else { return };
    let mut guest = Guest::start();
    guest.obey("crowd 300");
    let tasks = hints.tasks(guest.pid()).expect("tasks");
    let mut tids: Vec<u64> = tasks.iter().map(|task| u64::from(task.record.seen_tid)).collect();
    let folder = fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("task folder");
    let mut truth: Vec<u64> =
        folder.map(|entry| entry.expect("entry").file_name().to_string_lossy().parse().expect("a tid")).collect();
    tids.sort_unstable();
    truth.sort_unstable();
    assert_eq!(tids, truth);
    assert_eq!(tids.len(), 302);
}

#[test]
fn the_mapping_iterator_agrees_with_proc() {
    const VM_MAYSHARE: u64 = 0x80;
    let Some(hints) = hints() else { return };
    let mut guest = Guest::start();
    guest.obey("mappings 700");
    guest.stop();
    let vmas = hints.vmas(guest.pid()).expect("vmas");
    let told: Vec<String> = vmas
        .iter()
        .map(|vma| {
            let bit = |flag: u64, letter: char| if vma.flags & flag != 0 { letter } else { '-' };
            let shared = if vma.flags & VM_MAYSHARE != 0 { 's' } else { 'p' };
            let offset = if vma.has_file != 0 { vma.pgoff * PAGE } else { 0 };
            let (major, minor) = (vma.dev >> 20, vma.dev & 0xf_ffff);
            format!(
                "{:x}-{:x} {}{}{}{shared} {offset:08x} {major:02x}:{minor:02x} {}",
                vma.start,
                vma.end,
                bit(1, 'r'),
                bit(2, 'w'),
                bit(4, 'x'),
                vma.inode
            )
        })
        .collect();
    let maps = fs::read_to_string(format!("/proc/{}/maps", guest.pid())).expect("maps");
    let lines = maps.lines().filter(|line| !line.ends_with("[vsyscall]"));
    let truth: Vec<String> =
        lines.clone().map(|line| line.split_whitespace().take(5).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(told, truth);
    assert!(vmas.len() > 700);

    let named = lines.filter(|line| line.ends_with("[anon:cr-test]")).count();
    let names = vmas.iter().filter(|vma| vma.anon_name.starts_with(b"cr-test\0")).count();
    if named == 0 {
        note_skip("this kernel names no anonymous mappings: the mapping iterator's names are not compared");
    }
    assert_eq!(names, named);
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
