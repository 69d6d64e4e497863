//! Debian's `redis-server` under load, checkpointed, killed and restored: its clients are outside of the job, go on without an error,
//! and find every key that was acknowledged.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use cr_tests::{Job, LIMIT, Network, run, skip, wait_until};

const ADDRESS: &str = "127.0.0.1:6379";
const CLIENTS: u64 = 8;
/// Keys of one client; it writes them again and again, with a value that says which round it is.
const KEYS: u64 = 4000;
/// Commands that are sent together; the next ones are sent before the answers to these are read.
const BATCH: u64 = 50;

/// One connection that speaks RESP, redis's protocol.
struct Client {
    reader: BufReader<TcpStream>,
    name: u64,
}

impl Client {
    fn connect(name: u64) -> Self {
        let stream = TcpStream::connect(ADDRESS).expect("a connection to redis");
        // A broken restore shall fail, not hang.
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        stream.set_write_timeout(Some(LIMIT)).expect("a time limit");
        Self { reader: BufReader::new(stream), name }
    }

    fn key(&self, number: u64) -> String {
        format!("client:{}:{}", self.name, number % KEYS)
    }

    fn value(&self, number: u64) -> String {
        format!("{}-{number}-{}", self.name, "x".repeat((number % 200) as usize))
    }

    fn send(&mut self, commands: &[Vec<String>]) {
        let mut bytes = Vec::new();
        for words in commands {
            write!(bytes, "*{}\r\n", words.len()).expect("memory");
            for word in words {
                write!(bytes, "${}\r\n{word}\r\n", word.len()).expect("memory");
            }
        }
        self.reader.get_mut().write_all(&bytes).expect("send to redis");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).expect("an answer of redis");
        assert!(
            length > 0 && line.ends_with("\r\n"),
            "client {}: redis ended the connection after {line:?}",
            self.name
        );
        line.trim_end().to_owned()
    }

    /// The answer to a SET.
    fn expect_ok(&mut self) {
        assert_eq!(self.line(), "+OK", "client {}", self.name);
    }

    /// The answer to a GET.
    fn string(&mut self) -> Option<String> {
        let head = self.line();
        let length: i64 =
            head.strip_prefix('$').and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{head:?} for a string"));
        let length = usize::try_from(length).ok()?;
        let mut text = vec![0; length + 2];
        self.reader.read_exact(&mut text).expect("a string of redis");
        text.truncate(length);
        Some(String::from_utf8(text).expect("what was sent was UTF-8"))
    }

    fn send_batch(&mut self, first: u64) {
        let set = |n| vec!["SET".into(), self.key(n), self.value(n)];
        let mut commands: Vec<Vec<String>> = (first..first + BATCH).map(set).collect();
        // One that was written long ago, and one of this very batch.
        commands.extend([vec!["GET".into(), self.key(first / 2)], vec!["GET".into(), self.key(first)]]);
        self.send(&commands);
    }

    /// What a key holds after all before `next` were set.
    fn newest(&self, key: u64, next: u64) -> Option<String> {
        let rounds = (next + KEYS - 1 - key % KEYS) / KEYS;
        rounds.checked_sub(1).map(|round| self.value(round * KEYS + key % KEYS))
    }

    fn read_batch(&mut self, first: u64) {
        for _ in 0..BATCH {
            self.expect_ok();
        }
        for key in [first / 2, first] {
            let (got, expected) = (self.string(), self.newest(key, first + BATCH));
            assert_eq!(got, expected, "client {}: {} in batch {first}", self.name, self.key(key));
        }
    }

    /// Sets keys without pause until it is told to stop; returns how many were acknowledged.
    fn work(mut self, stop: &AtomicBool, acknowledged: &AtomicU64) -> u64 {
        let mut next = 0;
        self.send_batch(next);
        while !stop.load(Ordering::Relaxed) {
            self.send_batch(next + BATCH);
            self.read_batch(next);
            next += BATCH;
            acknowledged.fetch_add(BATCH, Ordering::Relaxed);
        }
        self.read_batch(next);
        next + BATCH
    }
}

struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: Vec<JoinHandle<u64>>,
}

impl Load {
    /// Threads of this test: they are in its network, and not in the job.
    fn start() -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |name| {
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            let client = Client::connect(name);
            thread::spawn(move || client.work(&stop, &acknowledged))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, acknowledged, clients }
    }

    /// Waits until the clients have had answers to many more commands.
    #[track_caller]
    fn advance(&self) {
        let until = self.acknowledged.load(Ordering::Relaxed) + CLIENTS * BATCH * 20;
        wait_until("the clients of redis go on", || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client of redis failed");
            self.acknowledged.load(Ordering::Relaxed) >= until
        });
    }

    /// Ends the clients; each must have ended well, and every key must be there.
    #[track_caller]
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for (name, client) in self.clients.into_iter().enumerate() {
            let next = client.join().expect("a client of redis without an error");
            let mut reader = Client::connect(name as u64);
            for key in 0..KEYS {
                let get = vec!["GET".into(), reader.key(key)];
                reader.send(&[get]);
                let (got, expected) = (reader.string(), reader.newest(key, next));
                assert_eq!(got, expected, "{} after {next} acknowledged keys", reader.key(key));
            }
        }
    }
}

/// Starts the server in the test's network, and waits until it answers.
#[track_caller]
fn start_server() -> Job {
    let mut server = Command::new("setsid");
    server.args(["redis-server", "--port", "6379", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let job = Job::start_foreign("redis-server", &mut server);
    job.wait("redis listens", |_| TcpStream::connect(ADDRESS).is_ok());
    job
}

#[test]
fn checkpointed_under_load_killed_and_restored() {
    if run(Command::new("sh").args(["-c", "command -v redis-server"])).code != Some(0) {
        skip!("no redis-server; `cargo xtask setup` installs it");
    }
    let Some(network) = Network::own() else { return };
    let mut job = start_server();
    let load = Load::start();
    load.advance();
    job.attach(&[]);
    job.wait_for_controller();
    job.checkpoint();
    for _ in 0..4 {
        sleep(Duration::from_millis(500));
        job.checkpoint();
        load.advance();
    }
    for round in 0..3 {
        job.checkpoint_and_kill(&[]);
        sleep(Duration::from_secs(round));
        job.restore_detached();
        load.advance();
        job.checkpoint();
        load.advance();
    }
    load.finish();
    Client::connect(0).send(&[vec!["SHUTDOWN".into(), "NOSAVE".into()]]);
    job.wait_for_end();
    job.verify();
    network.expect_no_rules();
}
