//! Sealed and signed stores, from end to end: what the job has in memory is in no file of the store, it comes back with the key and
//! not without, and root restores what its own keys have signed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cr_tests::{Finished, Job, JobOptions, cr, run, wait_until};

const GUEST: [&str; 6] = ["--mib", "4", "--threads", "2", "--rate", "20"];
/// In the environment of the job, and so in its memory.
const PATTERN: &str = "a-word-that-only-this-job-knows-0123456789";

fn keygen(option: &str, path: &Path) {
    let made = run(cr().arg("keygen").arg(option).arg(path));
    assert!(made.code == Some(0), "{made}");
    assert_eq!(fs::metadata(path).expect("a key").permissions().mode() & 0o7777, 0o600);
    run(cr().arg("keygen").arg(option).arg(path)).refuses(119, &["File exists"]);
}

/// A job that knows the pattern.
fn options() -> JobOptions {
    let args = GUEST.iter().map(ToString::to_string).collect();
    JobOptions { args, env: vec![("WORD".into(), PATTERN.into())], ..JobOptions::default() }
}

fn key_of(job: &Job) -> PathBuf {
    job.folder().join("key")
}

/// The store's files, with their names; directories too.
fn files(store: &Path) -> Vec<PathBuf> {
    let mut all = vec![store.to_owned()];
    let mut at = 0;
    while at < all.len() {
        if all[at].is_dir() {
            all.extend(fs::read_dir(&all[at]).expect("list").map(|entry| entry.expect("an entry").path()));
        }
        at += 1;
    }
    all
}

fn holds(path: &Path, word: &str) -> bool {
    path.is_file() && fs::read(path).expect("read").windows(word.len()).any(|window| window == word.as_bytes())
}

/// Nobody but the owner gets at any file, and none holds what the job knows.
#[track_caller]
fn expect_sealed(store: &Path) {
    for path in files(store) {
        let mode = fs::symlink_metadata(&path).expect("metadata").permissions().mode() & 0o7777;
        assert!(mode | 0o700 == 0o700, "{} has mode {mode:o}", path.display());
        assert!(!holds(&path, PATTERN), "{} holds what the job knows", path.display());
    }
}

fn with<'c>(command: &'c mut Command, key: &Path) -> &'c mut Command {
    command.arg("--key-file").arg(key)
}

/// A chain under a controller, with deltas, compaction and pruning; the job dies, comes back, goes on, and comes back again.
#[track_caller]
fn seal_and_back(args: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    keygen("--key-file", &key);
    let keys = key.to_string_lossy().into_owned();
    let more: Vec<&str> = ["--key-file", &keys].into_iter().chain(args.iter().copied()).collect();
    let controller_args = more.iter().map(ToString::to_string).collect();
    let mut job =
        Job::start_with("writer", &JobOptions { controller: Some("1h".into()), controller_args, ..options() });
    for n in 1..=3 {
        job.advance(3);
        // A controller has the key: whoever may ask it needs none.
        let taken = job.checkpoint();
        assert_eq!((taken.id, taken.parent), (n, (n > 1).then(|| n - 1)));
    }
    expect_sealed(&job.store());
    let verified = run(with(&mut job.cr("verify"), &key).arg("--json")).json();
    assert!(verified["ok"] == true, "{verified}");
    let compacted = run(job.cr("compact").arg("--json")).json();
    assert!(compacted["id"] == 4 && compacted["compacted_from"] == 3, "{compacted}");
    job.advance(3);
    assert_eq!(job.checkpoint().parent, Some(4));
    job.kill();

    run(&mut job.cr("restore")).refuses(119, &["is sealed: give its key by --key-file"]);
    job.restore_with(&more);
    job.advance(3);
    assert_eq!(job.checkpoint().parent, Some(5), "the chain goes on with a delta");
    let pruned = run(job.cr("prune").args(["--keep-last", "1", "--json"])).json();
    assert!(pruned["kept"].as_array().is_some_and(|kept| kept.len() == 3), "{pruned}");
    job.kill();
    job.restore_with(&more);
    job.advance(3);
    job.checkpoint();
    expect_sealed(&job.store());
    let verified = run(with(&mut job.cr("verify"), &key).arg("--json")).json();
    assert!(verified["ok"] == true, "{verified}");
    job.finish();
}

#[test]
fn a_chain_with_a_controller() {
    seal_and_back(&[]);
}

#[test]
fn a_chain_that_is_compressed() {
    seal_and_back(&["--compress", "zstd"]);
}

/// The pattern is what it is taken for: without a key, it is in the store.
#[test]
fn a_store_that_is_not_sealed_holds_it_all() {
    let mut job = Job::start_with("writer", &options());
    job.checkpoint();
    assert!(files(&job.store()).iter().any(|path| holds(path, PATTERN)), "the test looks for the wrong thing");
    let key = key_of(&job);
    keygen("--key-file", &key);
    for command in ["list", "verify", "show", "compact", "restore"] {
        run(with(&mut job.cr(command), &key)).refuses(119, &["is not sealed, and the key file"]);
    }
    run(with(&mut job.checkpoint_command(), &key)).refuses(119, &["is not sealed"]);
    job.kill();
}

#[test]
fn without_the_key_nothing_is_told() {
    let mut job = Job::start("writer", &GUEST);
    let (key, wrong, words) = (key_of(&job), job.folder().join("wrong"), job.folder().join("words"));
    keygen("--key-file", &key);
    keygen("--key-file", &wrong);
    let taken = run(with(&mut job.checkpoint_command(), &key));
    assert!(taken.code == Some(0), "{taken}\n{}", job.diagnosis());
    fs::write(&words, "correct horse\n").expect("write");
    fs::set_permissions(&words, fs::Permissions::from_mode(0o600)).expect("mode");
    let core = job.folder().join("core");
    let all = || {
        let mut export = job.cr("export");
        export.arg("--core").arg(&core);
        let mut prune = job.cr("prune");
        prune.args(["--keep-last", "1"]);
        [
            job.cr("list"),
            job.cr("verify"),
            job.cr("show"),
            job.cr("compact"),
            job.cr("restore"),
            export,
            prune,
            job.checkpoint_command(),
        ]
    };
    for mut command in all() {
        run(&mut command).refuses(119, &["is sealed: give its key by --key-file FILE"]);
    }
    for mut command in all() {
        run(with(&mut command, &wrong)).refuses(119, &["was sealed with another key file"]);
    }
    for mut command in all() {
        run(command.arg("--passphrase-file").arg(&words)).refuses(119, &["was sealed with a key file"]);
    }
    run(with(&mut job.cr("list"), &job.folder().join("none"))).refuses(119, &["none"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("mode");
    run(with(&mut job.cr("list"), &key)).refuses(119, &["is not secret: its mode is 0640"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("mode");
    run(with(&mut job.cr("list"), &key).arg("--passphrase")).refuses(2, &["--passphrase"]);
    assert!(!core.exists());
    let exported = run(with(job.cr("export").arg("--core").arg(&core), &key));
    assert!(exported.code == Some(0), "{exported}");
    job.kill();
}

#[test]
fn a_passphrase_does_as_well() {
    let mut job = Job::start("writer", &GUEST);
    let words = job.folder().join("words");
    fs::write(&words, "correct horse\nwhat follows does not count\n").expect("write");
    fs::set_permissions(&words, fs::Permissions::from_mode(0o600)).expect("mode");
    let taken = run(job.checkpoint_command().arg("--passphrase-file").arg(&words));
    assert!(taken.code == Some(0), "{taken}\n{}", job.diagnosis());
    run(&mut job.cr("list")).refuses(119, &["is sealed: give its key by --passphrase-file FILE"]);
    job.kill();
    let words = words.to_string_lossy().into_owned();
    job.restore_with(&["--passphrase-file", &words]);
    job.advance(3);
    job.finish();
}

/// What is offered in place of a damaged checkpoint is a line that works: with the key.
#[test]
fn another_checkpoint_is_offered_with_the_key() {
    let mut job = Job::start("writer", &GUEST);
    let key = key_of(&job);
    keygen("--key-file", &key);
    for _ in 0..2 {
        run(with(&mut job.checkpoint_command(), &key)).expect(0);
        job.advance(3);
    }
    job.kill();
    let image = job.store().join("00000002.cr");
    let mut bytes = fs::read(&image).expect("the image");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&image, &bytes).expect("damage");
    let offered = |finished: &Finished| {
        let said = finished.refuses(122, &["the newest intact checkpoint is 1"]).stderr.clone();
        let line = said.split_once("this restores it: ").unwrap_or_else(|| panic!("no offer\n{finished}")).1;
        line.lines().next().expect("a line").to_owned()
    };
    let restored = offered(&run(with(&mut job.cr("restore"), &key)));
    let resumed = offered(&run(with(&mut job.cr("run"), &key).args(["--resume", "--", "true", "--id"])));
    assert_eq!(restored, resumed);
    assert!(restored.ends_with(&format!(" --key-file {} --id 1", key.display())), "{restored}");
    run(Command::new("sh").args(["-c", &format!("{resumed} --detach")])).expect(0);
    job.advance(3);
    job.finish();
}

/// `cr` where root trusts the keys in a file of ours; its own file system for configuration is not touched.
fn where_root_trusts(keys: &Path, job: &Job, args: &[&str]) -> Finished {
    let line = "cat \"$0\" > \"$1/keys\" && mount -t tmpfs none /etc && mkdir /etc/cr && cp \"$1/keys\" /etc/cr/trusted-keys && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", line]).arg(keys).arg(job.folder()).arg(cr().get_program());
    run(command.args(["restore", "--store"]).arg(job.store()).args(args))
}

#[test]
fn root_restores_what_its_keys_have_signed() {
    let mut job = Job::start("writer", &GUEST);
    let (site, other) = (job.folder().join("site"), job.folder().join("other"));
    keygen("--sign-key", &site);
    keygen("--sign-key", &other);
    let public = |key: &Path| key.with_extension("pub").to_string_lossy().into_owned();
    let take = |by: Option<&Path>| {
        let mut command = job.checkpoint_command();
        by.map(|key| command.arg("--sign-key").arg(key));
        let taken = run(&mut command);
        assert!(taken.code == Some(0), "{taken}\n{}", job.diagnosis());
    };
    take(Some(&site));
    job.advance(2);
    take(None);
    job.advance(2);
    take(Some(&other));
    job.kill();
    let (ours, theirs) = (public(&site), public(&other));
    run(job.cr("restore").args(["--trust", &ours]))
        .refuses(119, &["checkpoint 2 is not signed, checkpoint 3 is signed by cr-ed25519 "]);
    run(job.cr("restore").args(["--id", "1", "--trust", &theirs]))
        .refuses(119, &["checkpoint 1 is signed by", "who is not trusted"]);
    where_root_trusts(Path::new(&ours), &job, &[]).refuses(119, &["checkpoint 2 is not signed", "--untrusted"]);
    assert!(!Path::new(&format!("/proc/{}", job.pid())).exists(), "something was started");

    job.restore_with(&["--id", "1", "--trust", &ours, "--sign-key", &site.to_string_lossy()]);
    job.advance(3);
    assert_eq!(job.checkpoint().parent, Some(1));
    let compacted = run(job.cr("compact").arg("--json")).json();
    assert!(compacted["compacted_from"] == 4, "{compacted}");
    job.advance(3);
    job.checkpoint();
    job.kill();
    job.restore_with(&["--trust", &theirs, "--trust", &ours]);
    job.advance(3);
    wait_until("it lives", || Path::new(&format!("/proc/{}", job.pid())).exists());
    job.finish();
}
