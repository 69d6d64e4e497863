//! Files that changed between checkpoint and restore: what may be undone is undone and named, everything else is an error that
//! names the file, before anything is restored.

use std::fs;
use std::path::Path;

use cr_tests::{Job, JobOptions, guest, process_exists, run};

fn grown_by_hand(path: &Path) -> u64 {
    let size = fs::metadata(path).expect("the file").len();
    let mut text = fs::read(path).expect("the file");
    text.extend_from_slice(b"written after the checkpoint\n");
    // In place: the inode must stay.
    fs::File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &text))
        .expect("grown");
    size
}

/// A killed `files` guest with one checkpoint; `appended.txt` has grown since.
fn killed_job_with_a_grown_file() -> (Job, std::path::PathBuf, u64) {
    let mut job = Job::start("files", &[]);
    job.advance(5);
    job.checkpoint();
    job.kill();
    let file = job.dir().join("appended.txt");
    grown_by_hand(&file);
    let size = fs::metadata(&file).expect("the file").len();
    (job, file, size)
}

#[test]
fn grown_file_is_cut_back_and_the_tail_kept() {
    let (mut job, file, size) = killed_job_with_a_grown_file();
    let finished = job.try_restore(&[]);
    finished.expect(0);
    assert!(finished.said().contains("appended.txt"), "what was cut off is not named\n{finished}");
    job.advance(3);
    let text = fs::read_to_string(&file).expect("the file");
    assert!(!text.contains("written after the checkpoint"), "{} was not cut back from {size} bytes", file.display());
    let kept = fs::read_dir(job.store().join("cut")).expect("the store's cut/ folder").flatten().any(|entry| {
        fs::read(entry.path()).is_ok_and(|tail| String::from_utf8_lossy(&tail).contains("written after the checkpoint"))
    });
    assert!(kept, "what was cut off is not in the store");
    job.finish();
}

#[test]
fn grown_file_is_kept_if_asked() {
    let (mut job, file, size) = killed_job_with_a_grown_file();
    job.try_restore(&["--files", "keep"]).expect(0);
    let grown = fs::read_to_string(&file).expect("the file");
    assert!(grown.contains("written after the checkpoint"), "{} of {size} bytes was cut back", file.display());
    job.kill(); // the guest would complain of its file, and rightly so
}

#[test]
fn grown_file_is_refused_if_asked() {
    let (mut job, file, size) = killed_job_with_a_grown_file();
    job.try_restore(&["--files", "refuse"]).refuses(123, &["appended.txt"]);
    assert!(!process_exists(job.pid()), "the job was started all the same");
    assert_eq!(fs::metadata(&file).expect("the file").len(), size, "the file was changed all the same");
    job.restore();
    job.finish();
}

/// Somebody who may write to a directory on the way puts a link there, to a file that is not the job's: it is left alone.
#[test]
fn link_in_the_way_of_a_grown_file() {
    let (mut job, file, size) = killed_job_with_a_grown_file();
    let (victim, aside) = (job.folder().join("victim"), job.dir().join("aside"));
    fs::write(&victim, vec![7; size as usize + 100]).expect("the victim");
    fs::rename(&file, &aside).expect("moved aside");
    std::os::unix::fs::symlink(&victim, &file).expect("a link");
    for mode in ["rollback", "keep"] {
        job.try_restore(&["--files", mode]).refuses(123, &["appended.txt", "a symbolic link leads to it now"]);
    }
    assert!(!process_exists(job.pid()), "the job was started all the same");
    assert_eq!(fs::metadata(&victim).expect("the victim").len(), size + 100);
    fs::rename(&aside, &file).expect("the file is back");
    job.restore();
    job.finish();
}

#[test]
fn shrunk_file() {
    let mut job = Job::start("files", &[]);
    job.advance(5);
    job.checkpoint();
    job.kill();
    let file = job.dir().join("grown.bin");
    let whole = fs::read(&file).expect("the file");
    let open = || fs::File::options().write(true).open(&file).expect("the file");
    open().set_len(10).expect("shrunk");
    for mode in ["rollback", "keep"] {
        job.try_restore(&["--files", mode]).refuses(123, &["grown.bin"]);
    }
    // Another file of the guest grew, and may be the one that is named.
    job.try_restore(&["--files", "refuse"]).refuses(123, &["the file"]);
    assert!(!process_exists(job.pid()), "the job was started all the same");
    std::io::Write::write_all(&mut open(), &whole).expect("the file is whole again");
    job.restore();
    job.finish();
}

#[test]
fn vanished_file() {
    let mut job = Job::start("files", &[]);
    job.checkpoint();
    job.kill();
    let (file, aside) = (job.dir().join("static.txt"), job.dir().join("aside"));
    fs::rename(&file, &aside).expect("the file is gone");
    job.try_restore(&[]).refuses(123, &["static.txt"]);
    assert!(!process_exists(job.pid()), "the job was started all the same");
    fs::rename(&aside, &file).expect("the file is back");
    job.restore();
    job.finish();
}

#[test]
fn vanished_working_directory() {
    let mut job = Job::start("process", &[]);
    job.checkpoint();
    job.kill();
    for name in ["one", "two"] {
        fs::rename(job.dir().join(name), job.dir().join(format!("{name}.away"))).expect("the directory is gone");
    }
    job.try_restore(&[]).refuses(123, &[&job.dir().to_string_lossy()]);
    for name in ["one", "two"] {
        fs::rename(job.dir().join(format!("{name}.away")), job.dir().join(name)).expect("the directory is back");
    }
    job.restore();
    job.finish();
}

#[test]
fn changed_executable() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("a-solver");
    fs::copy(guest("writer"), &program).expect("a program of its own");
    let options =
        JobOptions { args: vec!["--mib".into(), "1".into()], program: Some(program.clone()), ..JobOptions::default() };
    let mut job = Job::start_with("writer", &options);
    job.checkpoint();
    job.kill();
    let good = fs::read(&program).expect("the program");
    // The same size and the same name, but other code: a mapped page differs.
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&program, &bad).expect("the changed program");
    job.try_restore(&[]).refuses(123, &["a-solver"]);
    assert!(!process_exists(job.pid()), "the job was started all the same");
    // Recompiled: longer.
    fs::write(&program, [&good[..], b"more"].concat()).expect("the changed program");
    job.try_restore(&[]).refuses(123, &["a-solver"]);
    fs::remove_file(&program).expect("the program is gone");
    job.try_restore(&[]).refuses(123, &["a-solver"]);
}

/// A mapped data file that changed under a private mapping would show other contents in pages never copied.
#[test]
fn changed_mapped_file() {
    let mut job = Job::start("memory", &["--mib", "2"]);
    job.checkpoint();
    job.kill();
    let file = job.dir().join("private.bin");
    let mut bytes = fs::read(&file).expect("the file");
    bytes[5000] ^= 1;
    fs::write(&file, &bytes).expect("the changed file");
    job.try_restore(&[]).refuses(123, &["private.bin"]);
    assert!(!process_exists(job.pid()), "the job was started all the same");
    let report = run(job.cr("verify").arg("--json"));
    report.expect(0); // the chain itself is intact
}
