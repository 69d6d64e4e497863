//! A guest under `cr`: started, checkpointed, killed, restored, and asked for its verdict.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use crate::tree::{MARK, Tree};
use crate::{Finished, LIMIT, close_inherited, cr, guest, note_skip, run};

/// How a job is started.
#[derive(Clone, Default)]
pub struct JobOptions {
    /// Arguments after DIR.
    pub args: Vec<String>,
    /// Stay in the session and process group of the test, as a job started from a shell does.
    pub shared_session: bool,
    /// Standard input is a pipe whose other end the test holds.
    pub piped_stdin: bool,
    /// Start it under `cr run --interval` with this interval.
    pub controller: Option<String>,
    /// Arguments for `cr run`, before `--`.
    pub controller_args: Vec<String>,
    /// Environment of `cr` (and so of the job, under a controller).
    pub env: Vec<(String, String)>,
    /// This program instead of the guest's own file.
    pub program: Option<PathBuf>,
    /// Its checkpoints go to a bucket, and [`Job::store`] is its spool.
    pub bucket: Option<Bucket>,
}

/// A place in a bucket.
#[derive(Clone)]
pub struct Bucket {
    /// Its URL.
    pub url: String,
    /// The way there, in the environment of `cr`.
    pub env: Vec<(String, String)>,
}

/// A running or killed job, with its folder and its store. Dropping it kills what still runs.
pub struct Job {
    folder: tempfile::TempDir,
    name: String,
    bucket: Option<Bucket>,
    pid: i32,
    process: Option<Child>,
    controller: Option<Child>,
    spawned: u32,
    verdict_seen: bool,
    defect_wanted: bool,
}

impl Job {
    /// Starts a guest in a session of its own and waits until it is ready.
    #[track_caller]
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::start_with(name, &JobOptions { args: strings(args), ..JobOptions::default() })
    }

    /// Starts a guest under `cr run` with an interval so long that only asked-for checkpoints are taken.
    #[track_caller]
    pub fn start_resident(name: &str, args: &[&str]) -> Self {
        let options = JobOptions { args: strings(args), controller: Some("1h".into()), ..JobOptions::default() };
        Self::start_with(name, &options)
    }

    /// Starts a guest under a controller that compares in each checkpoint what it takes to be unchanged (`CR_AUDIT`: `what`) with a look
    /// at everything, and fails where that makes a difference.
    #[track_caller]
    pub fn start_audited(name: &str, args: &[&str], what: &str) -> Self {
        let (args, controller) = (strings(args), Some("1h".into()));
        let env = vec![("CR_AUDIT".into(), what.into())];
        Self::start_with(name, &JobOptions { args, controller, env, ..JobOptions::default() })
    }

    /// Starts a guest as the options say and waits until it is ready.
    #[track_caller]
    pub fn start_with(name: &str, options: &JobOptions) -> Self {
        let mut job = Self::without_process(name);
        job.bucket.clone_from(&options.bucket);
        let program = options.program.clone().unwrap_or_else(|| guest(name));
        let mut command = if let Some(interval) = &options.controller {
            let mut command = job.cr("run");
            command.args(["--interval", interval]);
            command.args(&options.controller_args).arg("--").arg(&program);
            command
        } else if options.shared_session {
            Command::new(&program)
        } else {
            let mut command = Command::new("setsid"); // execs in place: the child is no group leader
            command.arg(&program);
            command
        };
        // The solver has no positional DIR.
        if name == "solver" {
            command.arg("--dir");
        }
        command.arg(job.dir()).args(&options.args).envs(options.env.iter().cloned());
        let child = job.spawn(&mut command, if options.piped_stdin { Stdio::piped() } else { Stdio::null() });
        if options.controller.is_some() {
            job.controller = Some(child);
        } else {
            job.process = Some(child);
        }
        job.wait("it is ready", |job| job.read_link("ready").is_some());
        job.pid = job.read_link("ready").and_then(|pid| pid.parse().ok()).expect("the guest says its pid");
        if options.controller.is_some() {
            job.wait("its controller listens", |job| job.store().join("control.sock").exists());
        }
        job
    }

    /// A program that is no guest, started directly; its output goes to `out.0` and `err.0` in [`Job::dir`], its working directory.
    #[track_caller]
    pub fn start_foreign(name: &str, command: &mut Command) -> Self {
        let mut job = Self::without_process(name);
        let child = job.spawn(command, Stdio::null());
        job.pid = child.id().cast_signed();
        job.process = Some(child);
        job
    }

    fn without_process(name: &str) -> Self {
        close_inherited();
        let folder = tempfile::Builder::new().prefix("cr-test-").tempdir().expect("a folder for the job");
        let job = Self {
            folder,
            name: name.into(),
            bucket: None,
            pid: 0,
            process: None,
            controller: None,
            spawned: 0,
            verdict_seen: false,
            defect_wanted: false,
        };
        fs::create_dir(job.dir()).expect("the guest's folder");
        // Guests give up root.
        fs::set_permissions(job.folder.path(), fs::Permissions::from_mode(0o755)).expect("mode of the job's folder");
        fs::set_permissions(job.dir(), fs::Permissions::from_mode(0o777)).expect("mode of the guest's folder");
        job
    }

    /// Standard output and error go to `out.N` and `err.N`, N counting what was spawned.
    fn spawn(&mut self, command: &mut Command, stdin: Stdio) -> Child {
        let number = self.spawned;
        self.spawned += 1;
        let file = |name: &str| File::create(self.dir().join(format!("{name}.{number}"))).expect("an output file");
        command
            .current_dir(self.dir())
            .env(MARK, self.mark())
            .stdin(stdin)
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// What marks the processes of this job among all others.
    fn mark(&self) -> String {
        self.folder.path().to_string_lossy().into_owned()
    }

    // ------------------------------------------------------------------------------------------------ what can be asked

    /// The job's pid; it stays the same over restores.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The folder that the guest gets as DIR.
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("job")
    }

    /// The folder that holds the job's folder and its store: room for what a test needs besides.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The store of the job's chain. It is made by `cr`.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The pid of the resident controller that the test started.
    pub fn controller_pid(&self) -> Option<i32> {
        self.controller.as_ref().map(|child| child.id().cast_signed())
    }

    /// The steps taken so far.
    pub fn step(&self) -> u64 {
        fs::metadata(self.dir().join("step")).map_or(0, |metadata| metadata.len())
    }

    /// What the job has written to standard output since it was first started.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.dir().join("out.0")).unwrap_or_default()
    }

    /// A thing that the guest says by a link in its folder.
    pub fn read_link(&self, name: &str) -> Option<String> {
        fs::read_link(self.dir().join(name)).ok().map(|target| target.to_string_lossy().into_owned())
    }

    /// `cr SUBCOMMAND … --store STORE`, to be completed.
    pub fn cr(&self, subcommand: &str) -> Command {
        let mut command = cr();
        command.arg(subcommand).arg("--store");
        match &self.bucket {
            None => command.arg(self.store()),
            Some(bucket) => command.arg(&bucket.url).arg("--spool").arg(self.store()).envs(bucket.env.iter().cloned()),
        };
        command
    }

    // ------------------------------------------------------------------------------------------------ checkpoints

    /// `cr checkpoint PID --store STORE --json`, to be completed and run.
    pub fn checkpoint_command(&self) -> Command {
        let mut command = self.cr("checkpoint");
        command.arg(self.pid.to_string()).arg("--json");
        command
    }

    /// Takes a checkpoint; it must succeed.
    #[track_caller]
    pub fn checkpoint(&self) -> Checkpoint {
        let finished = run(&mut self.checkpoint_command());
        assert!(finished.code == Some(0), "cr checkpoint failed\n{finished}\n{}", self.diagnosis());
        let checkpoint = Checkpoint::parse(&finished.json());
        assert!(checkpoint.pid == self.pid, "the checkpoint is of pid {}, not of {}", checkpoint.pid, self.pid);
        checkpoint
    }

    /// The chain, as `cr list --json` gives it.
    #[track_caller]
    pub fn list(&self) -> Vec<Checkpoint> {
        let list = run(self.cr("list").arg("--json")).json();
        list.as_array().expect("an array of checkpoints").iter().map(Checkpoint::parse).collect()
    }

    /// `cr verify` must find nothing wrong.
    #[track_caller]
    pub fn verify(&self) {
        let report = run(self.cr("verify").arg("--json")).json();
        assert!(report["ok"] == Value::Bool(true), "cr verify: {report}");
    }

    // ------------------------------------------------------------------------------------------------ life and death

    /// Waits until the guest has taken `steps` more steps.
    #[track_caller]
    pub fn advance(&self, steps: u64) {
        let until = self.step() + steps;
        self.wait(&format!("it has taken {until} steps"), |job| job.step() >= until);
    }

    /// Tells a guest that acts on demand to do action `number`, and waits until it is done.
    #[track_caller]
    pub fn go(&self, number: u64) {
        File::create(self.dir().join(format!("go.{number}"))).expect("the go file");
        self.wait(&format!("action {number} is done"), |job| job.step() >= number);
    }

    /// Holds the job with a resident controller (`cr attach`, with an interval so long that only asked-for checkpoints are taken).
    #[track_caller]
    pub fn attach(&mut self, env: &[(&str, &str)]) {
        self.attach_every("1h", env);
    }

    /// The same with an interval.
    #[track_caller]
    pub fn attach_every(&mut self, interval: &str, env: &[(&str, &str)]) {
        let mut command = self.cr("attach");
        command.arg(self.pid.to_string()).args(["--interval", interval]);
        command.envs(env.iter().copied());
        self.controller = Some(self.spawn(&mut command, Stdio::null()));
    }

    /// Waits until the controller listens, or has ended.
    #[track_caller]
    pub fn wait_for_controller(&mut self) {
        let start = Instant::now();
        while !self.store().join("control.sock").exists() && start.elapsed() < LIMIT {
            let controller = self.controller.as_mut().expect("a controller was started");
            if controller.try_wait().expect("wait for the controller").is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the resident controller with SIGKILL; the job goes on.
    pub fn kill_controller(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            let _ = controller.kill();
            let _ = controller.wait();
        }
    }

    /// The living processes of the job.
    pub fn processes(&self) -> Vec<i32> {
        Tree::default().find(self.pid, &self.mark())
    }

    /// Ends the controller and every process of the job with SIGKILL and waits until all their pids are free.
    #[track_caller]
    pub fn kill(&mut self) {
        self.kill_controller();
        let had_verdict = self.read_link("result").is_some();
        let tree = Tree::kill(self.pid, &self.mark());
        if let Some(mut job) = self.process.take() {
            let _ = job.wait();
        }
        tree.wait_until_gone();
        if !had_verdict {
            // Some outlive others for a moment, and what they say of that is no verdict: a stopped process goes on when its parent dies.
            let _ = fs::remove_file(self.dir().join("result"));
        }
        self.after_death();
    }

    /// Takes a checkpoint with `--kill` and more arguments; it must succeed, and then job and controller are gone.
    #[track_caller]
    pub fn checkpoint_and_kill(&mut self, args: &[&str]) {
        let mut tree = Tree::default();
        tree.find(self.pid, &self.mark());
        let finished = run(self.checkpoint_command().arg("--kill").args(args));
        assert!(finished.code == Some(0), "cr checkpoint --kill failed\n{finished}\n{}", self.diagnosis());
        for (what, child) in [("the job", self.process.take()), ("its controller", self.controller.take())] {
            let Some(mut child) = child else { continue };
            wait_until(&format!("{what} has ended"), || child.try_wait().is_ok_and(|status| status.is_some()));
        }
        tree.wait_until_gone();
        self.after_death();
    }

    /// Tells the guest to finish, without waiting for it.
    pub fn let_finish(&self) {
        File::create(self.dir().join("finish")).expect("the finish file");
    }

    /// Sets the steps shown back, so that a restored guest is seen to step.
    #[track_caller]
    pub fn after_death(&self) {
        wait_until("the killed job's pid is free", || self.pid == 0 || !process_exists(self.pid));
        if let Ok(step) = OpenOptions::new().write(true).open(self.dir().join("step")) {
            step.set_len(0).expect("the step file is set back");
        }
    }

    /// Restores the newest checkpoint with a controller that stays, and waits until the guest steps.
    #[track_caller]
    pub fn restore(&mut self) {
        self.restore_with(&[]);
    }

    /// The same with more arguments for `cr restore`.
    #[track_caller]
    pub fn restore_with(&mut self, args: &[&str]) {
        let mut command = self.cr("restore");
        command.args(args);
        self.controller = Some(self.spawn(&mut command, Stdio::null()));
        let start = Instant::now();
        while self.step() == 0 {
            let controller = self.controller.as_mut().expect("just spawned");
            let ended = controller.try_wait().expect("wait for cr restore");
            // A short-lived job may have finished already.
            if ended.is_some_and(|status| status.success()) && self.read_link("result").is_some() {
                break;
            }
            assert!(
                ended.is_none() && start.elapsed() < LIMIT,
                "cr restore of {}: {}\n{}",
                self.name,
                ended.map_or("the job does not step".into(), |status| status.to_string()),
                self.diagnosis()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of a program that ends by itself.
    #[track_caller]
    pub fn wait_for_end(&mut self) {
        wait_until("the program has ended", || {
            let reaped =
                self.process.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            reaped || !process_exists(self.pid)
        });
        self.verdict_seen = true;
    }

    /// `cr run --resume` of the guest that was started under a controller with these options, and waits until it steps.
    #[track_caller]
    pub fn resume(&mut self, options: &JobOptions) {
        let interval = options.controller.as_deref().expect("it was started under a controller");
        let mut command = self.cr("run");
        command.args(["--interval", interval]).args(&options.controller_args).args(["--resume", "--"]);
        command.arg(guest(&self.name));
        if self.name == "solver" {
            command.arg("--dir");
        }
        command.arg(self.dir()).args(&options.args);
        self.controller = Some(self.spawn(&mut command, Stdio::null()));
        self.wait("the resumed job steps", |job| job.step() > 0);
    }

    /// Restores the newest checkpoint and leaves the job to itself.
    #[track_caller]
    pub fn restore_detached(&mut self) {
        let finished = run(self.cr("restore").args(["--detach", "--json"]));
        assert!(finished.code == Some(0), "cr restore failed\n{finished}\n{}", self.diagnosis());
        assert!(finished.json()["pid"] == self.pid, "restored under another pid\n{finished}");
    }

    /// Tells the guest to finish; its verdict must be "ok", and its exit code and its controller's 0.
    #[track_caller]
    pub fn finish(&mut self) {
        self.let_finish();
        self.wait("it has a verdict", |job| job.read_link("result").is_some());
        self.expect_ok();
        wait_until("the job has ended", || match (&mut self.process, &mut self.controller) {
            (Some(child), _) | (None, Some(child)) => child.try_wait().expect("wait for the job").is_some(),
            (None, None) => !process_exists(self.pid),
        });
        for (what, child) in [("the job", self.process.take()), ("its controller", self.controller.take())] {
            if let Some(mut child) = child {
                let start = Instant::now();
                while child.try_wait().expect("wait for a child").is_none() && start.elapsed() < LIMIT {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let status = child.try_wait().expect("wait for a child");
                let said = self.diagnosis();
                assert!(status.is_some_and(|status| status.success()), "{what} ended with {status:?}\n{said}");
            }
        }
    }

    #[track_caller]
    fn expect_ok(&mut self) {
        self.verdict_seen = true;
        let verdict = self.read_link("result").unwrap_or_default();
        assert!(verdict == "ok", "{}: {verdict}\n{}", self.name, self.diagnosis());
        let said =
            (0..self.spawned).filter_map(|number| fs::read_to_string(self.dir().join(format!("err.{number}"))).ok());
        let has_defect = said.into_iter().any(|text| text.to_lowercase().contains("this is a defect of cr"));
        assert!(has_defect == self.defect_wanted, "cr says that it is defect: {has_defect}\n{}", self.diagnosis());
        for entry in fs::read_dir(self.dir()).expect("the guest's folder").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(part) = name.strip_prefix("skipped.") {
                note_skip(&format!("{}: {part}: {}", self.name, self.read_link(&name).unwrap_or_default()));
            }
        }
    }

    /// The test makes `cr` say of itself that it is defect, which is a failure otherwise.
    pub fn want_defect(&mut self) {
        self.defect_wanted = true;
    }

    /// Waits until `done`; a verdict of failure or the time limit ends the test with all there is to know.
    #[track_caller]
    pub fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let verdict = self.read_link("result");
            let failed = verdict.as_ref().is_some_and(|verdict| verdict != "ok");
            assert!(
                !failed && start.elapsed() < LIMIT,
                "{}: waiting until {what}: {}\n{}",
                self.name,
                verdict.unwrap_or_else(|| "time is up".into()),
                self.diagnosis()
            );
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// What everybody said so far, for a failed test.
    pub fn diagnosis(&self) -> String {
        let mut text = format!("-- {} (pid {}), step {}\n", self.name, self.pid, self.step());
        if let Some(verdict) = self.read_link("result") {
            let _ = writeln!(text, "-- verdict: {verdict}");
        }
        let controller = self.controller.as_ref().map(|c| c.id().cast_signed());
        for (who, pid) in [("root", Some(self.pid)), ("controller", controller)] {
            let Some(pid) = pid else { continue };
            let (state, ended) = state_of(pid);
            let _ = writeln!(text, "-- {who} {pid}: {state}, ended with {ended} (as for waitpid)");
        }
        let mut files: Vec<_> = (0..self.spawned)
            .flat_map(|number| [self.dir().join(format!("out.{number}")), self.dir().join(format!("err.{number}"))])
            .collect();
        files.push(self.store().join("log.jsonl"));
        for file in files {
            let said = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
            if !said.is_empty() {
                let tail = said.char_indices().rev().nth(2000).map_or(0, |(at, _)| at);
                let _ = writeln!(text, "-- {}:\n{}", file.display(), &said[tail..]);
            }
        }
        text
    }
}

/// State and exit status of a process: fields 3 and 52 of proc(5).
fn state_of(pid: i32) -> (String, String) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split_whitespace().collect();
    let field = |n: usize| fields.get(n - 3).map_or_else(|| "gone".to_owned(), |field| (*field).to_owned());
    (field(3), field(52))
}

impl Drop for Job {
    fn drop(&mut self) {
        self.kill_controller();
        // The pid of a job that gave its verdict may be another's by now; what it left behind is found by its mark.
        let root = if self.verdict_seen { 0 } else { self.pid };
        let tree = Tree::kill(root, &self.mark());
        if let Some(mut job) = self.process.take() {
            let _ = job.kill();
            let _ = job.wait();
        }
        // A second panic would hide the first.
        if !std::thread::panicking() {
            tree.wait_until_gone();
        }
    }
}

/// One checkpoint, as `cr list --json` and `cr checkpoint --json` describe it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The number of its file in the store.
    pub id: u64,
    /// A delta on its parent, or full.
    pub is_delta: bool,
    /// The id of the checkpoint that it builds on.
    pub parent: Option<u64>,
    /// Pages found dirty.
    pub dirty_pages: u64,
    /// Pages stored.
    pub stored_pages: u64,
    /// Size of its file in bytes.
    pub stored_bytes: u64,
    /// How long the job was frozen, in milliseconds.
    pub frozen_ms: f64,
    /// The job's pid.
    pub pid: i32,
    /// Why the question for dirty pages had to be widened.
    pub widened: Vec<String>,
}

impl Checkpoint {
    /// Reads the JSON of one.
    #[track_caller]
    pub fn parse(json: &Value) -> Self {
        let number = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {json}"));
        let kind = json["kind"].as_str().unwrap_or_default();
        assert!(kind == "full" || kind == "delta", "no kind in {json}");
        for time in ["frozen_ms", "total_ms"] {
            assert!(json[time].as_f64().is_some_and(|ms| ms >= 0.0), "no {time} in {json}");
        }
        assert!(json["taken_at"].is_string(), "no taken_at in {json}");
        Self {
            id: number("id"),
            is_delta: kind == "delta",
            parent: json["parent"].as_u64(),
            dirty_pages: number("dirty_pages"),
            stored_pages: number("stored_pages"),
            stored_bytes: number("stored_bytes"),
            frozen_ms: json["frozen_ms"].as_f64().unwrap_or_default(),
            pid: i32::try_from(number("pid")).expect("a pid"),
            widened: json["widened"]
                .as_array()
                .unwrap_or_else(|| panic!("no array widened in {json}"))
                .iter()
                .map(|reason| reason.as_str().unwrap_or_default().to_owned())
                .collect(),
        }
    }

    /// Panics unless it is a delta on `parent`.
    #[track_caller]
    pub fn expect_delta_on(&self, parent: &Self) -> &Self {
        assert!(self.is_delta && self.parent == Some(parent.id), "expected a delta on {}, got {self:?}", parent.id);
        self
    }
}

/// Whether a process, or what is left of it before it is waited for, has this pid.
pub fn process_exists(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

/// Waits until `done`, for at most [`LIMIT`].
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waiting until {what}: time is up");
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// For tests that look at how `cr` itself ended.
impl Job {
    /// Runs `cr restore --detach` with more arguments, without any expectation.
    pub fn try_restore(&self, args: &[&str]) -> Finished {
        run(self.cr("restore").args(["--detach", "--json"]).args(args))
    }
}
