//! Programs that we did not write, through a chain of three deltas and more, compared with an uninterrupted run to the byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cr_tests::{Job, install, run, skip, work_through_a_chain};

/// Works until there is a file of that name, or for so many steps.
const PYTHON: &str = r#"
import collections, hashlib, itertools, os, random, sys
random.seed(20090)
tables = [collections.OrderedDict() for _ in range(4)]
digest = hashlib.sha256()
end, most = sys.argv[1], int(sys.argv[2])
for step in itertools.count():
    table = tables[step % 4]
    key = random.getrandbits(64)
    table[key] = [key * k % 1000003 for k in range(20)]
    if len(table) > 4000:
        old, values = table.popitem(last=False)
        digest.update(repr((old, sum(values))).encode())
    if step % 20000 == 0 and (step == most or os.path.exists(end)):
        break
print(step, "steps:", digest.hexdigest(), random.random())
"#;

fn python() -> Option<PathBuf> {
    let python = Path::new("/usr/bin/python3");
    python.exists().then(|| python.to_owned())
}

#[test]
fn cpython() {
    let Some(python) = python() else { skip!("no /usr/bin/python3") };
    let folder = tempfile::tempdir().expect("a folder");
    let (script, end) = (folder.path().join("work.py"), folder.path().join("end"));
    fs::write(&script, PYTHON).expect("the script");
    let line = |most: &str| {
        let mut command = Command::new(&python);
        command.arg(&script).arg(&end).arg(most);
        command
    };
    let mut job = Job::start_foreign("python3", &mut line("-1"));
    work_through_a_chain(&mut job, Duration::from_millis(250), || fs::write(&end, "").expect("the end"));
    let interrupted = job.stdout();
    let steps = interrupted.split(' ').next().unwrap_or_default();
    fs::remove_file(&end).expect("the next one is not to end at once");
    let alone = run(&mut line(steps));
    alone.expect(0);
    assert_eq!(interrupted, alone.stdout, "the interrupted run printed something else");
}

/// xz with two threads: liblzma's worker threads, a pipe of its own, plain files.
#[test]
fn multi_threaded_xz() {
    if run(Command::new("xz").arg("--version")).code != Some(0) {
        skip!("no xz");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input");
    fs::write(&input, compressible(24 << 20)).expect("the input");
    let line = || {
        let mut command = Command::new("xz");
        command.args(["--threads=2", "--block-size=2MiB", "-7", "--keep", "--stdout"]).arg(&input);
        command
    };
    let alone = folder.path().join("alone.xz");
    let output = fs::File::create(&alone).expect("the output of the run alone");
    let status = line().stdout(output).status().expect("xz");
    assert!(status.success());
    let mut job = Job::start_foreign("xz", &mut line());
    work_through_a_chain(&mut job, Duration::from_millis(300), || ());
    assert_same(&job.dir().join("out.0"), &alone);
}

/// pigz with two threads; it is installed if it can be.
#[test]
fn multi_threaded_pigz() {
    if !install("pigz", &["pigz"]) {
        skip!("no pigz, and it cannot be installed");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input");
    fs::write(&input, compressible(160 << 20)).expect("the input");
    let line = || {
        let mut command = Command::new("pigz");
        command.args(["-p", "2", "-9", "--no-time", "--no-name", "--stdout"]).arg(&input);
        command
    };
    let alone = folder.path().join("alone.gz");
    let output = fs::File::create(&alone).expect("the output of the run alone");
    assert!(line().stdout(output).status().expect("pigz").success());
    let mut job = Job::start_foreign("pigz", &mut line());
    work_through_a_chain(&mut job, Duration::from_millis(200), || ());
    assert_same(&job.dir().join("out.0"), &alone);
}

/// The same bytes each time, neither random nor trivial.
fn compressible(size: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(format!("{} {:x};", state >> 52, state >> 40 & 0xfff).as_bytes());
    }
    bytes.truncate(size);
    bytes
}

#[track_caller]
fn assert_same(interrupted: &Path, alone: &Path) {
    let (interrupted, alone) = (fs::read(interrupted).expect("its output"), fs::read(alone).expect("the other output"));
    assert!(interrupted == alone, "{} bytes and {} bytes differ", interrupted.len(), alone.len());
}
