//! The iterators over tasks and mappings.

use std::{fs, time::Duration};

use cr::{
    procfs,
    sys::fd::compare_descriptions,
    track::iters::{Evidence, OUTWARD_LINES, Outward},
};
use cr_tests::note_skip;
use nix::libc;

use crate::{
    guest::{Guest, PAGE},
    hints,
};

/// Whatever a process may change of what it can be asked about, the evidence for its answers is different after it, or there is none
/// (with a timer that runs). Without such a change it stays the same.
#[test]
fn no_answer_changes_without_its_evidence() {
    let Some(mut hints) = hints() else { return };
    if !hints.has_evidence() {
        return note_skip("this kernel does not show all that a process's answers depend on");
    }
    let mut guest = Guest::start();
    guest.obey("change 24");
    hints.follow(guest.pid()).expect("follow");
    let evidence = || Evidence::of(&hints.followed_tasks().expect("tasks"));
    let mut tried = 0;
    for change in 0.. {
        let before = evidence();
        guest.obey("write 3");
        guest.obey("load 4");
        assert_eq!(evidence(), before, "before change {change}");
        match guest.obey(&format!("change {change}")) {
            0 => {}
            100 => break,
            _ => {
                note_skip(&format!("this kernel, or CPU, does not do change {change} of tests/guests/ebpf.c"));
                continue;
            }
        }
        tried += 1;
        let after = evidence();
        assert!(after.is_none() || after != before, "change {change} does not show");
        assert_eq!(after.is_none(), matches!(change, 19 | 21 | 23 | 25), "after change {change}: {after:?}");
    }
    assert!(tried > 20, "only {tried} changes were made");
}

/// What a checkpoint reads of a process in `/proc`, as far as the iterator's evidence is to cover it.
fn shown(pid: i32) -> Vec<String> {
    let status = procfs::Status::read(pid, pid).expect("status");
    let stat = procfs::stat(pid).expect("stat");
    let link = |name: &str| procfs::link(pid, name).expect("link").display().to_string();
    let fields = [5, 6, 26, 27, 28, 38, 45, 46, 47, 48, 49, 50, 51].map(|n| stat[n - 3].clone());
    OUTWARD_LINES
        .iter()
        .map(|key| status.get(key).to_owned())
        .chain(fields)
        .chain(["exe", "cwd", "root"].map(link))
        .collect()
}

/// Whatever changes of what others see of a process, the evidence for it is different afterwards, or there is none. Without such a
/// change it stays the same.
#[test]
fn nothing_that_proc_shows_changes_without_its_evidence() {
    let Some(mut hints) = hints() else { return };
    if !hints.shows_outward() {
        return note_skip("this kernel does not show all that /proc's answers depend on");
    }
    let mut guest = Guest::start();
    let pid = guest.pid();
    hints.follow(pid).expect("follow");
    let look = || (Outward::of(&hints.followed_tasks().expect("tasks"), 1), shown(pid));
    let mut seen = 0;
    for change in 0.. {
        // Whoever mounts something on this machine changes where all paths lead.
        let is_steady = (0..20).any(|_| {
            let before = look();
            guest.obey("write 3");
            guest.obey("load 4");
            look() == before
        });
        assert!(is_steady, "the evidence changes by itself before change {change}");
        let before = look();
        assert!(before.0.is_some() && before.1.len() == 29, "before change {change}: {before:?}");
        match guest.obey(&format!("show {change}")) {
            0 => {}
            100 => break,
            _ => {
                note_skip(&format!("change {change} of what is shown is not to be had here"));
                continue;
            }
        }
        let after = look();
        let name = hints.followed_tasks().expect("tasks")[0].record.name;
        let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
        assert_eq!(name, procfs::text(&format!("/proc/{pid}/comm")).expect("comm").trim_end_matches('\n'));
        seen += u32::from(before.1 != after.1);
        assert!(before.1 == after.1 || after.0.is_none() || before.0 != after.0, "change {change} does not show");
    }
    assert!(seen >= 12, "only {seen} changes were seen");
}

/// Every mapping changes the count that goes with them.
#[test]
fn no_mapping_changes_without_the_count() {
    let Some(mut hints) = hints() else { return };
    let mut guest = Guest::start();
    hints.follow(guest.pid()).expect("follow");
    let count = || hints.followed_tasks().expect("tasks")[0].record.mm_sequence;
    if count() == 0 {
        return note_skip("this kernel does not count changes of mappings");
    }
    for command in ["mappings 1", "change 16", "mappings 1", "change 11"] {
        let before = count();
        guest.obey("write 3");
        guest.obey("drop 3");
        assert_eq!(count(), before, "before {command}");
        guest.obey(command);
        assert_ne!(count(), before, "after {command}");
    }
}

/// The list of descriptors is that of `/proc`, and two have the same name exactly if they are the same open file description.
#[test]
fn descriptors_are_listed_as_proc_shows_them() {
    let Some(hints) = hints() else { return };
    let guest = Guest::start();
    guest.stop();
    let pid = guest.pid();
    let Some(listed) = hints.descriptors(pid).expect("descriptors") else {
        return note_skip("this kernel does not list descriptors with all that belongs to them");
    };
    let numbers: Vec<i32> = listed.iter().map(|r| r.fd.cast_signed()).collect();
    assert_eq!(numbers, procfs::descriptors(pid).expect("descriptors"));
    for one in &listed {
        let flags = procfs::fdinfo(pid, one.fd.cast_signed()).expect("fdinfo").flags;
        assert_eq!(one.cloexec != 0, flags & libc::O_CLOEXEC != 0, "fd {}", one.fd);
        for other in &listed {
            let same = compare_descriptions(pid, one.fd.cast_signed(), pid, other.fd.cast_signed()).expect("kcmp");
            assert_eq!(one.file == other.file, same.is_eq(), "fds {} and {}", one.fd, other.fd);
        }
    }
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

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock");
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}
