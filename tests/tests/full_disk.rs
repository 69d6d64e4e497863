//! A full disk: the job runs on, the old chain is intact, the temporary file is gone, and what was dirty is not forgotten.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cr_tests::{Job, JobOptions, note_skip, run};

/// A file system of a given size, for as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(at).expect("the mount point");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}M"), "small"]).arg(at));
        if mounted.code != Some(0) {
            note_skip(&format!("no small file system: {}", mounted.stderr.trim()));
            return None;
        }
        Some(Self(at.to_owned()))
    }

    /// The same on a disk, to which pages go past the page cache.
    fn mount_ext4(at: &Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(at).expect("the mount point");
        let image = at.with_extension("ext4");
        let made = fs::File::create(&image).and_then(|file| file.set_len(u64::from(mib) << 20));
        made.expect("a file for the file system");
        let steps = [
            run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)),
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at)),
        ];
        if let Some(failed) = steps.iter().find(|step| step.code != Some(0)) {
            note_skip(&format!("no small ext4: {}", failed.stderr.trim()));
            return None;
        }
        // A new store is an empty directory.
        fs::remove_dir(at.join("lost+found")).expect("an empty file system");
        Some(Self(at.to_owned()))
    }

    /// Leaves `kib` free.
    fn fill(&self, kib: usize) {
        let filler = self.0.join("filler");
        let mut size = 0;
        let chunk = vec![1_u8; 64 << 10];
        let mut file = fs::File::create(&filler).expect("the filler");
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {
            size += chunk.len();
        }
        file.set_len(size.saturating_sub(kib << 10) as u64).expect("a little room");
    }

    fn clear(&self) {
        fs::remove_file(self.0.join("filler")).expect("the filler is removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn leftovers(store: &Path) -> usize {
    let files = fs::read_dir(store).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|extension| extension == "tmp")).count()
}

/// With a resident controller the dirty set that could not be written is kept; without one the next checkpoint compares contents.
fn disk_full(resident: bool, mount: fn(&Path, u32) -> Option<SmallDisk>) {
    // The store lies at JOB/../store: mount before the job makes it.
    let options =
        JobOptions { args: ["--mib", "16", "--rate", "50"].map(str::to_owned).to_vec(), ..JobOptions::default() };
    let mut job = Job::start_with("writer", &options);
    let Some(disk) = mount(&job.store(), 100) else { return job.finish() };
    if resident {
        job.attach(&[]);
        job.wait_for_controller();
    }
    let full = job.checkpoint();
    job.advance(5);
    disk.fill(100);
    for _ in 0..3 {
        run(&mut job.checkpoint_command()).refuses(124, &["space"]);
        job.advance(5);
        assert_eq!(leftovers(&job.store()), 0, "the temporary file is still there");
    }
    assert_eq!(job.list().len(), 1, "the old chain");
    job.verify();
    disk.clear();
    let next = job.checkpoint();
    if resident {
        next.expect_delta_on(&full);
    }
    job.advance(3);
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
}

#[test]
fn without_a_controller() {
    disk_full(false, SmallDisk::mount);
}

#[test]
fn with_a_resident_controller() {
    disk_full(true, SmallDisk::mount);
}

#[test]
fn on_ext4() {
    disk_full(true, SmallDisk::mount_ext4);
}

#[test]
fn from_the_first_checkpoint_on() {
    let mut job = Job::start("writer", &["--mib", "16"]);
    let Some(disk) = SmallDisk::mount(&job.store(), 8) else { return job.finish() };
    run(&mut job.checkpoint_command()).refuses(124, &["space"]);
    assert!(leftovers(&job.store()) == 0 && !job.store().join("00000001.cr").exists(), "something was left behind");
    job.advance(5);
    drop(disk);
    job.finish();
}
