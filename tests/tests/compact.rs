//! `cr compact`, and compaction by the controller: one full image of the newest checkpoint, which is the same job, whatever happens at
//! the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cr_tests::{Finished, Job, JobOptions, run, skip, wait_until};

const GUEST: [&str; 6] = ["--mib", "4", "--threads", "2", "--rate", "20"];

fn compact(job: &Job) -> Finished {
    run(job.cr("compact").arg("--json"))
}

/// Compacts, which must make checkpoint `id` of checkpoint `from`, made up of `images`.
#[track_caller]
fn expect_compacted(job: &Job, id: u64, from: u64, images: u64) {
    let finished = compact(job);
    assert!(finished.code == Some(0), "{finished}\n{}", job.diagnosis());
    let report = finished.json();
    assert_eq!((report["id"].as_u64(), report["compacted_from"].as_u64()), (Some(id), Some(from)), "{finished}");
    assert_eq!(report["images"], images, "{finished}");
    job.verify();
}

/// What each checkpoint was compacted from, if it was: number and number.
fn compacted(job: &Job) -> Vec<(u64, u64)> {
    let list = run(job.cr("list").arg("--json")).json();
    let rows = list.as_array().expect("an array").iter();
    rows.filter_map(|row| Some((row["id"].as_u64()?, row["compacted_from"].as_u64()?))).collect()
}

fn leftovers(job: &Job) -> Vec<PathBuf> {
    let files = fs::read_dir(job.store()).into_iter().flatten().flatten().map(|file| file.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "tmp")).collect()
}

/// The job dies, and its newest checkpoint is as it was.
#[track_caller]
fn die_and_come_back(job: &mut Job) {
    job.kill();
    job.restore();
    job.advance(3);
}

/// Under a controller: compacted, a delta on that, compacted again; restored, and the same once more, with all that is old removed.
#[track_caller]
fn compact_and_back(name: &str, args: &[&str]) {
    let mut job = Job::start_resident(name, args);
    for _ in 0..3 {
        job.advance(3);
        job.checkpoint();
    }
    expect_compacted(&job, 4, 3, 3);
    job.advance(3);
    assert_eq!(job.checkpoint().parent, Some(4), "the next delta builds on the full image");
    expect_compacted(&job, 6, 5, 2);
    die_and_come_back(&mut job);
    assert_eq!(job.checkpoint().parent, Some(6));
    expect_compacted(&job, 8, 7, 2);
    let pruned = run(job.cr("prune").args(["--keep-last", "1", "--json"])).json();
    assert_eq!((pruned["kept"][0]["id"].as_u64(), pruned["kept"].as_array().map(Vec::len)), (Some(8), Some(1)));
    die_and_come_back(&mut job);
    assert_eq!(job.checkpoint().parent, Some(8));
    die_and_come_back(&mut job);
    job.verify();
    job.finish();
}

/// A test for each of some guests, which have all kinds of state that records tell of, and content spaces of all kinds.
macro_rules! guests {
    ($($test:ident = $guest:literal $args:expr;)*) => {
        $(#[test]
        fn $test() {
            compact_and_back($guest, &$args);
        })*
    };
}

guests! {
    writer = "writer" GUEST;
    random_memory = "random_memory" [];
    every_mapping = "memory" [];
    files = "files" [];
    queues = "queues" [];
    shared_memory_of_a_tree = "tree_memory" ["shared-memory"];
    pages_shared_by_fork = "tree_memory" ["cow"];
    descriptors_of_a_tree = "tree_shares" ["shared-fds"];
}

#[test]
fn without_a_controller() {
    let mut job = Job::start("writer", &GUEST);
    run(&mut job.cr("compact")).refuses(122, &["is not a checkpoint store"]);
    for _ in 0..3 {
        job.advance(3);
        job.checkpoint();
    }
    expect_compacted(&job, 4, 3, 3);
    let again = compact(&job);
    assert!(again.json()["compacted_from"].is_null() && again.json()["id"] == 4, "{again}");
    let said = run(&mut job.cr("compact"));
    assert!(said.code == Some(0) && said.stdout.contains("nothing to compact"), "{said}");
    let list = run(&mut job.cr("list"));
    assert!(list.stdout.contains("compacted from 3"), "{list}");
    let shown = run(&mut job.cr("show"));
    assert!(shown.stdout.contains("4, a full (compacted from 3)"), "{shown}");
    assert_eq!(compacted(&job), [(4, 3)]);
    // A checkpoint without a controller compares all memory with the chain.
    job.advance(3);
    assert_eq!(job.checkpoint().parent, Some(4));
    die_and_come_back(&mut job);
    job.finish();
}

/// A chain has at most 16 images for long, and the job's next delta builds on what was made of them.
#[test]
fn a_controller_compacts_a_long_chain_by_itself() {
    let mut job = Job::start_resident("writer", &GUEST);
    for id in 1..=16 {
        assert_eq!(job.checkpoint().id, id);
        assert!(compacted(&job).is_empty(), "too early");
    }
    wait_until("the chain is compacted", || compacted(&job) == [(17, 16)]);
    job.verify();
    assert_eq!(leftovers(&job), Vec::<PathBuf>::new());
    job.advance(3);
    let next = job.checkpoint();
    assert_eq!((next.id, next.parent), (18, Some(17)));
    die_and_come_back(&mut job);
    // The chain goes on to be counted by the controller of the restored job.
    for _ in 0..14 {
        job.checkpoint();
    }
    wait_until("the chain is compacted again", || compacted(&job) == [(17, 16), (33, 32)]);
    die_and_come_back(&mut job);
    job.finish();
}

/// Checkpoints that are due or asked for while the chain is compacted are not kept waiting, and are taken along.
#[test]
fn checkpoints_go_first_and_are_taken_along() {
    let args = ["--compact-after", "3", "--compact-bandwidth", "1M/s"].map(str::to_owned).to_vec();
    let options = JobOptions {
        args: ["--mib", "16", "--threads", "2", "--rate", "5"].map(str::to_owned).to_vec(),
        controller: Some("1h".into()),
        controller_args: args,
        ..JobOptions::default()
    };
    let mut job = Job::start_with("writer", &options);
    for _ in 0..6 {
        let start = Instant::now();
        let last = job.checkpoint().id;
        // Compacting takes sixteen seconds.
        assert!(last <= 3 || start.elapsed() < Duration::from_secs(12), "checkpoint {last} took {:?}", start.elapsed());
        job.advance(2);
    }
    wait_until("the chain is compacted", || !compacted(&job).is_empty());
    let (made, from) = compacted(&job)[0];
    assert!(
        made == from + 1 && from > 3,
        "checkpoint {made} is made from {from}: not the newest, or none came meanwhile"
    );
    job.verify();
    let newest = job.list().last().map(|newest| newest.id);
    assert_eq!(job.checkpoint().parent, newest);
    die_and_come_back(&mut job);
    job.finish();
}

/// A job whose checkpoints come faster than a compaction takes is compacted all the same.
#[test]
fn a_job_with_checkpoints_all_the_time_is_compacted_too() {
    let args = ["--compact-after", "4", "--compact-bandwidth", "4M/s"].map(str::to_owned).to_vec();
    let options = JobOptions {
        args: ["--mib", "8", "--rate", "2"].map(str::to_owned).to_vec(),
        controller: Some("200ms".into()),
        controller_args: args,
        ..JobOptions::default()
    };
    let mut job = Job::start_with("writer", &options);
    wait_until("it is compacted", || !compacted(&job).is_empty());
    job.verify();
    die_and_come_back(&mut job);
    job.finish();
}

#[test]
fn never_by_itself_if_told_so() {
    let options = JobOptions {
        args: GUEST.map(str::to_owned).to_vec(),
        controller: Some("1h".into()),
        controller_args: vec!["--compact-after".into(), "0".into()],
        ..JobOptions::default()
    };
    let mut job = Job::start_with("writer", &options);
    for _ in 0..20 {
        job.checkpoint();
    }
    assert!(job.list().len() == 20 && compacted(&job).is_empty(), "{:?}", compacted(&job));
    job.finish();
    run(job.cr("compact").args(["--bandwidth", "fast"])).refuses(2, &["--bandwidth"]);
}

/// While somebody compacts, readers see the store as it was, and who would write is told to wait; when he dies, nothing is left.
#[test]
fn readers_and_writers_meanwhile() {
    let mut job = Job::start("writer", &["--mib", "16", "--rate", "20"]);
    for _ in 0..3 {
        job.advance(2);
        job.checkpoint();
    }
    job.kill();
    let mut compacting = job.cr("compact");
    compacting.args(["--bandwidth", "1M/s"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut compacting = compacting.spawn().expect("cr compact");
    wait_until("it has begun", || !leftovers(&job).is_empty());
    job.verify();
    assert!(job.list().len() == 3 && run(&mut job.cr("show")).code == Some(0));
    let pid = compacting.id().to_string();
    run(job.cr("restore").arg("--detach")).refuses(122, &["in use", &pid]);
    compacting.kill().and_then(|()| compacting.wait()).expect("it is killed");
    assert_eq!(leftovers(&job), [job.store().join("compacted.tmp")]);
    job.restore();
    assert_eq!(leftovers(&job), Vec::<PathBuf>::new(), "the next writer removes it");
    job.finish();
}

/// The restore comes first: who wants to compact is answered by the controller that the job then has.
#[test]
fn asked_for_in_the_middle_of_a_restore() {
    let mut job = Job::start("writer", &["--mib", "64", "--rate", "20"]);
    for _ in 0..3 {
        job.advance(2);
        job.checkpoint();
    }
    job.kill();
    let mut compacting = job.cr("compact");
    compacting.stdout(Stdio::null());
    let restored = std::thread::scope(|scope| {
        let compacting = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            compacting.status().expect("cr compact")
        });
        job.restore();
        compacting.join().expect("no panic")
    });
    assert!(restored.success(), "{restored}");
    assert_eq!(compacted(&job), [(4, 3)]);
    assert_eq!(job.checkpoint().parent, Some(4));
    die_and_come_back(&mut job);
    job.finish();
}

/// It dies or fails at each point of it: the store is as it was or has the whole image, and the next try succeeds.
#[test]
fn killed_or_failed_at_each_point() {
    let mut job = Job::start("writer", &GUEST);
    for _ in 0..2 {
        job.checkpoint();
        job.advance(3);
    }
    let points = ["compact.copy", "compact.copy:2", "compact.publish", "compact.published"];
    for (point, how) in points.iter().flat_map(|point| [(point, "kill"), (point, "error")]) {
        let (name, pass) = point.split_once(':').unwrap_or((point, "1"));
        let before = job.list().len();
        let finished = run(job.cr("compact").env("CR_FAULT", format!("{name}:{how}:{pass}")));
        let code = if how == "kill" { 128 + 9 } else { 125 };
        assert!(finished.code == Some(code), "{point}:{how}\n{finished}");
        let published = *point == "compact.published";
        assert_eq!(job.list().len(), before + usize::from(published), "{point}:{how}");
        job.verify();
        // The next writer removes what is left.
        job.advance(2);
        job.checkpoint();
        assert_eq!(leftovers(&job), Vec::<PathBuf>::new(), "{point}:{how}");
    }
    assert_eq!(compact(&job).code, Some(0));
    die_and_come_back(&mut job);
    job.finish();
}

/// SIGKILL of the controller, at no particular moment of a compaction.
#[test]
fn a_controller_is_killed_in_the_middle() {
    let mut job = Job::start("writer", &["--mib", "8", "--rate", "20"]);
    let mut made = 0;
    for round in 0..8_u64 {
        job.attach(&[]);
        job.wait_for_controller();
        job.checkpoint();
        job.advance(1);
        job.checkpoint();
        let mut compacting = job.cr("compact");
        compacting.stdout(Stdio::null()).stderr(Stdio::null());
        let mut compacting = compacting.spawn().expect("cr compact");
        std::thread::sleep(Duration::from_millis(round * 6));
        job.kill_controller();
        wait_until("who had asked has ended", || compacting.try_wait().expect("wait").is_some());
        job.verify();
        let now = compacted(&job).len();
        made = now.max(made);
    }
    println!("{made} of 8 compactions were in time");
    job.checkpoint();
    assert_eq!(leftovers(&job), Vec::<PathBuf>::new());
    job.verify();
    die_and_come_back(&mut job);
    job.finish();
}

/// A file system for as long as this lives.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(args: &[&str], at: &Path) -> Result<Mounted, String> {
    fs::create_dir_all(at).expect("the mount point");
    let mounted = run(Command::new("mount").args(args).arg(at));
    if mounted.code == Some(0) { Ok(Mounted(at.to_owned())) } else { Err(mounted.stderr) }
}

/// There is no room for a full image: nothing is left of it, the chain goes on, and the controller does not try again and again.
#[test]
fn on_a_full_disk() {
    let options =
        JobOptions { args: ["--mib", "16", "--rate", "5"].map(str::to_owned).to_vec(), ..JobOptions::default() };
    let mut job = Job::start_with("writer", &options);
    let _disk = match mount(&["-t", "tmpfs", "-o", "size=30M", "small"], &job.store()) {
        Ok(disk) => disk,
        Err(why) => skip!("no small file system: {why}"),
    };
    job.attach(&[]);
    job.wait_for_controller();
    for _ in 0..3 {
        job.checkpoint();
        job.advance(1);
    }
    for _ in 0..2 {
        compact(&job).refuses(124, &["space"]);
        assert_eq!(leftovers(&job), Vec::<PathBuf>::new());
        job.verify();
    }
    let next = job.checkpoint();
    assert_eq!((next.id, next.parent), (4, Some(3)));
    job.kill_controller();
    compact(&job).refuses(124, &["space"]);
    assert_eq!(leftovers(&job), Vec::<PathBuf>::new());
    die_and_come_back(&mut job);
    job.finish();
}

/// Where the file system can share pages between files, they are not copied.
#[test]
fn pages_are_shared_where_the_file_system_can() {
    let mut job = Job::start("writer", &["--mib", "32", "--rate", "0"]);
    let image = job.folder().join("xfs");
    fs::File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("a file for the file system");
    match Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image).status() {
        Ok(status) if status.success() => (),
        other => skip!("no mkfs.xfs: {other:?}"),
    }
    let _disk = match mount(&["-o", "loop", &image.to_string_lossy()], &job.store()) {
        Ok(disk) => disk,
        Err(why) => skip!("no XFS: {why}"),
    };
    for _ in 0..4 {
        job.checkpoint();
        job.advance(2);
    }
    let finished = compact(&job);
    let report = finished.json();
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("no {name}\n{finished}"));
    // Short runs between pages that were written are copied.
    assert!(number("shared_pages") > number("copied_pages"), "{finished}");
    assert_eq!(number("shared_pages") + number("copied_pages"), number("stored_pages"), "{finished}");
    job.verify();
    run(job.cr("prune").args(["--keep-last", "1"])).expect(0);
    job.verify();
    die_and_come_back(&mut job);
    job.finish();
}

/// Memory for pages on their way is bounded, whatever there is to compact. The limit is on all data of the process.
#[test]
fn memory_is_bounded() {
    let mut job = Job::start("writer", &["--mib", "160", "--rate", "5"]);
    for _ in 0..2 {
        job.checkpoint();
        job.advance(1);
    }
    let line = "ulimit -d 65536 && exec \"$0\" \"$@\"";
    let compacting = job.cr("compact");
    let mut limited = Command::new("sh");
    limited.args(["-c", line]).arg(compacting.get_program()).args(compacting.get_args());
    limited.args(["--memory-limit", "16M", "--json"]);
    let finished = run(&mut limited);
    assert!(finished.code == Some(0) && finished.json()["compacted_from"] == 2, "{finished}");
    job.verify();
    die_and_come_back(&mut job);
    job.finish();
}

#[test]
fn damage_is_refused() {
    let mut job = Job::start_resident("writer", &["--mib", "4", "--rate", "0"]);
    for _ in 0..3 {
        job.checkpoint();
        job.advance(2);
    }
    // The middle of the first image is pages, none of which was written since.
    let path = job.store().join("00000001.cr");
    let mut bytes = fs::read(&path).expect("the image");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).expect("damaged");
    for _ in 0..2 {
        compact(&job).refuses(122, &["00000001.cr is damaged"]);
        assert!(compacted(&job).is_empty() && leftovers(&job).is_empty());
    }
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).expect("repaired");
    expect_compacted(&job, 4, 3, 3);
    die_and_come_back(&mut job);
    job.finish();
}
