//! Stores in a bucket: chains that outlive their node, and a server that is killed in the middle and comes back. The server is
//! `s3s-fs`, a real one that keeps its objects in files; between it and `cr` stands a proxy, which counts what `cr` is given and
//! can kill the server at a byte.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cr_tests::{Bucket, Finished, Job, JobOptions, cr, run, run_for, skip, tool, wait_until};
use serde_json::Value;

const BUCKET: &str = "checkpoints";
const MIB: u64 = 1 << 20;
/// A job that rewrites a third of its memory when it is told to.
const GUEST: [&str; 6] = ["--mib", "24", "--rate", "0", "--once-mib", "8"];

/// An S3 server behind a proxy.
struct Server {
    program: PathBuf,
    root: tempfile::TempDir,
    inner: u16,
    outer: u16,
    process: Arc<Mutex<Option<Child>>>,
    /// Bytes that came from the server.
    given: Arc<AtomicU64>,
    /// Bytes that may still come from it before it is killed; negative: all.
    left: Arc<AtomicI64>,
}

impl Server {
    /// Not started yet; none if there is no such program.
    fn new() -> Option<Self> {
        let root = tempfile::Builder::new().prefix("cr-s3-").tempdir().expect("a folder for the server");
        fs::create_dir(root.path().join(BUCKET)).expect("a bucket");
        let free = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = |listener: &TcpListener| listener.local_addr().expect("its port").port();
        let inner = port(&free());
        let listener = free();
        let server = Self {
            program: tool("s3s-fs")?,
            root,
            inner,
            outer: port(&listener),
            process: Arc::default(),
            given: Arc::default(),
            left: Arc::new(AtomicI64::new(-1)),
        };
        let (process, given, left) = (server.process.clone(), server.given.clone(), server.left.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is not there looks like that from outside, too.
                let Ok(server) = TcpStream::connect(("127.0.0.1", inner)) else { continue };
                let (from_client, to_server) =
                    (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                thread::spawn(move || relay(from_client, to_server, |_| true));
                let (process, given, left) = (process.clone(), given.clone(), left.clone());
                thread::spawn(move || {
                    relay(server, client, |bytes| {
                        given.fetch_add(bytes, Ordering::Relaxed);
                        let before = left.load(Ordering::Relaxed);
                        if before < 0 {
                            return true;
                        }
                        let now = before - bytes as i64;
                        left.store(now.max(0), Ordering::Relaxed);
                        if now <= 0 {
                            kill(&process);
                        }
                        now > 0
                    });
                });
            }
        });
        Some(server)
    }

    fn started() -> Option<Self> {
        let server = Self::new()?;
        server.start();
        Some(server)
    }

    fn start(&self) {
        self.left.store(-1, Ordering::Relaxed);
        let mut command = Command::new(&self.program);
        command.args(["--host", "127.0.0.1", "--port", &self.inner.to_string()]);
        command.args(["--access-key", "tester", "--secret-key", "well known"]).arg(self.root.path());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
        *self.process.lock().expect("no panic") = Some(child);
        wait_until("the server listens", || TcpStream::connect(("127.0.0.1", self.inner)).is_ok());
    }

    fn kill(&self) {
        kill(&self.process);
    }

    /// It is killed once it has given so many bytes more.
    fn kill_after(&self, bytes: u64) {
        self.left.store(bytes as i64, Ordering::Relaxed);
    }

    fn is_dead(&self) -> bool {
        self.process.lock().expect("no panic").is_none()
    }

    fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// A prefix in the bucket.
    fn prefix(&self, name: &str) -> Bucket {
        let env = [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.outer)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", "tester".into()),
            ("AWS_SECRET_ACCESS_KEY", "well known".into()),
            ("AWS_REGION", "us-east-1".into()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Bucket { url: format!("s3://{BUCKET}/{name}"), env }
    }

    /// The names of a prefix's objects.
    fn objects(&self, name: &str) -> Vec<String> {
        let Ok(folder) = fs::read_dir(self.root.path().join(BUCKET).join(name)) else { return Vec::new() };
        folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The checkpoints that are there.
    fn ids(&self, name: &str) -> Vec<u64> {
        let mut ids: Vec<u64> =
            self.objects(name).iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        ids.sort_unstable();
        ids
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn kill(process: &Mutex<Option<Child>>) {
    if let Some(mut child) = process.lock().expect("no panic").take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Copies from one to the other as long as it is allowed.
fn relay(mut from: TcpStream, mut to: TcpStream, mut allow: impl FnMut(u64) -> bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut bytes) {
        if n == 0 || !allow(n as u64) || to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn start(bucket: &Bucket, more: &[&str]) -> Job {
    let options = JobOptions {
        args: GUEST.map(String::from).to_vec(),
        controller: Some("1h".into()),
        controller_args: more.iter().map(ToString::to_string).collect(),
        env: bucket.env.clone(),
        bucket: Some(bucket.clone()),
        ..JobOptions::default()
    };
    Job::start_with("writer", &options)
}

/// The job rewrites the next 8 MiB of its memory.
fn rewrite(job: &Job) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(job.pid()), nix::sys::signal::Signal::SIGUSR1).expect("a signal");
    job.advance(3);
}

/// The node dies, and all that was on it.
fn lose_the_node(job: &mut Job) {
    job.kill();
    fs::remove_dir_all(job.store()).expect("the spool is gone");
}

fn in_bucket(bucket: &Bucket, command: &str, args: &[&str]) -> Finished {
    let mut cr = cr();
    cr.arg(command).args(["--store", &bucket.url]).args(args).envs(bucket.env.iter().cloned());
    run(&mut cr)
}

fn state(spool: &Path) -> Value {
    let text = fs::read(spool.join("bucket.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn journal(spool: &Path) -> String {
    fs::read_to_string(spool.join("log.jsonl")).unwrap_or_default()
}

#[test]
fn a_chain_outlives_its_node_twice() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("twice");
    let mut job = start(&bucket, &[]);
    for id in 1..=4 {
        let taken = job.checkpoint();
        assert_eq!((taken.id, taken.is_delta), (id, id > 1));
        // Whoever asks for a checkpoint is told when it is there.
        assert_eq!(server.ids("twice"), (1..=id).collect::<Vec<_>>());
        rewrite(&job);
    }
    let whole: u64 = job.list().iter().map(|c| c.stored_bytes).sum();
    lose_the_node(&mut job);
    let before = server.given();
    job.restore();
    let (given, newest) = (server.given() - before, 24 * MIB);
    assert!(given > newest && given < newest + 4 * MIB && whole > 2 * newest - MIB, "fetched {given} bytes of {whole}");
    for id in 5..=6 {
        let taken = job.checkpoint();
        assert!(taken.id == id && taken.is_delta, "the chain goes on: {taken:?}");
        rewrite(&job);
    }
    job.verify();
    lose_the_node(&mut job);
    job.restore();
    job.finish();
}

#[test]
fn the_server_dies_in_the_middle_of_an_upload() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("upload");
    // Three parts of 8 MiB and some more take six seconds.
    let mut job = start(&bucket, &["--upload-bandwidth", "4M/s"]);
    let mut asked = job.checkpoint_command().stdout(Stdio::null()).spawn().expect("cr checkpoint");
    let under_way = |job: &Job| state(&job.store())["under_way"].clone();
    let parts = |job: &Job| {
        let parts = under_way(job)["parts"].clone();
        parts.as_array().map_or(0, |parts| parts.iter().filter(|part| !part.is_null()).count())
    };
    wait_until("a part is there", || parts(&job) > 0);
    let before = under_way(&job);
    server.kill();
    wait_until("it is noticed", || journal(&job.store()).contains(r#""upload":{"error""#));
    assert!(server.ids("upload").is_empty() && under_way(&job)["upload"] == before["upload"]);
    // The job has not noticed, and its checkpoints go on.
    job.advance(5);
    server.start();
    wait_until("the upload goes on", || parts(&job) > 1 || !server.ids("upload").is_empty());
    wait_until("the checkpoint is there", || server.ids("upload") == [1]);
    assert!(asked.wait().expect("cr checkpoint").success(), "it waits for that");
    assert!(state(&job.store())["error"].is_null());
    lose_the_node(&mut job);
    job.restore();
    job.finish();
}

#[test]
fn the_server_dies_in_the_middle_of_a_restore() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let mut job = start(&server.prefix("restore"), &[]);
    job.checkpoint();
    rewrite(&job);
    job.checkpoint();
    lose_the_node(&mut job);
    server.kill_after(12 * MIB);
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("the server is dead", || server.is_dead());
            thread::sleep(Duration::from_secs(3));
            server.start();
        });
        job.restore();
    });
    job.advance(10);
    assert!(job.checkpoint().is_delta);
    job.finish();
}

#[test]
fn a_bucket_that_cannot_be_reached_holds_nobody_up() {
    let Some(server) = Server::new() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("later");
    let mut job = start(&bucket, &[]);
    let finished = run_for(&mut job.checkpoint_command(), Duration::from_secs(90));
    assert!(finished.code == Some(124) && finished.stderr.contains("not yet in s3://"), "{finished}");
    let taken: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(taken["id"], 1, "it was taken");
    assert!(journal(&job.store()).contains(r#""upload":{"error""#), "{}", journal(&job.store()));
    server.start();
    wait_until("it is uploaded", || server.ids("later") == [1]);
    job.kill();
    // Nothing is started anew for want of a network.
    server.kill();
    let mut resume = job.cr("run");
    let finished = run(resume.args(["--resume", "--", "true"]));
    assert!(finished.code == Some(124) && finished.stderr.contains("holds checkpoints up to 1"), "{finished}");
    server.start();
    job.restore();
    job.finish();
}

#[test]
fn a_watch_tells_how_far_behind_the_bucket_is() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("watched");
    let mut job = start(&bucket, &[]);
    let (pid, spool) = (job.pid().to_string(), job.store());
    let watched = |args: &[&str]| run(cr().args(["watch", &pid, "--once"]).args(args));
    let uploads = || watched(&["--json"]).json()["uploads"].clone();
    let behind = |newest: Value, waiting: u64| {
        let uploads = uploads();
        uploads["newest"] == newest && uploads["waiting"] == waiting && uploads["to"] == bucket.url.as_str()
    };
    assert!(behind(Value::Null, 0), "{}", uploads());
    job.checkpoint();
    assert!(behind(1.into(), 0) && uploads()["error"].is_null(), "{}", uploads());

    // Asked by its directory, the controller answers at once.
    server.kill();
    run(cr().args(["checkpoint", &pid, "--store"]).arg(&spool)).expect(0);
    wait_until("the trouble is told", || behind(1.into(), 1) && !uploads()["error"].is_null());
    let trouble = uploads()["error"].clone();
    let why = trouble["message"].as_str().expect("a message").to_owned();
    assert!(trouble["code"] == 124 && why.contains("Check the network"), "{trouble}");
    let line = watched(&[]).stdout;
    assert!(line.contains(&format!("newest 1, 1 waiting, to {}: ", bucket.url)) && line.contains(&why), "{line}");
    server.start();
    wait_until("it has caught up", || behind(2.into(), 0) && uploads()["error"].is_null());
    assert!(watched(&[]).stdout.contains(&format!("newest 2, 0 waiting, to {}\n", bucket.url)));

    // A controller that has the directory alone uploads nothing.
    job.kill_controller();
    run(cr().args(["attach", &pid, "--detach", "--store"]).arg(&spool)).expect(0);
    run(cr().args(["checkpoint", &pid, "--store"]).arg(&spool)).expect(0);
    assert!(behind(2.into(), 1), "{}", uploads());
    assert!(watched(&[]).stdout.contains("nobody uploads: the controller was started with --store /"));
    job.finish();
}

/// After a restore the spool has the pages that it needed. That is no damage; but damage is.
#[test]
fn a_spool_that_lacks_pages_says_so() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("lacking");
    let mut job = start(&bucket, &[]);
    for _ in 0..3 {
        job.checkpoint();
        rewrite(&job);
    }
    let spool = job.store();
    let verify = |args: &[&str]| run(cr().args(["verify", "--store"]).arg(&spool).args(args));
    let whole = verify(&["--json"]).json();
    assert!(whole["ok"] == true && whole["bucket"] == bucket.url.as_str(), "{whole}");
    lose_the_node(&mut job);
    job.restore();
    job.checkpoint();
    let lacking = verify(&["--json"]);
    let report: Value = serde_json::from_str(&lacking.stdout).expect("JSON");
    assert!(lacking.code == Some(123) && report["ok"] == false, "{lacking}");
    assert_eq!(
        (&report["problems"], &report["incomplete"], &report["newest_intact"]),
        (&Value::Array(Vec::new()), &serde_json::json!([1, 2]), &Value::from(4)),
        "{lacking}"
    );
    let said = verify(&[]);
    let words = ["4 checkpoints, 2 of them whole here", "the newest is 4", "lacks pages of checkpoints 1, 2 "];
    said.refuses(123, &words).refuses(123, &[&format!("cr verify --store {}", bucket.url)]);
    job.verify();

    // A page that is there.
    let image = spool.join("00000001.cr");
    let bytes = fs::read(&image).expect("the image");
    let at = 4096 + bytes[4096..].iter().position(|byte| *byte != 0).expect("a page");
    let file = fs::File::options().write(true).open(&image).expect("the image");
    file.write_all_at(&[bytes[at] ^ 0x10], at as u64).expect("damage");
    verify(&[]).refuses(122, &["checkpoint 1: ", "00000001.cr"]);
    file.write_all_at(&bytes[at..=at], at as u64).expect("no damage");
    verify(&["--json"]).expect(123);
    job.finish();
}

#[test]
fn two_writers_are_told_apart() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("one");
    let mut job = start(&bucket, &[]);
    job.checkpoint();
    // Another job, by another spool.
    let other = job.folder().join("other");
    let finished = in_bucket(&bucket, "run", &["--spool", other.to_str().expect("UTF-8"), "--", "true"]);
    assert!(finished.code == Some(122) && finished.stderr.contains("holds checkpoints already"), "{finished}");
    assert!(!other.exists(), "nothing was made");
    // The same job, restored elsewhere, has published a second checkpoint.
    let folder = server.root.path().join(BUCKET).join("one");
    let text = fs::read_to_string(folder.join("00000001.json")).expect("a manifest");
    let hash = serde_json::from_str::<Value>(&text).expect("JSON")["hash"].as_str().expect("a hash").to_owned();
    let theirs = hash.chars().rev().collect::<String>();
    let text = text.replace(&hash, &theirs).replace(r#""id":1"#, r#""id":2"#).replace("00000001-", "00000002-");
    fs::write(folder.join("00000002.json"), &text).expect("another manifest");
    let finished = run(&mut job.checkpoint_command());
    assert!(finished.code == Some(122) && finished.stderr.contains("another `cr` went on"), "{finished}");
    assert_eq!(fs::read_to_string(folder.join("00000002.json")).expect("a manifest"), text, "theirs stays");
    job.advance(5);
    job.finish();
}

#[test]
fn commands_work_in_a_bucket() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("a/deep/prefix");
    let mut job = start(&bucket, &[]);
    for _ in 0..3 {
        job.checkpoint();
        rewrite(&job);
    }
    let listed = in_bucket(&bucket, "list", &["--json"]).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    let shown = in_bucket(&bucket, "show", &["--id", "2", "--json"]).json();
    assert_eq!((&shown["id"], &shown["pid"]), (&Value::from(2), &Value::from(job.pid())), "{shown}");
    let verified = in_bucket(&bucket, "verify", &["--json"]).json();
    assert!(verified["ok"] == true && verified["newest_intact"] == 3, "{verified}");
    let core = job.folder().join("core");
    in_bucket(&bucket, "export", &["--core", core.to_str().expect("UTF-8")]).expect(0);
    assert!(core.exists());
    // The controller compacts the spool, and the bucket follows; so with pruning.
    run(&mut job.cr("compact")).expect(0);
    assert_eq!(server.ids("a/deep/prefix"), [1, 2, 3, 4]);
    run(job.cr("prune").args(["--keep-last", "1"])).expect(0);
    assert_eq!(server.ids("a/deep/prefix"), [4]);
    assert_eq!(server.objects("a/deep/prefix").len(), 3, "{:?}", server.objects("a/deep/prefix"));
    lose_the_node(&mut job);
    job.restore();
    job.finish();
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let Some(server) = Server::started() else { skip!("no s3s-fs; `cargo xtask setup` builds it") };
    let bucket = server.prefix("nothing");
    let said = |bucket: &Bucket, code: i32, words: &str| {
        let finished = in_bucket(bucket, "list", &[]);
        assert!(finished.code == Some(code) && finished.stderr.contains(words), "{code}, {words}\n{finished}");
        assert_eq!(finished.stderr.trim().lines().count(), 1, "{finished}");
    };
    said(&bucket, 122, "holds no checkpoint store");
    said(&Bucket { url: "s3://no-such-bucket/x".into(), ..bucket.clone() }, 122, "there is no bucket");
    let mut env = bucket.env.clone();
    env.push(("AWS_SECRET_ACCESS_KEY".into(), "wrong".into()));
    said(&Bucket { env, ..bucket.clone() }, 124, "access is denied");
    said(
        &Bucket { url: "s3://key:secret@bucket/x".into(), ..bucket.clone() },
        2,
        "credentials belong into the environment",
    );
    server.kill();
    said(&bucket, 124, "Check the network");
}
