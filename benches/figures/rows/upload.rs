//! What an upload that is under way adds to the next checkpoint, which the job sees: two jobs, one with a store in a bucket.
//!
//! The server of S3 is a real one on this machine, with the lowest priority. In truth it is elsewhere, and takes no processor of the job's:
//! so what counts is measured while it stands still, and the other stands beside it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::Setting;
use crate::report::Row;

const WRITTEN_MIB: u64 = 64;
const BOUND: f64 = 1.05;

/// A server of S3, killed when dropped.
struct Server {
    process: Child,
    _root: TempDir,
    endpoint: String,
}

impl Server {
    fn start(setting: &Setting) -> Result<Option<Self>> {
        let Some(program) = cr_tests::tool("s3s-fs") else { return Ok(None) };
        let root = cr_bench::folder(setting.tmpfs.path())?;
        fs::create_dir(root.path().join("bucket"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(program).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", "bench", "--secret-key", "bench"]).arg(root.path());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting s3s-fs")?;
        let server = Self { process, _root: root, endpoint: format!("http://127.0.0.1:{port}") };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(start.elapsed() < Duration::from_secs(10), "s3s-fs does not listen");
            sleep(Duration::from_millis(10));
        }
        Ok(Some(server))
    }
}

impl Server {
    fn environment(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "bench"),
            ("AWS_SECRET_ACCESS_KEY", "bench"),
            ("AWS_REGION", "us-east-1"),
        ]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let Some(server) = Server::start(setting)? else {
        eprintln!("skipped: no s3s-fs; `cargo xtask setup` builds it");
        return Ok(Vec::new());
    };
    let mib = setting.args.mib;
    let options = strings(&[&"--mib", &mib, &"--rate", &0, &"--once-mib", &WRITTEN_MIB]);
    let start = |name: &str, url: Option<&str>| -> Result<(Guest, StoreDir)> {
        let store = StoreDir::within(setting.disk.path(), name)?;
        let under = match url {
            None => strings(&[&"--store", &store.arg(), &"--interval", &"1h"]),
            Some(url) => strings(&[&"--store", &url, &"--spool", &store.arg(), &"--interval", &"1h"]),
        };
        let guest = Guest::launch(setting.tmpfs.path(), Some(&under), |dir| {
            let mut command = Command::new(cr_tests::guest("writer"));
            command.arg(dir).args(&options).envs(server.environment());
            Ok(command)
        })?;
        checkpoint(guest.pid, &store, &[])?;
        Ok((guest, store))
    };
    let mut plain = start("plain", None)?;
    let mut bucket = start("spool", Some("s3://bucket/bench"))?;
    wait_until_uploaded(&bucket.1)?;

    // Of each: what the checkpoint takes, and what of it the job stands still.
    let mut taken = [(); 4].map(|()| [Samples::default(), Samples::default()]);
    for repetition in 0..=setting.args.repetitions {
        for (way, taken) in Beside::ALL.into_iter().zip(&mut taken) {
            let (guest, store) = if way == Beside::NoBucket { &mut plain } else { &mut bucket };
            let times = second_of_two(guest, store, way, &server)?;
            if way != Beside::NoBucket {
                wait_until_uploaded(store)?;
            }
            if repetition > 0 {
                taken.iter_mut().zip(times).for_each(|(samples, time)| samples.0.push(time));
            }
        }
    }
    plain.0.kill()?;
    bucket.0.kill()?;
    let row = |name: String, which: usize| {
        let [elsewhere, here, over, without] = taken.each_ref().map(|samples| &samples[which]);
        let behind = [("ms", elsewhere), ("server here ms", here), ("upload over ms", over), ("no bucket ms", without)];
        Row {
            name,
            figures: elsewhere.over(without),
            bound: BOUND,
            unit: "×",
            behind: behind.map(|(name, samples)| (name.to_owned(), samples.clone())).to_vec(),
        }
    };
    let name =
        format!("delta of {WRITTEN_MIB} MiB while the one before is uploaded: whole time over that without a bucket");
    Ok(vec![row(name, 0), row("the same: frozen time".to_owned(), 1)])
}

/// What goes on beside a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// An upload to a server that takes no processor of this machine's: it stands still for the checkpoint, with what it was sent.
    Upload,
    /// An upload to a server on this machine.
    UploadAndServer,
    /// Nothing, the upload being over.
    Nothing,
    /// Nothing. The store is no spool.
    NoBucket,
}

impl Beside {
    const ALL: [Self; 4] = [Self::Upload, Self::UploadAndServer, Self::Nothing, Self::NoBucket];
}

/// Takes two checkpoints, and measures the second: in milliseconds, its whole time and its frozen time.
fn second_of_two(guest: &mut Guest, store: &StoreDir, beside: Beside, server: &Server) -> Result<[f64; 2]> {
    guest.write_once()?;
    let first = number(&checkpoint(guest.pid, store, &[])?, "id")? as u64;
    guest.write_once()?;
    match beside {
        Beside::Upload | Beside::UploadAndServer => wait_for_upload_of(store, first)?,
        Beside::Nothing => wait_until_uploaded(store)?,
        // About as long as the others wait.
        Beside::NoBucket => sleep(Duration::from_millis(150)),
    }
    let server = Pid::from_raw(server.process.id().cast_signed());
    if beside == Beside::Upload {
        kill(server, Signal::SIGSTOP)?;
    }
    let taken = checkpoint(guest.pid, store, &[]);
    if beside == Beside::Upload {
        kill(server, Signal::SIGCONT)?;
    }
    let taken = taken?;
    Ok([number(&taken, "total_ms")?, number(&taken, "frozen_ms")?])
}

/// Parts of a checkpoint are on their way.
fn wait_for_upload_of(store: &StoreDir, id: u64) -> Result<()> {
    let under_way = |state: &Value| {
        assert!(
            state["uploaded"][id.to_string()].is_null(),
            "the upload of checkpoint {id} was over before it was seen"
        );
        let object = state["under_way"]["object"].as_str();
        object.is_some_and(|object| object.starts_with(&format!("{id:08}")))
    };
    wait_for(store, Duration::from_millis(1), under_way)
}

/// All of the store is in the bucket.
fn wait_until_uploaded(store: &StoreDir) -> Result<()> {
    let newest = fs::read_dir(store.path())?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix(".cr")?.parse::<u64>().ok()
    });
    let newest = newest.max().unwrap_or(1).to_string();
    wait_for(store, Duration::from_millis(50), |state| !state["uploaded"][&newest].is_null())
}

fn wait_for(store: &StoreDir, pause: Duration, there: impl Fn(&Value) -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let state = fs::read(store.path().join("bucket.json")).unwrap_or_default();
        let state = serde_json::from_slice(&state).unwrap_or_default();
        if there(&state) {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(120), "it is not uploaded: {state}");
        sleep(pause);
    }
}
