//! `--passphrase`: typed at a terminal, where it is not shown, and nowhere else to be seen either.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use cr_tests::{Job, close_inherited, cr, run, wait_until};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{LocalFlags, tcgetattr};

const WORDS: &str = "correct horse battery";
const OTHER: &str = "incorrect horse";
const GUEST: [&str; 4] = ["--mib", "2", "--rate", "20"];
const FIRST: &str = "Passphrase of ";
const AGAIN: &str = "The same again: ";

/// A program on a terminal of its own, at which we sit.
struct AtTerminal {
    master: File,
    child: Child,
    /// What the terminal shows.
    shown: Arc<Mutex<Vec<u8>>>,
}

/// How it ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    shown: String,
}

impl AtTerminal {
    fn start(command: &Command) -> Self {
        close_inherited();
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other end");
        let name = ptsname_r(&master).expect("its name");
        let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name);
        // It executes in place: the child is no group leader.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty").arg(command.get_program()).args(command.get_args());
        let child = on_terminal
            .stdin(slave.expect("the other end"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setsid");
        let master = File::from(std::os::fd::OwnedFd::from(master));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, to) = (master.try_clone().expect("a descriptor"), shown.clone());
        thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                to.lock().expect("no panic").extend_from_slice(&bytes[..n]);
            }
        });
        Self { master, child, shown }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no panic")).into_owned()
    }

    /// Waits until it is asked for, and not shown, and types a line.
    #[track_caller]
    fn answer(&mut self, prompt: &str, line: &str) {
        let is_hidden = || tcgetattr(&self.master).is_ok_and(|mode| !mode.local_flags.contains(LocalFlags::ECHO));
        wait_until(&format!("it asks `{prompt}`"), || self.shown().contains(prompt) && is_hidden());
        self.master.write_all(format!("{line}\n").as_bytes()).expect("typing");
    }

    /// Neither of what everybody on the machine sees of a process holds the words.
    #[track_caller]
    fn expect_hidden(&self, words: &str) {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{}/{file}", self.child.id())).expect("it runs");
            assert!(!bytes.is_empty(), "{file} of a process that has ended");
            let bytes = String::from_utf8_lossy(&bytes).into_owned();
            assert!(!bytes.contains(words), "{file} holds the passphrase: {bytes:?}");
        }
    }

    /// Waits for its end. What was typed has not been shown.
    #[track_caller]
    fn end(mut self) -> Ended {
        wait_until("it has ended", || self.child.try_wait().expect("wait").is_some());
        let status = self.child.wait().expect("wait");
        let text = |from: &mut dyn Read| {
            let mut text = String::new();
            from.read_to_string(&mut text).expect("UTF-8");
            text
        };
        let ended = Ended {
            code: status.code().or(status.signal().map(|signal| 128 + signal)),
            stdout: text(self.child.stdout.as_mut().expect("piped")),
            stderr: text(self.child.stderr.as_mut().expect("piped")),
            shown: self.shown(),
        };
        for all in [&ended.shown, &ended.stdout, &ended.stderr] {
            assert!(!all.contains("horse"), "the passphrase is shown: {all:?}");
        }
        ended
    }
}

impl Ended {
    #[track_caller]
    fn expect(&self, code: i32) -> &Self {
        let Self { stdout, stderr, shown, .. } = self;
        assert!(self.code == Some(code), "{:?}, not {code}\n{stdout}\n{stderr}\n{shown:?}", self.code);
        self
    }

    /// The exit code of what is wrong with keys, and one sentence.
    #[track_caller]
    fn refuses(&self, words: &str) {
        self.expect(119);
        let stderr = self.stderr.trim();
        assert!(stderr.lines().count() == 1 && stderr.starts_with("cr: ") && stderr.contains(words), "{stderr:?}");
    }
}

fn checkpoint(job: &Job, store: &Path) -> AtTerminal {
    let pid = job.pid().to_string();
    AtTerminal::start(cr().args(["checkpoint", &pid, "--passphrase", "--json", "--store"]).arg(store))
}

#[test]
fn a_store_is_made_and_opened_with_what_is_typed() {
    let mut job = Job::start("writer", &GUEST);
    let store = job.store();
    let mut making = checkpoint(&job, &store);
    making.answer(&format!("{FIRST}{}: ", store.display()), WORDS);
    making.answer(AGAIN, WORDS);
    assert!(making.end().expect(0).stdout.contains("\"id\":1"));
    run(&mut job.cr("list")).refuses(119, &["is sealed: give its key by"]);
    job.advance(3);

    // It is there now, and a mistake would be noticed.
    let mut next = checkpoint(&job, &store);
    next.answer(FIRST, WORDS);
    let next = next.end();
    assert!(next.expect(0).stdout.contains("\"id\":2") && !next.shown.contains(AGAIN), "{:?}", next.shown);
    job.kill();

    let restore = || AtTerminal::start(job.cr("restore").args(["--passphrase", "--detach"]));
    let mut wrong = restore();
    wrong.answer(FIRST, OTHER);
    wrong.end().refuses("does not open with this passphrase: it was sealed with another passphrase");
    assert!(!Path::new(&format!("/proc/{}", job.pid())).exists(), "something was started");
    let mut right = restore();
    right.answer(FIRST, WORDS);
    right.end().expect(0);
    job.advance(3);
    job.finish();
}

#[test]
fn a_mistyped_passphrase_makes_no_store() {
    let mut job = Job::start("writer", &GUEST);
    let store = job.store();
    let mut making = checkpoint(&job, &store);
    making.answer(FIRST, WORDS);
    making.answer(AGAIN, OTHER);
    making.end().refuses("the two were not the same");
    let mut making = checkpoint(&job, &store);
    making.answer(FIRST, "");
    making.end().refuses("nothing was typed");
    assert!(!store.exists(), "something was made");
    // Who only reads makes none, and is asked once.
    let mut listing = AtTerminal::start(job.cr("list").arg("--passphrase"));
    listing.answer(FIRST, WORDS);
    let listed = listing.end();
    assert!(listed.expect(122).stderr.contains("is not a checkpoint store"), "{}", listed.stderr);
    // With nobody to ask.
    let mut alone = Command::new("setsid");
    alone.arg(cr().get_program()).args(["list", "--passphrase", "--store"]).arg(&store);
    run(&mut alone).refuses(119, &["no passphrase: ", "where there is no terminal"]);
    job.advance(1);
    job.finish();
}

#[test]
fn what_is_typed_is_on_no_command_line_and_in_no_environment() {
    let mut job = Job::start("writer", &GUEST);
    let mut making = checkpoint(&job, &job.store());
    making.answer(FIRST, WORDS);
    wait_until("it asks again", || making.shown().contains(AGAIN));
    // It has the words, and waits.
    making.expect_hidden(WORDS);
    making.answer(AGAIN, WORDS);
    making.end().expect(0);
    job.finish();
}
