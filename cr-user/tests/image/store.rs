//! The directory: who may use it, what is in it, and what is wrong with it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use cr::image::{self, IndexInfo, PAGE_SIZE};
use cr::store::{Chain, Error, LOCK, MARKER, Store};

use crate::{KNOWN, new_store, publish};

#[test]
fn a_store_is_made_once_and_found_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("a/b");
    assert!(matches!(Store::open_existing(&path, KNOWN), Err(Error::NoStore { .. })));
    let made = Store::create_or_open(&path, KNOWN).expect("made");
    assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(path.join(MARKER)).expect("metadata").permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(&path).expect("list").count(), 1, "only the marker");
    assert_eq!(Store::create_or_open(&path, KNOWN).expect("found").job(), made.job());
    assert_eq!(Store::open_existing(&path, KNOWN).expect("found").job(), made.job());
    assert!(matches!(Chain::open(&made, None), Err(Error::Empty { .. })));
    assert!(matches!(Chain::open(&made, Some(3)), Err(Error::NoCheckpoint { id: 3, .. })));
}

#[test]
fn makers_of_one_store_agree_on_its_job() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().expect("tempdir");
        let jobs = std::thread::scope(|scope| {
            let threads = (0..8).map(|_| scope.spawn(|| Store::create_or_open(dir.path(), KNOWN).expect("made").job()));
            let threads = threads.collect::<Vec<_>>();
            threads.into_iter().map(|thread| thread.join().expect("join")).collect::<Vec<_>>()
        });
        let real = Store::open_existing(dir.path(), KNOWN).expect("made").job();
        assert!(jobs.iter().all(|job| *job == real), "{jobs:?}, {real}");
    }
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::write(dir.path().join("thesis.tex"), "…").expect("write");
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let error = Store::create_or_open(dir.path(), KNOWN).expect_err("not ours");
    assert!(matches!(&error, Error::Foreign { found, .. } if found == "thesis.tex"), "{error}");
    assert_eq!(error.exit_code(), 122);
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "nothing was put there");
    assert_eq!(fs::metadata(dir.path()).expect("metadata").permissions().mode() & 0o777, 0o755);
    let error = Store::create_or_open(&dir.path().join("thesis.tex"), KNOWN).expect_err("no directory");
    assert_eq!(error.exit_code(), 122, "{error}");
}

#[test]
fn a_marker_that_is_newer_or_nonsense_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::create_or_open(dir.path(), KNOWN).expect("made");
    let newer = format!(r#"{{"format":3,"job":{{"id":"{}"}}}}"#, store.job());
    // A sealed store that holds no key, and a key in one that is not sealed.
    let keyless = format!(r#"{{"format":2,"job":"{}"}}"#, store.job());
    let seal = r#"{"cipher":"aes-256-gcm","from":"key-file","salt":"","wrapped":""}"#;
    let unsealed = format!(r#"{{"format":1,"job":"{}","seal":{seal}}}"#, store.job());
    let cases = [
        newer.as_str(),
        &keyless,
        &unsealed,
        "",
        "{}",
        "[1,2]",
        r#"{"format":1}"#,
        r#"{"format":1,"job":"XY"}"#,
        "\0\0\0",
    ];
    for (number, text) in cases.into_iter().enumerate() {
        fs::write(dir.path().join(MARKER), text).expect("write");
        for error in [Store::open_existing(dir.path(), KNOWN), Store::create_or_open(dir.path(), KNOWN)] {
            let error = error.expect_err(text);
            let newer = matches!(error, Error::OtherFormat { found: 3, known: 2, .. });
            assert_eq!((newer, error.exit_code()), (number == 0, 122), "{text}: {error}");
        }
    }
}

/// What stands in its place may have no end, or nobody who writes to it.
#[test]
fn a_marker_that_cannot_be_read_through_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let marker = dir.path().join(MARKER);
    File::create(&marker).expect("create").set_len(1 << 40).expect("a hole");
    let error = Store::open_existing(dir.path(), KNOWN).expect_err("no marker is as large");
    assert!(matches!(error, Error::BadMarker { .. }), "{error}");
    fs::remove_file(&marker).expect("remove");
    nix::unistd::mkfifo(&marker, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
    let error = Store::open_existing(dir.path(), KNOWN).expect_err("it is a FIFO").to_string();
    assert!(error.contains("cr-store.json") && error.contains("not a regular file"), "{error}");
}

#[test]
fn the_lock_keeps_a_second_writer_out_and_names_the_first() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    publish(&writer, None, 1);
    let unpublished = writer.begin().expect("begin");
    let error = writer.store().lock().expect_err("taken");
    let pid = std::process::id();
    assert!(matches!(error, Error::Locked { pid: Some(holder), .. } if holder == pid), "{error}");
    assert!(error.to_string().contains(&format!("pid {pid}")) && error.exit_code() == 122, "{error}");
    assert!(dir.path().join("00000002.cr.tmp").exists(), "a refused writer removes nothing");
    Chain::open(writer.store(), None).expect("readers need no lock");
    drop(unpublished);
    let store = writer.store().clone();
    drop(writer);
    assert_eq!(fs::read(dir.path().join(LOCK)).expect("read"), b"");
    store.lock().expect("free again");
}

#[test]
fn the_lock_holds_against_another_process() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::create_or_open(dir.path(), KNOWN).expect("made");
    let mut holder = Command::new("flock")
        .arg("--no-fork")
        .arg(dir.path().join(LOCK))
        .args(["sh", "-c", "echo 4711 > \"$0\"; echo locked; exec sleep 60"])
        .arg(dir.path().join(LOCK))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("flock (util-linux)");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().expect("stdout")), &mut line)
        .expect("a line");
    let error = store.lock().expect_err("taken");
    holder.kill().and_then(|()| holder.wait()).expect("kill");
    assert!(matches!(error, Error::Locked { pid: Some(4711), .. }), "{error}");
}

#[test]
fn leftovers_go_when_the_next_writer_comes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    let parent = publish(&writer, None, 1);
    drop(writer);
    for name in ["00000002.cr.tmp", "x.tmp", "log.jsonl", "00000007.cr.bak", "7.cr", "000000007.cr"] {
        fs::write(dir.path().join(name), "x").expect("write");
    }
    let store = Store::open_existing(dir.path(), KNOWN).expect("open");
    assert_eq!(store.ids().expect("ids"), [1], "other names are no checkpoints");
    assert!(dir.path().join("x.tmp").exists(), "readers remove nothing");
    let writer = store.lock().expect("lock");
    assert!(!dir.path().join("x.tmp").exists() && !dir.path().join("00000002.cr.tmp").exists());
    assert!(dir.path().join("log.jsonl").exists());
    assert_eq!(publish(&writer, Some(parent), 2).id, 2);
}

#[test]
fn a_published_checkpoint_is_never_replaced() {
    let dir = tempfile::tempdir().expect("tempdir");
    let writer = new_store(dir.path());
    let finished = writer.begin().expect("begin").finish(IndexInfo::default()).expect("finish");
    fs::write(writer.store().image_path(1), "older").expect("write");
    let error = writer.publish(finished).expect_err("taken");
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(fs::read(writer.store().image_path(1)).expect("read"), b"older");
    assert!(!dir.path().join("00000001.cr.tmp").exists());
}

/// A store with the chains 1 ← 2 ← 3 and 1 ← 4 (after going back to 1).
fn branched(dir: &Path) -> Store {
    let writer = new_store(dir);
    let first = publish(&writer, None, 1);
    let second = publish(&writer, Some(first), 2);
    publish(&writer, Some(second), 3);
    publish(&writer, Some(first), 4);
    writer.store().clone()
}

/// Numbers with problems, and the newest intact one, from the full and the quick search, which must agree.
fn verify(store: &Store) -> (Vec<u64>, Option<u64>, String) {
    let report = store.verify(2).expect("verify");
    let quick = store.newest_intact(2).expect("search");
    assert_eq!(quick.newest_intact, report.newest_intact);
    let text = report.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(report.problems.iter().all(|problem| problem.error.exit_code() == 122), "{text}");
    (report.problems.iter().map(|problem| problem.id).collect(), report.newest_intact, text)
}

#[test]
fn an_intact_store_has_no_problems() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = branched(dir.path());
    assert!(store.verify(1).expect("verify").is_ok());
    assert_eq!(verify(&store).1, Some(4));
    let ids = |id| Chain::open(&store, Some(id)).expect("chain").images().iter().map(image::Image::id).collect();
    let (branch, chain): (Vec<u64>, Vec<u64>) = (ids(4), ids(3));
    assert_eq!((branch, chain), (vec![4, 1], vec![3, 2, 1]));
}

#[test]
fn a_missing_parent_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = branched(dir.path());
    fs::remove_file(store.image_path(2)).expect("remove");
    let (bad, newest, text) = verify(&store);
    assert_eq!((bad, newest), (vec![3], Some(4)), "{text}");
    let error = Chain::open(&store, Some(3)).expect_err("missing");
    assert!(matches!(error, Error::MissingParent { child: 3, parent: 2, .. }), "{error}");
    fs::remove_file(store.image_path(1)).expect("remove");
    assert_eq!(verify(&store).1, None);
}

#[test]
fn a_swapped_parent_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = branched(dir.path());
    let [one, two, aside] = [store.image_path(1), store.image_path(2), dir.path().join("aside")];
    fs::rename(&one, &aside)
        .and_then(|()| fs::rename(&two, &one))
        .and_then(|()| fs::rename(&aside, &two))
        .expect("swap");
    let error = Chain::open(&store, None).expect_err("swapped");
    assert!(matches!(error, Error::Misnamed { id: 2, .. }), "{error}");
    let (bad, newest, text) = verify(&store);
    assert_eq!((bad, newest), (vec![1, 2, 3, 4], None), "{text}");
}

#[test]
fn a_parent_of_the_same_number_and_job_is_told_apart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let other = tempfile::tempdir().expect("tempdir");
    let store = branched(dir.path());
    fs::copy(dir.path().join(MARKER), other.path().join(MARKER)).expect("copy");
    let writer = new_store(other.path());
    let parent = publish(&writer, None, 77);
    publish(&writer, Some(parent), 78);
    fs::copy(writer.store().image_path(2), store.image_path(2)).expect("copy");
    let error = Chain::open(&store, Some(3)).expect_err("another");
    assert!(matches!(error, Error::OtherParent { child: 3, parent: 2, .. }), "{error}");
    let (bad, newest, text) = verify(&store);
    assert_eq!((bad, newest), (vec![2, 3], Some(4)), "{text}");
}

#[test]
fn an_image_of_another_job_is_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let other = tempfile::tempdir().expect("tempdir");
    let (store, stranger) = (branched(dir.path()), branched(other.path()));
    fs::copy(stranger.image_path(2), store.image_path(2)).expect("copy");
    let error = Chain::open(&store, Some(3)).expect_err("another job's");
    assert!(matches!(error, Error::OtherJob { found, .. } if found == stranger.job()), "{error}");
    assert_eq!(verify(&store).0, [2, 3]);
}

#[test]
fn a_damaged_page_spoils_what_builds_on_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = branched(dir.path());
    let file = OpenOptions::new().write(true).open(store.image_path(2)).expect("open");
    file.write_all_at(&[0], PAGE_SIZE as u64 + 5).expect("damage");
    let (bad, newest, text) = verify(&store);
    assert_eq!((bad, newest), (vec![2, 3], Some(4)), "{text}");
    assert!(text.contains("checkpoint 3 in") && text.contains("builds on checkpoint 2, which cannot"), "{text}");
    fs::remove_file(store.image_path(4)).expect("remove");
    assert_eq!(verify(&store).1, Some(1));
}

#[test]
fn a_full_disk_leaves_the_chain_as_it_was() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: mounting a small tmpfs needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "cr-test"]).arg(dir.path()).output();
    let mount = mount.expect("mount(8)");
    if !mount.status.success() {
        println!("skipped: cannot mount a small tmpfs here: {}", String::from_utf8_lossy(&mount.stderr).trim());
        return;
    }
    let outcome = std::panic::catch_unwind(|| fill_disk(&dir.path().join("store")));
    Command::new("umount").arg(dir.path()).status().expect("umount(8)");
    outcome.expect("as above");
}

fn fill_disk(path: &Path) {
    let writer = new_store(path);
    let parent = publish(&writer, None, 1);
    let image = writer.begin().expect("begin");
    let error = image.put(&vec![1; 2 << 20]).expect_err("2 MiB do not fit");
    assert!(matches!(error, image::Error::DiskFull { .. }) && error.exit_code() == 124, "{error}");
    image.finish(IndexInfo::default()).expect_err("an image with a failed write is not finished");
    assert!(!path.join("00000002.cr.tmp").exists());

    // Also when it is the metadata that does not fit.
    let image = writer.begin().expect("begin");
    image.record(crate::FILES, vec![1; 2 << 20]).expect("kept in memory");
    let error = image.finish(IndexInfo::default()).expect_err("2 MiB do not fit");
    assert!(matches!(error, image::Error::DiskFull { .. }), "{error}");
    assert!(!path.join("00000002.cr.tmp").exists());

    let id = publish(&writer, Some(parent), 2).id;
    assert_eq!(verify(writer.store()).1, Some(id));
}
